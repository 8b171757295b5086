"""HDF5 files of the Multimodal Universe: columns are data sets, at the top or in groups.

Nothing outside the file is followed: no soft or external link, no external storage, no virtual
data set. Images are cropped while they are read, so that of a chunked file only the chunks in
the middle are unpacked, each once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from training.surveys.mmu_block import Block, Column, centre

BLOCK_BYTES = 2**26  # of columns in memory at a time
MAX_ROW_BYTES = 2**28  # one cell; a damaged header promises more
MAX_COLUMN_BYTES = 2**30  # of a column that is read whole
# What h5py lets through when a file is damaged.
BROKEN_HDF5 = (RuntimeError, KeyError, TypeError, OverflowError, MemoryError, AttributeError)


@contextmanager
def open_hdf5(file: Path, key: Sequence[str]) -> Iterator[Hdf5Table]:
    """Open an HDF5 file. See `open_table`."""
    try:
        import h5py
    except ImportError as error:
        raise ValueError('HDF5 needs h5py: pip install "skykin[surveys]"') from error
    try:
        with h5py.File(file, "r", locking=False) as opened:
            yield Hdf5Table(opened, key)
    except BROKEN_HDF5 as error:
        why = error.args[0] if error.args else type(error).__name__  # str() of a KeyError quotes it
        raise ValueError(f"broken HDF5: {why}") from error


class Hdf5Table:
    """The rows of an HDF5 file. See `Table`."""

    def __init__(self, opened: Any, key: Sequence[str]) -> None:
        self._columns: dict[str, Any] = {}
        self.origin = str(opened.attrs.get("survey", ""))
        self._walk(opened, "", depth=0)
        self.names = frozenset(self._columns)
        known = next((name for name in key if name in self._columns), None)
        if known is None:
            raise ValueError(
                f"expected a column {' or '.join(key)}, got "
                f"{', '.join(sorted(self.names)[:12]) or 'none'}"
            )
        self.num_rows = len(self._columns[known])

    def _walk(self, group: Any, prefix: str, *, depth: int) -> None:
        import h5py

        for name in group:
            path = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path!r} is a link to elsewhere, which is not followed")
            item = group[name]
            if isinstance(item, h5py.Group) and depth < 2:
                self._walk(item, f"{path}.", depth=depth + 1)
            elif isinstance(item, h5py.Dataset) and item.ndim > 0:
                self._columns[path] = item

    def _checked(self, name: str) -> Any:
        import h5py

        column = self._columns[name]
        if column.is_virtual or column.external:
            raise ValueError(f"column {name!r} lies in another file, which is not followed")
        for filter_id in _filters(column):
            if not h5py.h5z.filter_avail(filter_id):
                raise ValueError(
                    f"column {name!r} is compressed by HDF5 filter {filter_id}, which is not at "
                    "hand: pip install hdf5plugin, or h5repack -f GZIP=4"
                )
        kind = column.id.get_type()
        if isinstance(kind, h5py.h5t.TypeFloatID) and kind != h5py.h5t.py_create(column.dtype):
            raise ValueError(f"column {name!r}: numbers of another format than IEEE 754")
        if column.chunks is None:  # past what is stored HDF5 gives what is in memory by chance
            stored = column.id.get_storage_size()
            promised = kind.get_size() * column.size
            if stored < promised:
                raise ValueError(
                    f"column {name!r}: {promised:,} bytes are promised, {stored:,} are stored"
                )
        if len(column) != self.num_rows:
            raise ValueError(
                f"column {name!r} has {len(column):,} rows, there are {self.num_rows:,} objects"
            )
        if column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.float64)) > MAX_ROW_BYTES:
            raise ValueError(f"column {name!r}: a row of shape {column.shape[1:]} is too large")
        return column

    def whole(self, name: str) -> ndarray:
        column = self._checked(name)
        if column.dtype.itemsize * float(column.size) > MAX_COLUMN_BYTES:
            raise ValueError(f"column {name!r} of shape {column.shape} is too large")
        return np.asarray(column[()])

    def row(self, names: Sequence[str], index: int, *, cropped: frozenset[str], size: int) -> Block:
        columns = self._read(names, index, index + 1, cropped=cropped, size=size)
        return Block(index, 1, columns, self._shapes(cropped))

    def blocks(
        self, names: Sequence[str], *, cropped: frozenset[str], size: int, batch_size: int
    ) -> Iterator[Block]:
        at_once = self._rows_at_once(names, cropped=cropped, batch_size=batch_size)
        for start in range(0, self.num_rows, at_once):
            stop = min(start + at_once, self.num_rows)
            try:
                read = self._read(names, start, stop, cropped=cropped, size=size)
            except (OSError, RuntimeError):  # a damaged chunk: the rows beside it may be whole
                yield from self._rows_alone(names, start, stop, cropped=cropped, size=size)
                continue
            for first in range(start, stop, batch_size):
                last = min(first + batch_size, stop)
                part = {name: column[first - start : last - start] for name, column in read.items()}
                yield Block(first, last - first, part, self._shapes(cropped))

    def _rows_alone(
        self, names: Sequence[str], start: int, stop: int, *, cropped: frozenset[str], size: int
    ) -> Iterator[Block]:
        for index in range(start, stop):
            try:
                yield self.row(names, index, cropped=cropped, size=size)
            except (OSError, RuntimeError) as error:
                yield Block(index, 1, {}, problem=f"damaged: {error}")

    def _read(
        self, names: Sequence[str], start: int, stop: int, *, cropped: frozenset[str], size: int
    ) -> dict[str, Column]:
        read: dict[str, Column] = {}
        for name in names:
            column = self._checked(name)
            if name not in cropped:
                read[name] = column[start:stop]
                continue
            if column.ndim < 3:
                raise ValueError(f"column {name!r}: expected images, got shape {column.shape}")
            y, x = centre(column.shape[-2], column.shape[-1], size)
            if column.chunks is None:  # one long read is faster than many short ones
                read[name] = column[start:stop][..., y, x]
            else:
                read[name] = column[(slice(start, stop), ..., y, x)]
        return read

    def _shapes(self, cropped: frozenset[str]) -> dict[str, tuple[int, int]]:
        return {name: self._columns[name].shape[-2:] for name in cropped}

    def _rows_at_once(
        self, names: Sequence[str], *, cropped: frozenset[str], batch_size: int
    ) -> int:
        """Whole chunks, so that none is unpacked twice, as far as memory allows."""
        chunked = [self._columns[name].chunks[0] for name in cropped if self._columns[name].chunks]
        step = max(chunked, default=1)
        row_bytes = sum(
            self._columns[name].dtype.itemsize * int(np.prod(self._columns[name].shape[1:]))
            for name in names
        )
        allowed = max(1, BLOCK_BYTES // max(1, row_bytes))
        wanted = -(-batch_size // step) * step
        if wanted <= allowed:
            return wanted
        return max(1, allowed - allowed % step if allowed >= step else allowed)


def _filters(column: Any) -> list[int]:
    properties = column.id.get_create_plist()
    return [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
