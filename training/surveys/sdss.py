"""SDSS, BOSS and eBOSS spectra: spec-lite and spec-full files, one object each, and plate files.

COADD holds flux (1e-17 erg/s/cm2/Angstrom), loglam (log10 of the vacuum wavelength in Angstrom)
and ivar; the one-row table behind it (SPECOBJ, SPALL or nameless) says what was observed. Spec-full
files go on with the single exposures (B1-..., R1-...), which are never looked at. Pixels that the
pipeline's and_mask spoils have ivar 0 already, so a pixel is bad where ivar is 0.

Sky fibres are refused: the pipeline gives them a class and a redshift that mean nothing.
Redshift and class are taken where ZWARNING is 0. Fluxes are SPECTROFLUX: nanomaggies through the
fibre, calibrated to point-source magnitudes.

Plate files (spPlate, many fibres) are read by `sdss_plates`, here told apart by what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy import ndarray

from training.observations import Observation, ObservationBatch, Spectrum, fingerprint
from training.surveys import sdss_plates
from training.surveys.files import (
    FITS_SUFFIXES,
    list_by_suffix,
    read_single,
    read_single_again,
    stem,
)
from training.surveys.flux_density import to_unit
from training.surveys.lazy_fits import Hdu, LazyFits, check_kinds, open_lazily
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
from training.surveys.wavelengths import medium_of, vacuum_from_log10

RECIPE = "sdss 2"  # part of the fingerprint: raise it when the same file gives other pixels
SPECTRUM_COLUMNS = ("flux", "loglam", "ivar")
OBJECT_COLUMNS = ("class", "z", "zwarning")
_PLATE_TABLES = ("spzbest", "spzall", "spzline")  # read beside an spPlate, not for themselves


def list_files(source: Path) -> list[Path]:
    """FITS files under a folder but the redshift tables of plates, sorted. See `Reader`."""
    found = list_by_suffix(source, FITS_SUFFIXES)
    if not source.is_dir():
        return found
    return [file for file in found if not file.name.lower().startswith(_PLATE_TABLES)]


def companions(file: Path) -> tuple[Path, ...]:
    """The table of redshifts that reading a plate file opens too; none of other files."""
    return sdss_plates.companions(file) if sdss_plates.is_plate(file) else ()


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The spectrum of a file, or those of a plate. See `Reader`."""
    file = file.absolute()
    if sdss_plates.is_plate(file):
        yield from sdss_plates.read(file, batch_size=batch_size)
    else:
        yield read_single(file, _observe)


def read_one(source: Path, source_part: str) -> Observation:
    """One spectrum again; the part of a plate is the fibre. See `Reader`."""
    source = source.absolute()
    if sdss_plates.is_plate(source):
        return sdss_plates.read_one(source, source_part)
    return read_single_again(source, source_part, _observe)


def _observe(file: Path) -> Observation:
    with open_lazily(file) as opened:
        seen, notes, content = _coadd(opened)
        row = _object_row(opened)
    refuse_sky(row)
    own_id = source_id(row) or stem(file)
    said = describe(row)
    return Observation(
        survey="sdss",
        release=str(row.get("run2d", "")).strip(),
        source_id=own_id,
        object_id=photometric_id(row) or own_id,
        fingerprint=fingerprint(RECIPE, *content, as_text(row)),
        source=str(file),
        ra_deg=said.ra_deg,
        dec_deg=said.dec_deg,
        spectrum=seen,
        scalars=said.scalars,
        catalogue=said.catalogue,
        notes=(*said.notes, *notes),
    )


def _coadd(opened: LazyFits) -> tuple[Spectrum, tuple[str, ...], tuple[ndarray | str, ...]]:
    """The spectrum, notes on its units, and what it was made from."""
    hdu = _hdu(opened, SPECTRUM_COLUMNS)
    table = opened.table(hdu, frozenset(SPECTRUM_COLUMNS))
    check_kinds(table, numbers=SPECTRUM_COLUMNS)
    primary = next(opened.hdus()).header
    unit = hdu.column_units.get("flux", primary.get("BUNIT", "")).strip()
    loglam_unit = hdu.column_units.get("loglam", "")
    try:
        medium = medium_of(primary)
        wavelength_angstrom = vacuum_from_log10(
            table["loglam"].astype(np.float64), unit=loglam_unit, medium=medium or "vacuum"
        )
        seen = spectrum(
            table["flux"],
            table["ivar"],
            wavelength_angstrom=wavelength_angstrom,
            flux_factor=to_unit(unit, wavelength_angstrom) if unit else 1.0,
        )
    except ValueError as error:
        raise ValueError(f"HDU {hdu.number}: {error}") from error
    columns = (table[name] for name in SPECTRUM_COLUMNS)
    return seen, notes_on(unit, medium), (*columns, f"{unit} {medium} {loglam_unit}")


def _object_row(opened: LazyFits) -> Row:
    hdu = _hdu(opened, OBJECT_COLUMNS)
    table = opened.table(hdu, OBJECT_COLUMNS_WANTED)
    check_kinds(table, whole=WHOLE, numbers=NUMBERS)
    if len(table["zwarning"]) != 1:
        raise ValueError(
            f"HDU {hdu.number}: expected one object, got {len(table['zwarning'])} rows"
        )
    return {name: column[0] for name, column in table.items()}


def _hdu(opened: LazyFits, columns: tuple[str, ...]) -> Hdu:
    """The first table that has these columns."""
    found = []
    for hdu in opened.hdus():
        if set(columns) <= set(hdu.columns):
            return hdu
        found.append(f"{hdu.number} {hdu.name or hdu.header.get('XTENSION', '')}")
    raise ValueError(
        f"no usable HDU: expected a table with {', '.join(columns)}, got {', '.join(found)}"
    )
