"""Gaia-like low-resolution spectra: a star's photons as coefficients of Hermite functions.

The archive's own basis is a rotation of scaled Hermite functions (De Angeli et al. 2023, A&A 674,
A2) whose matrices come with Gaia's software. Here the functions are used as they are, over a
dispersion that runs from 3 to 27 nm a pixel in BP and from 7 to 15 nm in RP: coefficients have the
archive's shape, unit and noise, and tell stars apart alike, but GaiaXPy would not turn them back
into this spectrum.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from training.observations import NUM_XP_COEFFICIENTS, XpCoefficients
from training.sky.milky_way import transmission
from training.sky.starlight import StarSurface, observed_flux

_PHOTON_ERG_ANGSTROM = 1.98645e-8  # Planck's constant times the speed of light
_MIRROR_CM2 = 7278.0
_EFFICIENCY = 0.55  # of mirrors, prism and detector in the middle of a band
_EXPOSURE_S = 40 * 4.4  # transits of the field of view times the time on one detector
_LINE_SPREAD = 1.3  # sigma, pixels
_SAMPLES_A_PIXEL = 8
# Absolute G magnitude on the main sequence at a temperature (after Pecaut & Mamajek 2013).
_KELVIN = (2900.0, 3300.0, 4000.0, 5000.0, 6000.0, 7500.0, 10000.0, 25000.0)
_ABSOLUTE_G = (13.0, 10.5, 8.0, 6.0, 4.3, 2.6, 1.0, -2.0)
_G_OVER_BOTH = 1.35  # G has no prism in the way
_ZERO_POINT_G = 25.687  # Vega magnitude of one electron a second (Riello et al. 2021)


_KM_S_A_MAS_PER_YR = 4.74  # of a star with a parallax of one milliarcsecond
_SPEEDS_KM_S = (35.0, 90.0)  # one component: thin disc; thick disc and halo


@dataclass(frozen=True, slots=True, kw_only=True)
class GaiaView:
    """What Gaia says of a star."""

    xp: XpCoefficients
    flux_g: float  # electrons / s
    flux_bp: float
    flux_rp: float
    parallax_mas: float
    parallax_error_mas: float
    pmra_mas_per_yr: float
    pmdec_mas_per_yr: float


@dataclass(frozen=True, slots=True)
class _Arm:
    wavelength_angstrom: Float64[ndarray, " sample"]
    electrons: Float64[ndarray, " sample"]  # a second and pixel, per 1e-17 erg/s/cm2/Angstrom
    basis: Float64[ndarray, "coefficient sample"]
    smear: Float64[ndarray, "sample sample"]


@functools.cache
def _arm(name: str) -> _Arm:
    first, last, fine, coarse = (3300, 6800, 30, 270) if name == "bp" else (6400, 10500, 70, 150)
    wave = np.linspace(first - 250.0, last + 250.0, 4000)
    dispersion = fine * (coarse / fine) ** ((wave - first) / (last - first))  # Angstrom a pixel
    steps = (1 / dispersion[1:] + 1 / dispersion[:-1]) / 2 * np.diff(wave)
    pixel = np.concatenate([[0.0], np.cumsum(steps)])
    pixel -= np.interp((first + last) / 2, wave, pixel)
    grid = np.arange(pixel[0], pixel[-1], 1 / _SAMPLES_A_PIXEL)
    at = np.interp(grid, pixel, wave)
    edge = 1 / ((1 + np.exp((first - at) / 60)) * (1 + np.exp((at - last) / 60)))
    photons = 1e-17 * at / _PHOTON_ERG_ANGSTROM * _MIRROR_CM2 * _EFFICIENCY * edge
    smear = np.exp(-0.5 * ((grid[:, None] - grid[None, :]) / _LINE_SPREAD) ** 2)
    smear /= smear.sum(axis=0)
    # the highest function turns where the band ends
    scale = np.abs(grid).max() / np.sqrt(2 * NUM_XP_COEFFICIENTS)
    basis = _hermite_functions(grid / scale) / (scale * _SAMPLES_A_PIXEL)
    return _Arm(at, photons * np.interp(at, wave, dispersion), basis, smear)


def _hermite_functions(x: Float64[ndarray, " sample"]) -> Float64[ndarray, "coefficient sample"]:
    """Orthonormal Hermite functions by their recurrence."""
    out = np.empty((NUM_XP_COEFFICIENTS, len(x)))
    out[0] = np.pi**-0.25 * np.exp(-0.5 * x**2)
    out[1] = np.sqrt(2) * x * out[0]
    for n in range(2, NUM_XP_COEFFICIENTS):
        out[n] = np.sqrt(2 / n) * x * out[n - 1] - np.sqrt((n - 1) / n) * out[n - 2]
    return out


def seen_by_gaia(
    star: StarSurface, *, mag_r: float, rng: np.random.Generator, ebv_mag: float = 0.0
) -> GaiaView:
    """Coefficients with their errors, fluxes, parallax and proper motion of a star.

    Args:
        star: Its surface.
        mag_r: AB magnitude before the dust of the Milky Way.
        rng: Source of randomness.
        ebv_mag: Of that dust, all of it before the star.
    """
    flux_r_nmgy = 10 ** (0.4 * (22.5 - mag_r))
    values, errors, counts, bare = {}, {}, {}, {}
    for name in ("bp", "rp"):
        arm = _arm(name)
        light = observed_flux(
            star, redshift=0.0, flux_r_nmgy=flux_r_nmgy, wavelength_angstrom=arm.wavelength_angstrom
        )
        electrons = light * arm.electrons
        bare[name] = float(electrons.sum() / _SAMPLES_A_PIXEL)
        electrons *= transmission(arm.wavelength_angstrom, ebv_mag)
        rate = arm.smear @ electrons  # electrons a second and pixel
        clean = arm.basis @ rate
        noise = np.sqrt(arm.basis**2 @ ((rate + 2.0) * _SAMPLES_A_PIXEL / _EXPOSURE_S))
        values[name] = (clean + noise * rng.standard_normal(len(clean))).astype(np.float32)
        errors[name] = noise.astype(np.float32)
        counts[name] = float(rate.sum() / _SAMPLES_A_PIXEL)
    flux_g = _G_OVER_BOTH * (counts["bp"] + counts["rp"])
    modulus = _ZERO_POINT_G - 2.5 * np.log10(_G_OVER_BOTH * (bare["bp"] + bare["rp"]))
    modulus -= float(np.interp(star.temperature_k, _KELVIN, _ABSOLUTE_G)) + float(
        rng.normal(0, 0.3)
    )
    parallax_error = 0.02 * 10 ** (0.2 * max(0.0, mag_r - 15))
    fluxes = {
        "flux_g": _single(flux_g * np.exp(rng.normal(0, 0.002))),
        "flux_bp": _single(counts["bp"] * np.exp(rng.normal(0, 0.01))),
        "flux_rp": _single(counts["rp"] * np.exp(rng.normal(0, 0.01))),
    }
    true_parallax = float(100 * 10 ** (-0.2 * modulus))
    parallax = true_parallax + rng.normal(0, parallax_error)
    # at high latitude one star in four is of the thick disc or halo
    speed_km_s = _SPEEDS_KM_S[int(rng.random() < 0.25)]
    motion = speed_km_s * rng.standard_normal(2) / _KM_S_A_MAS_PER_YR * true_parallax
    motion += parallax_error * rng.standard_normal(2)
    return GaiaView(
        xp=XpCoefficients(
            bp=values["bp"], rp=values["rp"], bp_error=errors["bp"], rp_error=errors["rp"]
        ),
        **fluxes,
        parallax_mas=_single(parallax),
        parallax_error_mas=_single(parallax_error),
        pmra_mas_per_yr=_single(motion[0]),
        pmdec_mas_per_yr=_single(motion[1]),
    )


def _single(value: float) -> float:
    """As files hold it."""
    return float(np.float32(value))
