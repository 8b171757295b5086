"""FITS files too large to hold: single columns of a table, single rows of an image, on demand.

A DESI healpix file of 5,000 targets is 2 GB, an SDSS plate 110 MB. Here the headers are walked
once, then only the bytes that are asked for are read. A gzip or bzip2 file cannot be read from the
middle: it is unpacked once, as a whole, into a nameless temporary file (which costs its unpacked
size on disk and some 10 s a GB each time the file is opened, and no memory).

astropy parses every card of every header into objects, which takes longer than reading a spectrum,
so it is asked for compressed images (Rice and the like) only.

Source: FITS Standard 4.0, sections 3.3 (images), 4.4.2.5 (BSCALE, BZERO, BLANK) and 7.3 (tables).
"""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from numpy import ndarray

from training.surveys.bintable import column_names, read_columns, table_header
from training.surveys.files import (
    BROKEN_FITS,
    BZIP2_START,
    GZIP_START,
    open_regular,
    pieces_unpacked,
    plainly,
)
from training.surveys.fits_layout import BLOCK, MAX_HEADER_BYTES, has_end, num_data_bytes

_BROKEN = (*BROKEN_FITS, AssertionError)
_PIXELS = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}  # by BITPIX
_PACKED = (GZIP_START, BZIP2_START)

Header = Mapping[str, str]  # keyword -> value as text, strings without quotes


@dataclass(frozen=True, slots=True)
class Hdu:
    """One HDU: its header, and where its data lie in the unpacked file."""

    number: int
    name: str  # EXTNAME in upper case, PRIMARY, or ""
    header: Header
    data_start: int
    num_data_bytes: int

    @property
    def is_image(self) -> bool:
        """Whether it is an image, perhaps a compressed one."""
        kind = self.header.get("XTENSION", "IMAGE").strip()
        return kind == "IMAGE" or self.is_compressed

    @property
    def is_table(self) -> bool:
        """Whether it is a binary table that is not an image in disguise."""
        return self.header.get("XTENSION", "").strip() == "BINTABLE" and not self.is_compressed

    @property
    def is_compressed(self) -> bool:
        """Whether it is an image stored in a table, such as fpack writes."""
        return self.header.get("ZIMAGE") == "T"

    @property
    def columns(self) -> tuple[str, ...]:
        """Lower-case column names of a table."""
        return column_names(dict(self.header)) if self.is_table else ()

    @property
    def column_units(self) -> dict[str, str]:
        """Lower-case column name -> TUNIT as written, for the columns that have one."""
        units = {name: self.header.get(f"TUNIT{i}", "") for i, name in enumerate(self.columns, 1)}
        return {name: unit for name, unit in units.items() if unit.strip()}


@dataclass(frozen=True, slots=True)
class ImageRows:
    """An image of one or two axes, of which rows are read when they are wanted."""

    name: str  # for messages
    header: Header
    num_rows: int  # 1 where the image has one axis
    num_pixels: int  # a row
    _stream: IO[bytes]
    _data_start: int
    _compressed: fits.CompImageHDU | None

    def take(self, rows: Sequence[int]) -> ndarray:
        """The given rows (ascending) as (row, pixel), native numbers with BSCALE and BZERO applied.

        A BLANK integer becomes NaN. Rows that follow each other are read in one go.

        Raises:
            ValueError: the pixels cannot be unpacked.
        """
        runs = np.split(np.asarray(rows), np.flatnonzero(np.diff(rows) != 1) + 1)
        read = [self._read(int(run[0]), int(run[-1]) + 1) for run in runs]
        return read[0] if len(read) == 1 else np.concatenate(read)

    def _read(self, start: int, stop: int) -> ndarray:
        if self._compressed is not None:
            with _plain_errors(f"{self.name}: "):
                section = self._compressed.section
                one_axis = self.header.get("ZNAXIS") == "1"
                try:
                    pixels = np.asarray(section[:] if one_axis else section[start:stop])
                except Exception as error:  # Rice fails with an exception of no public module
                    raise ValueError("damaged: its pixels cannot be unpacked") from error
            pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
            return pixels.reshape(stop - start, self.num_pixels)
        stored = np.dtype(_PIXELS[integer(self.header, "BITPIX")])
        width = self.num_pixels * stored.itemsize
        self._stream.seek(self._data_start + start * width)
        content = self._stream.read((stop - start) * width)
        if len(content) < (stop - start) * width:
            raise ValueError(f"{self.name}: truncated while it was read")
        pixels = np.frombuffer(content, stored).reshape(stop - start, self.num_pixels)
        native = pixels.astype(stored.newbyteorder("="))
        scale, zero = real(self.header, "BSCALE", 1.0), real(self.header, "BZERO", 0.0)
        has_blank = stored.kind in "iu" and "BLANK" in self.header
        if scale == 1 and zero == 0 and not has_blank:
            return native
        with np.errstate(over="ignore", invalid="ignore"):  # of a damaged scale: not finite, so bad
            scaled = native * np.float64(scale) + zero
        if has_blank:
            return np.where(native == integer(self.header, "BLANK"), np.nan, scaled)
        return scaled


@dataclass(frozen=True, slots=True)
class LazyFits:
    """An open FITS file. Closed by the `open_lazily` that gave it."""

    _stream: IO[bytes]
    _known: list[Hdu]  # those walked so far
    num_bytes: int  # unpacked

    def hdus(self) -> Iterator[Hdu]:
        """The HDUs in order; a header is read when it is reached.

        Raises:
            ValueError: a header is damaged.
        """
        number = 0
        while (hdu := self.hdu(number)) is not None:
            yield hdu
            number += 1

    def hdu(self, number: int) -> Hdu | None:
        """One HDU, None past the last.

        Raises:
            ValueError: a header up to it is damaged.
        """
        while len(self._known) <= number:
            following = self._next()
            if following is None:
                return None
            self._known.append(following)
        return self._known[number]

    def table(self, hdu: Hdu, wanted: frozenset[str]) -> dict[str, ndarray]:
        """Wanted columns of a binary table by lower-case name. See `read_columns`.

        Raises:
            ValueError: the file ends before the table, or its layout does not add up.
        """
        with _plain_errors(f"HDU {hdu.number}: "):
            width, num_rows = integer(hdu.header, "NAXIS1"), integer(hdu.header, "NAXIS2")
            if width <= 0 or num_rows < 0:
                raise ValueError(f"a table of {num_rows} rows of {width} bytes")
            self._stream.seek(hdu.data_start)
            left = max(0, self.num_bytes - hdu.data_start)
            content = self._stream.read(min(width * num_rows, left))
            return read_columns(content, dict(hdu.header), data_start=0, wanted=wanted)

    def image(self, hdu: Hdu) -> ImageRows:
        """The rows of an image of one or two axes.

        Raises:
            ValueError: it is no such image, or the file ends before its last pixel.
        """
        with _plain_errors(f"HDU {hdu.number}: "):
            if not hdu.is_image:
                raise ValueError(f"expected an image, got {hdu.header.get('XTENSION')}")
            prefix = "Z" if hdu.is_compressed else ""
            num_axes = integer(hdu.header, f"{prefix}NAXIS")
            if num_axes not in (1, 2):
                raise ValueError(f"expected an image of one or two axes, got {num_axes}")
            num_pixels = integer(hdu.header, f"{prefix}NAXIS1")
            num_rows = integer(hdu.header, f"{prefix}NAXIS2") if num_axes == 2 else 1
            bits = integer(hdu.header, f"{prefix}BITPIX")
            if num_pixels <= 0 or num_rows < 0 or bits not in _PIXELS:
                raise ValueError(
                    f"an image of {num_rows} rows of {num_pixels} pixels with BITPIX {bits}"
                )
            left = max(0, self.num_bytes - hdu.data_start)
            if hdu.num_data_bytes > left:
                raise ValueError(
                    f"truncated: {hdu.num_data_bytes:,} bytes are promised, {left:,} bytes are left"
                )
            compressed = None
            if hdu.is_compressed:
                column_names(dict(hdu.header))  # astropy takes any number of them, and for ever
                self._stream.seek(0)
                compressed = fits.open(self._stream, memmap=False)[hdu.number]
            return ImageRows(
                name=f"HDU {hdu.number} {hdu.name}".rstrip(),
                header=hdu.header,
                num_rows=num_rows,
                num_pixels=num_pixels,
                _stream=self._stream,
                _data_start=hdu.data_start,
                _compressed=compressed,
            )

    def _next(self) -> Hdu | None:
        number = len(self._known)
        start = 0
        if self._known:
            last = self._known[-1]
            start = last.data_start + -(-last.num_data_bytes // BLOCK) * BLOCK
        if start >= self.num_bytes:
            return None
        self._stream.seek(start)
        content = bytearray()
        while not has_end(content[-BLOCK:]):
            block = self._stream.read(BLOCK)
            if not content and number and not block.startswith(b"XTENSION="):
                if not block.strip(b"\0 "):
                    return None
                raise ValueError(f"HDU {number}: no header where HDU {number - 1} ends")
            if len(block) < BLOCK or len(content) > MAX_HEADER_BYTES:
                raise ValueError(f"HDU {number}: truncated: its header has no END")
            content += block
        header = table_header(bytes(content), header_start=0, data_start=len(content))
        with _plain_errors(f"HDU {number}: "):
            num_bytes = num_data_bytes(header)
        name = header.get("EXTNAME", "").strip().upper() or ("" if number else "PRIMARY")
        return Hdu(number, name, header, start + len(content), num_bytes)


def integer(header: Header, key: str, default: int | None = None) -> int:
    """A whole number of a header.

    Raises:
        ValueError: it is missing without a default, or is no whole number.
    """
    text = header.get(key, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected a whole number as {key}, got {text!r}") from None


def real(header: Header, key: str, default: float | None = None) -> float:
    """A number of a header, also as Fortran writes it (1.0D-4).

    Raises:
        ValueError: it is missing without a default, or is no finite number.
    """
    text = header.get(key, "" if default is None else str(default))
    try:
        value = float(text.upper().replace("D", "E"))
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"expected a number as {key}, got {text!r}")
    return value


def check_kinds(
    table: Mapping[str, ndarray], *, whole: Iterable[str] = (), numbers: Iterable[str] = ()
) -> None:
    """Raise ValueError where a column that is there holds other than one such value a row."""
    for names, kinds, expected in ((whole, "iu", "whole numbers"), (numbers, "iuf", "numbers")):
        for name in names:
            column = table.get(name)
            if column is not None and (column.ndim != 1 or column.dtype.kind not in kinds):
                raise ValueError(
                    f"column {name.upper()}: expected {expected}, one a row, "
                    f"got {column.dtype} of shape {column.shape[1:]}"
                )


@contextmanager
def open_lazily(file: Path) -> Iterator[LazyFits]:
    """Open a FITS file to read parts of it.

    Raises:
        OSError: the file cannot be read or is not FITS.
        ValueError: it cannot be unpacked, or to far more than real files are.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_regular(file))
        stream: IO[bytes] = opened
        start = stream.read(9)
        if start.startswith(_PACKED):
            stream = stack.enter_context(_unpacked(opened))
            start = stream.read(9)
        if not start.startswith(b"SIMPLE  ="):
            raise OSError("not a FITS file: it does not begin with SIMPLE")
        yield LazyFits(stream, [], os.fstat(stream.fileno()).st_size)


def _unpacked(packed: io.BufferedIOBase) -> IO[bytes]:
    """The content in a file that has no name any more, for reading."""
    with tempfile.NamedTemporaryFile() as to:
        to.writelines(pieces_unpacked(packed))
        to.flush()
        return Path(to.name).open("rb")


@contextmanager
def _plain_errors(where: str) -> Iterator[None]:
    """What numpy and astropy raise on damage as ValueError; warnings on style stay inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            yield
        except _BROKEN as error:
            raise ValueError(f"{where}{plainly(error)}") from error
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error
        except OSError as error:
            raise OSError(f"{where}{error}") from error
