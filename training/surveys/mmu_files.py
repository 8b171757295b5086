"""Tables of the Multimodal Universe on disk: HDF5 and Parquet, read a few rows at a time.

Either gives rows as columns of arrays, one entry a row, whatever lies in the file: a data set or a
group in HDF5; a struct, a list, or a list of structs in Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from numpy import ndarray

from training.surveys.files import open_regular
from training.surveys.mmu_block import Block
from training.surveys.mmu_hdf5 import open_hdf5
from training.surveys.mmu_parquet import open_parquet

SUFFIXES = (".hdf5", ".h5", ".parquet")


@runtime_checkable
class Table(Protocol):
    """The rows of a file."""

    names: frozenset[str]
    num_rows: int
    origin: str  # who says to have written it: HUB, a survey, or ""

    def whole(self, name: str) -> ndarray:
        """One column of all rows."""
        ...

    def blocks(
        self, names: Sequence[str], *, cropped: frozenset[str], size: int, batch_size: int
    ) -> Iterator[Block]:
        """All rows in order, `batch_size` at a time.

        Args:
            names: Columns that are wanted.
            cropped: Those of them of which only the central size x size pixels are wanted, the
                last two axes being y, x. Where the block's `shapes` name one, that was done and
                this is the shape that is stored; else it is whole.
            size: Side of the crop.
            batch_size: Rows a block.
        """
        ...

    def row(self, names: Sequence[str], index: int, *, cropped: frozenset[str], size: int) -> Block:
        """One row."""
        ...


@contextmanager
def open_table(file: Path, *, key: Sequence[str]) -> Iterator[Table]:
    """Open a file by what it begins with.

    Args:
        file: HDF5 or Parquet.
        key: Names of the column that says how many rows there are.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is neither, is damaged (also found while it is used), or has no key.
    """
    with open_regular(file) as stream:
        start = stream.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        with open_hdf5(file, key) as hdf5:
            yield hdf5
    elif start.startswith(b"PAR1"):
        with open_parquet(file) as parquet:
            yield parquet
    else:
        raise ValueError("neither HDF5 nor Parquet: it begins with neither \\x89HDF nor PAR1")
