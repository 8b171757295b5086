"""Measurements of HSC objects beside their cutouts: what an SQL query to the archive returned.

A FITS table or CSV with the columns of pdr3_*.forced and .meas. Wanted are object_id, ra, dec, the
extinctions a_g.., the magnitudes g_cmodel_mag.. and the moments i_sdssshape_shape11, 22, 12; others
are not read. The archive writes "# " before the CSV's line of names, and gives each FITS column a
twin NAME_isnull that is true where the value is missing.

Source: schema of HSC-SSP PDR3 (hsc-release.mtk.nao.ac.jp/schema): magnitudes are AB, moments in
arcsec^2 (the pipeline's own are in pixels), extinctions in magnitudes.
"""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from jaxtyping import Float64, Int64
from numpy import ndarray
from pyarrow import csv
from scipy.spatial import KDTree

from training.surveys.files import open_regular, plainly, reason
from training.surveys.hsc_groups import BROKEN, SAME_OBJECT_ARCSEC

SCALARS = {  # column -> token key
    **{f"a_{band}": f"tok_a_{band}" for band in "grizy"},
    **{f"{band}_cmodel_mag": f"tok_mag_{band}" for band in "grizy"},
    **{f"i_sdssshape_shape{ij}": f"tok_shape{ij}" for ij in ("11", "22", "12")},
}
MAX_ROWS = 5_000_000  # 16 columns of 8 bytes a row lie in memory
FAR_ARCSEC = 10.0  # an id whose place is farther than this from the cutout belongs to another
_MAGNITUDES = (0.0, 40.0)  # beyond, the archive means "not measured" (99, inf)
_UNITS = {  # end of a column's name -> its unit, as it may be written
    **dict.fromkeys(("ra", "dec"), ("deg", "degree", "degrees")),
    **dict.fromkeys(("_mag", *(f"a_{band}" for band in "grizy")), ("mag", "abmag", "mag(ab)")),
    **dict.fromkeys(("11", "22", "12"), ("arcsec^2", "arcsec**2", "arcsec2")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row of a table, as an object's."""

    object_id: str  # "" where the table has none
    scalars: Mapping[str, float]  # token key -> value
    note: str  # how it was found


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The wanted columns of a table; NaN is missing."""

    name: str
    object_id: Int64[ndarray, " row"] | None
    ra_deg: Float64[ndarray, " row"] | None
    dec_deg: Float64[ndarray, " row"] | None
    columns: Mapping[str, Float64[ndarray, " row"]]  # by token key
    rows_by_id: Mapping[int, int]
    places: KDTree | None  # of unit vectors; rows without a place are far from everything


def measured(
    tables: tuple[Path, ...], *, name: str, ra_deg: float, dec_deg: float
) -> tuple[Measured | None, tuple[str, ...]]:
    """The measurements of an object, and notes on tables that could not be used.

    Its row is that of its id, where the id is a number and its place agrees, else the nearest
    within 1 arcsec.
    """
    notes = []
    for path in tables:
        try:
            table = open_table(path)
        except (OSError, ValueError) as error:
            notes.append(f"{path.name}: not used: {reason(error)}")
            continue
        if table is None:
            continue
        row, how = _row(table, name=name, ra_deg=ra_deg, dec_deg=dec_deg)
        if row is None:
            notes += [how] if how else []
            continue
        values = {key: float(column[row]) for key, column in table.columns.items()}
        object_id = "" if table.object_id is None else str(table.object_id[row])
        scalars = {key: value for key, value in values.items() if np.isfinite(value)}
        return Measured(object_id=object_id, scalars=scalars, note=how), tuple(notes)
    return None, tuple(notes)


def open_table(path: Path) -> Table | None:
    """A table of measurements, None where it is one of something else.

    Raises:
        ValueError: the file is damaged or too long, or a column has another unit or type.
        OSError: the file cannot be read.
    """
    status = path.stat()
    return _open(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _open(path: Path, mtime_ns: int, num_bytes: int) -> Table | None:
    is_csv = path.name.lower().endswith((".csv", ".csv.gz"))
    columns = _csv_columns(path) if is_csv else _fits_columns(path)
    found = {SCALARS[key]: column for key, column in columns.items() if key in SCALARS}
    if not found or not ("object_id" in columns or {"ra", "dec"} <= columns.keys()):
        return None
    for key, column in found.items():
        low, high = (-np.inf, np.inf) if "shape" in key else _MAGNITUDES
        column[~((column >= low) & (column <= high))] = np.nan
        if key in ("tok_shape11", "tok_shape22"):
            column[~(column > 0)] = np.nan
    ids = columns.get("object_id")
    rows_by_id: dict[int, int] = {}
    if ids is not None:
        for row, number in enumerate(ids.tolist()):
            rows_by_id.setdefault(number, row)
    ra_deg, dec_deg, places = columns.get("ra"), columns.get("dec"), None
    if ra_deg is not None and dec_deg is not None and len(ra_deg):
        places = KDTree(np.nan_to_num(_vectors(ra_deg, dec_deg), nan=9.0, posinf=9.0, neginf=9.0))
    return Table(
        name=path.name, object_id=ids, ra_deg=ra_deg, dec_deg=dec_deg, columns=found,
        rows_by_id=rows_by_id, places=places,
    )  # fmt: skip


def _row(table: Table, *, name: str, ra_deg: float, dec_deg: float) -> tuple[int | None, str]:
    """The row of an object and how it was found, or None and why not."""
    vector = _vectors(np.array([ra_deg]), np.array([dec_deg]))[0]
    number = int(name) if name.isascii() and name.isdecimal() else -1
    if number in table.rows_by_id:
        row = table.rows_by_id[number]
        if table.places is not None:
            gap = _arcsec(float(np.linalg.norm(table.places.data[row] - vector)))
            if gap > FAR_ARCSEC:
                return None, (
                    f"{table.name}: not used: its {name} lies {gap:,.0f} arcsec from the cutout"
                )
        return row, f"measurements of {table.name}, by object_id"
    if table.places is None:
        return None, ""
    distance, row = table.places.query(vector)
    gap = _arcsec(float(distance))
    if gap > SAME_OBJECT_ARCSEC:
        return None, ""
    return int(row), f"measurements of {table.name}, by position, {gap:.2f} arcsec away"


def _vectors(
    ra_deg: Float64[ndarray, " row"], dec_deg: Float64[ndarray, " row"]
) -> Float64[ndarray, "row 3"]:
    with np.errstate(invalid="ignore"):
        ra, dec = np.radians(ra_deg), np.radians(dec_deg)
        return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def _arcsec(chord: float) -> float:
    return float(np.degrees(2 * np.arcsin(min(chord / 2, 1.0))) * 3600)


def _fits_columns(path: Path) -> dict[str, ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            is_packed = path.name.lower().endswith(".gz")
            # astropy leaves a file open that it opened and cannot read.
            with path.open("rb") as opened, fits.open(opened, memmap=not is_packed) as hdus:
                table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)), None)
                if table is None:
                    return {}
                _check_length(int(table.header["NAXIS2"]))
                names = {column.name.lower(): column for column in table.columns}
                columns = {}
                for key in ("object_id", "ra", "dec", *SCALARS):
                    if key not in names:
                        continue
                    _check_unit(key, names[key].unit or "")
                    values = np.asarray(table.data[names[key].name])
                    twin = names.get(f"{key}_isnull")
                    missing = None if twin is None else np.asarray(table.data[twin.name], bool)
                    columns[key] = _numbers(key, values, missing)
                return columns
        except BROKEN as error:
            raise ValueError(f"broken table: {plainly(error)}") from error


def _csv_columns(path: Path) -> dict[str, ndarray]:
    try:
        with _text(path) as stream:
            names, skipped = _names(stream)
        wanted = [name for name in names if name in ("object_id", "ra", "dec", *SCALARS)]
        if not wanted or len(set(names)) != len(names):
            return {}
        kinds = {name: pa.float64() for name in wanted} | {"object_id": pa.int64()}
        with _text(path) as stream:
            batches = csv.open_csv(
                stream,
                read_options=csv.ReadOptions(column_names=names, skip_rows=skipped),
                convert_options=csv.ConvertOptions(
                    column_types=kinds, include_columns=wanted,
                    null_values=["", "null", "NULL", "nan", "NaN"],
                ),
            )  # fmt: skip
            kept: list[pa.RecordBatch] = []
            for batch in batches:
                kept.append(batch)
                _check_length(sum(one.num_rows for one in kept))
    except (pa.ArrowException, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise ValueError(f"broken table: {error}") from error
    table = pa.Table.from_batches(kept, batches.schema)
    return {
        name: _numbers(name, table[name].fill_null(-1).to_numpy(), None)
        if name == "object_id"
        else _numbers(name, table[name].to_numpy().astype(np.float64), None)
        for name in wanted
    }


def _text(path: Path) -> io.BufferedIOBase:
    """A CSV as bytes, unpacked while it is read."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return open_regular(path)


def _names(stream: io.BufferedIOBase) -> tuple[list[str], int]:
    """Column names in lower case, and how many lines stand before the values.

    They are the last line that begins with #, or the first line where none does.
    """
    first = line = stream.readline(1 << 20)
    skipped = 0
    names = first
    while line.startswith(b"#"):
        names, skipped = line, skipped + 1
        line = stream.readline(1 << 20)
    text = names.lstrip(b"# ").decode("utf-8-sig").strip().lower()
    return [name.strip().strip('"') for name in text.split(",")], skipped or 1


def _numbers(key: str, values: ndarray, missing: ndarray | None) -> ndarray:
    if values.ndim != 1:
        raise ValueError(f"column {key!r}: expected one value a row, got shape {values.shape}")
    if key == "object_id":
        if values.dtype.kind not in "iu":
            raise ValueError(f"column 'object_id': expected whole numbers, got {values.dtype}")
        return values.astype(np.int64)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"column {key!r}: expected numbers, got {values.dtype}")
    numbers = values.astype(np.float64)
    if missing is not None:
        numbers[missing] = np.nan
    return numbers


def _check_length(num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise ValueError(f"expected {MAX_ROWS:,} rows at most, got more: keep those of the cutouts")


def _check_unit(key: str, unit: str) -> None:
    text = "".join(unit.lower().split())
    for ending, expected in _UNITS.items():
        if text and key.endswith(ending) and text not in expected:
            raise ValueError(f"column {key!r}: expected {expected[0]}, got {unit!r}")
