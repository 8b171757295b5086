"""Fitting the spectrum tokenizer: residuals weighted by ivar, the mask, and evenly used codes.

Source of the loss: arXiv 2510.17960; what is added to it is said at `half_chi_square`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.observations import Spectrum
from training.reconstruction import inside_grid, measure_spectra, precision
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
from training.tokenizers import spectrum as spectrum_tokenizer
from training.tokenizers.spectrum import (
    SpectrumTensors,
    SpectrumTokenizer,
    SpectrumTokenizerConfig,
)

MAX_ENTROPY_VECTORS = 2048  # of a batch: the joint table over all codes is costly


def fit_spectrum_tokenizer(
    spectra: Sequence[Spectrum],
    config: SpectrumTokenizerConfig,
    fit: FitConfig,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Fitted[SpectrumTokenizer]:
    """Fit on spectra; arguments and errors as for images."""
    train, held_out = split(spectra, what="spectra")
    tokenizer = seeded(lambda: SpectrumTokenizer(config), fit)

    def loss(rng: np.random.Generator, done: float) -> dict[str, Tensor]:
        rows = rng.integers(len(train), size=fit.batch_size)
        batch = spectrum_tokenizer.stack([train[row] for row in rows])
        return spectrum_losses(tokenizer, batch.to(device_of(tokenizer)), fit)

    losses = descend(
        tokenizer, loss, fit, name="spectrum", num_items=len(train), folder=folder,
        progress=progress,
    )  # fmt: skip
    return Fitted(
        tokenizer,
        measure_spectra(tokenizer, held_out, batch_size=fit.batch_size, bfloat16=fit.bfloat16),
        losses,
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
    chi_square = half_chi_square(
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
