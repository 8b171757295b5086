"""Images in half precision: a training set of tens of thousands that fits in memory.

Batches of them are turned, mirrored and stripped of bands at random, as the tokenizer is to see
any subset of any survey's bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray

from training.observations import BANDS, IMAGE_SIZE, Image
from training.tokenizers.image import ImageTensors

HSC_TWIN = {
    "HSC-G": "DES-G",
    "HSC-R": "DES-R",
    "HSC-I": "DES-I",
    "HSC-Z": "DES-Z",
    "HSC-Y": "DES-Z",
}


@dataclass(frozen=True, slots=True)
class CompactImage:
    """Flux and error of an image."""

    flux_nmgy: ndarray  # (band, y, x) float16
    inverse_sigma: ndarray  # (band, y, x) float16, 0 where bad
    bands: tuple[str, ...]


def compact(image: Image) -> CompactImage:
    """Reduce an image to half precision."""
    inverse_sigma = np.sqrt(np.where(image.mask, np.float32(0), image.ivar))
    largest = np.finfo(np.float16).max
    return CompactImage(
        np.clip(image.flux, -largest, largest).astype(np.float16),
        np.minimum(inverse_sigma, largest).astype(np.float16),
        image.bands,
    )


def image_batch(images: Sequence[CompactImage]) -> ImageTensors:
    """Put half-precision images onto the nine channels."""
    side = images[0].flux_nmgy.shape[-1]
    flux = np.zeros((len(images), len(BANDS), side, side), dtype=np.float32)
    inverse_sigma = np.zeros_like(flux)
    channels = np.zeros((len(images), len(BANDS)), dtype=bool)
    for row, image in enumerate(images):
        where = [BANDS.index(band) for band in image.bands]
        flux[row, where] = image.flux_nmgy
        inverse_sigma[row, where] = image.inverse_sigma
        channels[row, where] = True
    ivar = np.square(inverse_sigma)
    return ImageTensors(torch.from_numpy(flux), torch.from_numpy(ivar), torch.from_numpy(channels))


def augment(
    image: CompactImage,
    rng: np.random.Generator,
    *,
    drop_band: float,
    as_hsc: float,
    crop_pixels: int = IMAGE_SIZE,
) -> CompactImage:
    """Crop near the centre, turn, mirror, leave out bands, at times call DES bands HSC.

    HSC-Y has no counterpart in DES and borrows z.
    """
    flux, inverse_sigma = image.flux_nmgy, image.inverse_sigma
    margin = flux.shape[-1] - crop_pixels
    y, x = (int(margin / 4 + margin / 2 * rng.random()) for _ in range(2))
    flux = flux[:, y : y + crop_pixels, x : x + crop_pixels]
    inverse_sigma = inverse_sigma[:, y : y + crop_pixels, x : x + crop_pixels]
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    flux, inverse_sigma = np.rot90(flux, turns, (1, 2)), np.rot90(inverse_sigma, turns, (1, 2))
    if mirror:
        flux, inverse_sigma = flux[:, :, ::-1], inverse_sigma[:, :, ::-1]
    bands = list(image.bands)
    planes = list(range(len(bands)))
    if rng.random() < as_hsc:
        twins = [(hsc, bands.index(des)) for hsc, des in HSC_TWIN.items() if des in bands]
        if twins:
            bands, planes = [hsc for hsc, _ in twins], [plane for _, plane in twins]
    kept = [n for n in rng.permutation(len(bands)) if rng.random() >= drop_band]
    kept = kept if len(kept) >= 2 else list(range(len(bands)))
    planes, bands = [planes[n] for n in kept], [bands[n] for n in kept]
    return CompactImage(flux[planes], inverse_sigma[planes], tuple(bands))
