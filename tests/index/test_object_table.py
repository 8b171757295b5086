"""What an update reads of a version, and the object table and footprint that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import segment
from index.directory import Directory
from index.footprint import cells_of, changed_footprint, footprint, footprint_of
from index.manifest import EncoderReference, Manifest
from index.manifest import record as record_of
from index.object_table import ObjectTable, write_objects
from index.objects import ROW_FIELDS, healpix_cells, merge_rows
from index.partitions import read_columns as read_whole
from index.partitions import read_partitions
from index.segment import Segment, write_segment
from index.versions import open_version
from tests.index.conftest import Builder, write_cutout, write_spectrum

NOWHERE = -1


def objects(places: dict[int, tuple[int, float]]) -> pa.Table:
    """Objects by key: a place, NOWHERE for none, and a redshift."""
    rng = np.random.default_rng(0)
    sky = np.stack([rng.uniform(0, 360, 40), rng.uniform(-90, 90, 40)], axis=1)
    rows = [
        {
            "object_key": key, "view": "image", "calibrated": True, "redshift": redshift,
            "survey": "s", "release": "r", "source_id": str(key),
            "ra_deg": None if place == NOWHERE else sky[place, 0],
            "dec_deg": None if place == NOWHERE else sky[place, 1],
        }
        for key, (place, redshift) in places.items()
    ]  # fmt: skip
    kinds = {"ra_deg": pa.float64(), "dec_deg": pa.float64(), "redshift": pa.float64()}
    names = ["object_key", "view", "calibrated", "redshift", "survey", "release", "source_id"]
    columns = {
        name: pa.array([row[name] for row in rows], kinds.get(name))
        for name in [*names, "ra_deg", "dec_deg"]
    }
    keys = pa.array(list(places), pa.int64())
    ids = pa.table({"object_key": keys, "object_id": pa.array([f"o{key}" for key in places])})
    return merge_rows(pa.table(columns), ids)


def manifest_of(table: ObjectTable) -> Manifest:
    reference = EncoderReference(
        name="e", hash="e", head_hash="h", dim=1, search_dim=1, precision="float32"
    )
    return Manifest(
        number=1, built_at_utc="", software="", git_revision=None, encoder=reference, segments=(),
        partitions=table.partitions, files=table.files, inputs="", moc=None,
        num_objects=table.num_objects, num_rows=0, num_without_position=0, next_object_key=0,
    )  # fmt: skip


where = st.tuples(st.integers(NOWHERE, 39), st.sampled_from([0.1, 0.2]))


@settings(deadline=None, max_examples=10)
@given(
    first=st.dictionaries(st.integers(0, 30), where, min_size=1),
    later=st.dictionaries(st.integers(0, 30), where | st.none()),
)
def test_changing_a_table_gives_that_of_writing_it_anew(
    first: dict[int, tuple[int, float]],
    later: dict[int, tuple[int, float] | None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Objects of `later` came, moved, changed, or went."""
    sky = tmp_path_factory.mktemp("sky")
    written = write_objects(sky, before=None, merged=objects(first), touched=keys_of(first))
    now = {key: place for key, place in {**first, **later}.items() if place is not None}
    touched = {key: place for key, place in later.items() if place is not None}

    after = write_objects(
        sky, before=manifest_of(written), merged=objects(touched), touched=keys_of(later)
    )

    anew = write_objects(
        tmp_path_factory.mktemp("anew"), before=None, merged=objects(now), touched=keys_of(now)
    )
    found = read_partitions(sky, after.partitions)
    assert found.equals(objects(now))
    assert [each.cell for each in after.partitions] == [each.cell for each in anew.partitions]
    assert sorted(after.cells) == sorted(anew.cells)
    assert [file.file for file in after.files] == [each.file for each in after.partitions]
    directory = Directory.read(sky, after.partitions)
    asked = pa.array([f"o{key}" for key in range(31)])
    assert directory.keys_of(asked) == {f"o{key}": key for key in now}
    assert directory.ids_of(keys_of(now)[::-1]) == [f"o{key}" for key in reversed(now)]


def keys_of(places: Mapping[int, object]) -> np.ndarray:
    return np.fromiter(places, np.int64, len(places))


def test_files_without_a_changed_object_are_neither_read_nor_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {key: (key, 0.1) for key in range(40)}
    written = write_objects(tmp_path, before=None, merged=objects(first), touched=keys_of(first))
    read: list[str] = []
    hashed: list[str] = []

    def read_columns(sky, partition, names):  # type: ignore[no-untyped-def]
        if names is None:
            read.append(partition.file)
        return read_whole(sky, partition, names)

    def record(sky, path):  # type: ignore[no-untyped-def]
        hashed.append(str(path.relative_to(sky)))
        return record_of(sky, path)

    monkeypatch.setattr("index.object_table.read_columns", read_columns)
    monkeypatch.setattr("index.object_table.record", record)

    after = write_objects(
        tmp_path, before=manifest_of(written), merged=objects({7: (7, 0.2)}), touched=np.array([7])
    )

    came = [each.file for each in after.partitions if each not in written.partitions]
    assert len(came) == len(read) == 1
    assert hashed == came
    assert [file for file in after.files if file.file not in came] == [
        file for file in written.files if file.file in {each.file for each in after.partitions}
    ]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), num=st.integers(2, 60), spread_deg=st.sampled_from([0.3, 360]))
def test_a_changed_footprint_is_that_of_what_is_there(
    seed: int, num: int, spread_deg: float
) -> None:
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, spread_deg, num), rng.uniform(-0.2, 0.2, num)
    went, came = rng.random(num) < 0.3, rng.random(num) < 0.3
    cells = cells_of(healpix_cells(ra, dec))
    before, there = cells[~came], cells[~went]

    found = changed_footprint(
        footprint_of(before), there=there, went=before[went[~came]], came=cells[came & ~went]
    )

    assert found == footprint_of(there)
    if not went.all():
        assert found == footprint(ra[~went], dec[~went])


def test_some_rows_and_columns_are_those_of_all_rows(
    tmp_path: Path, into: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several segments, with deleted rows, and files of several row groups."""
    monkeypatch.setattr(segment, "ROWS_A_GROUP", 2)
    sky, cutouts = tmp_path / "sky", tmp_path / "cutouts"
    for number in range(7):
        write_cutout(cutouts / f"{number}.fits", number)
    into(sky, cutouts, "legacysurvey")
    write_cutout(cutouts / "2.fits", 70)
    write_cutout(cutouts / "new.fits", 71)
    write_spectrum(tmp_path / "spectra" / "s.fits", "777")
    into(sky, cutouts, "legacysurvey")
    into(sky, tmp_path / "spectra", "sdss")
    version = open_version(sky)
    every = version.all_rows
    assert any(live.alive is not None for live in version.segments)

    names = ["source_id", "object_key", "view", "precision"]
    assert version.row_columns(names).equals(every.select(names))
    assert not version.rows_at(np.empty(0, np.int64)).num_rows
    for lines in ([0], [3, 4, 9], list(range(every.num_rows))):
        found = version.rows_at(np.array(lines))
        assert found.equals(every.take(pa.array(lines)).select(found.column_names))
        assert set(found.column_names) >= {"view", *ROW_FIELDS}
    ids = dict(zip(version.directory.keys.tolist(), version.directory.ids.to_pylist(), strict=True))
    assert ids == dict(
        zip(version.table["object_key"].to_pylist(), version.table["object_id"].to_pylist(),
            strict=True)
    )  # fmt: skip


def test_rows_of_a_segment_come_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "ROWS_A_GROUP", 3)
    rows = pa.table({"source_id": [str(i) for i in range(10)], "precision": ["float32"] * 10})
    name = write_segment(
        tmp_path, view="image", keys=np.arange(10), rows=rows, blocks=[np.ones((10, 2))], dim=2,
        encoder_hash="e", head_hash="h",
    )  # fmt: skip
    found = Segment(tmp_path / name).rows_at(np.array([9, 0, 5, 0]))

    assert found["source_id"].to_pylist() == ["9", "0", "5", "0"]
    assert found["object_key"].to_pylist() == [9, 0, 5, 0]
