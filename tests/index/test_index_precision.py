"""The precision that vectors were made in: recorded; mixed only where measured to agree."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from index import disk, precision
from index.commands import commands
from index.errors import EncoderMismatch
from index.manifest import read_head, read_manifest, record
from index.notes import worded
from index.precision import smallest_cosine
from index.store import Store
from index.versions import Version, open_version, verify
from tests.index.conftest import Builder, write_cutout
from training import encoder as encoders
from training.surveys import reader

NUM_NEW = 8


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write_cutout(tmp_path / "one" / "one.fits", 50).parent


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """As few cutouts as can be measured."""
    folder = tmp_path / "more"
    for seed in range(NUM_NEW):
        write_cutout(folder / f"{seed}.fits", seed)
    return folder


def precisions(version: Version) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in version.live_rows.every.to_pylist():
        found.setdefault(row["object_id"], set()).add(row["precision"])
    return found


def in_parts(sky: Path) -> set[str]:
    return {
        str(disk.read_json(part)["precision"]) for part in (sky / "store").glob("*/*/*/part.json")
    }


def test_the_precision_is_recorded_with_every_vector(
    tmp_path: Path, one: Path, encoder: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    report = into(sky, one, "legacysurvey", precision="bfloat16")
    version = open_version(sky)

    assert (report.precision, report.centred_cosine) == ("bfloat16", {})
    assert read_head(sky).encoder.precision == version.encoder.precision == "bfloat16"
    assert in_parts(sky) == {"bfloat16"}
    assert precisions(version) == {"one": {"bfloat16"}}
    assert {live.segment.encoder_precisions for live in version.segments} == {("bfloat16",)}
    loaded = encoders.load(encoder, precision="bfloat16")
    seen = reader("legacysurvey").read_one(one / "one.fits", "")
    want = loaded.embed([seen])
    store = Store(sky / "store", encoder_hash=loaded.hash)
    for view, vector in zip(want.views, want.vectors, strict=True):
        assert store.precisions(view, [seen.fingerprint]) == ["bfloat16"]
        kept = store.vectors(view, [seen.fingerprint])[0]
        np.testing.assert_array_equal(kept, vector.astype(np.float16))

    write_cutout(one / "two.fits", 51)
    assert into(sky, one, "legacysurvey").precision == "bfloat16"  # the sky's own
    assert precisions(open_version(sky)) == {"one": {"bfloat16"}, "two": {"bfloat16"}}


def test_another_precision_goes_in_where_it_agrees(
    tmp_path: Path,
    one: Path,
    more: Path,
    encoder: Path,
    into: Builder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "ENOUGH_COSINE", 0.1)  # for weights that were never trained
    sky = tmp_path / "sky"
    into(sky, one, "legacysurvey")
    before = open_version(sky).vectors(np.array([0]), "image")
    report = into(sky, more, "legacysurvey", precision="bfloat16", num_workers=1)
    version = open_version(sky)

    assert (report.num_embedded, report.num_objects, report.precision) == (8, 9, "bfloat16")
    assert read_head(sky).encoder.precision == version.encoder.precision == "float32"
    want = {"one": {"float32"}} | {str(seed): {"bfloat16"} for seed in range(NUM_NEW)}
    assert precisions(version) == want
    assert in_parts(sky) == {"float32", "bfloat16"}
    np.testing.assert_array_equal(version.vectors(np.array([0]), "image"), before)
    assert not verify(sky).problems
    files = [more / f"{seed}.fits" for seed in range(NUM_NEW)]
    seen = [reader("legacysurvey").read_one(file, "") for file in files]
    sides = []
    for kind in ("float32", "bfloat16"):
        embedded = encoders.load(encoder, precision=kind).embed(seen, views=("image",))
        vectors = embedded.vectors.astype(np.float16).astype(np.float64)
        sides.append(vectors - vectors.mean(axis=0))
    cosines = [
        np.corrcoef(*(np.r_[x, -x] for x in pair))[0, 1] for pair in zip(*sides, strict=True)
    ]
    assert set(report.centred_cosine) == {"image", "joint"}
    assert report.centred_cosine["image"] == pytest.approx(min(cosines), abs=2e-3)

    # what is there counts as there, in whichever precision
    again = into(sky, more, "legacysurvey", precision="float32")
    assert (again.num_embedded, again.published) == (0, False)
    write_cutout(more / "x.fits", 60)
    assert into(sky, more, "legacysurvey").precision == "float32"
    assert precisions(open_version(sky)) == want | {"x": {"float32"}}


def test_a_precision_that_differs_too_much_is_refused(
    tmp_path: Path, one: Path, more: Path, into: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "ENOUGH_COSINE", 1.0)  # which rounding never reaches
    sky = tmp_path / "sky"
    into(sky, one, "legacysurvey")

    with pytest.raises(
        EncoderMismatch, match=r"cosine of the view \w+ is 0\.\d{6}, and more than 1"
    ):
        into(sky, more, "legacysurvey", precision="bfloat16")
    (more / "0.fits").unlink()
    with pytest.raises(EncoderMismatch, match=r"7 new observations.*--precision float32"):
        into(sky, more, "legacysurvey", precision="bfloat16")

    assert open_version(sky).number == 1
    assert in_parts(sky) == {"float32"}
    same = into(sky, one, "legacysurvey", precision="bfloat16")  # nothing new, nothing to measure
    assert (same.published, same.precision) == (False, "float32")


def test_a_view_that_comes_after_those_that_were_measured_is_refused(
    tmp_path: Path, one: Path, more: Path, into: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "ENOUGH_COSINE", 0.1)  # for weights that were never trained
    monkeypatch.setattr(precision, "MOST_OBSERVATIONS", NUM_NEW)
    for file in more.iterdir():  # without a flux above zero an image has no joint view
        with fits.open(file, mode="update") as cutout:
            cutout[0].data = -np.abs(cutout[0].data)
    write_cutout(more / "z.fits", 60)
    sky = tmp_path / "sky"
    into(sky, one, "legacysurvey")

    with pytest.raises(EncoderMismatch, match=r"z\.fits: whether the view joint in bfloat16"):
        into(sky, more, "legacysurvey", precision="bfloat16")

    joint = list((sky / "store").glob("*/joint/*/part.json"))
    assert {disk.read_json(part)["precision"] for part in joint} == {"float32"}
    assert open_version(sky).number == 1


def test_an_unknown_precision_is_refused(tmp_path: Path, one: Path, into: Builder) -> None:
    with pytest.raises(ValueError, match=r"float32 or bfloat16.*, got 'float16'"):
        into(tmp_path / "sky", one, "legacysurvey", precision="float16")


def test_a_sky_without_the_field_was_made_in_float32(
    tmp_path: Path, one: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    into(sky, one, "legacysurvey")
    for part in (sky / "store").glob("*/*/*/part.json"):
        content = disk.read_json(part)
        disk.write_json(part, {key: content[key] for key in content if key != "precision"})
    for head in (sky / "segments").glob("*/segment.json"):
        rows = head.parent / "rows.parquet"
        disk.write_table(rows, pq.read_table(rows).drop_columns(["precision"]))
        content = disk.read_json(head)
        content.pop("encoder_precisions")
        content["files"] |= {"rows.parquet": disk.described(rows)}  # type: ignore[operator]
        disk.write_json(head, content)
    manifest = read_manifest(sky, 1)
    heads = [
        each.model_copy(update={"head": record(sky, sky / each.head.file)})
        for each in manifest.segments
    ]
    older = manifest.model_copy(update={"segments": tuple(heads)})
    disk.write_json(sky / "versions/1/manifest.json", older.model_dump(mode="json"))

    assert precisions(open_version(sky)) == {"one": {"float32"}}
    write_cutout(one / "two.fits", 51)
    into(sky, one, "legacysurvey")
    assert precisions(open_version(sky)) == {"one": {"float32"}, "two": {"float32"}}


def test_centred_cosines_of_known_vectors() -> None:
    one = np.array([[3, 1, 0], [1, 1, 0], [2, 2, 0], [2, 0, 0]], np.float16)  # mean (2, 1, 0)
    turned = np.array([[3, 1, 0], [1, 1, 0], [2, 2, 1], [2, 0, -1]], np.float16)  # by 45 degrees

    assert smallest_cosine(one, one + np.float16(7)) == pytest.approx(1)
    assert smallest_cosine(one, turned) == pytest.approx(np.sqrt(0.5))
    assert np.isnan(smallest_cosine(one[:1].repeat(8, axis=0), turned[:1].repeat(8, axis=0)))


@given(st.lists(st.integers(0, 9), max_size=6))
def test_notes_of_batches_add_up(counts: list[int]) -> None:
    batches = [Counter(tok_parallax=num, tok_ebv=num) for num in counts]
    total = worded(sum(batches, Counter()), num_objects=12_345)

    if sum(counts):
        said = f"{sum(counts)} of 12,345 objects have a value below what its tokenizer tells apart"
        below_zero = " (zero and negative values are)"  # of a stream in logarithm
        assert total == (f"tok_ebv: {said}", f"tok_parallax: {said}{below_zero}")
    else:
        assert total == ()


def test_the_user_is_told_of_values_that_were_not_told_apart(
    tmp_path: Path, one: Path, encoder: Path
) -> None:
    from astropy.io import fits

    with fits.open(one / "one.fits", mode="update") as file:
        file[0].data *= 1e-5  # fluxes far below the 0.1 nanomaggies that the tokenizer begins at
    arguments = ["build", str(tmp_path / "sky"), str(one), "--survey", "legacysurvey"]
    done = CliRunner().invoke(commands, [*arguments, "--encoder", str(encoder), "--json"])

    notes = json.loads(done.stdout)["notes"]
    seen = reader("legacysurvey").read_one(one / "one.fits", "")
    assert notes == list(worded(encoders.load(encoder).embed([seen]).below_range, num_objects=1))
    assert notes[0].startswith("tok_flux_g: 1 of 1 objects have a value below")
