"""Fitting the image tokenizer: inverse-variance-weighted residuals on the native scale of flux.

Source of the loss: arXiv 2510.17960; what is added to it is said at `half_chi_square`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.compact_images import CompactImage, augment, image_batch
from training.observations import IMAGE_SIZE
from training.reconstruction import measure_images, precision
from training.tokenizer_fitting import (
    FitConfig,
    Fitted,
    Progress,
    descend,
    device_of,
    half_chi_square,
    seeded,
    split,
)
from training.tokenizers.image import ImageTensors, ImageTokenizer, ImageTokenizerConfig


def fit_image_tokenizer(
    images: Sequence[CompactImage],
    config: ImageTokenizerConfig,
    fit: FitConfig,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Fitted[ImageTokenizer]:
    """Fit on images, turned and mirrored at random, with bands left out at random.

    Args:
        images: At least two; the last twentieth (256 at most) measure the fit.
        config: Size of the tokenizer.
        fit: How to fit.
        folder: Where codecs/image, image_loss.csv and checkpoints are written, if anywhere.
        progress: Called after every step.

    Raises:
        ValueError: fewer than two images, or hsc_share where one of the surveys is not there.
    """
    train, held_out = split(images, what="images")
    tokenizer = seeded(lambda: ImageTokenizer(config), fit)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    chance = _chances(train, fit.hsc_share)

    def loss(rng: np.random.Generator, done: float) -> dict[str, Tensor]:
        rows = rng.choice(len(train), size=fit.batch_size, p=chance)
        crop = fit.crop_pixels if done < fit.crop_until else IMAGE_SIZE
        batch = image_batch(
            [
                augment(
                    train[row],
                    rng,
                    drop_band=fit.drop_band,
                    as_hsc=fit.as_hsc,
                    crop_pixels=crop,
                )
                for row in rows
            ]
        )
        return {"chi_square": image_loss(tokenizer, batch.to(device_of(tokenizer)), fit)}

    losses = descend(
        tokenizer, loss, fit, name="image", num_items=len(train), folder=folder, progress=progress
    )
    return Fitted(
        tokenizer,
        measure_images(tokenizer, held_out, batch_size=fit.batch_size, bfloat16=fit.bfloat16),
        losses,
    )


def image_loss(tokenizer: ImageTokenizer, batch: ImageTensors, fit: FitConfig) -> Tensor:
    """Mean over good pixels of half the squared residual in units of the error."""
    flux = tokenizer.clip(batch.flux_nmgy)
    with precision(bfloat16=fit.bfloat16):
        compressed = tokenizer(batch.flux_nmgy, batch.channels).compressed
    reconstructed = tokenizer.expand(compressed)
    # Absent bands are left out here: most of the nine channels are empty.
    flux, reconstructed = flux[batch.channels], reconstructed[batch.channels]
    # The fractional error also covers the reconstruction, or its sinh would explode the gradient.
    largest = torch.maximum(flux.abs(), reconstructed.detach().abs())
    return half_chi_square(
        reconstructed - flux,
        ivar=batch.ivar[batch.channels],
        error=fit.fractional_error * largest,
        fit=fit,
    )


def _chances(images: Sequence[CompactImage], hsc_share: float | None) -> np.ndarray | None:
    """How likely each image is to be drawn; None: all alike."""
    if hsc_share is None:
        return None
    hsc = np.array([image.bands[0].startswith("HSC") for image in images])
    if (hsc_share > 0 and not hsc.any()) or (hsc_share < 1 and hsc.all()):
        raise ValueError(
            f"hsc_share is {hsc_share}, and {hsc.sum()} of {len(images)} images are HSC's"
        )
    share = np.where(hsc, hsc_share / max(hsc.sum(), 1), (1 - hsc_share) / max((~hsc).sum(), 1))
    return share / share.sum()
