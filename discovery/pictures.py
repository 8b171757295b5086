"""What an astronomer looks at: colour pictures, spectra to draw, and links to other archives."""

from __future__ import annotations

import io
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import numpy as np
from astropy.visualization import make_lupton_rgb
from jaxtyping import Bool, Float32, Float64, UInt8
from numpy import ndarray
from PIL import Image as Picture

from training.observations import Image, Spectrum, check_position

DEFAULT_STRETCH_NMGY = 0.05  # flux per pixel at which the scale turns from linear to logarithmic
DEFAULT_Q = 8.0

_SKY = 0.08  # of the stretch, added to all flux: an empty sky is dark grey, its noise no confetti

# How much each band is raised so that a galaxy of common colour looks white: red bands are brighter
# in nanomaggies. Order is that of wavelength.
_BAND_GAINS = {"G": 1.8, "R": 1.0, "I": 0.8, "Z": 0.65, "Y": 0.6}


def rgb(
    image: Image, *, stretch: float = DEFAULT_STRETCH_NMGY, q: float = DEFAULT_Q
) -> UInt8[ndarray, "y x 3"]:
    """Colour picture by an asinh stretch, which keeps colours in bright cores. Row 0 is north.

    Any set of bands will do: the longest becomes red, the shortest blue, those between green; two
    bands share the green, one band is grey. Masked pixels are black.

    Args:
        image: Cutout whose first row is its southern edge, as in FITS.
        stretch: Flux in nanomaggies per pixel up to which the scale is about linear; smaller shows
            fainter light.
        q: Softening; larger compresses bright parts more.

    Raises:
        ValueError: stretch or q is not positive.

    Source: Lupton et al. 2004, PASP 116, 133, as astropy has it.
    """
    if not (stretch > 0 and q > 0):
        raise ValueError(f"stretch and q must be positive, got {stretch} and {q}")
    planes = _colour_planes(image)
    red, green, blue = (np.where(_bad(image), 0.0, plane) for plane in planes)
    with np.errstate(invalid="ignore"):  # astropy divides zero by zero where there is no light
        picture = make_lupton_rgb(red, green, blue, minimum=-_SKY * stretch, stretch=stretch, Q=q)
    picture[_bad(image)] = 0
    return np.ascontiguousarray(picture[::-1])


def png(picture: UInt8[ndarray, "y x 3"]) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    Picture.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _bad(image: Image) -> Bool[ndarray, "y x"]:
    return np.asarray(image.mask.any(axis=0))


def _colour_planes(image: Image) -> tuple[ndarray, ndarray, ndarray]:
    """Red, green and blue planes (y, x) in band-balanced flux."""
    letters = list(_BAND_GAINS)
    order = sorted(range(len(image.bands)), key=lambda n: letters.index(image.bands[n][-1]))
    planes = [
        image.flux[n].astype(np.float64) * _BAND_GAINS[image.bands[n][-1]] for n in order
    ]  # shortest wavelength first
    between = planes[1:-1] if len(planes) > 2 else planes
    return planes[-1], np.mean(between, axis=0), planes[0]


@dataclass(frozen=True, slots=True)
class SpectrumCurve:
    """A spectrum ready to draw; NaN where nothing usable was seen, so that the line breaks."""

    wavelength_angstrom: Float64[ndarray, " wavelength"]
    flux: Float32[ndarray, " wavelength"]  # 1e-17 erg / s / cm^2 / Angstrom
    smoothed: Float32[ndarray, " wavelength"]


def spectrum_curve(spectrum: Spectrum, *, width_pixels: int = 9) -> SpectrumCurve:
    """Flux and its running mean, each pixel weighted by its inverse variance.

    Args:
        spectrum: Flux with its mask; masked pixels and those with ivar 0 count nothing.
        width_pixels: Full width of the running mean, odd.

    Raises:
        ValueError: width_pixels is even or not positive.
    """
    if width_pixels < 1 or width_pixels % 2 == 0:
        raise ValueError(f"width_pixels must be odd and positive, got {width_pixels}")
    usable = ~spectrum.mask & (spectrum.ivar > 0)
    weight = np.where(usable, spectrum.ivar, 0).astype(np.float64)
    kernel = np.ones(width_pixels)
    half = width_pixels // 2
    sums = np.convolve(weight * spectrum.flux, kernel)[half : half + len(weight)]
    total = np.convolve(weight, kernel)[half : half + len(weight)]
    smoothed = np.divide(sums, total, out=np.full_like(sums, np.nan), where=usable & (total > 0))
    flux = np.where(usable, spectrum.flux, np.float32(np.nan))
    return SpectrumCurve(spectrum.wavelength_angstrom, flux, smoothed.astype(np.float32))


def legacy_viewer_url(ra_deg: float, dec_deg: float) -> str:
    """The Legacy Surveys sky viewer, centred on and marking an ICRS position."""
    check_position(ra_deg, dec_deg)
    position = f"{ra_deg:.6f},{dec_deg:.6f}"
    fields = {
        "ra": f"{ra_deg:.6f}",
        "dec": f"{dec_deg:.6f}",
        "layer": "ls-dr10",
        "zoom": "16",
        "mark": position,
    }
    return f"https://www.legacysurvey.org/viewer?{urlencode(fields)}"


def simbad_url(ra_deg: float, dec_deg: float, *, radius_arcsec: float = 10.0) -> str:
    """SIMBAD's list of objects around an ICRS position."""
    check_position(ra_deg, dec_deg)
    fields = {
        "Coord": f"{ra_deg:.6f} {dec_deg:+.6f}",
        "CooFrame": "ICRS",
        "CooEpoch": "2000",
        "CooEqui": "2000",
        "Radius": f"{radius_arcsec:g}",
        "Radius.unit": "arcsec",
    }
    return f"https://simbad.cds.unistra.fr/simbad/sim-coo?{urlencode(fields, quote_via=quote)}"
