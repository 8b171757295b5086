"""Rows of many batches put together as they come."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

FEW_TABLES = 256  # of a batch each, that wait to be put together


class RowTables:
    """Rows as they come: thousands of small tables take ten times the memory of a large one."""

    def __init__(self) -> None:
        self._small: list[pa.Table] = []
        self._large: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._small.append(table)
        if len(self._small) >= FEW_TABLES:
            self._put_together()

    def remove(self, files: Sequence[int]) -> None:
        """Take away the rows of some files, by number."""
        self._put_together()
        numbers = pa.array(files, pa.int64())
        self._large = [
            table.filter(pc.invert(pc.is_in(table["file"], numbers))) for table in self._large
        ]

    def together(self) -> pa.Table | None:
        """All rows in the order in which they came; None: there are none."""
        self._put_together()
        tables = [table for table in self._large if table.num_rows]
        return pa.concat_tables(tables, promote_options="permissive") if tables else None

    def _put_together(self) -> None:
        if self._small:
            table = pa.concat_tables(self._small, promote_options="permissive")
            self._large.append(table.combine_chunks())
            self._small = []
