"""Rows of Gaia's source table: what was measured, in known units and of a known release.

Columns may be any choice of those of gaia_source. The release is told by designation or ref_epoch;
an id is one of its release, and the passbands of another release are others than those of DR3.

Source: Gaia DR3 data model (gaia_source); zero points (Vega) of Riello et al. 2021, A&A 649, A3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from astropy import units
from jaxtyping import Float64, Int64
from numpy import ndarray

from training.observations import CatalogueValue, sky_position
from training.surveys.gaia_table import Header, Row

# Columns of gaia_source and the unit that they are taken in.
MEASURED = {
    "ra": "deg",
    "dec": "deg",
    "ref_epoch": "yr",
    "parallax": "mas",
    "parallax_error": "mas",
    "pmra": "mas/yr",
    "pmdec": "mas/yr",
    **{f"phot_{band}_mean_flux": "electron/s" for band in ("g", "bp", "rp")},
    **{f"phot_{band}_mean_mag": "mag" for band in ("g", "bp", "rp")},
    "ruwe": "",
    "radial_velocity": "km/s",
}
CATALOGUE = {
    "parallax": "parallax_mas",
    "parallax_error": "parallax_error_mas",
    "pmra": "pmra_mas_per_yr",
    "pmdec": "pmdec_mas_per_yr",
    "ruwe": "ruwe",
    "radial_velocity": "radial_velocity_km_per_s",
}
MAGNITUDE = {"g": "mag_gaia_g", "bp": "mag_bp", "rp": "mag_rp"}
ZERO_POINT = {"g": 25.6873668671, "bp": 25.3385422158, "rp": 24.7478955012}  # DR3, Vega
ZERO_POINT_TOLERANCE = 0.05  # mag: beyond it a flux and its magnitude contradict each other
EPOCH = {"DR1": 2015.0, "DR2": 2015.5, "EDR3": 2016.0, "DR3": 2016.0, "DR4": 2017.5}
SAME_SOURCES = ("DR3", "EDR3")  # one list of sources, one photometric system


@dataclass(frozen=True, slots=True)
class Source:
    """A row of a source table, in the units of MEASURED; what is missing is left out."""

    release: str
    values: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A source table in memory, to look sources up in."""

    ids: Int64[ndarray, " source"]  # ascending
    values: Float64[ndarray, "source column"]  # in the order of MEASURED, NaN = missing
    release: tuple[str, ...]  # of each source
    notes: tuple[str, ...]  # of the table


def measured(row: Row, source_id: str, factors: dict[str, float]) -> Source:
    """A row of a source table.

    Raises:
        ValueError: a value is no number, or id, designation and epoch contradict each other.
    """
    values = {}
    for name, factor in factors.items():
        value = row.number_of(name)
        if value is not None:
            values[name] = value * factor
    epoch = values.pop("ref_epoch", None)
    designation = row.text("designation")
    named = re.fullmatch(r"Gaia (E?DR\d) (\d+)", designation)
    if designation and (named is None or named[1] not in EPOCH or named[2] != source_id):
        raise ValueError(f"expected designation 'Gaia DR3 {source_id}', got {designation!r}")
    if named is not None:
        release = named[1]
        if epoch is not None and epoch != EPOCH[release]:
            raise ValueError(f"{designation} with ref_epoch {epoch}: expected {EPOCH[release]}")
        return Source(release, values)
    if epoch is None:
        return Source("DR3", values, ("neither designation nor ref_epoch: taken as DR3",))
    for release in ("DR3", *EPOCH):
        if EPOCH[release] == epoch:
            return Source(release, values)
    raise ValueError(f"expected ref_epoch 2016.0 or that of another release, got {epoch}")


def unit_factors(header: Header) -> dict[str, float]:
    """What the columns of MEASURED that are there must be multiplied by.

    Raises:
        ValueError: a unit cannot be converted to the one expected.
    """
    return {
        name: _factor(name, header.units[name], expected)
        for name, expected in MEASURED.items()
        if name in header.units
    }


def _factor(name: str, stated: str, expected: str) -> float:
    # The archive writes 'electron'.s**-1 and, in older files, Angle[deg].
    text = re.sub(r"^\w+\[(.*)\]$", r"\1", stated.replace("'", "").strip())
    text = re.sub(r"\be-|\belectrons\b", "electron", text).replace("**", "^")
    if not text or text == expected:
        return 1.0
    if expected == "mag" and re.fullmatch(r"(?i)mag\s*\(?(vega)?\)?", text):
        return 1.0
    wrong = f"column {name}: expected {expected or 'no unit'}, got {stated!r}"
    for form in (None, "vounit", "fits", "cds"):
        try:
            unit = units.Unit(text if form != "vounit" else text.replace("^", "**"), format=form)
            return float(unit.to(units.Unit(expected)))
        except (ValueError, TypeError):
            continue
    raise ValueError(wrong)


def unit_notes(header: Header, factors: dict[str, float]) -> tuple[str, ...]:
    unstated = [name for name in factors if MEASURED[name] and not header.units[name]]
    return ("units are not stated: those of the archive are taken",) if unstated else ()


def position_of(values: dict[str, float]) -> tuple[float, float] | None:
    """ra and dec in degrees, by `sky_position`."""
    return sky_position(values.get("ra"), values.get("dec"))


def photometry(
    source: Source, notes: list[str]
) -> tuple[dict[str, float], dict[str, CatalogueValue]]:
    """Fluxes by token key and magnitudes by catalogue column; what is left out goes to the notes.

    In DR3 a missing flux is made from the magnitude and the other way round.
    """
    fluxes: dict[str, float] = {}
    magnitudes: dict[str, CatalogueValue] = {}
    dr3 = source.release in SAME_SOURCES
    for band, zero_point in ZERO_POINT.items():
        flux = source.values.get(f"phot_{band}_mean_flux")
        magnitude = source.values.get(f"phot_{band}_mean_mag")
        if flux is not None and flux <= 0:
            notes.append(f"phot_{band}_mean_flux {flux:g} is not positive: no scalar of it")
            flux = None
        if dr3 and magnitude is None and flux is not None:
            magnitude = float(zero_point - 2.5 * np.log10(flux))
        elif dr3 and flux is None and magnitude is not None:
            flux = float(10 ** (-0.4 * (magnitude - zero_point)))
            notes.append(f"phot_{band}_mean_flux made from the magnitude")
        elif dr3 and flux is not None and magnitude is not None:
            expected = zero_point - 2.5 * np.log10(flux)
            if abs(magnitude - expected) > ZERO_POINT_TOLERANCE:
                raise ValueError(
                    f"phot_{band}_mean_flux {flux:g} e/s is magnitude {expected:.3f}, "
                    f"phot_{band}_mean_mag says {magnitude:.3f}"
                )
        if magnitude is not None:
            magnitudes[MAGNITUDE[band]] = magnitude
        if dr3 and flux is not None:
            fluxes[f"tok_flux_{band}_gaia"] = flux
    if magnitudes and not dr3:
        notes.append(f"photometry in the passbands of {source.release}: no scalars of it")
    return fluxes, magnitudes


def gather(sources: Iterable[tuple[str, Source]], *, notes: tuple[str, ...]) -> SourceTable:
    """Sources by id; the first of an id is kept."""
    ids: list[int] = []
    values: list[ndarray] = []
    releases: list[str] = []
    for source_id, source in sources:
        ids.append(int(source_id))
        values.append(np.array([source.values.get(name, np.nan) for name in MEASURED]))
        releases.append(source.release)
    unique, first = np.unique(np.array(ids, np.int64), return_index=True)
    columns = np.array(values).reshape(-1, len(MEASURED))
    return SourceTable(unique, columns[first], tuple(releases[i] for i in first), notes)


def find_source(table: SourceTable, source_id: str) -> Source | None:
    """The source of that id, None where the table lacks it or is of another list of sources."""
    place = int(np.searchsorted(table.ids, int(source_id)))
    if place == len(table.ids) or table.ids[place] != int(source_id):
        return None
    if table.release[place] not in SAME_SOURCES:
        return None
    line = zip(MEASURED, table.values[place].tolist(), strict=True)
    return Source(table.release[place], {name: v for name, v in line if not np.isnan(v)})
