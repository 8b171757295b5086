"""The object table of a new version: of the one before only what holds a changed object is read.

Keys and cells of all objects are read to find out where objects lie now. The other columns are read
and written only in files of which an object came, changed or went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from index import disk
from index.manifest import FileRecord, Manifest, record
from index.partitions import Partition, divide, read_partition, with_mapped, write_partition


@dataclass(frozen=True, slots=True)
class WrittenObjects:
    """A table that is written, and where its objects lie."""

    partitions: tuple[Partition, ...]
    files: tuple[FileRecord, ...]
    cells: Int64[ndarray, " object"]  # of order 29, -1 without a position
    cells_before: Int64[ndarray, " touched"]  # where touched objects lay
    cells_now: Int64[ndarray, " left"]  # and lie

    @property
    def num_objects(self) -> int:
        return len(self.cells)


def write_objects(
    sky: Path, *, before: Manifest | None, merged: pa.Table, touched: Int64[ndarray, " n"]
) -> WrittenObjects:
    """Write what has changed of an object table.

    Args:
        sky: Folder of the sky.
        before: Of the version that this one is made from.
        merged: Lines of objects.merge_rows of the touched objects that are left.
        touched: Keys of objects that came, changed or went.

    Raises:
        VersionCorrupt: a file of the version before is missing or damaged.
        DiskFull: nothing more can be written.
    """
    old = () if before is None else before.partitions
    keys, cells, origin, place = _where(sky, old)
    stays = ~np.isin(keys, touched)
    cells_now = merged["_healpix_29"].fill_null(-1).to_numpy()
    all_cells = np.concatenate([cells[stays], cells_now])
    origin = np.concatenate([origin[stays], np.full(len(cells_now), -1)])
    place = np.concatenate([place[stays], np.arange(len(cells_now))])
    divided = list(divide(all_cells))
    by_cell = {each.cell: each for each in old}
    same = {
        cell: by_cell[cell]
        for cell, lines in divided
        # an object that left makes the number differ, one that came is not of the old files
        if cell in by_cell
        and by_cell[cell].num_objects == len(lines)
        and (origin[lines] >= 0).all()
    }
    known = {} if before is None else {each.file: each for each in before.files}
    for each in old:
        if each.cell not in same or each.mapped is None:  # what it holds goes on in new files
            for file in each.files:
                disk.check(sky / file, known[file].sha256)
    tables = {-1: merged}
    partitions: list[Partition] = []
    files: list[FileRecord] = []
    for cell, lines in divided:
        if cell in same:
            each = same[cell]
            partitions.append(each if each.mapped is not None else with_mapped(sky, each))
            files += [known[file] for file in each.files]
            if each.mapped is None:
                files.append(record(sky, sky / str(partitions[-1].mapped)))
            continue
        for number in np.unique(origin[lines]).tolist():
            if number not in tables:
                tables[number] = read_partition(sky, old[number])
        new = write_partition(sky, cell, _gathered(tables, origin[lines], place[lines]))
        partitions.append(new)
        files += [record(sky, sky / file) for file in new.files]
    return WrittenObjects(tuple(partitions), tuple(files), all_cells, cells[~stays], cells_now)


def _where(
    sky: Path, partitions: Sequence[Partition]
) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"], Int64[ndarray, " n"], Int64[ndarray, " n"]]:
    """Of all objects: key, cell, the file they are in, and the line there."""
    none = np.empty(0, np.int64)
    tables = [read_partition(sky, each, ["object_key", "_healpix_29"]) for each in partitions]
    sizes = [table.num_rows for table in tables]
    return (
        np.concatenate([none, *(each["object_key"].to_numpy() for each in tables)]),
        np.concatenate([none, *(each["_healpix_29"].fill_null(-1).to_numpy() for each in tables)]),
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([none, *(np.arange(size) for size in sizes)]),
    )


def _gathered(
    tables: dict[int, pa.Table], origin: Int64[ndarray, " line"], place: Int64[ndarray, " line"]
) -> pa.Table:
    """Lines of several tables in their order."""
    parts, order = [], []
    for number in np.unique(origin).tolist():
        here = np.flatnonzero(origin == number)
        order.append(here)
        parts.append(tables[number].take(pa.array(place[here])))
    table = pa.concat_tables(parts, promote_options="permissive")
    return table.take(pa.array(np.argsort(np.concatenate(order))))
