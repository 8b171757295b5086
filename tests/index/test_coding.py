"""Versions whose views have codecs: written, searched, carried on, chosen anew, and guarded."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

from index import coding, disk, recall
from index.choosing import choose
from index.codec import IndexConfig, read_codec, read_index_config, train, write_codec
from index.compacting import compact, reindex
from index.errors import GpuUnavailable, VersionCorrupt
from index.filtering import Filter
from index.manifest import read_head, read_manifest, write_head
from index.probing import Effort
from index.versions import Version, current_number, open_version, verify
from tests.index.conftest import Builder, write_cutout

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS, DIM, SEGMENTS = 12_000, 32, (7_000, 4_500, 500)
SMALL = IndexConfig(exact_rows=5_000)


@pytest.fixture(scope="module", autouse=True)
def _measured_by_few() -> Iterator[None]:
    """Curves of fewer efforts on fewer queries: as many as in production take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coding, "NUM_QUERIES", 96)
        patch.setattr(recall, "NUM_TIMED", 2)
        few = [Effort(probes, depth) for depth in (2, 8) for probes in (4, 16, 64, 256)]
        patch.setattr(recall, "EFFORTS", tuple(few))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        writer = importlib.import_module("synthetic_sky")
        vectors = importlib.import_module("synthetic_vectors")
        sky = tmp_path_factory.mktemp("coded") / "sky"
        writer.write_sky(sky, vectors.Population(dim=DIM), segment_rows=list(SEGMENTS), index=SMALL)
        np.save(sky.parent / "queries.npy", vectors.Population(dim=DIM).queries(200))
        yield sky


@pytest.fixture(scope="module")
def version(made: Path) -> Version:
    return open_version(made)


@pytest.fixture(scope="module")
def queries(made: Path) -> ndarray:
    loaded: ndarray = np.load(made.parent / "queries.npy")
    return loaded


@pytest.fixture
def sky(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "sky"))


def recall_of(
    version: Version, queries: ndarray, *, k: int = 10, chosen: Filter | None = None
) -> float:
    found = version.search(queries, view="image", k=k, chosen=chosen).keys
    exact = version.search(queries, view="image", k=k, chosen=chosen, recall=1).keys
    shares = [
        len(set(some) & set(true) - {-1}) / len(set(true) - {-1})
        for some, true in zip(found.tolist(), exact.tolist(), strict=True)
    ]
    return float(np.mean(shares))


def test_segments_above_the_threshold_are_coded_and_small_ones_are_not(version: Version) -> None:
    (codec,) = version.manifest.codecs
    hashes = [live.segment.codec_hash for live in version.segments]

    assert [live.segment.num_rows for live in version.segments] == list(SEGMENTS)
    assert hashes[0] == hashes[1]
    assert hashes[0] is not None
    assert hashes[0].startswith(codec.name.removeprefix("image-"))
    assert hashes[2] is None


def test_the_recall_of_the_manifest_is_that_of_searches(version: Version, queries: ndarray) -> None:
    assert version.manifest.recall is not None
    assert version.manifest.recall >= 0.98
    # some hundred queries of ten neighbours: a standard error below 0.006
    assert recall_of(version, queries) == pytest.approx(version.manifest.recall, abs=0.02)


@pytest.mark.parametrize("k", [10, 100])
def test_sums_and_differences_of_seeds_are_found_as_well(
    version: Version, queries: ndarray, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (50, 6))
    aims = np.einsum("ij,ijd->id", signs, queries[rng.integers(200, size=(50, 6))])

    assert recall_of(version, aims.astype(np.float32) * 7, k=k) >= 0.95
    assert recall_of(version, queries[:50], k=k) >= 0.95


def test_a_device_gives_the_exact_answer_of_the_sky(
    made: Path, version: Version, queries: ndarray
) -> None:
    """By torch, on the CPU under another name; one-bit codes are not searched on a device."""
    elsewhere = open_version(made, device="cpu:0")
    assert [live.segment.on_device for live in elsewhere.segments] == [True, True, False]
    for where in (None, "cluster_share < 0.3"):
        found, expected = (
            each.search(
                queries[:40], view="image", k=10, recall=1, chosen=choose(each, where=where)
            )
            for each in (elsewhere, version)
        )
        np.testing.assert_array_equal(found.keys, expected.keys)
        np.testing.assert_array_equal(found.scores, expected.scores)
    with pytest.raises(GpuUnavailable):
        open_version(made, device="cuda:99")


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.002])
@pytest.mark.parametrize("name", ["random_share", "cluster_share"])
def test_filters_keep_recall(version: Version, queries: ndarray, name: str, share: float) -> None:
    chosen = choose(version, where=f"{name} < {share}")

    assert recall_of(version, queries[:100], chosen=chosen) >= 0.95
    found = version.search(queries[:20], view="image", k=10, chosen=chosen).keys
    assert np.isin(found, version.where(f"{name} < {share}")).all()


def test_a_filter_is_made_once(version: Version) -> None:
    where, cone = "random_share < 0.3", (0.5, 0.5, 900.0)

    assert choose(version, where=where) is choose(version, where=where)
    both = choose(version, where=where, cone=cone)
    assert both.allowed is not None
    keys = np.intersect1d(version.where(where), version.in_cone(*cone)[0])
    assert np.flatnonzero(both.allowed).tolist() == keys.tolist()


def test_excluded_objects_are_never_found(version: Version, queries: ndarray) -> None:
    free = version.search(queries, view="image", k=30, recall=1)
    for num in (3, 1500):  # few are dropped, many are filtered
        excluded = np.unique(free.keys[:, :10])[:num]
        found = version.search(queries, view="image", k=5, exclude=excluded, recall=1)
        for i, line in enumerate(free.keys.tolist()):
            expected = [key for key in line if key not in set(excluded.tolist())][:5]
            assert found.keys[i, : len(expected)].tolist() == expected


def test_codecs_are_chosen_anew_without_embedding(sky: Path, queries: ndarray) -> None:
    before = open_version(sky)
    manifest = reindex(sky, IndexConfig(kind="sq8", exact_rows=5_000, indexed_rows=100))
    after = open_version(sky)

    assert (manifest.number, current_number(sky)) == (2, 2)
    assert read_head(sky).index.kind == "sq8"
    assert manifest.codecs != before.manifest.codecs
    assert all(live.segment.codec_hash is not None for live in after.segments)
    assert recall_of(after, queries) >= 0.97
    exact = [each.search(queries, view="image", k=10, recall=1) for each in (before, after)]
    np.testing.assert_array_equal(exact[0].keys, exact[1].keys)
    np.testing.assert_array_equal(exact[0].scores, exact[1].scores)
    inodes = [
        {(live.segment.folder / "vectors.npy").stat().st_ino for live in each.segments}
        for each in (before, after)
    ]
    assert inodes[0] == inodes[1]  # a link, no copy
    assert verify(sky).problems == ()


def test_verify_measures_recall_again(sky: Path) -> None:
    report = verify(sky)
    manifest = read_manifest(sky, 1)
    (curve,) = manifest.curves

    assert report.problems == ()
    assert report.recall["image"] == pytest.approx(curve.recall_at_10(0.98), abs=0.02)
    as_told = {"num_probes": 1, "depth": 1, "recall_at_10": 0.99, "error_at_10": 0.0}
    poor = curve.rows[0].model_copy(update=as_told)
    lost = manifest.model_copy(update={"curves": (curve.model_copy(update={"rows": (poor,)}),)})
    disk.write_json(sky / "versions/1/manifest.json", lost.model_dump(mode="json"))
    (problem,) = verify(sky).problems
    assert "recall@10 of view image was 0.9900" in problem.reason


def test_a_sky_may_be_told_to_search_exactly(sky: Path, queries: ndarray) -> None:
    manifest = reindex(sky, IndexConfig(exact_rows=20_000))

    assert (manifest.codecs, manifest.curves, manifest.recall) == ((), (), None)
    assert recall_of(open_version(sky), queries) == 1


def test_codes_that_do_not_fit_are_refused_and_all_stays(sky: Path) -> None:
    head = read_head(sky)
    with pytest.raises(ValueError, match=r"codes of 12,000 vectors take 0\.00 GiB"):
        reindex(sky, IndexConfig(exact_rows=5_000, memory_gib=1e-6))
    assert current_number(sky) == 1
    assert read_head(sky) == head


def test_an_index_from_elsewhere_is_not_loaded(sky: Path) -> None:
    """Not even with a segment.json that holds its checksum."""
    folder = open_version(sky).segments[0].segment.folder
    index = folder / "index.faiss"
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(VersionCorrupt, match=r"index\.faiss: its content has changed"):
        open_version(sky).segments[0].segment.lists  # noqa: B018
    head = {**disk.read_json(folder / "segment.json")}
    files = head["files"]
    assert isinstance(files, dict)
    disk.write_json(
        folder / "segment.json", {**head, "files": {**files, index.name: disk.described(index)}}
    )
    with pytest.raises(VersionCorrupt, match=r"segment\.json"):
        open_version(sky)


def test_a_codec_from_elsewhere_is_not_loaded(sky: Path) -> None:
    """Whole by its own checksum, and of the same size: still not the one written down."""
    (written,) = open_version(sky).manifest.codecs
    folder = sky / "codecs" / written.name
    own = read_codec(folder)
    other = train(open_version(sky).segments[0].segment.vectors(slice(None)), own.config)
    assert other.digest != own.digest
    shutil.rmtree(folder)
    (folder.parent / write_codec(folder.parent, "image", other)).rename(folder)

    with pytest.raises(VersionCorrupt, match=r"codec\.json: its content has changed"):
        reindex(sky)


def test_builds_carry_a_codec_on_until_it_is_outgrown(
    tmp_path: Path, into: Builder, queries: ndarray
) -> None:
    sky, folder = tmp_path / "sky", tmp_path / "cutouts"
    for number in range(4):
        write_cutout(folder / f"{number}.fits", number, position=(10.0 + number, 2.0))
    into(sky, folder, "legacysurvey")
    head = read_head(sky)
    index = IndexConfig(exact_rows=10, indexed_rows=2)
    write_head(sky, head.model_copy(update={"index": index}))

    def add(first: int, last: int) -> Version:
        for number in range(first, last):
            write_cutout(folder / f"{number}.fits", number, position=(10.0 + number, 2.0))
        into(sky, folder, "legacysurvey")
        assert read_head(sky).index == index
        return open_version(sky)

    small = open_version(sky)
    coded, grown, outgrown = add(4, 30), add(30, 33), add(33, 64)

    assert small.manifest.codecs == ()
    assert grown.manifest.codecs == coded.manifest.codecs
    assert grown.manifest.curves[0].num_changed == 3
    assert grown.manifest.curves[0].rows == coded.manifest.curves[0].rows
    assert outgrown.manifest.codecs != coded.manifest.codecs
    assert outgrown.manifest.curves[0].num_rows == 64
    hashes = {(live.segment.view, live.segment.codec_hash) for live in outgrown.segments}
    assert sorted(view for view, _ in hashes) == ["image", "joint"]
    compact(sky)
    together = open_version(sky)
    assert together.manifest.codecs == outgrown.manifest.codecs
    assert [live.segment.num_rows for live in together.segments] == [64, 64]
    for each in (coded, grown, outgrown, together):
        vectors = each.vectors(each.table["object_key"].to_numpy()[:20], "image")
        assert recall_of(each, vectors, k=3) >= 0.9
    assert verify(sky).problems == ()


@pytest.mark.parametrize("k", [300, 1_000, ROWS])
def test_many_results_are_found_as_well(version: Version, queries: ndarray, k: int) -> None:
    found = version.search(queries[:20], view="image", k=k).keys

    assert (found >= 0).all()
    assert recall_of(version, queries[:20], k=k) >= 0.95


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "pq"', "kind"),
        ("exact_row = 5", "unknown key 'exact_row'"),
        ("memory_gib = -1", "memory_gib"),
        ("memory_gib = inf", "memory_gib: .* finite"),  # which no JSON can hold
        ('kind = "rabitq"\ncode_dim = 16', "expected code_dim with kind sq8"),
        ("kind = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "index.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_index_config(file)
    assert str(file) in str(error.value)


def test_manifests_are_json_that_other_programs_read(made: Path) -> None:
    manifest = json.loads((made / "versions/1/manifest.json").read_text())
    (curve,) = manifest["curves"]

    assert curve["rows"][0].keys() == {
        "num_probes", "depth", "recall_at_10", "recall_at_100", "error_at_10", "error_at_100",
        "p50_ms",
    }  # fmt: skip
