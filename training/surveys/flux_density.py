"""Units of flux density as headers of spectra write them, to 1e-17 erg / s / cm^2 / Angstrom."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

import numpy as np
from astropy import units
from jaxtyping import Float64
from numpy import ndarray

UNIT = "1e-17 erg / (s cm2 Angstrom)"


def to_unit(
    unit: str, wavelength_angstrom: Float64[ndarray, " pixel"]
) -> Float64[ndarray, " pixel"]:
    """What one of `unit` is in 1e-17 erg / s / cm^2 / Angstrom, at each wavelength.

    Units per frequency (Jy, erg/s/cm2/Hz) depend on the wavelength, units per wavelength do not.

    Raises:
        ValueError: the unit cannot be read, or is no flux density.
    """
    constant = _constant(unit)
    if constant is not None:
        return np.full(wavelength_angstrom.shape, constant)
    try:
        factor = _parsed(unit).to(
            units.Unit(UNIT), equivalencies=units.spectral_density(wavelength_angstrom * units.AA)
        )
    except units.UnitConversionError:
        raise ValueError(f"expected a flux density such as {UNIT}, got {unit!r}") from None
    return np.asarray(factor, np.float64)


def check_inverse_variance(unit: str, flux_unit: str) -> None:
    """Raise ValueError unless `unit` is that of 1 / flux^2."""
    factor = _parsed(unit) * _parsed(flux_unit) ** 2
    if not factor.is_equivalent(units.dimensionless_unscaled) or not np.isclose(
        factor.to(units.dimensionless_unscaled), 1, rtol=1e-6
    ):
        raise ValueError(f"the unit of the inverse variance, {unit!r}, is not 1 / ({flux_unit})^2")


@lru_cache(maxsize=256)
def _constant(unit: str) -> float | None:
    """What a unit per wavelength is in UNIT, None for other units."""
    parsed = _parsed(unit)
    if not parsed.is_equivalent(units.Unit(UNIT)):
        return None
    factor = float(parsed.to(units.Unit(UNIT)))
    return 1.0 if abs(factor - 1) < 1e-12 else factor


@lru_cache(maxsize=256)
def _parsed(unit: str) -> units.UnitBase:
    # SDSS abbreviates Angstrom, and "A" is ampere to a parser of units.
    text = re.sub(r"\b(?:Angstroms?|Ang|AA|A)\b(?!\w)", "Angstrom", unit.strip())
    text = re.sub(r"\b(A|Ang)(?=-?\d)", "Angstrom", text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", units.UnitsWarning)
        for style in (None, "fits"):
            try:
                parsed = units.Unit(text, format=style)
            except (ValueError, TypeError):
                continue
            if isinstance(parsed, units.UnitBase):
                return parsed
    raise ValueError(f"unknown unit {unit!r}: expected a flux density such as {UNIT}")
