"""Observations as a web service would draw them: to train on pictures that nobody may copy.

Most pictures of galaxies that people have are 8-bit drawings of unknown size. An image whose fluxes
are known is drawn by one of the known looks, saved as JPEG, and read back as pictures are.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image as Picture

from training.observations import Observation
from training.surveys.cutout import cut_out
from training.surveys.stretch import LOOKS, drawn, grey_level_nmgy, undo

# Drawn as if brighter or fainter by so much, for pictures are of near galaxies and of far ones:
# lens candidates of deep surveys are three magnitudes fainter than what a simulated sky is made of.
BRIGHTNESS_MAG = (-1.0, 3.0)
ZOOM = (0.5, 1.8)  # pictures are often cut to the size of the galaxy; small ones are padded
JPEG_QUALITY = (70, 98)


def as_picture(observation: Observation, rng: np.random.Generator) -> Observation | None:
    """A colour picture of an observation, of a random look, as the reader of pictures gives it.

    Only the image is left of it. None where no look can be drawn of its bands.
    """
    image = observation.image
    if image is None:
        return None
    looks = [look for look in LOOKS.values() if set(look.bands) <= set(image.bands)]
    if not looks:
        return None
    look = looks[int(rng.integers(len(looks)))]
    planes = image.flux[[image.bands.index(band) for band in look.bands]]
    gain = 10 ** (-0.4 * rng.uniform(*BRIGHTNESS_MAG))
    encoded = io.BytesIO()
    rgb = Picture.fromarray(drawn(look, planes * np.float32(gain)))
    rgb.save(encoded, format="JPEG", quality=int(rng.integers(*JPEG_QUALITY)))
    flux = undo(look, np.asarray(Picture.open(encoded)))
    scale_arcsec = image.pixel_scale_arcsec * rng.uniform(*ZOOM)
    cutout = cut_out(
        flux,
        bands=look.bands,
        scale_y_arcsec=scale_arcsec,
        scale_x_arcsec=scale_arcsec,
        min_sigma_nmgy=grey_level_nmgy(look) / 2,
        pixel_scale_arcsec=image.pixel_scale_arcsec,
    )
    return replace(
        observation,
        survey="composite",
        image=cutout.image,
        spectrum=None,
        object_mask=None,
        ellipses=None,
        xp=None,
        scalars={},
        calibrated=False,
    )
