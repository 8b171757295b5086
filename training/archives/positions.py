"""The positions table: which objects are asked for, and what their files are called."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import Angle, angular_separation
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning

from training.observations import sky_position

FORMATS = {
    ".csv": "ascii.csv",
    ".ecsv": "ascii.ecsv",
    ".fits": "fits",
    ".fits.gz": "fits",
    ".fit": "fits",
    ".vot": "votable",
    ".votable": "votable",
    ".xml": "votable",
}
# Pairs of columns in lower case, the first pair that is there counts.
POSITION_COLUMNS = (
    ("ra_deg", "dec_deg"),
    ("ra", "dec"),
    ("radeg", "decdeg"),
    ("ra_icrs", "de_icrs"),
    ("raj2000", "dej2000"),
    ("raj2000", "decj2000"),
    ("ra_j2000", "dec_j2000"),
    ("_raj2000", "_dej2000"),
    ("alpha_j2000", "delta_j2000"),
    ("right_ascension", "declination"),
    ("target_ra", "target_dec"),
    ("mean_fiber_ra", "mean_fiber_dec"),
    ("plug_ra", "plug_dec"),
)
ID_COLUMNS = ("object_id", "objid", "id", "name", "source_id", "targetid", "specobjid")
SAME_PLACE_DIGITS = 6  # decimals of a degree, 4 milliarcsec: closer than that is the same position
MAX_NAME = 100  # characters of a file name without its ending
_SEXAGESIMAL = re.compile(r"[+-]?\d+[:hd °]\s*\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One object that is asked for."""

    row: int  # in the table, from 1
    name: str  # safe and unique: the file is called so, where the archive has no name for it
    key: str = ""  # its id in the archive, "" where it is looked for by position
    ra_deg: float = math.nan  # ICRS; NaN only where there is a key
    dec_deg: float = math.nan

    @property
    def place(self) -> tuple[str, str, str]:
        """What makes two rows the same request."""
        digits = SAME_PLACE_DIGITS
        return self.key, f"{self.ra_deg:.{digits}f}", f"{self.dec_deg:.{digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRow:
    """A row that asks for nothing that exists, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """A positions table, checked."""

    targets: tuple[Target, ...]  # every place once
    refused: tuple[RefusedRow, ...]
    repeats: dict[int, int]  # row -> the earlier row that asks for the same


def in_groups(targets: Sequence[Target], num: int) -> Iterator[list[Target]]:
    """At most num targets together, those of an id first: a query asks for ids or for positions."""
    for some in (
        [target for target in targets if target.key],
        [target for target in targets if not target.key],
    ):
        for start in range(0, len(some), num):
            yield some[start : start + num]


def read_positions(file: Path, *, keys: tuple[str, ...] = ()) -> Positions:
    """Read a table of positions: CSV, ECSV, FITS or VOTable.

    Positions are ICRS. Numbers are degrees, unless the column has a unit of angle; text with
    colons, blanks or letters is sexagesimal, hours for right ascension and degrees for
    declination.

    Args:
        file: The table.
        keys: Columns that together are the archive's id of an object, in any case. Where all of
            them are there, a row that fills them in needs no position.

    Raises:
        ValueError: not such a table, or neither position nor key columns are in it.
    """
    table = _read(file)
    columns: dict[str, str] = {}
    for name in table.colnames:
        columns.setdefault(name.strip().lower(), name)
    pair = next((pair for pair in POSITION_COLUMNS if set(pair) <= columns.keys()), None)
    has_keys = bool(keys) and set(keys) <= columns.keys()
    if pair is None and not has_keys:
        wanted = "ra and dec" + (f" or {', '.join(keys)}" if keys else "")
        raise ValueError(f"{file}: expected columns {wanted}, got {', '.join(table.colnames)}")
    id_column = next((columns[name] for name in ID_COLUMNS if name in columns), None)
    ids = [""] * len(table) if id_column is None else _texts(table[id_column])
    found: list[Target] = []
    refused: list[RefusedRow] = []
    key_texts = [_texts(table[columns[key]]) for key in keys] if has_keys else []
    axes = [] if pair is None else [_degrees(table[columns[name]], name, file) for name in pair]
    for number in range(len(table)):
        parts = [texts[number] for texts in key_texts]
        try:
            key = "-".join(str(int(part)) for part in parts) if all(parts) else ""
            if axes:
                ra_deg, dec_deg = _position(axes[0][number], axes[1][number], optional=bool(key))
            else:
                ra_deg = dec_deg = math.nan
                if not key:
                    raise ValueError(f"no {', '.join(keys)}")
        except ValueError as error:
            refused.append(RefusedRow(row=number + 1, reason=str(error)))
            continue
        found.append(
            Target(row=number + 1, name=ids[number], key=key, ra_deg=ra_deg, dec_deg=dec_deg)
        )
    first: dict[tuple[str, str, str], int] = {}
    repeats = {
        target.row: first[target.place]
        for target in found
        if first.setdefault(target.place, target.row) != target.row
    }
    unique = [target for target in found if target.row not in repeats]
    return Positions(targets=_named(unique), refused=tuple(refused), repeats=repeats)


def separation_arcsec(
    target: Target, ra_deg: float | np.ndarray, dec_deg: float | np.ndarray
) -> np.ndarray:
    """How far places on the sky are from a target, along great circles; NaN without a position."""
    here = np.radians((target.ra_deg, target.dec_deg))
    there = np.radians(np.asarray(ra_deg, float)), np.radians(np.asarray(dec_deg, float))
    return np.asarray(np.degrees(angular_separation(*here, *there)) * 3600)


def safe_name(text: str) -> str:
    """A file name (no ending) made of an id; one that loses characters gets a checksum instead."""
    kept = re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip(".-")[:MAX_NAME]
    if kept == text and kept.strip("._"):
        return kept
    return f"{kept}-{_checksum(text)}".lstrip("-")


def _named(targets: list[Target]) -> tuple[Target, ...]:
    """Targets whose names are safe, and differ also where the file system ignores case."""
    names = [safe_name(target.name) if target.name else _sky_name(target) for target in targets]
    taken = Counter(name.lower() for name in names)
    return tuple(
        replace(
            target,
            name=name
            if taken[name.lower()] == 1
            else f"{name}-{_checksum(target.name, *target.place)}",
        )
        for target, name in zip(targets, names, strict=True)
    )


def _sky_name(target: Target) -> str:
    if math.isnan(target.ra_deg):
        return target.key
    return f"J{target.ra_deg:010.6f}{target.dec_deg:+010.6f}"


def _checksum(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def _read(file: Path) -> Table:
    name = file.name.lower()
    form = next((FORMATS[end] for end in FORMATS if name.endswith(end)), None)
    if form is None:
        raise ValueError(f"{file}: expected a name ending in {', '.join(FORMATS)}")
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    # Text stays text in a CSV: an id must not lose its zeros or turn into a float.
    options: dict[str, Any] = {"converters": {"*": str}} if form == "ascii.csv" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            return Table.read(file, format=form, **options)
        except Exception as error:  # astropy's readers share no class of error
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{file}: cannot be read as {form}: {reason}") from error


def _texts(column: Any) -> list[str]:
    """Cells as text, "" where there is none."""
    texts = []
    for cell in column:
        if cell is np.ma.masked:
            texts.append("")
        elif isinstance(cell, bytes):
            texts.append(cell.decode("utf-8", "replace").strip())
        else:
            texts.append(str(cell).strip())
    return texts


def _degrees(column: Any, name: str, file: Path) -> list[float | str]:
    """Cells in degrees: a number, NaN where it is missing, or why it is none."""
    right_ascension = name.startswith(("ra", "_ra", "alpha", "right")) or "_ra" in name
    if column.dtype.kind in "fiu":
        if column.ndim != 1:
            raise ValueError(f"{file}: column {name}: expected one number a row")
        unit = column.unit or u.deg
        try:
            factor = float(unit.to(u.deg))
        except u.UnitConversionError as error:
            raise ValueError(f"{file}: column {name}: expected degrees, got {unit}") from error
        values = np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan) * factor
        return [float(value) for value in values]
    return [
        _angle(text, name, u.hourangle if right_ascension else u.deg) for text in _texts(column)
    ]


def _angle(text: str, name: str, unit: Any) -> float | str:
    if not text:
        return math.nan
    if not _SEXAGESIMAL.match(text):
        try:
            return float(text)
        except ValueError:
            return f"{name} {text!r}: expected degrees or sexagesimal text"
    try:
        return float(Angle(text, unit=unit).deg)
    except (ValueError, u.UnitsError) as error:
        return f"{name} {text!r}: {' '.join(str(error).split())[:120]}"


def _position(ra: float | str, dec: float | str, *, optional: bool) -> tuple[float, float]:
    """A position on the sky, NaN where it is missing and optional.

    Raises:
        ValueError: no number, half a position, or off the sky; see `sky_position`.
    """
    if isinstance(ra, str) or isinstance(dec, str):
        raise ValueError("; ".join(cell for cell in (ra, dec) if isinstance(cell, str)))
    place = sky_position(ra, dec)
    if place is None and not optional:
        raise ValueError("no position: ra and dec are missing")
    return place or (math.nan, math.nan)
