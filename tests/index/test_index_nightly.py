"""Nightlies: what comes, changes and goes, what is an outage, and what the gates refuse."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

from index import disk, recall
from index.codec import IndexConfig
from index.comparison import Source, compare
from index.errors import GateRefused, RecallTooLow, SkyBusy, VersionCorrupt
from index.gates import recall_gates
from index.inputs import Input, write_inputs
from index.manifest import read_head, write_head
from index.nightly import nightly
from index.nightly_config import LabelGate, NightlyConfig, SourceConfig, read_nightly
from index.nightly_report import NightlyReport
from index.probing import Effort
from index.pruning import Pruned
from index.recall import Point, RecallCurve
from index.saved_searches import SavedSearch, new_near
from index.versions import (
    Version,
    current_number,
    numbers,
    open_version,
    publish,
    rollback,
    verify,
)
from tests.index.conftest import Builder, write_cutout, write_spectrum
from tests.index.test_index_building import write_crops, write_picture


def config_of(encoder: Path, *sources: tuple[str, Path], **settings: object) -> NightlyConfig:
    """A nightly in this process that removes as much as is gone."""
    defaults: dict[str, object] = {"num_workers": 0, "max_removed_share": 0.5, "keep_days": 0.0}
    places = tuple(SourceConfig(survey=survey, path=str(path)) for survey, path in sources)
    return NightlyConfig(sources=places, encoder=str(encoder), **(defaults | settings))  # type: ignore[arg-type]


def ids(version: Version) -> list[str]:
    return sorted(version.table["object_id"].to_pylist())


def answers(sky: Path) -> dict[str, list[tuple[str, float]]]:
    """What every object finds in every view, by id."""
    version = open_version(sky)
    keys = version.table["object_key"].to_numpy()
    names = dict(zip(keys.tolist(), version.table["object_id"].to_pylist(), strict=True))
    found = {}
    for view in version.views:
        mine: ndarray = keys[version.has_view(keys, view)]
        near = version.search(version.vectors(mine, view), view=view, k=len(keys))
        for key, line, scores in zip(mine.tolist(), near.keys, near.scores, strict=True):
            found[f"{view} {names[key]}"] = sorted(
                (names[each], float(score))
                for each, score in zip(line.tolist(), scores, strict=True)
                if each >= 0
            )
    return found


def same(
    one: dict[str, list[tuple[str, float]]], other: dict[str, list[tuple[str, float]]]
) -> None:
    """Two skies answer alike: the same objects, and scores to what a batch may change of them."""
    assert one.keys() == other.keys()
    for question, found in one.items():
        names, scores = zip(*found, strict=True)
        names_too, scores_too = zip(*other[question], strict=True)
        assert names == names_too
        np.testing.assert_allclose(scores, scores_too, atol=1e-3)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A folder with four cutouts, twice, and a sky after the first night with them."""
    folder = tmp_path_factory.mktemp("begun")
    for seed, name in enumerate(("a", "b", "c", "d")):
        write_cutout(folder / "cutouts" / f"{name}.fits", seed, position=(150 + seed, 2.0))
    shutil.copytree(folder / "cutouts", folder / "as they were")
    nightly(folder / "sky", config_of(encoder, ("legacysurvey", folder / "cutouts")))
    return folder


@pytest.fixture
def cutouts(begun: Path) -> Path:
    """The four cutouts, at the same place and as they were, whatever a test did to them."""
    folder = begun / "cutouts"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(begun / "as they were", folder)  # with their times
    return folder


@pytest.fixture
def sky(begun: Path, tmp_path: Path) -> Path:
    """A sky after the first night with the cutouts."""
    copy = tmp_path / "sky"
    shutil.copytree(begun / "sky", copy)
    return copy


def test_what_is_new_comes_what_changed_changes_and_what_is_gone_goes(
    tmp_path: Path, cutouts: Path, encoder: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    config = config_of(encoder, ("legacysurvey", cutouts))
    first = nightly(sky, config)
    assert (first.outcome, first.version, first.objects_came.num) == ("published", 1, 4)
    write_cutout(cutouts / "b.fits", 70, position=(10.0, 2.0))
    write_cutout(cutouts / "e.fits", 71)
    (cutouts / "c.fits").unlink()
    unreadable = Path(os.fsdecode(os.fsencode(cutouts) + b"/\xff.fits"))  # a name that is not UTF-8
    unreadable.write_bytes(b"")

    report = nightly(sky, config)

    assert (report.outcome, report.version, report.num_embedded) == ("published", 2, 2)
    assert report.files_came.names == (str(cutouts / "e.fits"), str(cutouts / r"\udcff.fits"))
    unreadable.unlink()
    assert report.objects_came.names == ("e",)
    assert report.objects_changed.names == ("b",)
    assert report.objects_went.names == ("c",)
    assert report.files_went.names == (str(cutouts / "c.fits"),)
    assert (report.files_same, report.num_rows_before, report.num_rows) == (2, 8, 8)
    assert ids(open_version(sky)) == ["a", "b", "d", "e"]
    into(tmp_path / "fresh", cutouts, "legacysurvey")
    same(answers(sky), answers(tmp_path / "fresh"))
    assert not verify(sky).problems
    again = nightly(sky, config)
    assert (again.outcome, again.version, numbers(sky)) == ("unchanged", 2, [1, 2])


def test_a_night_without_news_reads_no_table(sky: Path, cutouts: Path, encoder: Path) -> None:
    config = config_of(encoder, ("legacysurvey", cutouts))
    for file in [*sky.glob("segments/*/rows.parquet"), *sky.glob("objects/**/*.parquet")]:
        file.write_bytes(b"?" * file.stat().st_size)  # of the recorded size, but no table

    report = nightly(sky, config)

    assert report.outcome == "unchanged"
    assert "load the encoder" not in report.seconds


def test_more_than_a_share_does_not_go(sky: Path, cutouts: Path, encoder: Path) -> None:
    config = config_of(encoder, ("legacysurvey", cutouts), max_removed_share=0.25)
    for name in "ab":
        (cutouts / f"{name}.fits").unlink()

    with pytest.raises(GateRefused, match=r"removed rows: 4 of 8 rows \(50.00%\), at most 25"):
        nightly(sky, config)

    assert (current_number(sky), numbers(sky), len(ids(open_version(sky)))) == (1, [1], 4)
    document = json.loads((sky / "nightly" / "000002.json").read_text())
    assert (document["outcome"], document["version"]) == ("refused", 1)
    assert "**refused** removed rows" in (sky / "nightly" / "000002.md").read_text()
    assert nightly(sky, replace(config, max_removed_share=0.5)).objects_went.num == 2


def test_a_folder_that_cannot_be_listed_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files may be asked for by name all the same: as of a folder of which nobody may read."""
    file, known = tmp_path / "files" / "a.fits", tmp_path / "inputs.parquet"
    write_cutout(file, 0)
    write_cutout(tmp_path / "files" / "closed" / "b.fits", 1)
    inside = str(tmp_path / "files" / "closed" / "b.fits")
    entry = Input(
        path=inside, survey="legacysurvey", num_bytes=1, modified_ns=1, sha256="", num_rows=1,
        skipped=(),
    )  # fmt: skip
    write_inputs(known, [entry])
    real = os.scandir

    def scandir(path="."):  # type: ignore[no-untyped-def]
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    place = Source(survey="legacysurvey", path=str(tmp_path / "files"))

    found = compare([place], sky=tmp_path / "sky", inputs=known)

    assert not found.gone
    assert [outage.reason for outage in found.outages] == ["cannot be listed: Permission denied"]


@pytest.mark.parametrize("how", ["missing", "empty", "folder below empty", "cannot be asked"])
def test_an_outage_takes_nothing_away(
    tmp_path: Path, cutouts: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    sky, disks = tmp_path / "sky", tmp_path / "disks"
    disks.mkdir()
    cutouts = cutouts.rename(disks / "one")
    write_cutout(disks / "two" / "z.fits", 9)
    source = disks if "below" in how or "asked" in how else cutouts
    config = config_of(
        encoder, ("legacysurvey", source), ("legacysurvey", disks / "two"), max_removed_share=1.0
    )
    nightly(sky, config)
    write_cutout(disks / "two" / "y.fits", 10)
    away = tmp_path / "away"
    if how == "cannot be asked":
        monkeypatch.setattr(os, "stat", _input_output_error_below(cutouts))
        (cutouts / "a.fits").rename(tmp_path / "a.fits")  # not listed, as its state is not known
    else:
        cutouts.rename(away)
        if how != "missing":
            cutouts.mkdir()

    report = nightly(sky, config)

    assert report.outcome == "published"  # the other disk is followed all the same
    assert ids(open_version(sky)) == ["a", "b", "c", "d", "y", "z"]
    assert sum(outage.num_files for outage in report.outages) == (1 if "asked" in how else 4)
    assert (report.objects_came.names, report.objects_went.num) == (("y",), 0)
    monkeypatch.undo()
    if away.exists():
        shutil.rmtree(cutouts, ignore_errors=True)
        away.rename(cutouts)
    else:
        (tmp_path / "a.fits").rename(cutouts / "a.fits")
    back = nightly(sky, config)
    assert (back.outcome, back.outages, back.num_embedded) == ("unchanged", (), 0)


def _input_output_error_below(folder: Path):  # type: ignore[no-untyped-def]
    real = os.stat

    def stat(path, *arguments, **options):  # type: ignore[no-untyped-def]
        if str(path) == str(folder / "a.fits"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *arguments, **options)

    return stat


def test_what_no_source_lists_any_more_goes(tmp_path: Path, cutouts: Path, encoder: Path) -> None:
    sky, more = tmp_path / "sky", tmp_path / "more"
    write_cutout(more / "a.fits", 50)  # left out: a is read from cutouts already
    write_cutout(more / "z.fits", 51)
    both = config_of(encoder, ("legacysurvey", cutouts), ("legacysurvey", more))
    nightly(sky, both)

    one = config_of(encoder, ("legacysurvey", more), max_removed_share=0.9)
    report = nightly(sky, one)

    version = open_version(sky)
    assert ids(version) == ["a", "z"]  # a steps forward from the other file
    assert {Path(each).parent for each in version.live_rows.every["source"].to_pylist()} == {more}
    assert report.objects_went.names == ("b", "c", "d")
    assert report.objects_changed.names == ("a",)


def test_parts_of_a_file_go_unless_reading_it_failed(tmp_path: Path, encoder: Path) -> None:
    sky, file = tmp_path / "sky", tmp_path / "crops.npz"
    config = config_of(encoder, ("composite", file))
    write_crops(file, ["a", "b", "c", "bad"], [1, 2, 3, 0])
    nightly(sky, config)
    write_crops(file, ["a", "worse", "c", "bad"], [1, 0, 3, 0])  # b may be what is bad now

    report = nightly(sky, config)

    assert (report.outcome, report.unclear) == ("unchanged", {str(file): 1})
    write_crops(file, ["a", "c", "new", "bad"], [1, 3, 4, 0])
    report = nightly(sky, config)
    assert (report.outcome, report.unclear) == ("published", {})
    assert ids(open_version(sky)) == ["a", "c", "new"]
    file.write_bytes(b"no zip file at all")
    assert nightly(sky, config).outcome == "unchanged"
    assert ids(open_version(sky)) == ["a", "c", "new"]


def test_a_file_without_a_row_is_read_twice_and_then_left_alone(
    sky: Path, cutouts: Path, encoder: Path
) -> None:
    config = config_of(encoder, ("legacysurvey", cutouts))
    bad = cutouts / "bad.fits"
    bad.write_bytes(b"no FITS file")
    nights = [nightly(sky, config) for _ in range(4)]

    assert [night.outcome for night in nights] == ["unchanged"] * 4
    assert [night.files_came.num for night in nights] == [1, 1, 0, 0]
    told = [[each.file for each in night.skipped] for night in nights]
    assert told == [[str(bad)]] * 4  # read or not, it is listed
    assert "sort out" not in nights[2].seconds  # not even the encoder was loaded
    write_cutout(bad, 80)
    assert nightly(sky, config).objects_came.names == ("bad",)
    assert not nightly(sky, config).skipped
    bad.write_bytes(b"no FITS file again")
    for _ in range(3):  # it had a row, which stays until reading tells more
        assert nightly(sky, config).files_changed.num == 1
    bad.unlink()
    assert nightly(sky, config).objects_went.names == ("bad",)


def test_a_file_that_stands_behind_others_is_read_when_these_change(
    tmp_path: Path, sky: Path, cutouts: Path, encoder: Path
) -> None:
    more = tmp_path / "more"
    write_cutout(more / "a.fits", 50)  # left out: a is read from cutouts already
    config = config_of(encoder, ("legacysurvey", cutouts), ("legacysurvey", more))
    nights = [nightly(sky, config) for _ in range(3)]
    assert [night.files_came.num for night in nights] == [1, 1, 0]
    assert [night.num_skipped for night in nights] == [1, 1, 1]
    (sky / "empty_files.json").write_text("{}")  # damaged: it is a note and no more
    assert nightly(sky, config).files_came.num == 1
    assert nightly(sky, config).files_came.num == 1
    assert nightly(sky, config).files_came.num == 0
    (cutouts / "a.fits").unlink()

    report = nightly(sky, config)

    assert report.files_came.names == (str(more / "a.fits"),)
    assert report.objects_changed.names == ("a",)
    assert ids(open_version(sky)) == ["a", "b", "c", "d"]


def test_a_folder_that_moved_loses_nothing(
    tmp_path: Path, sky: Path, cutouts: Path, encoder: Path
) -> None:
    moved = tmp_path / "moved"
    before = answers(sky)
    cutouts.rename(moved)

    report = nightly(sky, config_of(encoder, ("legacysurvey", moved), max_removed_share=0.0))

    assert (report.outcome, report.objects_went.num, report.num_embedded) == ("published", 0, 0)
    assert answers(sky) == before


def test_an_object_left_by_one_survey_is_as_if_that_had_never_seen_it(
    tmp_path: Path, cutouts: Path, encoder: Path, into: Builder
) -> None:
    sky, spectra = tmp_path / "sky", tmp_path / "spectra"
    (cutouts / "a.fits").rename(cutouts / "123.fits")  # SDSS gives its objects numbers
    write_spectrum(spectra / "s.fits", "123", redshift=0.25)
    write_spectrum(spectra / "t.fits", "777", fiber=2)
    config = config_of(encoder, ("legacysurvey", cutouts), ("sdss", spectra))
    assert nightly(sky, config).num_joint == 1
    (spectra / "s.fits").unlink()

    report = nightly(sky, config)

    assert report.objects_changed.names == ("123",)
    into(tmp_path / "fresh", cutouts, "legacysurvey")
    into(tmp_path / "fresh", spectra, "sdss")
    same(answers(sky), answers(tmp_path / "fresh"))
    line = open_version(sky).table.to_pylist()[0]
    assert (line["object_id"], line["redshift"], line["views"]) == ("123", None, ["image", "joint"])


def test_a_refused_version_is_taken_away(
    tmp_path: Path, sky: Path, cutouts: Path, encoder: Path
) -> None:
    labels = tmp_path / "labels.csv"
    version = open_version(sky)
    order = version.search(version.vectors(np.array([0]), "image"), view="image", k=4).keys[0]
    names = version.objects(order)["object_id"].to_pylist()
    del version
    # the nearest of the first is none of its kind, so no measure gives 1
    labels.write_text(f"object_id,disc\n{names[0]},1\n{names[1]},0\n{names[2]},0\n{names[3]},1\n")
    gate = LabelGate(file=str(labels), label="disc", view="image", max_drop=1.0)
    config = config_of(encoder, ("legacysurvey", cutouts), labels=gate)
    write_cutout(cutouts / "e.fits", 9)
    files = {file for file in sky.rglob("*") if "store" not in file.parts}

    strict = config_of(encoder, ("legacysurvey", cutouts), labels=replace(gate, min_ndcg=1.0))
    with pytest.raises(GateRefused, match="nDCG@10 of disc") as caught:
        nightly(sky, strict)

    assert caught.value.report is not None
    assert caught.value.report["outcome"] == "refused"
    left = {file for file in sky.rglob("*") if "store" not in file.parts} - files
    assert {file.name for file in left} == {"000002.json", "000002.md"}
    assert current_number(sky) == 1
    report = nightly(sky, config)
    assert (report.version, report.num_embedded) == (2, 0)  # the vectors were kept
    measured = {each.name: each.measured for each in report.gates}
    assert 0 < (measured["nDCG@10 of disc"] or 0) < 1


def test_labels_that_cannot_be_measured(
    tmp_path: Path, sky: Path, cutouts: Path, encoder: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("object_id,disc\ne,1\nf,1\n")
    config = config_of(
        encoder, ("legacysurvey", cutouts), labels=LabelGate(file=str(labels), label="disc")
    )
    write_cutout(cutouts / "e.fits", 9)

    with pytest.raises(GateRefused, match="cannot be measured: only one object"):
        nightly(sky, config)

    assert numbers(sky) == [1]
    write_cutout(cutouts / "f.fits", 10)
    report = nightly(sky, config)  # none is in the published version: there is no drop
    texts = {gate.name: gate.text for gate in report.gates}
    assert "published version cannot be measured" in texts["drop of nDCG@10 of disc"]


def test_a_version_that_nobody_measured_is_never_gone_on_from(
    sky: Path, cutouts: Path, encoder: Path, into: Builder
) -> None:
    config = config_of(encoder, ("legacysurvey", cutouts))
    write_cutout(cutouts / "e.fits", 9)
    into(sky, cutouts, "legacysurvey")
    publish(sky, 1)
    (sky / "unproved").write_text("2\n")  # as a nightly killed before its gates leaves it

    with pytest.raises(ValueError, match="was left by a nightly"):
        rollback(sky, 2)
    (sky / "CURRENT").unlink()
    (cutouts / "e.fits").unlink()
    report = nightly(sky, config)

    assert (report.version_before, report.num_objects, report.num_embedded) == (1, 4, 0)
    assert numbers(sky) == [1]
    assert not (sky / "unproved").exists()
    assert not verify(sky).problems


@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_version_ends_the_night_where_it_counts(
    sky: Path, cutouts: Path, encoder: Path, number: int
) -> None:
    config = config_of(encoder, ("legacysurvey", cutouts), keep_versions=1)
    reader = open_version(sky)  # keeps it from being pruned
    write_cutout(cutouts / "e.fits", 9)
    assert nightly(sky, config).pruned == Pruned((), (1,), 0, 0)
    write_cutout(cutouts / "f.fits", 10)
    if number == 1:  # an old one: told, and nothing more
        (sky / "versions" / "1" / "manifest.json").write_text("{}")
        report = nightly(sky, config)
        assert (report.outcome, report.version, report.num_objects) == ("published", 3, 6)
        assert "nothing was pruned" in report.notes[-1]
        return
    segment = sky / "segments" / open_version(sky).manifest.segments[0].name / "vectors.npy"
    segment.write_bytes(segment.read_bytes()[:-100])  # cut short
    with pytest.raises(VersionCorrupt, match=segment.parent.name):
        nightly(sky, config)
    assert (current_number(sky), numbers(sky)) == (2, [1, 2])
    assert reader.number == 1


def test_the_recall_gate_measures_what_codes_reach_with_the_most_effort() -> None:
    def point(recall: float) -> Point:
        return Point(num_probes=1, depth=1, recall_at_10=recall, recall_at_100=1.0, p50_ms=1.0)

    def passed(*reached: tuple[float, float]) -> list[bool]:
        curves = [
            RecallCurve(
                view="image", codec_hash="", num_rows=1, num_queries=1, near=0.0,
                rows=(point(0.5), point(rows)), directions=(point(0.4), point(directions)),
            )
            for rows, directions in reached
        ]  # fmt: skip
        return [gate.passed for gate in recall_gates(curves, 0.95)]

    assert passed() == [True]  # exact
    assert passed((0.95, 0.95), (0.9499, 1.0), (1.0, 0.4)) == [True, False, True]
    assert issubclass(RecallTooLow, GateRefused)


def test_codes_that_no_longer_tell_rows_apart_are_not_published(
    sky: Path, cutouts: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = IndexConfig(exact_rows=0, indexed_rows=1)
    write_head(sky, read_head(sky).model_copy(update={"index": index}))
    write_cutout(cutouts / "e.fits", 5)
    config = config_of(encoder, ("legacysurvey", cutouts))
    with monkeypatch.context() as patch:
        patch.setattr(recall, "EFFORTS", (Effort(1, 1),))  # one list of five rows
        with pytest.raises(RecallTooLow, match="recall@10 of view image"):
            nightly(sky, config)
    assert numbers(sky) == [1]

    report = nightly(sky, config)

    assert (report.outcome, report.version, report.num_embedded) == ("published", 2, 0)
    names = [gate.name for gate in report.gates if gate.name.startswith("recall")]
    assert names == ["recall@10 of view image", "recall@10 of view joint"]


def test_a_saved_search_whose_seeds_cancel_but_for_rounding_is_reported(sky: Path) -> None:
    (image,) = [live for live in open_version(sky).segments if live.segment.view == "image"]
    file = image.segment.folder / "vectors.npy"
    vectors = np.load(file)
    vectors[1] = vectors[0]
    vectors[1, 0] = np.nextafter(vectors[0, 0], np.float16(1))
    np.save(file, vectors)
    searches = [
        SavedSearch(name="nothing", like=("a",), unlike=("b",), top_k=1),
        SavedSearch(name="no view", view="xp", like=("a",), top_k=1),
    ]

    found = new_near(open_version(sky), searches, {"image": np.array([2, 3])})

    assert [(near.object_ids, near.problem) for near in found] == [
        ((), "the seeds cancel out: there is no direction to search in"),
        ((), "this sky has no view 'xp', it has image, joint"),
    ]


def test_new_objects_near_saved_searches(sky: Path, cutouts: Path, encoder: Path) -> None:
    searches = (
        SavedSearch(name="like a", like=("a",), min_cosine=0.9999),
        SavedSearch(name="best", like=("a",), top_k=1),
        SavedSearch(name="gone", like=("nobody",), top_k=1),
    )
    vector = open_version(sky).vectors(np.array([0]), "image")[0].tolist()
    saved = [{"name": "vector", "vector": vector, "min_cosine": -1.0}]
    (sky / "saved_searches.json").write_text(json.dumps(saved))
    write_cutout(cutouts / "twin.fits", 0, position=(33.0, 3.0))
    write_cutout(cutouts / "other.fits", 90)

    report = nightly(sky, config_of(encoder, ("legacysurvey", cutouts), saved_searches=searches))

    found = {near.name: near.object_ids for near in report.near_saved}
    assert (found["like a"], found["best"], found["gone"]) == (("twin",), ("twin",), ())
    assert found["vector"] == ("twin", "other")  # best first
    assert "nobody" in str({near.name: near.problem for near in report.near_saved}["gone"])


@pytest.mark.parametrize("content", [None, "", "99\n", "none"])
def test_a_lost_pointer_is_found_again(
    sky: Path, cutouts: Path, encoder: Path, content: str | None
) -> None:
    config = config_of(encoder, ("legacysurvey", cutouts))
    (sky / "CURRENT").unlink()
    if content is not None:
        (sky / "CURRENT").write_text(content)

    report = nightly(sky, config)

    assert (report.outcome, report.version, current_number(sky)) == ("unchanged", 1, 1)
    assert "CURRENT was lost" in report.notes[0]


def test_two_at_a_time_are_refused(sky: Path, cutouts: Path, encoder: Path) -> None:
    config = config_of(encoder, ("legacysurvey", cutouts))
    with disk.only_writer(sky), pytest.raises(SkyBusy):
        nightly(sky, config)


def test_the_config_is_read_relative_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / "nightly.toml"
    text = 'encoder = "{}"\n[[sources]]\nsurvey = "sdss"\npath = "spectra"\n[labels]\n'
    text += 'file = "l.csv"\nlabel = "ring"\n'
    (tmp_path / "nano").mkdir()  # the shipped one is meant all the same
    (tmp_path / "own").mkdir()
    encoders = []
    for name in ("nano", "own", "owner/name"):
        file.write_text(text.format(name))
        encoders.append(read_nightly(file).encoder)
    config = read_nightly(file)

    assert encoders == ["nano", str(tmp_path / "own"), "owner/name"]
    assert config.sources[0].path == str(tmp_path / "spectra")
    assert config.labels is not None
    assert config.labels.file == str(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("max_removed = 1\n", "max_removed"),
        ("", "sources"),
        ('[[sources]]\nsurvey = "hubble"\npath = "x"', "sources.0: unknown survey 'hubble'"),
        ('[[sources]]\nsurvey = "sdss"\npath = "x"\nglob = "y"', r"sources\.0\.glob: unknown key"),
        (
            'keep_versions = 0\n[[sources]]\nsurvey = "sdss"\npath = "x"',
            "keep_versions: .* greater than or equal to 1, got 0",
        ),
        ("sources", "TOML"),
        ('[[sources]]\nsurvey = "sdss"\npath = "x"\n[[saved_searches]]\nname = "a"', "like or vec"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "nightly.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=named):
        read_nightly(file)


def test_a_pattern_finds_its_folders(tmp_path: Path, cutouts: Path, encoder: Path) -> None:
    sky = tmp_path / "sky"
    write_cutout(tmp_path / "tiles" / "t1" / "x.fits", 20)
    write_cutout(tmp_path / "tiles" / "t2" / "y.fits", 21)
    write_picture(tmp_path / "tiles" / "plots" / "p.png", 1)
    config = config_of(encoder, ("legacysurvey", tmp_path / "tiles" / "t*" / "*.fits"))
    assert nightly(sky, config).objects_came.names == ("x", "y")
    (tmp_path / "tiles" / "t2" / "y.fits").rename(tmp_path / "tiles" / "t1" / "z.fits")
    report: NightlyReport = nightly(sky, config)
    # t2 is empty now: its file may be on a disk that is not mounted
    assert (report.objects_came.names, len(report.outages)) == (("z",), 1)
    (tmp_path / "tiles" / "t2").rmdir()
    assert nightly(sky, config).objects_went.names == ("y",)
