"""What a fitted tokenizer reaches: how well it reconstructs, how evenly it uses its codes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Int64
from scipy.stats import mannwhitneyu
from torch import Tensor

from training.compact_images import CompactImage, image_batch
from training.observations import Field, Spectrum
from training.tokenizers import field as field_tokenizer
from training.tokenizers import spectrum as spectrum_tokenizer
from training.tokenizers.field import FieldTokenizer
from training.tokenizers.image import ImageTokenizer
from training.tokenizers.spectrum import SpectrumTensors, SpectrumTokenizer


@torch.no_grad()
def measure_images(
    tokenizer: ImageTokenizer, images: Sequence[CompactImage], *, batch_size: int, bfloat16: bool
) -> dict[str, float]:
    """Reconstruction of images and use of their codes.

    Returns:
        chi_square: median over images of the mean squared residual in units of the pipeline error.
        r2: share of the variance of arcsinh-compressed flux that the reconstruction explains.
        codes_used, perplexity: as code_use.
    """
    chi_squares, codes = [], []
    unexplained = total = 0.0
    for start in range(0, len(images), batch_size):
        batch = image_batch(images[start : start + batch_size])
        with precision(bfloat16=bfloat16):
            seen = tokenizer(batch.flux_nmgy, batch.channels)
        flux = tokenizer.clip(batch.flux_nmgy)
        good = batch.ivar > 0
        residual = (tokenizer.expand(seen.compressed) - flux).square() * batch.ivar
        chi_squares.append(residual.sum(dim=(1, 2, 3)) / good.sum(dim=(1, 2, 3)))
        truth = tokenizer.compress(flux)
        mean = (truth * good).sum(dim=(2, 3)) / good.sum(dim=(2, 3)).clamp_min(1)
        unexplained += float(((seen.compressed - truth).square() * good).sum())
        total += float(((truth - mean[:, :, None, None]).square() * good).sum())
        codes.append(seen.codes.flatten())
    return {
        "num_held_out": float(len(images)),
        "chi_square": float(torch.cat(chi_squares).median()),
        "r2": 1 - unexplained / total,
        **code_use(torch.cat(codes), num_codes=tokenizer.num_codes),
    }


@torch.no_grad()
def measure_spectra(
    tokenizer: SpectrumTokenizer, spectra: Sequence[Spectrum], *, batch_size: int, bfloat16: bool
) -> dict[str, float]:
    """Reconstruction of spectra and use of their codes.

    Returns:
        chi_square: median over spectra of the mean squared residual in units of the error.
        r2: share of the inverse-variance-weighted variance about each mean that is explained.
        mask_auc: area under the ROC curve of the predicted mask; absent if no pixel is bad.
        codes_used, perplexity: as code_use.
    """
    chi_squares, codes, masks, logits = [], [], [], []
    unexplained = total = 0.0
    for start in range(0, len(spectra), batch_size):
        batch = spectrum_tokenizer.stack(spectra[start : start + batch_size])
        with precision(bfloat16=bfloat16):
            seen = tokenizer(batch)
        inside = inside_grid(tokenizer, batch)
        weight = torch.where(inside & ~batch.mask, batch.ivar, 0.0)
        flux = tokenizer.resample(seen.decoded.flux, batch.wavelength_angstrom)
        residual = ((flux - batch.flux).square() * weight).sum(dim=1)
        chi_squares.append(residual / (weight > 0).sum(dim=1).clamp_min(1))
        mean = (batch.flux * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1e-12)
        unexplained += float(residual.sum())
        total += float(((batch.flux - mean[:, None]).square() * weight).sum())
        codes.append(seen.codes.flatten())
        masks.append(batch.mask[inside])
        logits.append(
            tokenizer.resample(seen.decoded.mask_logits, batch.wavelength_angstrom)[inside]
        )
    figures = {
        "num_held_out": float(len(spectra)),
        "chi_square": float(torch.cat(chi_squares).median()),
        "r2": 1 - unexplained / total,
        **code_use(torch.cat(codes), num_codes=tokenizer.quantizer.num_codes),
    }
    bad = torch.cat(masks).numpy()
    if bad.any() and not bad.all():
        scores = torch.cat(logits).numpy()
        pairs = mannwhitneyu(scores[bad], scores[~bad], method="asymptotic").statistic
        figures["mask_auc"] = float(pairs) / (int(bad.sum()) * int((~bad).sum()))
    return figures


@torch.no_grad()
def measure_fields(
    tokenizer: FieldTokenizer, fields: Sequence[Field], *, batch_size: int
) -> dict[str, float]:
    """Reconstruction of maps from 0 to 1.

    Returns:
        squared_error: mean over all pixels of all maps.
        r2: share of the variance of all pixels that is explained.
        codes_used, perplexity: as code_use.
    """
    codes, made, truth = [], [], []
    for start in range(0, len(fields), batch_size):
        value = field_tokenizer.stack(fields[start : start + batch_size])
        codes.append(tokenizer.encode(value))
        made.append(tokenizer.decode(codes[-1]))
        truth.append(value)
    expected = torch.cat(truth)
    squared_error = (torch.cat(made) - expected).square().mean()
    return {
        "num_held_out": float(len(fields)),
        "squared_error": float(squared_error),
        "r2": float(1 - squared_error / expected.var(correction=0).clamp_min(1e-12)),
        **code_use(torch.cat(codes).flatten(), num_codes=tokenizer.num_codes),
    }


def code_use(codes: Int64[Tensor, " n"], *, num_codes: int) -> dict[str, float]:
    """Give codes_used, the share of codes that occur, and perplexity, how many are in even use."""
    counts = torch.bincount(codes, minlength=num_codes).double()
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return {
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": float(entropy.exp()),
    }


def precision(*, bfloat16: bool) -> torch.autocast | nullcontext[None]:
    """Automatic mixed precision, or none."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16) if bfloat16 else nullcontext()


def inside_grid(tokenizer: SpectrumTokenizer, batch: SpectrumTensors) -> Bool[Tensor, "b pixel"]:
    """Observed pixels that the latent grid covers; padding is not."""
    first, last = tokenizer.grid_angstrom[0], tokenizer.grid_angstrom[-1]
    return (batch.wavelength_angstrom >= first) & (batch.wavelength_angstrom <= last)
