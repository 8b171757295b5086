"""How bright, far and large simulated galaxies are: luminosity, distance, angular size.

Sizes follow the relation with luminosity of Shen et al. 2003, MNRAS 343, 978.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from astropy.cosmology import FlatLambdaCDM
from jaxtyping import Float64
from numpy import ndarray


@dataclass(frozen=True, slots=True)
class _Distances:
    redshift: Float64[ndarray, " z"]
    modulus_mag: Float64[ndarray, " z"]
    kpc_per_arcsec: Float64[ndarray, " z"]


@functools.cache
def _distances() -> _Distances:
    redshift = np.geomspace(5e-4, 3.5, 600)
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    return _Distances(
        redshift,
        np.asarray(cosmology.distmod(redshift).value, dtype=np.float64),
        np.asarray(cosmology.kpc_proper_per_arcmin(redshift).value / 60, dtype=np.float64),
    )


def _redshift_at(modulus_mag: float) -> float:
    table = _distances()
    return float(np.interp(modulus_mag, table.modulus_mag, table.redshift))


def _arcsec(radius_kpc: float, redshift: float) -> float:
    table = _distances()
    return radius_kpc / float(np.interp(redshift, table.redshift, table.kpc_per_arcsec))


@dataclass(frozen=True, slots=True)
class Size:
    """How bright, how far and how large a galaxy is."""

    mag_r: float  # AB
    absolute_r: float
    redshift: float
    radius_arcsec: float  # half-light


def nearby(rng: np.random.Generator, *, absolute_r: float, scatter_mag: float, early: bool) -> Size:
    """Magnitude, redshift and angular size from luminosity and the size-luminosity relation.

    Slopes after Shen et al. 2003, MNRAS 343, 978. Drawn again while too small or too large for
    the frame.
    """
    for _ in range(100):
        luminosity = float(rng.normal(absolute_r, scatter_mag))
        mag = float(rng.triangular(14.3, 16.7, 19.2))
        redshift = _redshift_at(mag - luminosity)
        fainter = -20.5 - luminosity
        if early:
            log_kpc = rng.normal(0.52 + 0.25 * fainter, 0.11)
        else:
            log_kpc = rng.normal(0.65 + 0.17 * fainter, 0.14)
        radius = _arcsec(10**log_kpc, redshift)
        if 1.35 < radius < 8.0:
            break
    return Size(mag, luminosity, redshift, float(np.clip(radius, 1.35, 8.0)))


def luminous_red(rng: np.random.Generator) -> Size:
    """A massive early-type galaxy far away, as lenses are."""
    while True:
        luminosity = float(rng.normal(-23.1, 0.4))
        redshift = float(rng.uniform(0.15, 0.6))
        modulus = float(np.interp(redshift, _distances().redshift, _distances().modulus_mag))
        mag = luminosity + modulus + 1.2 * redshift  # K correction of old stars in r
        if 16.5 < mag < 20.0:
            radius = _arcsec(10 ** rng.normal(0.52 - 0.22 * (luminosity + 20.5), 0.1), redshift)
            return Size(mag, luminosity, redshift, float(np.clip(radius, 1.0, 6.0)))
