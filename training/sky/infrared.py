"""Light beyond 1.26 micrometre and what WISE makes of it: stars, the dust that they warm, tori.

Stars of galaxies go on with the infrared colours of their kind (Vega: V - H, V - K, V - W1 ...
after Frogel et al. 1978, ApJ 220, 75, and Wright et al. 2010, AJ 140, 1868). What their dust takes
away comes back in the infrared with the mean spectrum of normal galaxies (shares of the whole at
8 and 24 micrometre after Draine & Li 2007, ApJ 657, 810, and Calzetti et al. 2007, ApJ 666, 870);
young stars warm the dust of their birth clouds too (Charlot & Fall 2000, ApJ 539, 718). Quasars
follow the mean spectrum of Richards et al. 2006, ApJS 166, 470; single stars are black bodies.

Fluxes are AB, so in nanomaggies as in the Legacy Surveys. Numpy alone is needed here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
from numpy import ndarray

from training.sky.starlight import (
    LIGHT_SPEED_KM_S,
    R_BAND,
    Light,
    QuasarGlow,
    Starlight,
    StarSurface,
    broad_curve,
    broad_wavelength_angstrom,
    flux_density,
    star_curve,
)

WISE_BANDS = ("W1", "W2", "W3", "W4")
# Centre and full width (Jarrett et al. 2011, ApJ 735, 112), and AB minus Vega.
_PASSBANDS_ANGSTROM = ((33_526, 6_626), (46_028, 10_423), (115_608, 55_069), (220_883, 41_013))
AB_MINUS_VEGA = (2.699, 3.339, 5.174, 6.620)
# One sigma of forced photometry, nanomaggies: 5 sigma at AB 20.9, 20.1, 16.7 and 14.5.
NOISE_NMGY = (0.87, 1.8, 42.0, 320.0)

_OPTICAL_END = 12_550.0  # Angstrom: where the curves of starlight stop
# Vega's flux per Angstrom, and V minus that band of old, one-gigayear and young stars.
_VEGA_V = 3.63e-9
_STARS = (
    (16_500.0, 1.13e-10, 2.72, 2.02, 0.95),
    (21_600.0, 4.28e-11, 2.98, 2.30, 1.15),
    (33_526.0, 8.18e-12, 3.20, 2.50, 1.30),
    (46_028.0, 2.415e-12, 3.16, 2.48, 1.34),
    (115_608.0, 6.515e-14, 3.50, 2.85, 1.50),
    (220_883.0, 5.090e-15, 4.20, 3.45, 1.70),
)
# Wavelength in micrometre and wavelength times flux over all that dust emits: features of
# molecules at 3.3, 6.2, 7.7, 8.6, 11.3 and 12.7, then small warm grains.
_DUST = (
    *((1.2, 1e-4), (2.0, 0.003), (3.1, 0.010), (3.3, 0.024), (3.6, 0.011), (5.0, 0.016)),
    *((6.2, 0.10), (7.0, 0.08), (7.7, 0.19), (8.6, 0.14), (9.7, 0.06), (11.3, 0.13)),
    *((12.7, 0.12), (15.0, 0.085), (20.0, 0.10), (24.0, 0.13), (30.0, 0.20)),
)
_BIRTH_CLOUD_MAG = 0.4  # at 5500 Angstrom
# Micrometre, and wavelength times flux of a quasar over that at 1.26.
_QUASAR = (
    *((1.2, 1.0), (2.0, 1.35), (3.0, 1.65), (5.0, 1.6), (8.0, 1.45), (10.0, 1.65)),
    *((13.0, 1.5), (20.0, 1.5), (30.0, 1.4)),
)


@functools.cache
def _wavelength_angstrom() -> ndarray:
    """Rest-frame grid from 6300 Angstrom to 25 micrometre, even in its logarithm."""
    return np.asarray(10 ** np.arange(3.8, 5.4, 0.004))


def _power_laws(table: tuple[tuple[float, ...], ...], unit: float) -> ndarray:
    points = np.array(table)
    wave = np.log(_wavelength_angstrom())
    return np.exp(np.interp(wave, np.log(points[:, 0] * unit), np.log(points[:, 1])))


@functools.cache
def _bare_stars() -> ndarray:
    """Old, one-gigayear and young stars without gas and dust, (3, step of the broad grid)."""
    populations = np.eye(3)
    return np.stack(
        [broad_curve(Starlight(old=o, middle=m, young=y, gas=0.0)) for o, m, y in populations]
    )


@functools.cache
def _stars() -> ndarray:
    """The same on the grid of the infrared."""
    wave, kinds = broad_wavelength_angstrom(), []
    seen = (wave > 6000) & (wave < _OPTICAL_END)
    for k, optical in enumerate(_bare_stars()):
        points = tuple(zip(wave[seen], optical[seen], strict=True)) + tuple(
            (row[0], row[1] / _VEGA_V * 10 ** (0.4 * row[2 + k])) for row in _STARS
        )
        kinds.append(_power_laws(points, 1.0))
    return np.stack(kinds)


@functools.cache
def _dust() -> ndarray:
    """Flux per Angstrom of dust that emits 1 in all."""
    return _power_laws(_DUST, 1e4) / _wavelength_angstrom()


@functools.cache
def _screen() -> ndarray:
    """Optical depth of dust over that at 5500 Angstrom, on the broad grid."""
    return np.asarray((5500 / broad_wavelength_angstrom()) ** 0.9)


@functools.cache
def _in_birth_clouds() -> ndarray:
    """Young light that the clouds take, on the broad grid."""
    return np.asarray(_bare_stars()[2] * (1 - np.exp(-0.921 * _BIRTH_CLOUD_MAG * _screen())))


@functools.cache
def _steps_angstrom() -> ndarray:
    return np.gradient(broad_wavelength_angstrom())


def _warm_dust(light: Starlight) -> float:
    """Starlight that dust takes away, Angstrom times the flux at 5500 Angstrom."""
    left = np.exp(-0.921 * light.dust_mag * _screen())
    stars = np.array([light.old, light.middle, light.young]) @ _bare_stars()
    taken = stars * (1 - left) + light.young * left * _in_birth_clouds()
    return float(taken @ _steps_angstrom())


def _curve(light: Light) -> ndarray:
    """Rest-frame flux per Angstrom in the units of `broad_curve`."""
    wave = _wavelength_angstrom()
    if isinstance(light, StarSurface):
        return star_curve(light, wave)
    if isinstance(light, QuasarGlow):
        optical = np.interp(wave, broad_wavelength_angstrom(), broad_curve(light))
        torus = _power_laws(_QUASAR, 1e4)
        end = float(np.interp(_OPTICAL_END, wave, optical))
        return np.where(wave < _OPTICAL_END, optical, end * _OPTICAL_END / wave * torus)
    stars = np.array([light.old, light.middle, light.young]) @ _stars()
    stars = stars * np.exp(-0.921 * light.dust_mag * (5500 / wave) ** 0.9)
    return np.asarray(stars + _warm_dust(light) * _dust())


@functools.lru_cache(maxsize=64)
def _over_r(light: Light, redshift: float) -> tuple[float, ...]:
    """Flux per Hertz in W1 to W4, divided by that in r."""
    optical_wave = broad_wavelength_angstrom() * (1 + redshift)
    in_r = flux_density(broad_curve(light), optical_wave, R_BAND)
    wave, curve = _wavelength_angstrom() * (1 + redshift), _curve(light)
    bands = []
    for centre, width in _PASSBANDS_ANGSTROM:
        low, high = np.searchsorted(wave, (centre - width / 2, centre + width / 2))
        part = wave[low:high]
        # photons counted over a logarithmic grid, as in r
        per_hertz = (curve[low:high] * part * part).mean() / (LIGHT_SPEED_KM_S * 1e13)
        bands.append(float(per_hertz) / in_r)
    return tuple(bands)


def wise_colours(light: Light, redshift: float) -> ndarray:
    """Flux per Hertz in W1, W2, W3, W4, divided by that in r of the Dark Energy Camera."""
    return np.array(_over_r(light, redshift))


def wise_flux_nmgy(parts: Iterable[tuple[Light, float, float]]) -> ndarray:
    """W1 to W4 of populations, each given by its light, redshift and flux in r (nanomaggies)."""
    out = np.zeros(len(WISE_BANDS))
    for light, redshift, flux_r_nmgy in parts:
        out += flux_r_nmgy * wise_colours(light, redshift)
    return out
