"""SDSS, BOSS and eBOSS plate files: all fibres of a plate (spPlate), their redshifts beside them.

spPlate-PPPP-MMMMM.fits: HDU 0 flux (fibre, pixel) in 1e-17 erg/s/cm2/Angstrom with COEFF0 and
COEFF1 for log10 of the vacuum wavelength in Angstrom, HDU 1 ivar, HDU 2 and_mask, HDU 3 or_mask,
HDU 5 the plug map, one row a fibre. Redshifts are in spZbest (one row a fibre) or, where that is
missing, spZall (all fits, the best of a fibre first), beside the plate or in a folder RUN1D below.

A spectrum is cut to its first and last pixel of positive ivar, as the archive cuts its spec files,
so a fibre read from here and from its spec-lite file has the same pixels.

Source: the SDSS data model, BOSS_SPECTRO_REDUX/RUN2D/PLATE4/spPlate.
"""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from training.observations import Observation, ObservationBatch, Skipped, fingerprint
from training.surveys.files import FITS_SUFFIXES, reason, stem
from training.surveys.fits_layout import BLOCK
from training.surveys.flux_density import to_unit
from training.surveys.lazy_fits import (
    Hdu,
    Header,
    ImageRows,
    LazyFits,
    check_kinds,
    integer,
    open_lazily,
    real,
)
from training.surveys.sdss_objects import (
    NUMBERS,
    OBJECT_COLUMNS_WANTED,
    WHOLE,
    Row,
    as_text,
    describe,
    notes_on,
    photometric_id,
    refuse_sky,
    source_id,
    spectrum,
)
from training.surveys.wavelengths import Medium, medium_of, vacuum_from_log10

RECIPE = "sdss plate 1"  # part of the fingerprint: raise it when the same file gives other pixels
IVAR_HDU, AND_MASK_HDU, PLUG_MAP_HDU = 1, 2, 5
NOPLUG = 1 << 0  # bit of and_mask: the fibre is not listed in the plug map


@dataclass(frozen=True, slots=True)
class Plate:
    """An open plate: what all its fibres share, and where their pixels are."""

    file: Path
    flux: ImageRows
    ivar: ImageRows
    and_mask: ImageRows
    rows: list[Row]  # one a fibre: plug map, then redshift table
    wavelength_angstrom: Float64[ndarray, " pixel"]
    flux_factor: Float64[ndarray, " pixel"]
    calibration: str  # units and wavelength coefficients as they were written
    release: str
    notes: tuple[str, ...]


def is_plate(file: Path) -> bool:
    """Whether it is called spPlate, or its primary HDU is an image (fibre, pixel).

    A file that cannot be read is none: reading it as anything else gives the reason.
    """
    if file.name.lower().startswith("spplate"):
        return True
    if not file.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with file.open("rb") as packed:
            start = packed.read(3)
            packed.seek(0)
            if start.startswith(b"\x1f\x8b"):
                block = gzip.GzipFile(fileobj=packed).read(BLOCK)
            elif start.startswith(b"BZh"):
                block = bz2.BZ2File(packed).read(BLOCK)
            else:
                block = packed.read(BLOCK)
    except (OSError, EOFError, ValueError, zlib.error):
        return False
    return re.search(rb"NAXIS   = +2 ", block) is not None


def companions(file: Path) -> tuple[Path, ...]:
    """The redshift table that reading this plate opens: spZbest, else spZall. See `Reader`.

    Beside the plate first, then in folders below it (RUN1D), the last by name: the newest run.
    """
    number = re.search(r"\d+-\d+$", stem(file))
    if number is None:
        return ()
    for kind in ("spZbest", "spZall"):
        names = [f"{kind}-{number[0]}{suffix}" for suffix in FITS_SUFFIXES]
        beside = [file.parent / name for name in names if (file.parent / name).is_file()]
        below = sorted(found for name in names for found in file.parent.glob(f"*/{name}"))
        if beside or below:
            return (beside[0] if beside else below[-1],)
    return ()


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The fibres of a plate in order, batch_size at a time. See `Reader`."""
    file = file.absolute()
    try:
        with open_lazily(file) as opened:
            plate = _plate(opened, file)
            for start in range(0, len(plate.rows), batch_size):
                stop = min(start + batch_size, len(plate.rows))
                yield _batch(plate, range(start, stop))
    except (OSError, ValueError) as error:
        yield ObservationBatch((), (Skipped(str(file), reason(error)),))


def read_one(source: Path, source_part: str) -> Observation:
    """The fibre of that number again. See `Reader`."""
    file = source.absolute()
    try:
        with open_lazily(file) as opened:
            plate = _plate(opened, file)
            if not source_part.isdecimal() or not 1 <= int(source_part) <= len(plate.rows):
                raise ValueError(f"no fibre {source_part!r}: expected 1 to {len(plate.rows)}")
            row = int(source_part) - 1
            flux, ivar, and_mask = _pixels(plate, [row])
            return _observe(plate, row, flux=flux[0], ivar=ivar[0], and_mask=and_mask[0])
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {reason(error)}") from error


def _batch(plate: Plate, rows: range) -> ObservationBatch:
    observations, skipped = [], []
    flux, ivar, and_mask = _pixels(plate, rows)
    for row in rows:
        here = row - rows.start
        try:
            observations.append(
                _observe(plate, row, flux=flux[here], ivar=ivar[here], and_mask=and_mask[here])
            )
        except ValueError as error:
            why = f"row {row} (fibre {row + 1}): {reason(error)}"
            skipped.append(Skipped(str(plate.file), why))
    return ObservationBatch(tuple(observations), tuple(skipped))


def _pixels(plate: Plate, rows: range | list[int]) -> tuple[ndarray, ndarray, ndarray]:
    return plate.flux.take(rows), plate.ivar.take(rows), plate.and_mask.take(rows)


def _observe(
    plate: Plate, row: int, *, flux: ndarray, ivar: ndarray, and_mask: ndarray
) -> Observation:
    about = plate.rows[row]
    refuse_sky(about)
    unplugged = str(about.get("objtype", "")).strip().upper() == "NA"
    if unplugged or (np.asarray(and_mask).astype(np.int64) & NOPLUG).all():
        raise ValueError("the fibre was not plugged")
    good = np.flatnonzero(np.isfinite(ivar) & (ivar > 0))
    if len(good) == 0:
        raise ValueError("no usable pixel: ivar is 0 everywhere")
    cut = slice(good[0], good[-1] + 1)
    seen = spectrum(
        flux[cut],
        ivar[cut],
        wavelength_angstrom=plate.wavelength_angstrom[cut],
        flux_factor=plate.flux_factor[cut],
    )
    said = describe(about)
    own_id = source_id(about)
    return Observation(
        survey="sdss",
        release=plate.release,
        source_id=own_id,
        object_id=photometric_id(about) or own_id,
        fingerprint=fingerprint(RECIPE, flux, ivar, plate.calibration, as_text(about)),
        source=str(plate.file),
        source_part=str(row + 1),
        ra_deg=said.ra_deg,
        dec_deg=said.dec_deg,
        spectrum=seen,
        scalars=said.scalars,
        catalogue=said.catalogue,
        notes=(*said.notes, *plate.notes),
    )


def _plate(opened: LazyFits, file: Path) -> Plate:
    flux, ivar, and_mask = (
        opened.image(_hdu(opened, number)) for number in (0, IVAR_HDU, AND_MASK_HDU)
    )
    for image in (ivar, and_mask):
        if (image.num_rows, image.num_pixels) != (flux.num_rows, flux.num_pixels):
            raise ValueError(
                f"{image.name}: expected {flux.num_rows} fibres of {flux.num_pixels} pixels as in "
                f"HDU 0, got {image.num_rows} of {image.num_pixels}"
            )
    plate, mjd = _plate_and_mjd(flux.header, file)
    rows = _plug_map(opened, flux)
    notes = _add_redshifts(rows, file, plate=plate, mjd=mjd)
    for row, about in enumerate(rows):
        about |= {"plate": plate, "mjd": mjd, "fiberid": row + 1}
        if flux.header.get("PLATEQUA"):
            about["platequality"] = flux.header["PLATEQUA"]
    wavelength_angstrom, medium = _wavelengths(flux.header, flux.num_pixels)
    unit = flux.header.get("BUNIT", "").strip()
    coefficients = (flux.header.get(key) for key in ("COEFF0", "COEFF1"))
    return Plate(
        file=file,
        flux=flux,
        ivar=ivar,
        and_mask=and_mask,
        rows=rows,
        wavelength_angstrom=wavelength_angstrom,
        flux_factor=to_unit(unit, wavelength_angstrom) if unit else np.ones(flux.num_pixels),
        calibration=f"{unit} {medium} {' '.join(map(str, coefficients))}",
        release=flux.header.get("RUN2D", "").strip(),
        notes=(*notes, *notes_on(unit, medium)),
    )


def _hdu(opened: LazyFits, number: int) -> Hdu:
    hdu = opened.hdu(number)
    if hdu is None:
        raise ValueError(
            "an image in the first HDU, as of a plate (spPlate), which has "
            f"{PLUG_MAP_HDU + 1} HDUs at least: HDU {number} is missing"
        )
    return hdu


def _wavelengths(
    header: Header, num_pixels: int
) -> tuple[Float64[ndarray, " pixel"], Medium | None]:
    values = {}
    for key, same in (("COEFF0", ("CRVAL1",)), ("COEFF1", ("CD1_1", "CDELT1"))):
        given = {name: real(header, name) for name in (key, *same) if name in header}
        if not given:
            raise ValueError(f"expected {key}: log10 of wavelength is COEFF0 + pixel * COEFF1")
        if max(given.values()) - min(given.values()) > 1e-9:
            raise ValueError(f"{given} contradict each other")
        values[key] = next(iter(given.values()))
    if integer(header, "DC-FLAG", 1) != 1:
        raise ValueError("DC-FLAG says linear wavelengths: expected their logarithms, DC-FLAG 1")
    medium = medium_of(header)
    loglam = values["COEFF0"] + values["COEFF1"] * np.arange(num_pixels, dtype=np.float64)
    return vacuum_from_log10(loglam, medium=medium or "vacuum"), medium


def _plug_map(opened: LazyFits, flux: ImageRows) -> list[Row]:
    hdu = _hdu(opened, PLUG_MAP_HDU)
    if "objtype" not in hdu.columns:
        raise ValueError(f"HDU {PLUG_MAP_HDU}: expected the plug map, a table with OBJTYPE")
    table = opened.table(hdu, OBJECT_COLUMNS_WANTED)
    check_kinds(table, whole=WHOLE, numbers=NUMBERS)
    rows = _as_rows(table)
    if len(rows) != flux.num_rows:
        swapped = " (are the axes swapped?)" if len(rows) == flux.num_pixels else ""
        raise ValueError(
            f"{flux.num_rows} fibres in HDU 0, {len(rows)} in the plug map of HDU "
            f"{PLUG_MAP_HDU}{swapped}"
        )
    return rows


def _add_redshifts(rows: list[Row], file: Path, *, plate: int, mjd: int) -> list[str]:
    """Join the redshift table by fibre, never by row; notes on what was not to be had."""
    for table_file in companions(file):
        try:
            best = _redshifts(table_file, plate=plate, mjd=mjd)
        except (OSError, ValueError) as error:
            return [f"{table_file.name} could not be used: {reason(error)}"]
        for row, about in enumerate(rows):
            about |= best.get(row + 1, {})
    return []


def _redshifts(file: Path, *, plate: int, mjd: int) -> dict[int, Row]:
    with open_lazily(file) as opened:
        table = opened.table(_hdu(opened, 1), OBJECT_COLUMNS_WANTED)
    check_kinds(table, whole=WHOLE, numbers=NUMBERS)
    missing = {"fiberid", "z", "zwarning", "class"} - table.keys()
    if missing:
        raise ValueError(f"HDU 1: no column {', '.join(sorted(missing))}")
    best: dict[int, Row] = {}
    for row in _as_rows(table):
        whose = (int(row.get("plate", plate)), int(row.get("mjd", mjd)))
        if whose != (plate, mjd):
            raise ValueError(f"it is of plate {whose[0]}, MJD {whose[1]}, not {plate}, {mjd}")
        best.setdefault(int(row["fiberid"]), row)
    return best


def _as_rows(table: dict[str, ndarray]) -> list[Row]:
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _plate_and_mjd(header: Header, file: Path) -> tuple[int, int]:
    named = re.search(r"(\d+)-(\d+)$", stem(file))
    if named is None and not {"PLATEID", "MJD"} <= header.keys():
        raise ValueError("expected PLATEID and MJD in the header or as spPlate-PLATE-MJD")
    plate, mjd = named.groups() if named is not None else ("", "")
    return integer(header, "PLATEID", int(plate or 0)), integer(header, "MJD", int(mjd or 0))
