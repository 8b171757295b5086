"""Light by wavelength for the simulated sky: what stars, stellar populations and quasars emit.

Galaxies mix three stellar populations and two sets of nebular lines, all drawn once on a
rest-frame grid of constant step in log10 wavelength. Photometry and spectra come from the same
curve, so colours, 4000 Angstrom break, lines and redshift of an object agree with each other.
The curves follow the shape of well-known mean galaxy and star spectra; they are not models of
stellar evolution. Quasars follow the composite of Vanden Berk et al. 2001, AJ 122, 549.

Curves are (wavelength,), griz fluxes (band,), float64. Numpy alone is needed here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

LIGHT_SPEED_KM_S = 299_792.458
NANOMAGGY_CGS = 3.631e-29  # erg / s / cm^2 / Hz

# Effective passbands of the Dark Energy Camera as flat-topped curves: centre, full width.
_PASSBANDS_ANGSTROM = {
    "DES-G": (4730, 1480),
    "DES-R": (6420, 1480),
    "DES-I": (7840, 1470),
    "DES-Z": (9260, 1480),
}
BANDS = tuple(_PASSBANDS_ANGSTROM)
NUM_BANDS = len(BANDS)
R_BAND = BANDS.index("DES-R")

_LOG_START, _LOG_STOP, _LOG_STEP = 3.0, 4.1, 1e-4
_BLOCK = 8  # photometry needs the curve only in steps of 8e-4

# Continuum relative to 5500 Angstrom: (wavelength, old, one-gigayear, young).
_CONTINUUM = (
    (1000, 0.020, 0.10, 7.00),
    (1500, 0.015, 0.25, 9.00),
    (2000, 0.020, 0.38, 6.00),
    (2500, 0.040, 0.48, 4.20),
    (3000, 0.130, 0.58, 3.20),
    (3500, 0.260, 0.64, 2.60),
    (3700, 0.320, 0.70, 2.35),
    (3900, 0.360, 1.10, 2.25),
    (4060, 0.590, 1.28, 2.15),
    (4300, 0.700, 1.27, 1.87),
    (4550, 0.880, 1.22, 1.63),
    (5000, 0.955, 1.10, 1.28),
    (5500, 1.000, 1.00, 1.00),
    (6000, 1.000, 0.90, 0.83),
    (6500, 0.985, 0.82, 0.69),
    (7000, 0.955, 0.75, 0.59),
    (8000, 0.885, 0.63, 0.43),
    (9000, 0.805, 0.54, 0.33),
    (10000, 0.725, 0.46, 0.26),
    (12600, 0.550, 0.31, 0.15),
)
# Absorption: (vacuum wavelength, width, depth in old, one-gigayear, young); Angstrom.
_ABSORPTION = (
    (3934.8, 8.0, 0.50, 0.25, 0.05),  # Ca K
    (3969.6, 8.0, 0.48, 0.40, 0.10),  # Ca H and H epsilon
    (3835.4, 9.0, 0.20, 0.35, 0.08),
    (4102.9, 9.0, 0.08, 0.36, 0.08),  # H delta
    (4305.6, 16.0, 0.26, 0.08, 0.02),  # G band
    (4341.7, 9.0, 0.10, 0.34, 0.08),  # H gamma
    (4384.6, 7.0, 0.10, 0.04, 0.01),
    (4668.0, 14.0, 0.06, 0.02, 0.0),
    (4862.7, 8.0, 0.14, 0.30, 0.08),  # H beta
    (5176.6, 15.0, 0.20, 0.07, 0.02),  # Mg b
    (5270.0, 9.0, 0.09, 0.04, 0.01),  # Fe
    (5335.0, 8.0, 0.07, 0.03, 0.01),  # Fe
    (5895.6, 6.0, 0.18, 0.08, 0.03),  # Na D
    (6190.0, 45.0, 0.03, 0.01, 0.0),  # TiO
    (6564.6, 8.0, 0.06, 0.20, 0.06),  # H alpha
    (7130.0, 55.0, 0.05, 0.01, 0.0),  # TiO
    (8500.4, 6.0, 0.16, 0.10, 0.04),  # Ca II triplet
    (8544.4, 6.0, 0.24, 0.14, 0.05),
    (8664.5, 6.0, 0.20, 0.12, 0.04),
)
# Emission: name, vacuum wavelength, flux over H alpha where gas is metal rich, metal poor.
EMISSION_LINES: dict[str, tuple[float, float, float]] = {
    "[OII]3727": (3727.1, 0.28, 0.42),
    "[OII]3730": (3729.9, 0.36, 0.56),
    "Hdelta": (4102.9, 0.08, 0.09),
    "Hgamma": (4341.7, 0.15, 0.16),
    "Hbeta": (4862.7, 0.34, 0.35),
    "[OIII]4960": (4960.3, 0.06, 0.40),
    "[OIII]5008": (5008.2, 0.17, 1.20),
    "HeI": (5877.2, 0.03, 0.04),
    "[NII]6550": (6549.9, 0.13, 0.03),
    "Halpha": (6564.6, 1.0, 1.0),
    "[NII]6585": (6585.3, 0.38, 0.09),
    "[SII]6718": (6718.3, 0.17, 0.14),
    "[SII]6733": (6732.7, 0.13, 0.10),
}
_HALPHA_FLUX = 130.0  # per unit of young light at 5500 Angstrom, Angstrom
_LINE_WIDTH = 2.0e-4  # sigma in log10 wavelength: 140 km/s with the spectrograph's share


@dataclass(frozen=True, slots=True, kw_only=True)
class Starlight:
    """A stellar population: fractions of the light at 5500 Angstrom, which add up to 1."""

    old: float
    middle: float  # about a gigayear
    young: float
    metal_poor: float = 0.3  # of the ionised gas, 0 to 1
    gas: float = 1.0  # strength of the emission lines of the young stars
    dust_mag: float = 0.0  # extinction at 5500 Angstrom


@dataclass(frozen=True, slots=True, kw_only=True)
class StarSurface:
    """A single star."""

    temperature_k: float
    metals: float = 1.0  # strength of metal lines, sun-like = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QuasarGlow:
    """The nucleus of an active galaxy: a power law with broad and narrow lines."""

    slope: float  # of flux per Angstrom in powers of wavelength, about -1.5
    broad: float = 1.0  # strength of broad lines, usual = 1
    narrow: float = 1.0
    broad_km_s: float = 2500.0  # sigma
    dust_mag: float = 0.0  # extinction at 5500 Angstrom, rest frame


Light = Starlight | StarSurface | QuasarGlow


@functools.cache
def rest_wavelength_angstrom() -> ndarray:
    """Rest-frame grid of every curve here, vacuum, 1000 to about 12,600 Angstrom."""
    num = round((_LOG_STOP - _LOG_START) / _LOG_STEP)
    return 10 ** (_LOG_START + _LOG_STEP * np.arange(num, dtype=np.float64))


@functools.cache
def _components() -> ndarray:
    """Old, one-gigayear and young stars, then metal-rich and metal-poor nebular lines."""
    wave = rest_wavelength_angstrom()
    table = np.array(_CONTINUUM, dtype=np.float64)
    stars = np.exp(
        [np.interp(np.log(wave), np.log(table[:, 0]), np.log(table[:, 1 + k])) for k in range(3)]
    )
    for centre, width, *depths in _ABSORPTION:
        profile = np.exp(-0.5 * ((wave - centre) / width) ** 2)
        stars *= 1 - np.array(depths)[:, None] * profile
    lines = np.zeros((2, len(wave)))
    for centre, *strengths in EMISSION_LINES.values():
        sigma_angstrom = centre * np.log(10) * _LINE_WIDTH
        profile = np.exp(-0.5 * (np.log10(wave / centre) / _LINE_WIDTH) ** 2)
        profile /= sigma_angstrom * np.sqrt(2 * np.pi)
        lines += _HALPHA_FLUX * np.array(strengths)[:, None] * profile
    return np.concatenate([stars, lines])


@functools.cache
def _extinction() -> ndarray:
    return (5500 / rest_wavelength_angstrom()) ** 0.9


@functools.cache
def _blocks() -> tuple[
    ndarray,
    ndarray,
    ndarray,
]:
    """Wavelengths, components and extinction averaged over blocks, for photometry."""
    parts = _components()
    return (
        rest_wavelength_angstrom().reshape(-1, _BLOCK).mean(axis=1),
        parts.reshape(len(parts), -1, _BLOCK).mean(axis=2),
        _extinction().reshape(-1, _BLOCK).mean(axis=1),
    )


def _weights(light: Starlight) -> ndarray:
    lines = light.young * light.gas
    return np.array(
        [
            light.old,
            light.middle,
            light.young,
            lines * (1 - light.metal_poor),
            lines * light.metal_poor,
        ]
    )


def star_curve(star: StarSurface, wave: ndarray) -> ndarray:
    """A black body with the Balmer series, metal lines and molecular bands its temperature has."""
    kelvin = star.temperature_k
    curve = (5500 / wave) ** 5 * np.expm1(1.4388e8 / (5500 * kelvin))
    curve /= np.expm1(np.minimum(1.4388e8 / (wave * kelvin), 80.0))
    balmer = 0.65 * np.exp(-0.5 * ((np.log10(kelvin) - 3.96) / 0.13) ** 2)
    metal = star.metals * np.clip((8000 - kelvin) / 3500, 0, 1)
    molecule = star.metals * np.clip((4200 - kelvin) / 1000, 0, 1)
    lines = [(c, 11.0, balmer) for c in (3835.4, 3890.2, 3971.2, 4102.9, 4341.7, 4862.7, 6564.6)]
    lines += [(3934.8, 9.0, 0.75 * metal), (3969.6, 9.0, 0.65 * metal)]
    lines += [(4305.6, 15.0, 0.35 * metal), (4227.9, 5.0, 0.30 * metal)]
    lines += [
        (5176.6, 14.0, 0.30 * metal),
        (5270.0, 8.0, 0.12 * metal),
        (5895.6, 5.0, 0.35 * metal),
    ]
    lines += [(8544.4, 6.0, 0.35 * metal), (8664.5, 6.0, 0.30 * metal), (8500.4, 6.0, 0.20 * metal)]
    lines += [(c, 70.0, 0.45 * molecule) for c in (4960.0, 5500.0, 6230.0, 6780.0, 7150.0, 7680.0)]
    for centre, width, depth in lines:
        if depth > 0.01:
            low, high = np.searchsorted(wave, (centre - 5 * width, centre + 5 * width))
            part = wave[low:high]
            curve[low:high] *= 1 - min(depth, 0.9) * np.exp(-0.5 * ((part - centre) / width) ** 2)
    # far in the infrared the exponential would overflow
    jump = 0.55 * balmer / (1 + np.exp(np.minimum((wave - 3700) / 15, 700)))
    blanketing = 0.45 * metal / (1 + np.exp(np.minimum((wave - 4000) / 60, 700)))
    return curve * (1 - jump) * (1 - blanketing)


# Name, vacuum wavelength, equivalent width and whether broad; Angstrom (Vanden Berk et al. 2001).
QUASAR_LINES: tuple[tuple[str, float, float, bool], ...] = (
    ("Lyalpha", 1215.7, 90.0, True),
    ("NV", 1240.8, 18.0, True),
    ("SiIV", 1398.3, 8.5, True),
    ("CIV", 1549.1, 24.0, True),
    ("HeII", 1640.4, 4.5, True),
    ("CIII]", 1908.7, 21.0, True),
    ("MgII", 2799.1, 32.0, True),
    ("[NeV]", 3426.8, 1.6, False),
    ("[OII]", 3728.8, 2.0, False),
    ("[NeIII]", 3869.9, 1.5, False),
    ("Hdelta", 4102.9, 5.5, True),
    ("Hgamma", 4341.7, 13.0, True),
    ("Hbeta", 4862.7, 46.0, True),
    ("[OIII]4960", 4960.3, 4.5, False),
    ("[OIII]5008", 5008.2, 13.5, False),
    ("Halpha", 6564.6, 195.0, True),
)
# Blends of iron lines and the Balmer continuum: centre, width, height over the power law.
_QUASAR_BUMPS = (
    (2480.0, 130.0, 0.28),
    (3000.0, 330.0, 0.25),
    (4570.0, 75.0, 0.13),
    (5250.0, 90.0, 0.13),
)
_NARROW_KM_S = 220.0


def _quasar_curve(quasar: QuasarGlow, wave: ndarray) -> ndarray:
    curve = np.ones_like(wave)
    for centre, width, height in _QUASAR_BUMPS:
        curve += quasar.broad * height * np.exp(-0.5 * ((wave - centre) / width) ** 2)
    for _, centre, width_angstrom, is_broad in QUASAR_LINES:
        strength = quasar.broad if is_broad else quasar.narrow
        speed = quasar.broad_km_s if is_broad else _NARROW_KM_S
        sigma = centre * speed / LIGHT_SPEED_KM_S
        low, high = np.searchsorted(wave, (centre - 6 * sigma, centre + 6 * sigma))
        profile = np.exp(-0.5 * ((wave[low:high] - centre) / sigma) ** 2)
        curve[low:high] += strength * width_angstrom / (sigma * np.sqrt(2 * np.pi)) * profile
    curve *= (wave / 3000) ** quasar.slope
    # gas between us and the quasar takes most of the light short of Lyman alpha
    curve *= np.where(wave < 1210, 0.72, 1.0)
    return curve * np.exp(-0.921 * quasar.dust_mag * (5500 / wave) ** 1.2)


def rest_curve(light: Light) -> ndarray:
    """Rest-frame flux per Angstrom on the rest grid, arbitrary scale."""
    if isinstance(light, StarSurface):
        return star_curve(light, rest_wavelength_angstrom())
    if isinstance(light, QuasarGlow):
        return _quasar_curve(light, rest_wavelength_angstrom())
    curve = _weights(light) @ _components()
    if light.dust_mag:
        curve *= np.exp(-0.921 * light.dust_mag * _extinction())
    return curve


def flux_density(curve: ndarray, wave: ndarray, band: int) -> float:
    """Mean flux per Hertz in one of BANDS, as a photon counter sees it; wave is logarithmic."""
    centre, width = _PASSBANDS_ANGSTROM[BANDS[band]]
    low, high = np.searchsorted(wave, (centre - 0.75 * width, centre + 0.75 * width))
    part = wave[low:high]
    response = np.exp(-0.69 * (2 * (part - centre) / width) ** 12)
    # the grid is logarithmic, so d(lambda) is proportional to lambda
    counts = (curve[low:high] * response * part * part).sum()
    return float(counts / (response.sum() * LIGHT_SPEED_KM_S * 1e13))


def broad_wavelength_angstrom() -> ndarray:
    """Rest-frame grid in broader steps, for photometry."""
    return _blocks()[0]


def broad_curve(light: Light) -> ndarray:
    """`rest_curve` in the steps of `broad_wavelength_angstrom`."""
    wave, parts, extinction = _blocks()
    if isinstance(light, StarSurface):
        return star_curve(light, wave)
    if isinstance(light, QuasarGlow):
        return _quasar_curve(light, wave)
    curve = _weights(light) @ parts * np.exp(-0.921 * light.dust_mag * extinction)
    return np.asarray(curve)


def colours(light: Light, redshift: float) -> ndarray:
    """Flux per Hertz in DECam g, r, i, z, divided by that in r."""
    wave = broad_wavelength_angstrom()
    curve, seen = broad_curve(light), wave * (1 + redshift)
    flux = np.array([flux_density(curve, seen, band) for band in range(NUM_BANDS)])
    return flux / flux[R_BAND]


def observed_flux(
    light: Light, *, redshift: float, flux_r_nmgy: float, wavelength_angstrom: ndarray
) -> ndarray:
    """Noiseless spectrum at those wavelengths, 1e-17 erg/s/cm2/Angstrom, with that flux in r.

    Wavelengths outside the curve get the value at its end.
    """
    wave = rest_wavelength_angstrom() * (1 + redshift)
    curve = rest_curve(light)
    per_hertz = flux_density(curve, wave, R_BAND)
    scale = flux_r_nmgy * NANOMAGGY_CGS * 1e17 / per_hertz
    return np.interp(wavelength_angstrom, wave, curve * scale)
