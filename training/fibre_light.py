"""Light through a fibre: what the image and the spectrum of one object measure alike.

A spectrum holds the light that fell into its fibre. The same light is there in the image, in a
circle about its centre, so magnitudes in that circle tell which spectrum belongs to which image far
better than codes of a few hundred can. An encoder may carry them at the end of its vectors
(`light` in pooling.py): r, g - r and r - z, less those of a usual galaxy, in units of 10 mag, so
that they are small beside the outputs of the transformer.

The circle is that of SDSS's fibres, 3 arcsec wide. Nothing is corrected for a fibre of another
width, for another seeing, or for one that missed its target.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

from training.observations import Image, Observation, Spectrum

NUM_LIGHT = 3
RADIUS_ARCSEC = 1.5
UNIT_MAG = 10.0
_USUAL_R_MAG, _USUAL_COLOURS_MAG = 19.0, (0.9, 0.6)  # g - r and r - z
_SOFTENING_NMGY = 0.1  # of asinh magnitudes: 25 mag, about the noise of such a circle
_CLOSE = 0.1  # share of the circle that may be bad on both sides of the centre
_OVERSAMPLING = 8
# Where a spectrum is compared with a band: flat passbands, z as far as SDSS's spectra reach.
_PASSBANDS_ANGSTROM = {"g": (3990, 5470), "r": (5680, 7160), "z": (8520, 9190)}
_LEAST_COVERED = 0.8  # of a passband
# What these bands make of colours, g - r and r - z, to those of an image (robust fit over simulated
# objects): a constant, and what is added for each magnitude of g - r and of r - z.
_COLOUR_TERMS = np.array([[0.023, 0.0, 0.019], [0.042, 0.0, 0.077]])
_NMGY = 3.631e-29 / 1e-17 * 2.99792458e18  # of one nanomaggy, 1e-17 erg/s/cm2/A times A^2


def light_of(seen: Observation, view: str) -> Float32[ndarray, " light"]:
    """What one view of an object says of the light in the fibre; zeros where it says nothing.

    The joint view takes the image where there is one. A display image, whose fluxes are
    approximate, says nothing.

    Args:
        seen: An object.
        view: "image", "spectrum", "xp" or "joint".
    """
    flux = np.full(NUM_LIGHT, np.nan)
    if seen.image is not None and view in ("image", "joint"):
        if seen.calibrated:
            flux = flux_in_image(seen.image)
    elif seen.spectrum is not None and view in ("spectrum", "joint"):
        flux = flux_in_spectrum(seen.spectrum)
    return as_light(flux)


def flux_in_image(image: Image) -> Float64[ndarray, " band"]:
    """Flux in g, r and z within the circle, nanomaggies; NaN for a band that is not there.

    A bad pixel counts as much as the one opposite the centre. A band of which both are bad for a
    tenth of the circle is not there.
    """
    flux = np.full(NUM_LIGHT, np.nan)
    circle = _circle(*image.flux.shape[1:], RADIUS_ARCSEC / image.pixel_scale_arcsec)
    lit = [np.flatnonzero(circle.any(axis=1 - axis)) for axis in (0, 1)]
    middle = tuple(slice(each[0], each[-1] + 1) for each in lit)
    weight = circle[middle]
    for number, band in enumerate(("DES-G", "DES-R", "DES-Z")):
        if band not in image.bands:
            continue
        plane = image.bands.index(band)
        pixels, bad = image.flux[plane][middle], image.mask[plane][middle]
        lost: Bool[ndarray, "y x"] = bad & bad[::-1, ::-1]
        if (lost * weight).sum() < _CLOSE * weight.sum():
            opposite = np.where(lost, 0.0, pixels[::-1, ::-1])
            flux[number] = (np.where(bad, opposite, pixels) * weight).sum()
    return flux


def flux_in_spectrum(spectrum: Spectrum) -> Float64[ndarray, " band"]:
    """Flux in g, r and z of an image, nanomaggies; NaN for a band that is hardly covered."""
    flux = np.full(NUM_LIGHT, np.nan)
    wave = spectrum.wavelength_angstrom
    if len(wave) < 2:
        return flux
    good, steps = ~spectrum.mask & (spectrum.ivar > 0), np.gradient(wave)
    for number, (start, stop) in enumerate(_PASSBANDS_ANGSTROM.values()):
        inside = good & (wave > start) & (wave < stop)
        if steps[inside].sum() > _LEAST_COVERED * (stop - start):
            photons = (spectrum.flux[inside] * wave[inside] * steps[inside]).sum()
            flux[number] = photons / (_NMGY * (steps[inside] / wave[inside]).sum())
    g, r, z = _magnitudes(flux)
    constant, terms = _COLOUR_TERMS[:, 0], _COLOUR_TERMS[:, 1:]
    more_g, more_z = constant + terms @ np.nan_to_num(
        [g - r, r - z], nan=0.0
    )  # colours of an image are larger by so much
    return flux * 10 ** (-0.4 * np.array([more_g, 0.0, -more_z]))


def as_light(flux_nmgy: Float64[ndarray, " band"]) -> Float32[ndarray, " light"]:
    """r, g - r and r - z; a band that is not there has the colour of a usual galaxy."""
    if np.isnan(flux_nmgy).all():
        return np.zeros(NUM_LIGHT, dtype=np.float32)
    g, r, z = _magnitudes(flux_nmgy)
    for known in (g - _USUAL_COLOURS_MAG[0], z + _USUAL_COLOURS_MAG[1]):
        r = known if np.isnan(r) else r
    colours = np.array([g - r, r - z])
    colours = np.where(np.isnan(colours), _USUAL_COLOURS_MAG, colours)
    light = np.array([r - _USUAL_R_MAG, *(colours - _USUAL_COLOURS_MAG)]) / UNIT_MAG
    return light.astype(np.float32)


def _magnitudes(flux_nmgy: Float64[ndarray, " band"]) -> Float64[ndarray, " band"]:
    """Asinh magnitudes: finite for what noise made negative."""
    widths = np.arcsinh(flux_nmgy / (2 * _SOFTENING_NMGY)) + np.log(_SOFTENING_NMGY)
    return np.asarray(22.5 - 2.5 / np.log(10) * widths)


@functools.cache
def _circle(height: int, width: int, radius_pixels: float) -> Float64[ndarray, "y x"]:
    """The share of each pixel within a circle about the centre of the image."""

    def axis(size: int) -> Float64[ndarray, " sample"]:
        return (np.arange(size * _OVERSAMPLING) + 0.5) / _OVERSAMPLING - size / 2

    inside = axis(height)[:, None] ** 2 + axis(width)[None] ** 2 < radius_pixels**2
    parts = inside.reshape(height, _OVERSAMPLING, width, _OVERSAMPLING)
    return np.asarray(parts.mean(axis=(1, 3)))
