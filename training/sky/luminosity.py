"""How bright, far and large simulated galaxies are: luminosity, distance, angular size.

Distances are those of a flat universe of 30 % matter and 70 km/s/Mpc. Sizes follow the
relation with luminosity of Shen et al. 2003, MNRAS 343, 978.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from training.sky.starlight import LIGHT_SPEED_KM_S

_HUBBLE_KM_S_MPC, _MATTER = 70.0, 0.3
_ARCSEC_A_RADIAN = 180 * 3600 / np.pi


@dataclass(frozen=True, slots=True)
class Distances:
    """Redshift, distance modulus, and how large an arcsecond is there; one entry a redshift."""

    redshift: ndarray
    modulus_mag: ndarray
    kpc_per_arcsec: ndarray


@functools.cache
def distances() -> Distances:
    """A table of distances by redshift."""
    redshift = np.geomspace(5e-4, 3.5, 600)
    # comoving distance: Simpson's rule over the inverse expansion rate, from one entry to the next
    edges = np.concatenate([[0.0], redshift])
    low, high = edges[:-1], edges[1:]
    rates = [_inverse_expansion(z) for z in (low, (low + high) / 2, high)]
    steps = (high - low) / 6 * (rates[0] + 4 * rates[1] + rates[2])
    comoving_mpc = LIGHT_SPEED_KM_S / _HUBBLE_KM_S_MPC * np.cumsum(steps)
    return Distances(
        redshift,
        5 * np.log10(comoving_mpc * (1 + redshift)) + 25,
        comoving_mpc * 1000 / (1 + redshift) / _ARCSEC_A_RADIAN,
    )


def _inverse_expansion(redshift: ndarray) -> ndarray:
    return 1 / np.sqrt(_MATTER * (1 + redshift) ** 3 + 1 - _MATTER)


def _redshift_at(modulus_mag: float) -> float:
    table = distances()
    return float(np.interp(modulus_mag, table.modulus_mag, table.redshift))


def angular_radius_arcsec(radius_kpc: float, redshift: float) -> float:
    """Under what angle that length is seen."""
    table = distances()
    return radius_kpc / float(np.interp(redshift, table.redshift, table.kpc_per_arcsec))


def lensing_efficiency(redshift: float, source_redshift: float) -> float:
    """Distance from lens to source over that from us to the source, 0 to 1."""
    table = distances()
    comoving = table.kpc_per_arcsec * (1 + table.redshift)
    near, far = np.interp([redshift, source_redshift], table.redshift, comoving)
    return float(1 - near / far)


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
        radius = angular_radius_arcsec(10**log_kpc, redshift)
        if 1.35 < radius < 8.0:
            break
    return Size(mag, luminosity, redshift, float(np.clip(radius, 1.35, 8.0)))


def luminous_red(rng: np.random.Generator) -> Size:
    """A massive early-type galaxy far away, as lenses are."""
    while True:
        luminosity = float(rng.normal(-23.1, 0.4))
        redshift = float(rng.uniform(0.15, 0.6))
        modulus = float(np.interp(redshift, distances().redshift, distances().modulus_mag))
        mag = luminosity + modulus + 1.2 * redshift  # K correction of old stars in r
        if 16.5 < mag < 20.0:
            radius = angular_radius_arcsec(
                10 ** rng.normal(0.52 - 0.22 * (luminosity + 20.5), 0.1), redshift
            )
            return Size(mag, luminosity, redshift, float(np.clip(radius, 1.0, 6.0)))
