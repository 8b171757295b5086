"""Parquet files of the Multimodal Universe: HATS partitions, and the layout of the hub.

A column is a leaf of the schema under the names that lead to it, lists left out: `image.flux` is a
struct of lists as well as a list of structs. Page checksums are verified where a file has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from training.surveys.mmu_block import Block, Column

HUB = "hub"  # origin of a file that the hub's own data-set scripts have made
_LIST_STEPS = ("list.element", "list.item", "list.array_element", "bag.array_element")

MAX_VALUES_OF_A_ROW = 4_000_000  # thirty times an image of five bands


@contextmanager
def open_parquet(file: Path) -> Iterator[ParquetTable]:
    """Open a Parquet file. See `open_table`."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(
            file, page_checksum_verification=True, pre_buffer=False, buffer_size=2**20
        ) as opened:
            yield ParquetTable(opened)
    except (
        pa.ArrowException,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise ValueError(f"broken Parquet: {error}") from error


class ParquetTable:
    """The rows of a Parquet file. See `Table`."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self._paths: dict[str, list[str]] = {}
        for number in range(opened.metadata.num_columns):
            path = opened.schema.column(number).path
            self._paths.setdefault(_plain(path), []).append(path)
        self.names = frozenset(self._paths)
        self.num_rows = int(opened.metadata.num_rows)
        metadata = opened.schema_arrow.metadata or {}
        hub = b"huggingface" in metadata and "_healpix_29" not in self.names
        self.origin = HUB if hub else ""

    def whole(self, name: str) -> ndarray:
        parts = [
            np.asarray(block.columns[name], dtype=object)
            for block in self._stream([name], range(self._opened.num_row_groups), 2**14)
        ]
        found = np.concatenate(parts) if parts else np.empty(0, object)
        if len(found) != self.num_rows:
            raise ValueError(f"{self.num_rows:,} rows are promised, {len(found):,} are there")
        return found

    def blocks(
        self, names: Sequence[str], *, cropped: frozenset[str], size: int, batch_size: int
    ) -> Iterator[Block]:
        yield from self._stream(names, range(self._opened.num_row_groups), batch_size)

    def row(self, names: Sequence[str], index: int, *, cropped: frozenset[str], size: int) -> Block:
        first = 0
        for group in range(self._opened.num_row_groups):
            rows = self._opened.metadata.row_group(group).num_rows
            if index < first + rows:
                # Pages cannot be skipped, so the rows before it are decoded, some at a time.
                for block in self._stream(names, (group,), 64):
                    at = index - first - block.start
                    if at < block.num_rows:
                        columns = {
                            name: column[at : at + 1] for name, column in block.columns.items()
                        }
                        return Block(index, 1, columns)
            first += rows
        raise ValueError(f"row {index} is promised, but not there")

    def _stream(
        self, names: Sequence[str], groups: Sequence[int], batch_size: int
    ) -> Iterator[Block]:
        paths = [path for name in names for path in self._paths[name]]
        self._check_sizes(frozenset(paths), groups)
        start = 0
        for batch in self._opened.iter_batches(
            batch_size=batch_size, row_groups=list(groups), columns=paths, use_threads=False
        ):
            columns = {name: _rows(_leaf(batch, name.split("."))) for name in names}
            yield Block(start, batch.num_rows, columns)
            start += batch.num_rows
        promised = sum(self._opened.metadata.row_group(group).num_rows for group in groups)
        if start < promised:  # a damaged page may hold none, which pyarrow does not mind
            raise ValueError(f"damaged: {promised:,} rows are promised, {start:,} are there")

    def _check_sizes(self, paths: frozenset[str], groups: Sequence[int]) -> None:
        """Raise ValueError where a row would be large: a few bytes of Parquet may be any number."""
        for group in groups:
            about = self._opened.metadata.row_group(group)
            for number in range(about.num_columns):
                column = about.column(number)
                if column.path_in_schema in paths and (
                    column.num_values > MAX_VALUES_OF_A_ROW * max(about.num_rows, 1)
                ):
                    raise ValueError(
                        f"column {_plain(column.path_in_schema)!r}: {column.num_values:,} values "
                        f"in {about.num_rows:,} rows: a row is too large"
                    )


def _plain(path: str) -> str:
    """Path of a leaf without the steps that Parquet puts in for lists."""
    for step in _LIST_STEPS:
        path = path.replace(f".{step}", "")
    return path


def _leaf(batch: Any, steps: list[str]) -> Any:
    """The Arrow array of a field, as lists of lists where it lies in a list of structs."""
    array = batch.column(batch.schema.get_field_index(steps[0]))
    for step in steps[1:]:
        array = _field(array, step)
    return array


def _field(array: Any, name: str) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    array = _storage(array)
    if pa.types.is_struct(array.type):
        return compute.struct_field(array, name)
    inner = _field(array.flatten(), name)
    lengths = compute.fill_null(compute.list_value_length(array), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
    return pa.ListArray.from_arrays(offsets.astype(np.int32), inner)


def _rows(array: Any) -> Column:
    """An Arrow array as one NumPy array or value a row.

    Where the lists in a row differ in length, it comes as one flat array, and a null as an empty
    one: neither has the shape that is expected.
    """
    from pyarrow import compute, types

    inner, lengths = _storage(array), []
    while (
        types.is_list(inner.type)
        or types.is_large_list(inner.type)
        or types.is_fixed_size_list(inner.type)
    ):
        counts = compute.fill_null(compute.list_value_length(inner), 0)
        lengths.append(counts.to_numpy(zero_copy_only=False))
        inner = _storage(inner.flatten())
    if types.is_struct(inner.type):
        raise ValueError(f"expected values, got {array.type}")
    if (
        types.is_boolean(inner.type)
        or types.is_integer(inner.type)
        or types.is_floating(inner.type)
    ):
        values = inner.to_numpy(zero_copy_only=False)
    else:
        values = np.array(inner.to_pylist(), dtype=object)
    if all(len(level) and (level == level[0]).all() for level in lengths):
        cells: Column = values.reshape(-1, *(int(level[0]) for level in lengths))
        return cells
    if len(array) == 1:
        return [np.asarray(values)]
    return [_rows(array[row : row + 1])[0] for row in range(len(array))]


def _storage(array: Any) -> Any:
    import pyarrow as pa

    return array.storage if isinstance(array, pa.ExtensionArray) else array
