"""Fitting of the tokenizers: their losses, one loop for both networks, and what they reach.

The losses are the paper's (arXiv 2510.17960): inverse-variance-weighted residuals for images and
spectra, cross-entropy for the spectrum's mask, commitment for its codes. Added here, because a
brief fit on a CPU is otherwise ruled by a few bright cores: a fractional error added to the
pipeline's, residuals that count linearly beyond `robust_sigma`, and a softer entropy term for the
spectrum's codes. Setting fractional_error 0, robust_sigma infinity and inverse_temperature 100
gives the paper's losses back, up to constants.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from training.artifact import save_codec
from training.compact_images import CompactImage, augment, compact, image_batch
from training.modalities import STREAM
from training.observations import IMAGE_SIZE, ObservationBatch, Spectrum
from training.reconstruction import inside_grid, measure_images, measure_spectra, precision
from training.tokenizers import spectrum as spectrum_tokenizer
from training.tokenizers.image import ImageTensors, ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.scalar import (
    GridTokenizer,
    GridTokenizerConfig,
    ScalarTokenizer,
    ScalarTokenizerConfig,
)
from training.tokenizers.spectrum import (
    SpectrumTensors,
    SpectrumTokenizer,
    SpectrumTokenizerConfig,
)

Tokenizer = TypeVar("Tokenizer", ImageTokenizer, SpectrumTokenizer)
Item = TypeVar("Item")
Progress = Callable[[int, int, float], None]  # step, number of steps, loss
MAX_ENTROPY_VECTORS = 2048  # of a batch: the joint table over all codes is costly
NUM_HELD_OUT = 256  # objects at most that measure the fit and take no part in it


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How a network tokenizer is fitted: Adam with decoupled decay, warm-up, cosine to zero.

    The schedule follows whichever of num_steps and max_seconds is nearer its end; a fit that
    num_steps ends is reproducible, one that max_seconds ends is not.
    """

    num_steps: int = 2000
    max_seconds: float = math.inf
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    bfloat16: bool = False  # automatic mixed precision
    num_threads: int | None = None  # None leaves torch as it is
    seed: int = 0
    checkpoint_seconds: float = 120.0
    fractional_error: float = 0.05  # of the flux, added to the pipeline's error in quadrature
    robust_sigma: float = 5.0
    # Images only.
    drop_band: float = 0.15  # chance to leave out each band beyond two
    as_hsc: float = 0.15  # chance that DES bands stand in for HSC's, where there is no HSC data
    crop_pixels: int = 64  # side of the centre that is seen ...
    crop_until: float = 0.0  # ... up to this share of the fit; whole images after it
    # Spectra only.
    mask_weight: float = 0.1
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    inverse_temperature: float = 100.0  # of the entropy term

    def __post_init__(self) -> None:
        if min(self.num_steps, self.batch_size) < 1 or not self.max_seconds > 0:
            raise ValueError(
                f"num_steps, batch_size and max_seconds must be positive, got {self.num_steps}, "
                f"{self.batch_size} and {self.max_seconds}"
            )


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What tokenizers are fitted on."""

    images: list[CompactImage] = field(default_factory=list)
    spectra: list[Spectrum] = field(default_factory=list)
    scalars: dict[str, list[float]] = field(default_factory=dict)  # token key -> values


@dataclass(frozen=True, slots=True)
class Fitted(Generic[Tokenizer]):
    """A tokenizer in evaluation mode and what it reaches on objects it has not seen."""

    tokenizer: Tokenizer
    figures: dict[str, float]
    losses: list[float]  # one a step


def collect(
    batches: Iterable[ObservationBatch], *, max_images: int = 50_000, max_spectra: int = 50_000
) -> TrainingData:
    """Keep the modalities of a stream of observations, up to a number of images and spectra."""
    data = TrainingData()
    for batch in batches:
        for seen in batch.observations:
            if seen.image is not None and len(data.images) < max_images:
                data.images.append(compact(seen.image))
            if seen.spectrum is not None and len(data.spectra) < max_spectra:
                data.spectra.append(seen.spectrum)
            for key, value in seen.scalars.items():
                data.scalars.setdefault(key, []).append(value)
    return data


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
        folder: Where codecs/image and image_loss.csv are written, if anywhere.
        progress: Called after every step.

    Raises:
        ValueError: fewer than two images.
    """
    train, held_out = _split(images, what="images")
    tokenizer = _seeded(lambda: ImageTokenizer(config), fit)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(rng: np.random.Generator, done: float) -> dict[str, Tensor]:
        rows = rng.integers(len(train), size=fit.batch_size)
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
        return {"chi_square": image_loss(tokenizer, batch, fit)}

    losses = _descend(tokenizer, loss, fit, name="image", folder=folder, progress=progress)
    return Fitted(
        tokenizer,
        measure_images(tokenizer, held_out, batch_size=fit.batch_size, bfloat16=fit.bfloat16),
        losses,
    )


def fit_spectrum_tokenizer(
    spectra: Sequence[Spectrum],
    config: SpectrumTokenizerConfig,
    fit: FitConfig,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Fitted[SpectrumTokenizer]:
    """Fit on spectra; arguments and errors as for images."""
    train, held_out = _split(spectra, what="spectra")
    tokenizer = _seeded(lambda: SpectrumTokenizer(config), fit)

    def loss(rng: np.random.Generator, done: float) -> dict[str, Tensor]:
        rows = rng.integers(len(train), size=fit.batch_size)
        return spectrum_losses(tokenizer, spectrum_tokenizer.stack([train[r] for r in rows]), fit)

    losses = _descend(tokenizer, loss, fit, name="spectrum", folder=folder, progress=progress)
    return Fitted(
        tokenizer,
        measure_spectra(tokenizer, held_out, batch_size=fit.batch_size, bfloat16=fit.bfloat16),
        losses,
    )


def fit_scalars(
    scalars: Mapping[str, Sequence[float]],
    *,
    num_bins: int,
    redshift: GridTokenizerConfig,
    folder: Path | None = None,
) -> dict[str, ScalarTokenizer | GridTokenizer]:
    """Fit one tokenizer per token stream; redshift gets its grid without data.

    Returns:
        Token key -> tokenizer, also saved as codecs/<name> below the folder, if any.
    """
    tokenizers: dict[str, ScalarTokenizer | GridTokenizer] = {"tok_z": GridTokenizer(redshift)}
    for key in sorted(set(scalars) - {"tok_z"}):
        tokenizer = ScalarTokenizer(ScalarTokenizerConfig(num_bins=num_bins, log=STREAM[key].log))
        tokenizer.fit(torch.tensor(scalars[key], dtype=torch.float64))
        tokenizers[key] = tokenizer
    if folder is not None:
        for key, fitted in tokenizers.items():
            save_codec(folder, STREAM[key].codec, fitted)
    return tokenizers


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
    return _half_chi_square(
        reconstructed - flux,
        ivar=batch.ivar[batch.channels],
        error=fit.fractional_error * largest,
        fit=fit,
    )


def spectrum_losses(
    tokenizer: SpectrumTokenizer, batch: SpectrumTensors, fit: FitConfig
) -> dict[str, Tensor]:
    """Give the weighted terms of the spectrum's loss, on the wavelengths that were observed."""
    with precision(bfloat16=fit.bfloat16):
        seen = tokenizer(batch)
    flux = tokenizer.resample(seen.decoded.flux, batch.wavelength_angstrom)
    logits = tokenizer.resample(seen.decoded.mask_logits, batch.wavelength_angstrom)
    inside = inside_grid(tokenizer, batch)
    largest = torch.maximum(batch.flux.abs(), flux.detach().abs())
    chi_square = _half_chi_square(
        flux - batch.flux,
        ivar=torch.where(inside & ~batch.mask, batch.ivar, 0.0),
        error=fit.fractional_error * largest,
        fit=fit,
    )
    mask = functional.binary_cross_entropy_with_logits(
        logits[inside], batch.mask[inside].to(logits.dtype)
    )
    quantizer = tokenizer.quantizer
    vectors = seen.latent.flatten(0, 1)
    some = torch.linspace(0, len(vectors) - 1, min(len(vectors), MAX_ENTROPY_VECTORS)).long()
    entropy = quantizer.entropy_loss(vectors[some], inverse_temperature=fit.inverse_temperature)
    return {
        "chi_square": chi_square,
        "mask": fit.mask_weight * mask,
        "commitment": fit.commitment_weight * quantizer.commitment_loss(seen.latent),
        "entropy": fit.entropy_weight * entropy,
    }


def _split(items: Sequence[Item], *, what: str) -> tuple[Sequence[Item], Sequence[Item]]:
    if len(items) < 2:
        raise ValueError(f"expected two or more {what} to fit on, got {len(items)}")
    num_held_out = min(max(len(items) // 20, 1), NUM_HELD_OUT)
    return items[:-num_held_out], items[-num_held_out:]


def _seeded(make: Callable[[], Tokenizer], fit: FitConfig) -> Tokenizer:
    if fit.num_threads is not None:
        torch.set_num_threads(fit.num_threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        return make()


def _half_chi_square(
    residual: Float[Tensor, "*shape"],
    *,
    ivar: Float[Tensor, "*shape"],
    error: Float[Tensor, "*shape"],
    fit: FitConfig,
) -> Float[Tensor, ""]:
    """Mean over pixels with ivar > 0; quadratic up to robust_sigma, then linear."""
    chi_square = residual.square() * ivar / (1 + error.square() * ivar)
    if math.isfinite(fit.robust_sigma):
        limit = fit.robust_sigma**2
        chi_square = 2 * limit * (torch.sqrt(1 + chi_square / limit) - 1)
    return 0.5 * chi_square.sum() / (ivar > 0).sum().clamp_min(1)


def _descend(
    tokenizer: ImageTokenizer | SpectrumTokenizer,
    loss_terms: Callable[[np.random.Generator, float], dict[str, Tensor]],
    fit: FitConfig,
    *,
    name: str,
    folder: Path | None,
    progress: Progress | None,
) -> list[float]:
    """Take the steps; leaves the tokenizer in evaluation mode, saved if a folder is given.

    Raises:
        ValueError: the loss is not finite.
    """
    rng = np.random.default_rng(fit.seed)
    optimizer = torch.optim.AdamW(
        tokenizer.parameters(), lr=fit.learning_rate, betas=(0.9, 0.98),
        weight_decay=fit.weight_decay,
    )  # fmt: skip
    tokenizer.train()
    losses: list[float] = []
    rows: list[dict[str, int | float]] = []
    started = saved = time.monotonic()
    for step in range(fit.num_steps):
        elapsed = time.monotonic() - started
        if elapsed >= fit.max_seconds:
            break
        done = max(step / fit.num_steps, elapsed / fit.max_seconds)
        rate = fit.learning_rate * min((step + 1) / fit.warmup_steps, 1.0)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        terms = loss_terms(rng, done)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise ValueError(f"the {name} loss is {loss.item()} at step {step}: lower the rate")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tokenizer.parameters(), fit.max_gradient_norm)
        optimizer.step()
        losses.append(loss.item())
        rows.append(
            {"step": step, "seconds": elapsed, "learning_rate": rate}
            | {term: value.item() for term, value in terms.items()}
        )
        if progress is not None:
            progress(step + 1, fit.num_steps, losses[-1])
        if folder is not None and time.monotonic() - saved > fit.checkpoint_seconds:
            saved = time.monotonic()
            _save(folder, name, tokenizer, rows)
    _round_to_half(tokenizer)
    tokenizer.eval().requires_grad_(False)
    if folder is not None:
        _save(folder, name, tokenizer, rows)
    return losses


@torch.no_grad()
def _round_to_half(tokenizer: nn.Module) -> None:
    """Round matrices to float16 values, so that storing them so later moves no code."""
    for parameter in tokenizer.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half())


def _save(
    folder: Path,
    name: str,
    tokenizer: ImageTokenizer | SpectrumTokenizer,
    rows: list[dict[str, int | float]],
) -> None:
    save_codec(folder, name, tokenizer)
    with (folder / f"{name}_loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
