"""Fitting the image tokenizer: inverse-variance-weighted residuals on the native scale of flux.

Source of the loss: arXiv 2510.17960; what is added to it is said at `half_chi_square`. Where
objects have labels, codes may be made to tell them too (`label_weight`, absent by default): a
coarse grid of codes otherwise spends itself on sky and bright cores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

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
    labels: Bool[ndarray, "image label"] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Fitted[ImageTokenizer]:
    """Fit on images, turned and mirrored at random, with bands left out at random.

    Args:
        images: At least two; the last twentieth (256 at most) measure the fit.
        config: Size of the tokenizer.
        fit: How to fit.
        labels: What is known of each image, for fit.label_weight; all False: nothing.
        folder: Where codecs/image, image_loss.csv and checkpoints are written, if anywhere.
        progress: Called after every step.

    Raises:
        ValueError: fewer than two images, hsc_share where one of the surveys is not there, or
            label_weight without a label.
    """
    if fit.label_weight and (labels is None or not labels.any()):
        raise ValueError(f"label_weight is {fit.label_weight:g}, and no image has a label")
    train, held_out = split(images, what="images")
    tokenizer = seeded(lambda: ImageTokenizer(config), fit)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    chance = _chances(train, fit.hsc_share)
    reader = None
    known: dict[str, str] = {}
    if fit.label_weight and labels is not None:
        num_labels = labels.shape[1]
        reader = seeded(lambda: LabelReader(config, num_labels=num_labels), fit)
        known = {"labels": hashlib.blake2b(labels.tobytes(), digest_size=16).hexdigest()}

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
        on_device = batch.to(device_of(tokenizer))
        terms: dict[str, Tensor] = {}
        if done < fit.decode_from:
            with precision(bfloat16=fit.bfloat16):
                values = tokenizer.quantized(on_device.flux_nmgy, on_device.channels).values
        else:
            terms["chi_square"], values = image_loss(tokenizer, on_device, fit)
        if reader is not None and labels is not None:
            truth = torch.from_numpy(labels[rows]).to(values.device)
            terms["labels"] = fit.label_weight * label_loss(reader(values), truth)
        return terms

    losses = descend(
        tokenizer, loss, fit, name="image", num_items=len(train), folder=folder,
        progress=progress, reader=reader, known=known,
    )  # fmt: skip
    figures = measure_images(tokenizer, held_out, batch_size=fit.batch_size, bfloat16=fit.bfloat16)
    if reader is not None and labels is not None and labels[len(train) :].any():
        figures["label_accuracy"] = _accuracy(tokenizer, reader, held_out, labels[len(train) :])
    return Fitted(tokenizer, figures, losses)


class LabelReader(nn.Module):
    """A small convolutional network from the codes of an image to its labels."""

    def __init__(self, config: ImageTokenizerConfig, *, num_labels: int) -> None:
        super().__init__()
        widths = (config.embedding, 128, 160, 192, 256)
        # an image of 96 pixels comes down to 6 by 6
        strides = (2 ** max(3 - config.num_compressions, 0), 1, 2, 1)
        layers: list[nn.Module] = []
        for width_in, width, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [nn.Conv2d(width_in, width, 3, stride, 1), nn.GroupNorm(8, width), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], num_labels)

    def forward(self, values: Float[Tensor, "b row column embedding"]) -> Float[Tensor, "b label"]:
        """Logits of the labels."""
        features = self.layers(values.float().movedim(-1, 1))
        return self.output(features.mean(dim=(2, 3)))


def label_loss(logits: Float[Tensor, "b label"], labels: Bool[Tensor, "b label"]) -> Tensor:
    """Cross-entropy of the labels, mean over the images that have some; 0 where none has."""
    known = labels.any(dim=1)
    shares = labels[known].float() / labels[known].sum(dim=1, keepdim=True)
    if not len(shares):
        return logits.sum() * 0
    return F.cross_entropy(logits[known], shares, label_smoothing=0.02)


@torch.inference_mode()
def _accuracy(
    tokenizer: ImageTokenizer,
    reader: nn.Module,
    images: Sequence[CompactImage],
    labels: Bool[ndarray, "image label"],
) -> float:
    """Share of the labelled images whose likeliest label, as read from the codes, is theirs.

    Where weights are averaged, the reader is the last one all the same.
    """
    reader.cpu().eval()
    right = []
    for start in range(0, len(images), 32):
        batch = image_batch(images[start : start + 32])
        values = tokenizer.quantized(batch.flux_nmgy, batch.channels).values
        told = reader(values).argmax(dim=1).numpy()
        truth = labels[start : start + 32]
        right += truth[np.arange(len(truth)), told][truth.any(axis=1)].tolist()
    return float(np.mean(right))


def image_loss(
    tokenizer: ImageTokenizer, batch: ImageTensors, fit: FitConfig
) -> tuple[Tensor, Float[Tensor, "b row column embedding"]]:
    """Mean over good pixels of half the squared residual in units of the error; code values."""
    flux = tokenizer.clip(batch.flux_nmgy)
    with precision(bfloat16=fit.bfloat16):
        result = tokenizer(batch.flux_nmgy, batch.channels)
    reconstructed = tokenizer.expand(result.compressed)
    # Absent bands are left out here: most of the nine channels are empty.
    flux, reconstructed = flux[batch.channels], reconstructed[batch.channels]
    # The fractional error also covers the reconstruction, or its sinh would explode the gradient.
    largest = torch.maximum(flux.abs(), reconstructed.detach().abs())
    chi_square = half_chi_square(
        reconstructed - flux,
        ivar=batch.ivar[batch.channels],
        error=fit.fractional_error * largest,
        fit=fit,
    )
    return chi_square, result.values


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
