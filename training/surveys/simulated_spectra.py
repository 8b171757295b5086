"""What a spectrograph makes of simulated light: SDSS and DESI grids, their noise, bad pixels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from training.observations import Spectrum

SpectrographName = Literal["sdss", "desi"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrograph:
    """The grid of one survey's spectra and how deep they are."""

    name: SpectrographName
    num_pixels: int
    line_spread_angstrom: float  # sigma
    bad_angstrom: tuple[tuple[float, float], ...]  # centre and half-width, always masked


SDSS = Spectrograph(
    name="sdss", num_pixels=3840, line_spread_angstrom=1.1, bad_angstrom=((5578.9, 6.0),)
)
DESI = Spectrograph(name="desi", num_pixels=7781, line_spread_angstrom=0.75, bad_angstrom=())
# Wavelength in Angstrom and sigma between sky lines: that of an early coadd of DESI (tile 80693)
# times three, which is about one usual exposure.
_DESI_NOISE = np.array(
    [
        *((3600, 3.9), (3800, 2.4), (4000, 1.6), (4400, 0.85), (4800, 0.6), (5700, 0.58)),
        *((6200, 0.42), (7000, 0.32), (8400, 0.27), (9824, 0.45)),
    ]
)
SPECTROGRAPHS: dict[str, Spectrograph] = {"sdss": SDSS, "desi": DESI}


@functools.cache
def wavelength_angstrom(spectrograph: Spectrograph) -> Float64[ndarray, " pixel"]:
    """Its grid, vacuum; SDSS rounded to float32 as its files hold it.

    SDSS steps by 1e-4 in log10 wavelength from 3.58, DESI by 0.8 Angstrom from 3600.
    """
    steps = np.arange(spectrograph.num_pixels, dtype=np.float64)
    if spectrograph.name == "desi":
        return np.round(3600 + 0.8 * steps, 1)
    grid = 10 ** (3.58 + 1e-4 * steps)
    return grid.astype(np.float32).astype(np.float64)


@functools.cache
def _sky_noise(spectrograph: Spectrograph) -> Float64[ndarray, " pixel"]:
    """One sigma of a spectrum of blank sky, 1e-17 erg/s/cm2/Angstrom.

    An hour of SDSS, or a usual exposure of DESI.
    """
    wave = wavelength_angstrom(spectrograph)
    desi = spectrograph.name == "desi"
    if desi:
        sigma = np.interp(wave, _DESI_NOISE[:, 0], _DESI_NOISE[:, 1])
    else:
        sigma = 0.55 + 1.4 * np.exp(-(wave - 3790) / 250)
        sigma = sigma + 0.35 * np.clip((wave - 7000) / 2200, 0, 1)
    lines = [(5578.9, 12.0), (5891.6, 1.5), (6301.7, 4.0), (6365.5, 1.5)]
    # OH bands: regular combs that grow to the red stand for the forest
    for start, stop, height in ((7240, 7450, 0.8), (7710, 8060, 1.6), (8280, 8520, 2.0)):
        lines += [(centre, height) for centre in np.arange(start, stop, 34.0)]
    lines += [(centre, 2.6) for centre in np.arange(8760, 9120, 31.0)]
    width, share = 3.0, 1.0
    if desi:  # sharper lines, also further to the red
        lines += [(centre, 2.0) for centre in np.arange(9300, 9800, 33.0)]
        width, share = 1.5, 0.35
    for centre, height in lines:
        sigma = sigma + share * height * np.exp(-0.5 * ((wave - centre) / width) ** 2)
    return sigma


def observe(
    clean: Float64[ndarray, " pixel"],
    *,
    quality: float,
    rng: np.random.Generator,
    spectrograph: Spectrograph = SDSS,
) -> Spectrum:
    """Add the noise of a spectrum and mask what sky lines and defects spoil.

    Args:
        clean: Noiseless flux on the spectrograph's grid, 1e-17 erg/s/cm2/Angstrom.
        quality: Divides the noise; 1 is the survey's usual exposure.
        rng: Source of randomness.
        spectrograph: Whose grid and noise.
    """
    wave = wavelength_angstrom(spectrograph)
    variance = (_sky_noise(spectrograph) ** 2 + 0.04 * np.maximum(clean, 0)) / quality**2
    ivar = (1 / variance).astype(np.float32)
    noise = rng.standard_normal(len(wave), dtype=np.float32) / np.sqrt(ivar)
    flux: Float32[ndarray, " pixel"] = clean.astype(np.float32) + noise
    mask = np.zeros(len(wave), dtype=bool)
    for centre, half_width in spectrograph.bad_angstrom:
        mask |= np.abs(wave - centre) < half_width
    for start in rng.integers(0, len(wave), size=rng.poisson(2)):
        mask[start : start + int(rng.integers(1, 6))] = True
    flux[mask] = 0
    ivar[mask] = 0
    return Spectrum(
        flux=flux, ivar=ivar, mask=mask, wavelength_angstrom=wave, survey=spectrograph.name
    )
