"""SDSS, BOSS and eBOSS spectra in the spec-lite FITS format, one object a file.

COADD holds flux (1e-17 erg/s/cm2/Angstrom), loglam (log10 of the vacuum wavelength in Angstrom)
and ivar; the one-row table behind it (SPECOBJ, SPALL or nameless) says what was observed. Pixels
that the pipeline's and_mask spoils have ivar 0 already, so a pixel is bad where ivar is 0.

Sky fibres are refused: the pipeline gives them a class and a redshift that mean nothing.
Redshift and class are taken where ZWARNING is 0. Fluxes are SPECTROFLUX: nanomaggies through the
fibre, calibrated to point-source magnitudes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy import ndarray

from training.observations import (
    CatalogueValue,
    Observation,
    ObservationBatch,
    Spectrum,
    fingerprint,
)
from training.surveys.bintable import column_names, read_columns, table_header
from training.surveys.files import (
    FITS_SUFFIXES,
    OpenFits,
    list_by_suffix,
    open_fits,
    read_single,
    read_single_again,
    stem,
)

RECIPE = "sdss 1"  # part of the fingerprint: raise it when the same file gives other pixels
SPECTRUM_COLUMNS = ("flux", "loglam", "ivar")
LOGLAM_RANGE = (2.0, 6.0)  # X-rays to far infrared: beyond it the column is something else
OBJECT_COLUMNS = ("class", "z", "zwarning")
OBJECT_COLUMNS_WANTED = frozenset(
    (
        *OBJECT_COLUMNS,
        *("objtype", "sourcetype", "run2d", "plate", "mjd", "fiberid", "bestobjid", "objid"),
        *("plug_ra", "plug_dec", "ra", "dec", "spectroflux"),
    )
)

Row = dict[str, Any]  # column name in lower case -> value


def list_files(source: Path) -> list[Path]:
    """FITS files under a folder, sorted; a file is itself. See `Reader`."""
    return list_by_suffix(source, FITS_SUFFIXES)


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The spectrum of one file. See `Reader`."""
    yield read_single(file.absolute(), _observe)


def read_one(source: Path, source_part: str) -> Observation:
    """The spectrum of one file again. See `Reader`."""
    return read_single_again(source.absolute(), source_part, _observe)


def _observe(file: Path) -> Observation:
    with open_fits(file) as opened:
        spectrum = _spectrum(opened)
        row = _object_row(opened)
        content = fingerprint(RECIPE, opened.content)
    kinds = {str(row.get(key, "")).strip().upper() for key in ("objtype", "sourcetype")}
    if "SKY" in kinds:
        raise ValueError("a sky fibre: its class and redshift mean nothing")
    source_id = _source_id(row) or stem(file)
    notes = []
    catalogue = _photometry(row)
    zwarning = int(row["zwarning"])
    if zwarning == 0 and not np.isfinite(row["z"]):
        notes.append("Z is not a number: redshift and class left out")
    elif zwarning == 0:
        catalogue |= {
            "redshift": float(row["z"]),
            "redshift_source": "sdss",
            "spectrum_class": str(row["class"]).strip(),
        }
    else:
        notes.append(f"ZWARNING {zwarning}: redshift and class left out")
    position = _position(row)
    if position is None:
        notes.append("no position on the sky in the table")
    return Observation(
        survey="sdss",
        release=str(row.get("run2d", "")).strip(),
        source_id=source_id,
        object_id=_photometric_id(row) or source_id,
        fingerprint=content,
        source=str(file),
        ra_deg=None if position is None else position[0],
        dec_deg=None if position is None else position[1],
        spectrum=spectrum,
        catalogue=catalogue,
        notes=tuple(notes),
    )


def _spectrum(opened: OpenFits) -> Spectrum:
    number, table = _table(opened, SPECTRUM_COLUMNS, wanted=frozenset(SPECTRUM_COLUMNS))
    flux, ivar = table["flux"], table["ivar"]
    loglam = table["loglam"].astype(np.float64)
    if not np.isfinite(loglam).all():
        raise ValueError(f"HDU {number}: loglam holds NaN or infinity")
    if not (np.diff(loglam) > 0).all():
        raise ValueError(f"HDU {number}: wavelengths (loglam) are not ascending")
    if len(loglam) and not (LOGLAM_RANGE[0] <= loglam[0] and loglam[-1] <= LOGLAM_RANGE[1]):
        raise ValueError(
            f"HDU {number}: expected loglam, log10 of Angstrom, between {LOGLAM_RANGE[0]} and "
            f"{LOGLAM_RANGE[1]}, got {loglam[0]:g} to {loglam[-1]:g}"
        )
    mask = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0))
    if mask.all():
        raise ValueError(
            f"HDU {number}: no usable pixel: flux is NaN or ivar not positive in all {len(mask):,}"
        )
    return Spectrum(
        flux=np.where(mask, 0, flux).astype(np.float32),
        ivar=np.where(mask, 0, ivar).astype(np.float32),
        mask=mask,
        wavelength_angstrom=10**loglam,
    )


def _object_row(opened: OpenFits) -> Row:
    number, table = _table(opened, OBJECT_COLUMNS, wanted=OBJECT_COLUMNS_WANTED)
    if len(table["zwarning"]) != 1:
        raise ValueError(f"HDU {number}: expected one object, got {len(table['zwarning'])} rows")
    return {name: column[0] for name, column in table.items()}


def _table(
    opened: OpenFits, columns: tuple[str, ...], *, wanted: frozenset[str]
) -> tuple[int, dict[str, ndarray]]:
    """The first table that has these columns, its number and its wanted columns."""
    found = []
    for number, hdu in enumerate(opened.hdus):
        found.append(f"{number} {hdu.name or type(hdu).__name__}")
        if not isinstance(hdu, fits.BinTableHDU):
            continue
        place = hdu.fileinfo()
        header = table_header(
            opened.content, header_start=place["hdrLoc"], data_start=place["datLoc"]
        )
        if set(columns) <= set(column_names(header)):
            try:
                table = read_columns(
                    opened.content, header, data_start=place["datLoc"], wanted=wanted
                )
            except ValueError as error:
                raise ValueError(f"HDU {number}: {error}") from error
            return number, table
    raise ValueError(
        f"no usable HDU: expected a table with {', '.join(columns)}, got {', '.join(found)}"
    )


def _source_id(row: Row) -> str:
    """plate-mjd-fiber as in the file names of the archive, "" where the row lacks one of them."""
    if not {"plate", "mjd", "fiberid"} <= row.keys():
        return ""
    return f"{int(row['plate']):04d}-{int(row['mjd'])}-{int(row['fiberid']):04d}"


def _photometric_id(row: Row) -> str:
    """BESTOBJID, else OBJID where it is one number (it may be run, rerun, camcol, field, id)."""
    for key in ("bestobjid", "objid"):
        value = row.get(key)
        if value is None or np.ndim(value) > 0:
            continue
        text = str(value).strip()
        if text.isdecimal() and int(text) > 0:
            return text
    return ""


def _position(row: Row) -> tuple[float, float] | None:
    for ra_key, dec_key in (("plug_ra", "plug_dec"), ("ra", "dec")):
        if ra_key in row and dec_key in row:
            ra_deg, dec_deg = float(row[ra_key]), float(row[dec_key])
            if np.isfinite(ra_deg) and abs(dec_deg) <= 90 and -360 <= ra_deg <= 360:
                return ra_deg % 360, dec_deg
    return None


def _photometry(row: Row) -> dict[str, CatalogueValue]:
    columns: dict[str, CatalogueValue] = {}
    fluxes = np.atleast_1d(row.get("spectroflux", ()))
    if len(fluxes) != 5:
        return columns
    for band, flux in zip("ugriz", fluxes.tolist(), strict=True):
        if np.isfinite(flux) and flux != 0:
            columns[f"flux_{band}_nmgy"] = flux
        if np.isfinite(flux) and flux > 0:
            columns[f"mag_{band}"] = float(22.5 - 2.5 * np.log10(flux))
    return columns
