"""Wavelengths as spectra give them, to vacuum Angstrom, ascending.

Air is standard air: 15 C, 101,325 Pa, dry, 450 ppm of CO2. Its refractive index is that of
Ciddor 1996, Applied Optics 35, 1566, equation 1, which is defined on vacuum wavelengths from 0.23
to 1.69 micrometre; shorter than 2000 Angstrom wavelengths are given in vacuum by all conventions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

Medium = Literal["vacuum", "air"]
AIR_FROM_ANGSTROM = 2000.0  # in air below this nothing is converted
RANGE_ANGSTROM = (1e2, 1e6)  # X-rays to far infrared: beyond it the numbers are something else
_ANGSTROM_PER = {
    "": 1.0, "angstrom": 1.0, "angstroms": 1.0, "ang": 1.0, "aa": 1.0, "a": 1.0, "0.1 nm": 1.0,
    "nm": 10.0, "nanometer": 10.0, "nanometers": 10.0, "nanometre": 10.0, "nanometres": 10.0,
    "um": 1e4, "micron": 1e4, "microns": 1e4, "micrometer": 1e4, "micrometre": 1e4, "m": 1e10,
}  # fmt: skip
_MEDIUM_WORDS: dict[str, Medium] = {"vac": "vacuum", "vacuum": "vacuum", "air": "air"}
_MEDIUM_CTYPES: dict[str, Medium] = {"WAVE": "vacuum", "AWAV": "air"}  # FITS WCS paper III


def angstrom_per(unit: str) -> float:
    """How many Angstrom a unit of length is; an empty unit is Angstrom.

    Raises:
        ValueError: the unit is unknown.
    """
    name = unit.strip().lower()
    if name not in _ANGSTROM_PER:
        raise ValueError(
            f"unknown wavelength unit {unit.strip()!r}: expected Angstrom, nm, um or m"
        )
    return _ANGSTROM_PER[name]


def medium_of(*headers: Mapping[str, str]) -> Medium | None:
    """Whether headers say vacuum or air (VACUUM, AIRORVAC, CTYPE1); None where they are silent.

    Args:
        headers: Keyword -> value as text.

    Raises:
        ValueError: they contradict each other, or AIRORVAC is neither.
    """
    said: dict[str, Medium] = {}
    for header in headers:
        vacuum = header.get("VACUUM", "").strip()
        if vacuum in ("T", "F"):
            said[f"VACUUM = {vacuum}"] = "vacuum" if vacuum == "T" else "air"
        word = header.get("AIRORVAC", "").strip()
        if word:
            if word.lower() not in _MEDIUM_WORDS:
                raise ValueError(f"expected AIRORVAC 'air' or 'vac', got {word!r}")
            said[f"AIRORVAC = {word!r}"] = _MEDIUM_WORDS[word.lower()]
        ctype = header.get("CTYPE1", "")[:4].upper()
        if ctype in _MEDIUM_CTYPES:
            said[f"CTYPE1 = {ctype!r}"] = _MEDIUM_CTYPES[ctype]
    if len(set(said.values())) > 1:
        raise ValueError(f"wavelengths in air and in vacuum at once: {' but '.join(said)}")
    return next(iter(said.values()), None)


def vacuum_angstrom(
    wavelength: Float64[ndarray, " pixel"], *, unit: str = "Angstrom", medium: Medium = "vacuum"
) -> Float64[ndarray, " pixel"]:
    """Wavelengths of any unit and medium as vacuum Angstrom.

    Raises:
        ValueError: the unit is unknown, or the wavelengths are not finite, strictly ascending and
            within RANGE_ANGSTROM.
    """
    if not np.isfinite(wavelength).all():
        raise ValueError("wavelengths hold NaN or infinity")
    if not (np.diff(wavelength) > 0).all():
        raise ValueError("wavelengths are not ascending")
    angstrom = wavelength * angstrom_per(unit)
    low, high = RANGE_ANGSTROM
    if len(angstrom) and not (low <= angstrom[0] and angstrom[-1] <= high):
        raise ValueError(
            f"expected wavelengths between {low:g} and {high:g} Angstrom, "
            f"got {angstrom[0]:g} to {angstrom[-1]:g} (unit {unit.strip() or 'not given'!r})"
        )
    return air_to_vacuum(angstrom) if medium == "air" else angstrom


def vacuum_from_log10(
    loglam: Float64[ndarray, " pixel"], *, unit: str = "Angstrom", medium: Medium = "vacuum"
) -> Float64[ndarray, " pixel"]:
    """Vacuum Angstrom of log10 of wavelengths; unit as "Angstrom" or "log10(Angstrom)".

    Raises:
        ValueError: as `vacuum_angstrom`; also where the numbers cannot be logarithms.
    """
    inner = re.fullmatch(r"\s*(?:log10|log|dex)\s*[(\[](.*)[)\]]\s*", unit, re.IGNORECASE)
    if not np.isfinite(loglam).all():
        raise ValueError("loglam holds NaN or infinity")
    if not (np.diff(loglam) > 0).all():
        raise ValueError("wavelengths (loglam) are not ascending")
    name = inner[1] if inner else unit
    low, high = np.log10(RANGE_ANGSTROM)
    shift = np.log10(angstrom_per(name))
    if len(loglam) and not (low <= loglam[0] + shift and loglam[-1] + shift <= high):
        raise ValueError(
            f"expected loglam, log10 of Angstrom, between {low} and {high}, "
            f"got {loglam[0] + shift:g} to {loglam[-1] + shift:g}"
        )
    return vacuum_angstrom(10**loglam, unit=name, medium=medium)


def refractive_index(vacuum_angstrom: Float64[ndarray, "*shape"]) -> Float64[ndarray, "*shape"]:
    """Index of standard air (phase) at a vacuum wavelength. Source: Ciddor 1996, equation 1."""
    wavenumber2 = (1e4 / vacuum_angstrom) ** 2  # 1 / micrometre^2
    return 1 + 5792105e-8 / (238.0185 - wavenumber2) + 167917e-8 / (57.362 - wavenumber2)


def air_to_vacuum(air_angstrom: Float64[ndarray, "*shape"]) -> Float64[ndarray, "*shape"]:
    """Vacuum wavelength of a wavelength in standard air; below 2000 Angstrom unchanged.

    The index depends on the vacuum wavelength, so it is found by iteration: three rounds leave
    less than 1e-9 Angstrom.
    """
    in_air = air_angstrom >= AIR_FROM_ANGSTROM
    vacuum = np.array(air_angstrom)
    for _ in range(3):
        vacuum[in_air] = air_angstrom[in_air] * refractive_index(vacuum[in_air])
    return vacuum
