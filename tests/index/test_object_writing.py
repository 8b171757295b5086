"""What an update reads of a version, and the object table and footprint that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import disk
from index.errors import VersionCorrupt
from index.footprint import changed_footprint, coarse_cells, footprint, footprint_of
from index.manifest import EncoderReference, Manifest
from index.manifest import record as record_of
from index.object_table import ObjectTable
from index.object_writing import WrittenObjects, write_objects
from index.objects import ROW_FIELDS, healpix_cells, merge_rows
from index.partitions import read_partition as read_whole
from index.partitions import read_partitions
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


def manifest_of(table: WrittenObjects) -> Manifest:
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
    assert [file.file for file in after.files] == [
        file for each in after.partitions for file in each.files
    ]
    opened = ObjectTable(sky, after.partitions, num_keys=31)
    keys = opened.keys_of_ids([f"o{key}" for key in range(31)])
    assert keys.tolist() == [key if key in now else -1 for key in range(31)]
    ids = opened.take(opened.lines(keys_of(now)), ["object_id"])["object_id"]
    assert ids.to_pylist() == [f"o{key}" for key in now]


def keys_of(places: Mapping[int, object]) -> np.ndarray:
    return np.fromiter(places, np.int64, len(places))


def test_files_without_a_changed_object_are_neither_read_nor_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {key: (key, 0.1) for key in range(40)}
    written = write_objects(tmp_path, before=None, merged=objects(first), touched=keys_of(first))
    read: list[str] = []
    hashed: list[str] = []

    def read_partition(sky, partition, columns=None):  # type: ignore[no-untyped-def]
        if columns is None:
            read.append(partition.file)
        return read_whole(sky, partition, columns)

    def record(sky, path):  # type: ignore[no-untyped-def]
        hashed.append(str(path.relative_to(sky)))
        return record_of(sky, path)

    monkeypatch.setattr("index.object_writing.read_partition", read_partition)
    monkeypatch.setattr("index.object_writing.record", record)

    after = write_objects(
        tmp_path, before=manifest_of(written), merged=objects({7: (7, 0.2)}), touched=np.array([7])
    )

    (came,) = set(after.partitions) - set(written.partitions)
    assert len(read) == 1
    assert tuple(hashed) == came.files
    kept = {file for each in after.partitions for file in each.files} - set(came.files)
    assert [file for file in after.files if file.file in kept] == [
        file for file in written.files if file.file in kept
    ]
    assert len(kept) == len(after.files) - 2


def test_partitions_of_old_get_what_they_lack(tmp_path: Path) -> None:
    first = {key: (key, 0.1) for key in range(40)}
    new = write_objects(tmp_path, before=None, merged=objects(first), touched=keys_of(first))
    before = older(tmp_path, new)
    nothing = objects(first).slice(0, 0)

    after = write_objects(tmp_path, before=before, merged=nothing, touched=np.empty(0, np.int64))

    assert (after.partitions, after.files) == (new.partitions, new.files)
    assert all((tmp_path / file.file).is_file() for file in after.files)


def older(sky: Path, written: WrittenObjects) -> Manifest:
    """As a sky has it that was written before partitions could be mapped."""
    for each in written.partitions:
        (sky / str(each.mapped)).unlink()
    mapped = {each.mapped for each in written.partitions}
    return manifest_of(
        replace(
            written,
            partitions=tuple(replace(each, mapped=None) for each in written.partitions),
            files=tuple(each for each in written.files if each.file not in mapped),
        )
    )


@pytest.mark.parametrize("layout", ["parquet", "mapped", "old"])
@pytest.mark.parametrize("is_read", [True, False])
def test_only_what_goes_on_in_new_files_must_be_as_it_was_written(
    tmp_path: Path, layout: str, is_read: bool
) -> None:
    """Of partitions that are left alone, the checksum goes on, by which `verify` names them."""
    first = {key: (key, 0.1) for key in range(40)}
    written = write_objects(tmp_path, before=None, merged=objects(first), touched=keys_of(first))
    before = older(tmp_path, written) if layout == "old" else manifest_of(written)
    changed, other = before.partitions[0], before.partitions[1]
    key = int(read_whole(tmp_path, changed)["object_key"][0].as_py())
    damaged = tmp_path / (changed if is_read else other).files[1 if layout == "mapped" else 0]
    content = bytearray(damaged.read_bytes())
    place = len(content) // 2
    if layout != "mapped":  # in the ids: keys and cells of all partitions are read
        place = pq.ParquetFile(damaged).metadata.row_group(0).column(1).data_page_offset
    content[place] ^= 1
    damaged.write_bytes(content)

    def write() -> WrittenObjects:
        merged = objects({key: (key, 0.2)})
        return write_objects(tmp_path, before=before, merged=merged, touched=np.array([key]))

    if is_read or layout == "old":
        with pytest.raises(VersionCorrupt, match=damaged.name):
            write()
    else:
        after = write()
        assert set(before.files) & set(after.files) >= {
            each for each in before.files if each.file in other.files
        }


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), num=st.integers(2, 60), spread_deg=st.sampled_from([0.3, 360]))
def test_a_changed_footprint_is_that_of_what_is_there(
    seed: int, num: int, spread_deg: float
) -> None:
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, spread_deg, num), rng.uniform(-0.2, 0.2, num)
    went, came = rng.random(num) < 0.3, rng.random(num) < 0.3
    cells = coarse_cells(healpix_cells(ra, dec))
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
    monkeypatch.setattr(disk, "write_table", partial(disk.write_table, row_group_rows=2))
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
    every = version.live_rows.every
    assert any(live.alive is not None for live in version.segments)

    names = ["source_id", "object_key", "view", "precision"]
    assert version.live_rows.columns(names).equals(every.select(names))
    assert not version.live_rows.at(np.empty(0, np.int64)).num_rows
    for lines in ([0], [3, 4, 9], list(range(every.num_rows))):
        found = version.live_rows.at(np.array(lines))
        assert found.equals(every.take(pa.array(lines)).select(found.column_names))
        assert set(found.column_names) >= {"view", *ROW_FIELDS}
    assert version.ids_of(version.table["object_key"].to_numpy()) == (
        version.table["object_id"].to_pylist()
    )
