"""The object table on disk: Parquet files by HEALPix cell, as HATS lays them out.

    objects/Norder=0/Npix=5-<digest>.parquet      objects in cell 5 of order 0
    objects/no_position-<digest>.parquet          objects whose position is not known

A cell with too many objects is divided into its four children. A file never changes: its name tells
its content, and a new version goes on using those in which no object changed.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
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
    """One file of the object table."""

    cell: Cell
    file: str  # below the sky's folder
    num_objects: int


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


def write_partitions(
    sky: Path,
    objects: pa.Table,
    *,
    before: tuple[Partition, ...],
    touched: Int64[ndarray, " n"],
) -> tuple[Partition, ...]:
    """Write the object table; files of the version before that hold no touched object are kept.

    Args:
        sky: Folder of the sky.
        objects: The whole table.
        before: Partitions of the version that the table was made from.
        touched: Keys of objects that are new, changed or gone.
    """
    kept = {partition.cell: partition for partition in before}
    cells = objects["_healpix_29"].fill_null(-1).to_numpy()
    changed = np.isin(objects["object_key"].to_numpy(), touched)
    partitions = []
    for cell, rows in divide(cells):
        old = kept.get(cell)
        # an object that left makes the number differ, one that came is itself touched
        if old is not None and old.num_objects == len(rows) and not changed[rows].any():
            partitions.append(old)
            continue
        partitions.append(write_partition(sky, cell, objects.take(pa.array(rows))))
    return tuple(partitions)


def write_partition(sky: Path, cell: Cell, objects: pa.Table) -> Partition:
    """Write the objects of a cell."""
    file = _write(sky / "objects", cell, objects)
    return Partition(cell, str(file.relative_to(sky)), objects.num_rows)


def _write(folder: Path, cell: Cell, objects: pa.Table) -> Path:
    stem = folder / cell.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    temporary = stem.with_name(f"{disk.TEMPORARY}{uuid.uuid4().hex[:12]}.parquet")
    try:
        disk.write_table(temporary, objects)
        digest = disk.sha256_of(temporary)[:16]
        file = stem.with_name(f"{stem.name}-{digest}.parquet")
        os.replace(temporary, file)
        flush(file.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def read_columns(sky: Path, partition: Partition, names: list[str] | None) -> pa.Table:
    """Some columns of a file of the object table; None: all.

    Raises:
        VersionCorrupt: it is missing or damaged.
    """
    path = sky / partition.file
    try:
        table = pq.ParquetFile(path).read(names)
    except (pa.ArrowInvalid, OSError) as error:
        raise VersionCorrupt(f"{path} is damaged: {error}") from error
    if table.num_rows != partition.num_objects:
        raise VersionCorrupt(
            f"{path}: expected {partition.num_objects} objects, got {table.num_rows}"
        )
    return table


def read_partitions(sky: Path, partitions: tuple[Partition, ...]) -> pa.Table:
    """The whole object table, ordered by key."""
    tables = [read_columns(sky, partition, None) for partition in partitions]
    if not tables:
        return pa.schema(OBJECT_FIELDS | CATALOGUE).empty_table()
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    return table.take(pc.sort_indices(table["object_key"]))
