"""Rows of a FITS binary table, a block at a time, arrays of variable length included.

Only the wanted columns of the rows at hand are in memory, and the file is read, not mapped: one
that another program shortens meanwhile is truncated, not a crash.

Source: FITS Standard 4.0, sections 7.3.3 and 7.3.5.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from numpy import ndarray

from training.surveys.bintable import column_names, read_columns, table_header
from training.surveys.files import BROKEN_FITS, plainly
from training.surveys.fits_layout import damage

_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 1024
_ELEMENTS: dict[str, np.dtype[Any]] = {
    "D": np.dtype(">f8"),
    "E": np.dtype(">f4"),
}  # of arrays of variable length


@dataclass(frozen=True, slots=True)
class FitsTable:
    """A binary table within a file that can seek."""

    stream: io.BufferedIOBase
    header: dict[str, str]
    data_start: int

    @property
    def units(self) -> dict[str, str]:
        """Unit by column name in lower case, "" where it is not stated."""
        return {
            name: self.header.get(f"TUNIT{number}", "")
            for number, name in enumerate(column_names(self.header), start=1)
        }

    def rows(
        self, wanted: frozenset[str], *, key: str, only: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Cells by lower-case name, in the order of the table.

        An array of variable length that lies outside the file comes as a ValueError in its cell.

        Args:
            wanted: Lower-case names of columns.
            key: The column that `only` is looked for in.
            only: Leave out rows that have another number there.

        Raises:
            ValueError: the file ends before the table, or its layout does not add up.
        """
        elements = self._elements(wanted)
        width, num_rows = int(self.header["NAXIS1"]), int(self.header["NAXIS2"])
        step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(width, 1)))
        for first in range(0, num_rows, step):
            count = min(step, num_rows - first)
            block = self._read(self.data_start + first * width, count * width)
            columns = read_columns(
                block, self.header | {"NAXIS2": str(count)}, data_start=0, wanted=wanted
            )
            chosen = np.arange(count)
            if only is not None:
                chosen = np.flatnonzero(columns[key] == only)
            for i in chosen:
                yield {
                    name: self._array(column[i], elements[name])
                    if name in elements
                    else (column[i].tolist() if column.ndim == 1 else column[i])
                    for name, column in columns.items()
                }

    def _elements(self, wanted: frozenset[str]) -> dict[str, np.dtype[Any]]:
        """Type of the elements of each wanted column of variable length."""
        elements: dict[str, np.dtype[Any]] = {}
        for number, name in enumerate(column_names(self.header), start=1):
            form = re.match(r"\d*[PQ](.)", self.header.get(f"TFORM{number}", ""))
            if form is None or name not in wanted:
                continue
            if form[1] not in _ELEMENTS:
                raise ValueError(f"column {name!r}: expected arrays of E or D, got {form[1]!r}")
            if {f"TSCAL{number}", f"TZERO{number}"} & self.header.keys():
                raise ValueError(f"column {name!r}: scaled arrays of variable length are not read")
            elements[name] = _ELEMENTS[form[1]]
        return elements

    def _array(self, pointer: ndarray, kind: np.dtype[Any]) -> ndarray | ValueError:
        count, offset = (int(each) for each in pointer)
        heap_size = int(self.header.get("PCOUNT", "0"))
        table_size = int(self.header["NAXIS1"]) * int(self.header["NAXIS2"])
        heap = int(self.header.get("THEAP", str(table_size)))
        end = heap + offset + count * kind.itemsize
        if count < 0 or offset < 0 or end > table_size + heap_size:
            return ValueError(f"an array of {count} at byte {offset} lies outside the table")
        content = self._read(self.data_start + heap + offset, count * kind.itemsize)
        return np.frombuffer(content, kind).astype(kind.newbyteorder("="))

    def _read(self, start: int, num_bytes: int) -> bytes:
        self.stream.seek(start)
        content = self.stream.read(num_bytes)
        if len(content) < num_bytes:
            raise ValueError(
                f"truncated: {num_bytes} bytes are promised at byte {start}, "
                f"{len(content)} are there"
            )
        return content


def find_table(stream: io.BufferedIOBase, column: str) -> FitsTable:
    """The first binary table that has this column.

    Raises:
        OSError: it is no FITS file.
        ValueError: there is no such table, or the file does not end where the header says.
    """
    amiss = damage(stream)
    if amiss:
        raise ValueError(amiss)
    stream.seek(0)
    try:
        return _find_table(stream, column)
    except BROKEN_FITS as error:
        raise ValueError(plainly(error)) from error


def _find_table(stream: io.BufferedIOBase, column: str) -> FitsTable:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        for number, hdu in enumerate(fits.open(stream, memmap=False)):
            found.append(f"{number} {hdu.name or type(hdu).__name__}")
            if not isinstance(hdu, fits.BinTableHDU):
                continue
            place = hdu.fileinfo()
            stream.seek(place["hdrLoc"])
            content = stream.read(place["datLoc"] - place["hdrLoc"])
            header = table_header(content, header_start=0, data_start=len(content))
            if column in column_names(header):
                table = FitsTable(stream, header, place["datLoc"])
                _check_size(table, end=place["datLoc"] + place["datSpan"])
                return table
    raise ValueError(f"expected a table with {column}, got {', '.join(found) or 'nothing'}")


def _check_size(table: FitsTable, *, end: int) -> None:
    width, num_rows, heap = (int(table.header[key]) for key in ("NAXIS1", "NAXIS2", "PCOUNT"))
    if min(width, num_rows, heap) < 0:
        raise ValueError(f"NAXIS1, NAXIS2 or PCOUNT is negative: {width}, {num_rows}, {heap}")
    there = table.stream.seek(0, 2) - table.data_start
    if there < width * num_rows + heap:
        raise ValueError(
            f"truncated: {num_rows} rows of {width} bytes and {heap} bytes of arrays are "
            f"promised, {there} bytes are left"
        )
    table.stream.seek(end)
    behind = table.stream.read(2880)
    if behind.strip(b"\0 ") and not behind.startswith(b"XTENSION"):
        raise ValueError(f"the table goes on behind the {num_rows} rows that its header promises")
