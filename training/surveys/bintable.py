"""A few columns of a FITS binary table, without the cost of the others.

The object table of a spectrum has more than a hundred columns, and astropy builds all of them:
60 ms a file, for the dozen values that are wanted. Here only the wanted bytes are looked at.

Source: FITS Standard 4.0, section 7.3.
"""

from __future__ import annotations

import re

import numpy as np
from numpy import ndarray

CARD_LENGTH = 80
MAX_COLUMNS = 999
# Code of TFORM -> big-endian NumPy type. Bits (X) are stepped over; a pointer (P, Q) to an array of
# variable length is its two numbers, count and offset.
_TYPES = {
    "L": "S1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8",
    "C": ">c8", "M": ">c16",
}  # fmt: skip
_POINTER_BYTES = {"P": 8, "Q": 16}
_POINTERS = {"P": ">i4", "Q": ">i8"}


def table_header(content: bytes, *, header_start: int, data_start: int) -> dict[str, str]:
    """Keyword -> value as text, of one header; strings without quotes and trailing blanks."""
    cards: dict[str, str] = {}
    for start in range(header_start, data_start, CARD_LENGTH):
        card = content[start : start + CARD_LENGTH].decode("ascii", "replace")
        if card[8:10] != "= ":
            continue
        value = card[10:].strip()
        text = re.match(r"'((?:[^']|'')*)'", value)
        unquoted = text[1].replace("''", "'").rstrip() if text else value.split("/")[0].strip()
        cards[card[:8].strip()] = unquoted
    return cards


def column_names(header: dict[str, str]) -> tuple[str, ...]:
    """Names of all columns in lower case; raise ValueError where TFIELDS is no number of them."""
    text = header.get("TFIELDS", "0")
    if not (text.isascii() and text.isdecimal() and int(text) <= MAX_COLUMNS):
        raise ValueError(f"expected TFIELDS from 0 to {MAX_COLUMNS}, got {text!r}")
    return tuple(header.get(f"TTYPE{number}", "").lower() for number in range(1, int(text) + 1))


def read_columns(
    content: bytes, header: dict[str, str], *, data_start: int, wanted: frozenset[str]
) -> dict[str, ndarray]:
    """Wanted columns by lower-case name, in native byte order, one entry a row.

    A column of several values a cell has a second axis; text has its trailing blanks removed.

    Raises:
        ValueError: the file ends before the table, or its layout does not add up.
    """
    names, formats, offsets, scales = [], [], [], {}
    position = 0
    for number, name in enumerate(column_names(header), start=1):
        form = re.match(r"(\d*)([LXBIJKAEDCMPQ])", header.get(f"TFORM{number}", ""))
        if form is None:
            raise ValueError(f"column {name!r}: unknown format {header.get(f'TFORM{number}')!r}")
        repeat, code = int(form[1] or 1), form[2]
        layout = _layout(repeat, code)
        if name in wanted and name not in names and layout is not None:
            names.append(name)
            formats.append(layout)
            offsets.append(position)
            scales[name] = (header.get(f"TSCAL{number}", "1"), header.get(f"TZERO{number}", "0"))
        position += _num_bytes(repeat, code)
    width, num_rows = int(header["NAXIS1"]), int(header["NAXIS2"])
    if position != width:
        raise ValueError(f"columns add up to {position} bytes a row, NAXIS1 says {width}")
    if len(content) < data_start + width * num_rows:
        raise ValueError(
            f"truncated: {num_rows} rows of {width} bytes are promised, "
            f"{max(0, len(content) - data_start)} bytes are left"
        )
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": width})
    table = np.frombuffer(content, dtype, count=num_rows, offset=data_start)
    return {name: _native(table[name], *scales[name]) for name in names}


def _layout(repeat: int, code: str) -> str | tuple[str, tuple[int]] | None:
    if code == "A":
        return f"S{repeat}" if repeat else None
    if code in _POINTERS and repeat == 1:
        return (_POINTERS[code], (2,))
    if code not in _TYPES or repeat == 0:
        return None
    return _TYPES[code] if repeat == 1 else (_TYPES[code], (repeat,))


def _num_bytes(repeat: int, code: str) -> int:
    if code == "A":
        return repeat
    if code == "X":
        return -(-repeat // 8)
    if code in _POINTER_BYTES:
        return repeat * _POINTER_BYTES[code]
    return repeat * np.dtype(_TYPES[code]).itemsize


def _native(column: ndarray, scale: str, zero: str) -> ndarray:
    if column.dtype.kind == "S":
        return np.char.rstrip(np.char.decode(column, "ascii", "replace"), "\0 ")
    native = column.astype(column.dtype.newbyteorder("="))
    if float(scale) == 1 and float(zero) == 0:
        return native
    if native.dtype.kind in "iu" and float(scale) == 1 and re.fullmatch(r"\d+\.?0*", zero):
        # An unsigned integer is stored shifted by half its range.
        return native.astype(np.uint64) + np.uint64(int(zero.split(".")[0]))
    return native * float(scale) + float(zero)
