"""What the live rows of a segment were made from, read where it is asked for.

Of `rows.parquet` the row groups are read that hold the rows asked for. Whose observation each row
is stands in memory after the first question: a search tells it of every hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt
from numpy import ndarray

from index.errors import VersionCorrupt
from index.filtering import Live
from index.segment import BLOCK_ROWS


@dataclass(frozen=True, slots=True)
class Surveys:
    """Whose observation each row of a segment is, deleted rows among them."""

    names: tuple[str, ...]
    of_row: UInt[ndarray, " row"]  # index into names


class SegmentRows:
    """The rows of one segment as a version sees it."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.path = live.segment.folder / "rows.parquet"

    def first(self, keys: Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
        """The first live row of each object, -1 where there is none."""
        there = self.live.segment.object_key
        row, end = (np.searchsorted(there, keys, side=side) for side in ("left", "right"))
        if self.live.alive is not None:
            while len(dead := np.flatnonzero(row < end)[~self.live.alive[row[row < end]]]):
                row[dead] += 1
        return np.where(row < end, row, -1)

    def of(self, keys: Int64[ndarray, " n"]) -> Int64[ndarray, " row"]:
        """All live rows of some objects, ascending."""
        there, wanted = self.live.segment.object_key, np.unique(keys)
        starts, ends = (np.searchsorted(there, wanted, side=side) for side in ("left", "right"))
        sizes = ends - starts
        first = np.cumsum(sizes) - sizes
        rows = np.arange(sizes.sum()) + np.repeat(starts - first, sizes)
        return rows if self.live.alive is None else rows[self.live.alive[rows]]

    def keys(self) -> Int64[ndarray, " row"]:
        """Objects of the live rows, ascending."""
        there = self.live.segment.object_key
        return there if self.live.alive is None else there[self.live.alive]

    def every(self, columns: Sequence[str] | None = None) -> pa.Table:
        """What all live rows were made from, as `read` gives it, but of columns that are there."""
        segment = self.live.segment
        stored = None
        if columns is not None:
            stored = [name for name in columns if name not in ("object_key", "view")]
        table = segment.rows(stored)
        view = pa.repeat(pa.scalar(segment.view, pa.string()), segment.num_rows)
        table = table.add_column(1, "view", view)
        return table if self.live.alive is None else table.filter(pa.array(self.live.alive))

    def read(self, rows: Int64[ndarray, " n"], columns: Sequence[str] | None = None) -> pa.Table:
        """What some rows were made from.

        Args:
            rows: Numbers in the segment, ascending.
            columns: Of rows.parquet; those that it lacks are left out. None: all.

        Returns:
            `object_key`, `view` and the columns.
        """
        segment = self.live.segment
        names = [name for name in self._schema.names if columns is None or name in columns]
        tables = [pa.schema([self._schema.field(name) for name in names]).empty_table()]
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        numbers, starts = np.unique(groups, return_index=True)
        if len(numbers):
            with self._open() as file:
                # of no row np.split would still give one part, an empty one
                for number, some in zip(numbers, np.split(rows, starts[1:]), strict=True):
                    group = self._group(file, int(number), names)
                    tables.append(group.take(pa.array(some - self._starts[number])))
        table = pa.concat_tables(tables).combine_chunks()
        # segments of old are of one precision
        if "precision" not in self._schema.names and (columns is None or "precision" in columns):
            same = pa.array(segment.encoder_precisions * len(rows), pa.string())
            table = table.append_column("precision", same)
        table = table.add_column(0, "object_key", pa.array(segment.object_key[rows]))
        return table.add_column(1, "view", pa.array([segment.view] * len(rows), pa.string()))

    @cached_property
    def surveys(self) -> Surveys:
        """Whose observation each row is."""
        names: dict[str, int] = {}
        parts = [np.empty(0, np.uint8)]
        with self._open(read_dictionary=["survey"]) as file:
            try:
                for batch in file.iter_batches(BLOCK_ROWS, columns=["survey"]):
                    column = batch.column(0).dictionary_encode()
                    known = [
                        names.setdefault(name, len(names)) for name in column.dictionary.to_pylist()
                    ]
                    codes = np.array(known, np.int64)[column.indices.to_numpy()]
                    parts.append(codes.astype(np.min_scalar_type(max(len(names) - 1, 0))))
            except (pa.ArrowInvalid, OSError) as error:
                raise VersionCorrupt(f"{self.path} is damaged: {error}") from error
        return Surveys(tuple(names), np.concatenate(parts))

    @cached_property
    def _schema(self) -> pa.Schema:
        with self._open() as file:
            return file.schema_arrow

    @cached_property
    def _metadata(self) -> pq.FileMetaData:
        with self._open(metadata=None) as file:
            metadata = file.metadata
        if metadata.num_rows != self.live.segment.num_rows:
            raise VersionCorrupt(
                f"{self.path}: expected {self.live.segment.num_rows} rows, got {metadata.num_rows}"
            )
        return metadata

    @cached_property
    def _starts(self) -> Int64[ndarray, " group"]:
        """First row of each row group."""
        groups = range(self._metadata.num_row_groups)
        sizes = [self._metadata.row_group(number).num_rows for number in groups]
        return np.cumsum([0, *sizes])[: len(sizes)]

    def _open(self, **options: object) -> pq.ParquetFile:
        try:
            if "metadata" not in options:
                options["metadata"] = self._metadata
            return pq.ParquetFile(self.path, page_checksum_verification=True, **options)
        except (pa.ArrowInvalid, OSError) as error:
            raise VersionCorrupt(f"{self.path} is damaged: {error}") from error

    def _group(self, file: pq.ParquetFile, number: int, names: Sequence[str]) -> pa.Table:
        try:
            return file.read_row_group(number, columns=names, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise VersionCorrupt(f"{self.path} is damaged: {error}") from error
