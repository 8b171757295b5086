"""The object table on disk: Parquet files by HEALPix cell, as HATS lays them out.

    objects/Norder=0/Npix=5-<digest>.parquet      objects in cell 5 of order 0
    objects/Norder=0/Npix=5-<digest>.arrow        the same, not compressed, to be mapped
    objects/no_position-<digest>.parquet          objects whose position is not known

A cell with too many objects is divided into its four children. A file never changes: its name tells
its content, and a new version goes on using those in which no object changed. Parquet is what other
programs read and what the next version is made from; fifty lines here and there cost it fifty row
groups of every column, and a mapped file fifty reads.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from numpy import ndarray

from index import disk
from index.errors import VersionCorrupt
from index.objects import CATALOGUE, OBJECT_FIELDS
from training.disk import flush

MAX_OBJECTS = 1_000_000  # in one file, as HATS catalogues have it


@dataclass(frozen=True, slots=True)
class Cell:
    """A nested HEALPix cell; order -1 stands for objects without a position."""

    order: int
    pixel: int

    @property
    def stem(self) -> str:
        if self.order < 0:
            return "no_position"
        return f"Norder={self.order}/Npix={self.pixel}"


@dataclass(frozen=True, slots=True)
class Partition:
    """Some objects of the table, in two layouts."""

    cell: Cell
    file: str  # Parquet, below the sky's folder
    num_objects: int
    mapped: str | None = None  # Arrow, below the sky's folder; None: older than such files

    @property
    def files(self) -> tuple[str, ...]:
        """All that it consists of, below the sky's folder."""
        return (self.file,) if self.mapped is None else (self.file, self.mapped)


def divide(
    cells: Int64[ndarray, " n"], *, max_objects: int = MAX_OBJECTS
) -> Iterator[tuple[Cell, Int64[ndarray, " m"]]]:
    """Divide objects by their order-29 cell (-1: no position); gives each cell and who is in it."""
    nowhere = np.flatnonzero(cells < 0)
    if len(nowhere):
        yield Cell(-1, 0), nowhere
    rows = np.flatnonzero(cells >= 0)
    rows = rows[np.argsort(cells[rows], kind="stable")]
    if len(rows):
        yield from _divide(cells, rows, 0, max_objects)


def _divide(
    cells: ndarray, rows: ndarray, order: int, max_objects: int
) -> Iterator[tuple[Cell, ndarray]]:
    pixels = cells[rows] >> (2 * (29 - order))
    starts = np.flatnonzero(np.diff(pixels, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        inside = rows[start:stop]
        if len(inside) > max_objects and order < 29:
            yield from _divide(cells, inside, order + 1, max_objects)
        else:
            yield Cell(order, int(pixels[start])), inside


def write_partition(sky: Path, cell: Cell, objects: pa.Table) -> Partition:
    """Write the objects of a cell."""
    file = _write(sky / "objects", cell, objects)
    return with_mapped(sky, Partition(cell, str(file.relative_to(sky)), objects.num_rows))


def with_mapped(sky: Path, partition: Partition) -> Partition:
    """The partition with what its Parquet file holds written once more, to be mapped."""
    path = (sky / partition.file).with_suffix(".arrow")
    disk.write_batch(path, _one_batch(read_partition(sky, partition)))
    return replace(partition, mapped=str(path.relative_to(sky)))


def _write(folder: Path, cell: Cell, objects: pa.Table) -> Path:
    stem = folder / cell.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    temporary = stem.with_name(f"{disk.TEMPORARY}{uuid.uuid4().hex[:12]}.parquet")
    try:
        disk.write_table(temporary, objects, row_group_rows=MAX_OBJECTS)
        digest = disk.sha256_of(temporary)[:16]
        file = stem.with_name(f"{stem.name}-{digest}.parquet")
        os.replace(temporary, file)
        flush(file.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def read_partition(sky: Path, partition: Partition, columns: list[str] | None = None) -> pa.Table:
    """The objects of a partition from its Parquet file; of some columns, or all.

    Raises:
        VersionCorrupt: the file is missing or damaged.
    """
    path = sky / partition.file
    table = disk.read_table(path, columns)
    _check_number(path, table.num_rows, partition)
    return table


def read_partitions(sky: Path, partitions: tuple[Partition, ...]) -> pa.Table:
    """The whole object table, ordered by key."""
    tables = [read_partition(sky, partition) for partition in partitions]
    if not tables:
        return pa.schema(OBJECT_FIELDS | CATALOGUE).empty_table()
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    return table.take(pc.sort_indices(table["object_key"]))


def open_partition(sky: Path, partition: Partition) -> pa.RecordBatch:
    """The objects of a partition: mapped, or read into memory where it is too old for that.

    Raises:
        VersionCorrupt: its file is damaged.
    """
    if partition.mapped is None:
        return _one_batch(read_partition(sky, partition))
    batch = disk.map_batch(sky / partition.mapped)
    _check_number(sky / partition.mapped, batch.num_rows, partition)
    return batch


def _check_number(path: Path, num_objects: int, partition: Partition) -> None:
    if num_objects != partition.num_objects:
        raise VersionCorrupt(f"{path}: expected {partition.num_objects} objects, got {num_objects}")


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch
