"""What the tables of SDSS say of one spectrum: ids, position, redshift, fluxes through the fibre.

The same columns stand behind a spectrum of its own (SPECOBJ, SPALL) and in the tables of a plate
(PLUGMAP, spZbest); a row here is column name in lower case -> value.

An object has the number of its photometric object: BESTOBJID, else OBJID where it is one number.
Plates give OBJID as run, rerun, camcol, field and id, which is that number spelt out where the
rerun is that of the final photometry, 301 (layout: SDSS glossary, "objID"; sky version 2). Older
reruns number other objects, so there the spectrum stands for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from training.observations import CatalogueValue, Spectrum, sky_position
from training.surveys.wavelengths import Medium

WHOLE = ("zwarning", "plate", "mjd", "fiberid")
NUMBERS = ("z", "z_err", "plug_ra", "plug_dec", "ra", "dec")
OBJECT_COLUMNS_WANTED = frozenset(
    (
        *(*WHOLE, *NUMBERS, "class", "objtype", "sourcetype", "run2d", "platequality"),
        *("bestobjid", "objid", "spectroflux"),
    )
)
FINAL_RERUN = 301
FINAL_SKY_VERSION = 2

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Description:
    """What an observation takes from a row."""

    ra_deg: float | None
    dec_deg: float | None
    scalars: dict[str, float]
    catalogue: dict[str, CatalogueValue]
    notes: tuple[str, ...]


def describe(row: Row) -> Description:
    """Position, redshift (where ZWARNING is 0), fluxes and notes of a row.

    Raises:
        ValueError: the position is off the sky, or half of it is missing.
    """
    notes: list[str] = []
    scalars: dict[str, float] = {}
    catalogue = _photometry(row)
    if "zwarning" not in row:
        notes.append("no redshift table: redshift and class left out")
    elif int(row["zwarning"]) != 0:
        notes.append(f"ZWARNING {int(row['zwarning'])}: redshift and class left out")
    elif not np.isfinite(row["z"]):
        notes.append("Z is not a number: redshift and class left out")
    else:
        scalars["tok_z"] = float(row["z"])
        catalogue |= {
            "redshift": float(row["z"]),
            "redshift_source": "sdss",
            "spectrum_class": str(row["class"]).strip(),
        }
        if np.isfinite(row.get("z_err", np.nan)) and row["z_err"] > 0:
            catalogue["redshift_error"] = float(row["z_err"])
    position = _position(row)
    if position is None:
        notes.append("no position in the table")
    quality = str(row.get("platequality", "")).strip().lower()
    if quality not in ("", "good"):
        notes.append(f"plate quality {quality}")
    ra_deg, dec_deg = position or (None, None)
    return Description(ra_deg, dec_deg, scalars, catalogue, tuple(notes))


def as_text(row: Row) -> str:
    """A row for a fingerprint: the same for the same values, whatever the order of columns."""
    return repr([(name, np.asarray(row[name]).tolist()) for name in sorted(row)])


def refuse_sky(row: Row) -> None:
    """Raise ValueError for a sky fibre: it has a class and a redshift, and they mean nothing."""
    kinds = {str(row.get(key, "")).strip().upper() for key in ("objtype", "sourcetype")}
    if "SKY" in kinds:
        raise ValueError("a sky fibre: its class and redshift mean nothing")


def source_id(row: Row) -> str:
    """plate-mjd-fiber as in the file names of the archive, "" where the row lacks one of them."""
    if not {"plate", "mjd", "fiberid"} <= row.keys():
        return ""
    return f"{int(row['plate']):04d}-{int(row['mjd'])}-{int(row['fiberid']):04d}"


def photometric_id(row: Row) -> str:
    """Number of the photometric object, "" where the row has none."""
    for key in ("bestobjid", "objid"):
        value = row.get(key)
        if value is None:
            continue
        text = _spelt_out(np.asarray(value)) if np.ndim(value) > 0 else str(value).strip()
        if text.isdecimal() and int(text) > 0:
            return text
    return ""


def spectrum(
    flux: ndarray,
    ivar: ndarray,
    *,
    wavelength_angstrom: ndarray,
    flux_factor: ndarray | float = 1.0,
) -> Spectrum:
    """A spectrum whose bad pixels are those without positive inverse variance.

    The pipeline sets ivar to 0 where its and_mask spoils a pixel.

    Raises:
        ValueError: no pixel is usable.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scaled = np.asarray(flux * flux_factor, np.float32)
        weight = np.asarray(ivar / flux_factor**2, np.float32)
    mask = ~(np.isfinite(scaled) & np.isfinite(weight) & (weight > 0))
    if mask.all():
        raise ValueError(f"no usable pixel: flux is NaN or ivar not positive in all {len(mask):,}")
    return Spectrum(
        flux=np.where(mask, np.float32(0), scaled),
        ivar=np.where(mask, np.float32(0), weight),
        mask=mask,
        wavelength_angstrom=wavelength_angstrom,
    )


def notes_on(flux_unit: str, medium: Medium | None) -> tuple[str, ...]:
    """What was assumed or converted of the units of a spectrum."""
    notes = () if flux_unit else ("no unit of flux given: taken as 1e-17 erg/s/cm2/Angstrom",)
    return (*notes, "wavelengths converted from air to vacuum") if medium == "air" else notes


def _spelt_out(parts: ndarray) -> str:
    if parts.shape != (5,):
        return ""
    run, rerun, camcol, field, number = (int(part) for part in parts)
    if rerun != FINAL_RERUN or not (
        0 < run < 1 << 16 and 1 <= camcol <= 6 and 0 <= field < 1 << 12 and 0 <= number < 1 << 16
    ):
        return ""
    return str(
        FINAL_SKY_VERSION << 59 | rerun << 48 | run << 32 | camcol << 29 | field << 16 | number
    )


def _position(row: Row) -> tuple[float, float] | None:
    """Where the fibre was plugged, else where the object is, by `sky_position`."""
    return sky_position(row.get("plug_ra"), row.get("plug_dec")) or sky_position(
        row.get("ra"), row.get("dec")
    )


def _photometry(row: Row) -> dict[str, CatalogueValue]:
    columns: dict[str, CatalogueValue] = {}
    fluxes = np.atleast_1d(row.get("spectroflux", ()))
    if fluxes.shape != (5,) or fluxes.dtype.kind not in "iuf":
        return columns
    for band, flux in zip("ugriz", fluxes.astype(np.float64).tolist(), strict=True):
        if np.isfinite(flux) and flux != 0:
            columns[f"flux_{band}_nmgy"] = flux
        if np.isfinite(flux) and flux > 0:
            columns[f"mag_{band}"] = float(22.5 - 2.5 * np.log10(flux))
    return columns
