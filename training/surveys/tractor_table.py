"""A Tractor or sweep table in its file: found there, grouped by brick, read in parts.

A Tractor table holds the sources of one brick (some 20,000 rows of 2 kB), a sweep those of many
bricks (millions of rows of 0.5 kB). Nothing but the wanted columns of the wanted rows is decoded;
a gzipped table is unpacked into a temporary file first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from training.surveys.bintable import column_names, read_columns, table_header
from training.surveys.files import GZIP_START, open_regular, pieces_unpacked
from training.surveys.fits_layout import BLOCK, MAX_HEADER_BYTES, num_data_bytes
from training.surveys.nanomaggies import check_unit

REQUIRED = ("release", "brickid", "brickname", "objid", "type", "ra", "dec")
FLUX_BANDS = ("g", "r", "i", "z", "w1", "w2", "w3", "w4")
SHAPE_COLUMNS = tuple(
    f"{model}_{part}" for model in ("shape", "shapedev", "shapeexp") for part in ("r", "e1", "e2")
)
WANTED = frozenset(
    (
        *(*REQUIRED, *SHAPE_COLUMNS, "brick_primary", "fracdev", "ebv"),
        *(f"{kind}_{band}" for kind in ("flux", "flux_ivar") for band in FLUX_BANDS),
    )
)
_TEXT = frozenset(("brickname", "type", "brick_primary"))
_UNITS = {"ra": "deg", "dec": "deg", **{f"{column}": "arcsec" for column in SHAPE_COLUMNS[::3]}}
_SPELLINGS = {"deg": ("deg", "degree", "degrees"), "arcsec": ("arcsec", "arcsecond", "arcseconds")}
_CARD = 80
_CHUNK = 16_384  # rows decoded at a time while grouping
_NEAR = 1e-4  # 20 arcsec in radian: half a cutout and a little

Columns = dict[str, ndarray]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with the columns that name and place a source."""

    stream: BufferedIOBase  # unpacked
    header: dict[str, str]
    data_start: int
    row_bytes: int
    num_rows: int

    def columns(self, rows: Int64[ndarray, " row"], wanted: frozenset[str] = WANTED) -> Columns:
        """Wanted columns of some rows, by lower-case name, one value a row.

        Raises:
            ValueError: a column has several values a row, or text where numbers belong.
        """
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        content = b"".join(self._read(int(run[0]), len(run)) for run in runs)
        header = self.header | {"NAXIS2": str(len(rows))}  # rows of a table are a table themselves
        columns = read_columns(content, header, data_start=0, wanted=wanted)
        for name, values in columns.items():
            if values.ndim != 1 or (values.dtype.kind in "US") != (name in _TEXT):
                kind = "text" if name in _TEXT else "number"
                raise ValueError(f"column {name!r}: expected one {kind} a row, got {values.dtype}")
        return columns

    def _read(self, first: int, num: int) -> bytes:
        self.stream.seek(self.data_start + first * self.row_bytes)
        return self.stream.read(num * self.row_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrickRows:
    """The rows of one brick and release, ascending, and the part of the sky that they span."""

    release: int
    brickid: int
    rows: Int64[ndarray, " row"]
    low: Float64[ndarray, " 3"]  # box around the unit vectors of its positions
    high: Float64[ndarray, " 3"]

    def touches(self, other: BrickRows) -> bool:
        """Whether a source of one may lie in a cutout of the other."""
        return bool(((self.low - _NEAR <= other.high) & (other.low <= self.high + _NEAR)).all())


@contextmanager
def open_table(file: Path) -> Iterator[Table]:
    """The first table in a FITS file that has the columns of a Tractor or sweep table.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not FITS, is damaged, holds no such table, or the units are other ones.
    """
    with open_regular(file) as opened, tempfile.TemporaryFile() as unpacked:
        start = opened.read(9)
        opened.seek(0)
        source: BufferedIOBase = opened
        if start.startswith(GZIP_START):
            source = cast("BufferedIOBase", unpacked)
            source.writelines(pieces_unpacked(opened))
            source.flush()
        elif start != b"SIMPLE  =":
            raise ValueError("not a FITS file: it does not begin with SIMPLE")
        yield _find(source)


def group_by_brick(table: Table) -> tuple[BrickRows, ...]:
    """The rows of each brick, in the order in which the bricks first come.

    Memory: some 30 bytes a row, less where the rows of a brick lie together as the survey has them.
    """
    keys = np.empty(table.num_rows, np.int64)
    runs: list[ndarray] = []
    boxes: list[ndarray] = []
    for start in range(0, table.num_rows, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, table.num_rows))
        part = table.columns(rows, frozenset(("release", "brickid", "ra", "dec")))
        keys[rows] = (part["release"].astype(np.int64) << 32) | (
            part["brickid"].astype(np.int64) & 0xFFFFFFFF
        )
        first = np.flatnonzero(np.diff(keys[rows], prepend=keys[rows[0]] - 1))
        vectors = _unit_vectors(part["ra"], part["dec"])
        runs.append(keys[rows[first]])
        boxes.append(
            np.stack([np.fmin.reduceat(vectors, first), np.fmax.reduceat(vectors, first)], axis=1)
        )
    if not runs:
        return ()
    found, firsts, which = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which))
    run_of = np.searchsorted(found, np.concatenate(runs))
    by_run = np.argsort(run_of, kind="stable")
    box = np.concatenate(boxes)[by_run]  # (run, low or high, axis)
    starts = np.searchsorted(run_of[by_run], np.arange(len(found)))
    low, high = np.fmin.reduceat(box[:, 0], starts), np.fmax.reduceat(box[:, 1], starts)
    return tuple(
        BrickRows(
            release=int(found[brick] >> 32),
            brickid=int(found[brick] & 0xFFFFFFFF),
            rows=order[(ends[brick - 1] if brick else 0) : ends[brick]],
            low=low[brick],
            high=high[brick],
        )
        for brick in np.argsort(firsts)
    )


def looks_like_one(names: tuple[str, ...]) -> bool:
    """Whether a table with these columns (lower case) is a Tractor or sweep table."""
    return set(REQUIRED) <= set(names)


def headers(stream: BufferedIOBase) -> Iterator[tuple[dict[str, str], int]]:
    """The header of each HDU and where its data begin, until the stream ends.

    Raises:
        ValueError: a header has no end or does not say how large its data are.
    """
    start = 0
    while True:
        stream.seek(start)
        content = stream.read(BLOCK)
        if not content.strip(b"\0 "):  # the end, or padding after it
            return
        ends = _end(content, 0)
        while ends is None:
            more = stream.read(BLOCK)
            if len(more) < BLOCK or len(content) > MAX_HEADER_BYTES:
                raise ValueError("broken FITS header: it has no END, or the file is truncated")
            ends = _end(more, len(content))
            content += more
        header = table_header(content, header_start=0, data_start=ends)
        try:
            promised = num_data_bytes(header)
        except ValueError as error:
            raise ValueError(f"broken FITS header: {error}") from error
        yield header, start + len(content)
        start += len(content) + -(-promised // BLOCK) * BLOCK


def _end(block: bytes, offset: int) -> int | None:
    """Where the END card is, counted from the begin of its header."""
    for card in range(0, len(block), _CARD):
        if block[card : card + 8] == b"END     ":
            return offset + card
    return None


def _find(stream: BufferedIOBase) -> Table:
    num_bytes = stream.seek(0, 2)
    seen = []
    for number, (header, data_start) in enumerate(headers(stream)):
        if header.get("XTENSION") != "BINTABLE":
            continue
        if header.get("ZTABLE") == "T":
            raise ValueError("a table compressed by fpack: unpack it with funpack")
        names = column_names(header)
        if not looks_like_one(names):
            seen.append(f"{number} {header.get('EXTNAME', 'table')} ({', '.join(names[:6])}, ...)")
            continue
        _check_units(header, names)
        row_bytes, num_rows = int(header["NAXIS1"]), int(header["NAXIS2"])
        if num_bytes < data_start + row_bytes * num_rows:
            raise ValueError(
                f"truncated: {num_rows:,} rows of {row_bytes:,} bytes are promised, "
                f"{max(0, num_bytes - data_start):,} bytes are left"
            )
        return Table(stream, header, data_start, row_bytes, num_rows)
    raise ValueError(
        "no usable HDU: expected an image (band, y, x) or a Tractor or sweep table with columns "
        f"{', '.join(REQUIRED)}, got {'; '.join(seen) or 'neither'}"
    )


def _check_units(header: dict[str, str], names: tuple[str, ...]) -> None:
    for number, name in enumerate(names, start=1):
        unit = header.get(f"TUNIT{number}", "").strip()
        if name in _UNITS and unit and unit.lower() not in _SPELLINGS[_UNITS[name]]:
            raise ValueError(f"column {name!r}: expected {_UNITS[name]}, got {unit!r}")
        if name in {f"flux_{band}" for band in FLUX_BANDS}:
            check_unit(unit, where=f"column {name!r}")


def _unit_vectors(ra_deg: ndarray, dec_deg: ndarray) -> Float64[ndarray, "row 3"]:
    ra, dec = np.radians(ra_deg.astype(np.float64)), np.radians(dec_deg.astype(np.float64))
    with np.errstate(invalid="ignore"):  # infinite: NaN, which no box takes notice of
        return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
