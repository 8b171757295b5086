"""The known looks of colour pictures, and how to undo them approximately.

A survey's web service turns three calibrated bands into 8-bit red, green and blue by a published
arcsinh stretch. Undoing it gives nanomaggies back up to what the picture threw away: the steps of
8 bits, negative sky, cores clipped at white, JPEG blocks. Fluxes are therefore approximate, to
about 20 % where nothing is clipped, and never calibrated.

Sources: Lupton et al. 2004, PASP 116, 133 (the method); SDSS-III photometric pipeline (colour
scales 0.4 x (5, 6.5, 9), nonlinearity 2.25); Legacy Survey viewer, map/views.py of
github.com/legacysurvey/imagine (dr2_rgb: scales g 6, r 3.4, z 2.2, offset 0.03, Q 20, for DR2 to
DR9; DR10 is drawn from four bands with all scales times 1.5); the Legacy Survey's pipeline,
legacypipe/survey.py (sdss_rgb is the same formula, that of its later JPEGs of bricks; get_rgb drew
the older ones: divisors g 0.0066, r 0.01, z 0.025 between -1 and 100); Galaxy Zoo DECaLS (Walmsley
et al. 2022: divisors g 0.008, r 0.014, z 0.019 between -0.5 and 300); HumVI as used by Space Warps
(Marshall et al. 2016: scales 0.4, 0.6, 1.7, Q 1, alpha 0.09 on flux of zero point 30).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numpy import ndarray

from training.observations import PIXEL_SCALE_ARCSEC

NUM_FOLDERS = 3  # how many folder names above the file may tell the look
VIEWER_SKY = 24  # the viewer's sky is grey 32; that of SDSS pictures is below 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a service drew three bands.

    "together": c = x arcsinh(softening m) / (span m) with x = scale flux + offset and m the mean
    of the three x, so that colours survive. "apart": every band by itself,
    c = (arcsinh(x) - arcsinh(black)) / (arcsinh(white) - arcsinh(black)). c runs from 0 to 1.
    """

    name: str
    bands: tuple[str, str, str]  # red, green, blue
    scales: tuple[float, float, float]  # per nanomaggie per native pixel
    native_pixel_arcsec: float  # the pixel whose flux was stretched
    kind: Literal["together", "apart"] = "together"
    softening: float = 1.0
    span: float = 1.0
    offset: float = 0.0
    black: float = 0.0
    white: float = 1.0
    # How much of each of `bands` is in red, green and blue; None: one band in each.
    mix: tuple[tuple[float, float, float], ...] | None = None
    # Size of a picture's pixel by the picture's width, where a service has fixed sizes.
    pixel_arcsec_by_width: dict[int, float] = field(default_factory=dict)


_GRI = ("DES-I", "DES-R", "DES-G")
_GRZ = ("DES-Z", "DES-R", "DES-G")
# DR10 mixes four bands: red 0.75 z + 0.25 i, green 0.5 i + 0.5 r, blue 0.25 r + 0.75 g. Four cannot
# be told from three, so the flux in i is taken as the mean of those in r and z, which is right to
# 5 % for galaxies and for stars down to M. In scaled units (3.3 z, 4.5 i, 5.1 r):
_I_OF_Z, _I_OF_R = 4.5 / 3.3 / 2, 4.5 / 5.1 / 2
_DR10_MIX = (
    (0.75 + 0.25 * _I_OF_Z, 0.25 * _I_OF_R, 0.0),
    (0.5 * _I_OF_Z, 0.5 + 0.5 * _I_OF_R, 0.0),
    (0.0, 0.25, 0.75),
)
_SPACE_WARPS_FRAME_ARCSEC = 30.0  # drawn on 484 px; its central 320 px reduced to 128 px

LOOKS: dict[str, Look] = {
    look.name: look
    for look in (
        Look(
            name="sdss", bands=_GRI, scales=(2.0, 2.6, 3.6), native_pixel_arcsec=0.396,
            softening=6.75, span=6.75,
        ),
        Look(
            name="legacysurvey", bands=_GRZ, scales=(2.2, 3.4, 6.0), native_pixel_arcsec=0.262,
            softening=20.0, span=20.0**0.5, offset=0.03,
        ),
        Look(
            name="legacysurvey_dr10", bands=_GRZ, scales=(3.3, 5.1, 9.0),
            native_pixel_arcsec=0.262, softening=20.0, span=20.0**0.5, offset=0.03, mix=_DR10_MIX,
        ),
        Look(
            name="legacysurvey_old", bands=_GRZ, scales=(1 / 0.025, 1 / 0.01, 1 / 0.0066),
            native_pixel_arcsec=0.262, kind="apart", black=-1.0, white=100.0,
        ),
        Look(
            name="galaxyzoo_decals", bands=_GRZ, scales=(1 / 0.019, 1 / 0.014, 1 / 0.008),
            native_pixel_arcsec=0.262, kind="apart", black=-0.5, white=300.0,
        ),
        Look(
            name="cfhtls", bands=_GRI, scales=(4000 / 9, 6000 / 9, 17000 / 9),
            native_pixel_arcsec=0.187, softening=0.27, span=3.0,
            pixel_arcsec_by_width={
                440: 0.187,
                484: _SPACE_WARPS_FRAME_ARCSEC / 484,
                128: _SPACE_WARPS_FRAME_ARCSEC / 484 * 320 / 128,
            },
        ),
        Look(
            name="unknown", bands=_GRI, scales=(2.0, 2.6, 3.6), native_pixel_arcsec=0.396,
            softening=6.75, span=6.75,
        ),
    )
}  # fmt: skip

_WORDS = {
    "gz2": "sdss",
    "sloan": "sdss",
    "decals": "galaxyzoo_decals",
    "legacysurvey": "legacysurvey",
    "viewer": "legacysurvey",
    "cfhtls": "cfhtls",
    "spacewarps": "cfhtls",
}
# Two words of one name, for a release alone may be another survey's.
_PAIRS = {
    **{frozenset((word, "dr10")): "legacysurvey_dr10" for word in ("ls", "legacysurvey")},
    frozenset(("legacysurvey", "old")): "legacysurvey_old",
}
_LOOSE_WORDS = {"sdss": "sdss"}  # often names the catalogue, not the picture


def look_of(file: Path, rgb: UInt8[ndarray, "y x 3"]) -> Look:
    """The look of a picture, by its name and its sky.

    A word of the file name, else of the nearest three folders, tells it: gz2 or sloan (SDSS),
    decals (Galaxy Zoo DECaLS), legacysurvey or viewer (Legacy Survey viewer), ls or legacysurvey
    together with dr10 (its DR10), legacysurvey with old (older JPEGs of bricks), cfhtls or
    spacewarps (CFHTLS). "sdss" tells less, as pictures from the Legacy Survey viewer are often
    named after SDSS objects: there, and where no word helps, the sky decides. The viewer leaves
    it grey (its darkest corner at 24 of 255 or more); else it is "sdss", or "unknown" without
    any word, which is undone as SDSS.
    """
    loose = "unknown"
    for part in (file.stem, *(folder.name for folder in list(file.parents)[:NUM_FOLDERS])):
        words = re.split(r"[^a-z0-9]+", part.lower())
        for pair, name in _PAIRS.items():
            if pair <= set(words):
                return LOOKS[name]
        for word in words:
            if word in _WORDS:
                return LOOKS[_WORDS[word]]
            loose = _LOOSE_WORDS.get(word, loose)
    return LOOKS["legacysurvey" if _darkest_corner(rgb) >= VIEWER_SKY else loose]


def undo(look: Look, rgb: UInt8[ndarray, "y x 3"]) -> Float32[ndarray, "3 y x"]:
    """Nanomaggies per 0.262 arcsec pixel area in the order of `look.bands`, same grid as rgb.

    A clipped core comes back too faint; black sky comes back as 0 (minus the offset).
    """
    red_green_blue = np.moveaxis(rgb, 2, 0)
    area = (PIXEL_SCALE_ARCSEC / look.native_pixel_arcsec) ** 2
    flux = np.empty(red_green_blue.shape, np.float32)
    if look.kind == "apart":
        low, high = np.arcsinh(look.black), np.arcsinh(look.white)
        linear = np.sinh(low + np.arange(256) / 255 * (high - low)) * area
        for band, scale in enumerate(look.scales):
            flux[band] = (linear / scale).astype(np.float32)[red_green_blue[band]]
        return flux
    # The stretch depends on the sum of the three bytes alone: 766 values.
    gain = _gain(look)[red_green_blue.sum(0, dtype=np.int16)]
    for band, scale in enumerate(look.scales):
        np.multiply(red_green_blue[band], gain, out=flux[band])
        flux[band] -= look.offset
        if look.mix is None:
            flux[band] *= area / scale
    if look.mix is not None:  # of weights that add up to 1: the offset is already off
        unmix = np.linalg.inv(look.mix) * area / np.array(look.scales)[:, None]
        flux = np.tensordot(unmix.astype(np.float32), flux, axes=1)
    return flux


def drawn(look: Look, flux: Float32[ndarray, "3 y x"]) -> UInt8[ndarray, "y x 3"]:
    """The picture that a service makes of three bands: what `undo` undoes.

    Args:
        look: How it draws.
        flux: Nanomaggies per 0.262 arcsec pixel area in the order of `look.bands`.
    """
    area = (PIXEL_SCALE_ARCSEC / look.native_pixel_arcsec) ** 2
    scaled = flux.astype(np.float64) * np.array(look.scales)[:, None, None] / area
    if look.kind == "apart":
        low, high = np.arcsinh(look.black), np.arcsinh(look.white)
        shown = (np.arcsinh(scaled) - low) / (high - low)
    else:
        if look.mix is not None:
            scaled = np.tensordot(np.array(look.mix), scaled, axes=1)
        scaled = scaled + look.offset
        mean = np.maximum(scaled.mean(axis=0), 1e-9)
        shown = scaled * np.arcsinh(look.softening * mean) / (look.span * mean)
    return np.moveaxis(np.rint(shown.clip(0, 1) * 255), 0, 2).astype(np.uint8)


def grey_level_nmgy(look: Look) -> Float64[ndarray, " 3"]:
    """What one step of 8 bits means near the sky: no noise below half of it can be seen."""
    sky = np.zeros((1, 2, 3), np.uint8)
    if look.kind == "apart":
        low, high = np.arcsinh(look.black), np.arcsinh(look.white)
        sky[:] = round(float(-low / (high - low) * 255))
    else:
        level = look.offset and np.arcsinh(look.softening * look.offset) / look.span
        sky[:] = round(float(level) * 255)
    sky[0, 1] += 1
    flux = undo(look, sky).astype(np.float64)
    return flux[:, 0, 1] - flux[:, 0, 0]


def _gain(look: Look) -> Float32[ndarray, " 766"]:
    """x = byte * gain[sum of bytes]; the limit for a black pixel is that of small m."""
    mean = np.arange(1, 766) / (3 * 255)
    intensity = np.sinh(look.span * mean) / look.softening
    gain = intensity / mean / 255
    return np.concatenate([[look.span / look.softening / 255], gain]).astype(np.float32)


def _darkest_corner(rgb: UInt8[ndarray, "y x 3"]) -> float:
    """Lowest median, over the four corners and three channels, of a twelfth of the width."""
    size = max(1, min(rgb.shape[:2]) // 12)
    corners = (rgb[:size, :size], rgb[:size, -size:], rgb[-size:, :size], rgb[-size:, -size:])
    return min(float(np.median(corner, axis=(0, 1)).min()) for corner in corners)
