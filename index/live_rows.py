"""All rows of a version that are not deleted, line by line: what the next version is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from index.segment_rows import SegmentRows


class LiveRows:
    """Lines are numbered segment by segment, the oldest first, as `every` has them."""

    def __init__(self, segments: Sequence[SegmentRows]) -> None:
        self._segments = segments
        self._columns: dict[str, pa.ChunkedArray] = {}

    @cached_property
    def every(self) -> pa.Table:
        """All lines in memory."""
        tables = [each.every() for each in self._segments]
        return pa.concat_tables(tables, promote_options="permissive")

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all lines, without reading the others; kept for the next call."""
        missing = [name for name in names if name not in self._columns]
        if missing:
            tables = [each.every(missing).select(missing) for each in self._segments]
            table = pa.concat_tables(tables, promote_options="permissive")
            self._columns.update({name: table[name] for name in missing})
        return pa.table({name: self._columns[name] for name in names})

    def at(self, lines: Int64[ndarray, " n"], columns: Sequence[str] | None = None) -> pa.Table:
        """Some lines, ascending; of files only what holds them is read.

        Catalogue columns that no segment of these lines has are not there.

        Args:
            lines: Their numbers.
            columns: Those to read besides object_key and view; None: all.
        """
        of_segment, row = self.places
        numbers = of_segment[lines]
        tables = [
            self._segments[number].read(row[lines[numbers == number]], columns)
            for number in np.unique(numbers).tolist()
        ]
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

    @cached_property
    def places(self) -> tuple[Int64[ndarray, " line"], Int64[ndarray, " line"]]:
        """Segment (its number in the version) and row in it of each line."""
        lives = [each.live for each in self._segments]
        rows = [
            np.arange(live.segment.num_rows) if live.alive is None else np.flatnonzero(live.alive)
            for live in lives
        ]
        segment = [np.full(len(some), number) for number, some in enumerate(rows)]
        return np.concatenate(segment), np.concatenate(rows)
