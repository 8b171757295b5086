"""Drawn tokens back to what they stand for: flux of images, spectra, numbers.

Codes may be of any number of objects and samples, (object, sample, token) as `generation` gives
them; results have these axes first. Units are those of training.observations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from torch import Tensor

from training.observations import BANDS
from training.tokenizers.field import FieldTokenizer
from training.tokenizers.image import ImageTokenizer
from training.tokenizers.scalar import GridTokenizer, ScalarTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer
from training.tokenizers.xp import MultiScalarTokenizer

MAX_BATCH = 32  # through a decoder at once

Codes = Int64[Tensor, "*batch token"]


def images(
    codes: Codes, codec: ImageTokenizer, bands: Sequence[str]
) -> Float32[ndarray, "*batch band y x"]:
    """Flux of some bands in nanomaggies per pixel.

    Raises:
        ValueError: a band is unknown, or none is asked for.
    """
    unknown = sorted(set(bands) - set(BANDS))
    if unknown or not bands:
        raise ValueError(
            f"expected bands of {', '.join(BANDS)}, got {', '.join(unknown) or 'none'}"
        )
    numbers = [BANDS.index(band) for band in bands]
    channels = torch.zeros(len(BANDS), dtype=torch.bool, device=codec.clip_nmgy.device)
    channels[numbers] = True

    def decode(some: Tensor) -> Tensor:
        return codec.decode(some, channels.expand(len(some), -1))[:, numbers]

    return _in_batches(codes, decode, channels.device)


def spectra(
    codes: Codes,
    codec: SpectrumTokenizer,
    wavelength_angstrom: Float64[ndarray, " wavelength"] | None = None,
) -> Float32[ndarray, "*batch wavelength"]:
    """Flux in 1e-17 erg / s / cm^2 / Angstrom at some wavelengths; NaN where nothing is known.

    Args:
        codes: The normalisation, then the stretches of wavelength.
        codec: Their tokenizer.
        wavelength_angstrom: Vacuum; None = the tokenizer's own grid (`codec.grid_angstrom`). What
            lies outside that grid is not known.
    """
    grid = codec.grid_angstrom
    at = grid if wavelength_angstrom is None else torch.from_numpy(wavelength_angstrom).to(grid)
    outside = (at < grid[0]) | (at > grid[-1])

    def decode(some: Tensor) -> Tensor:
        flux = codec.decode(some, at.expand(len(some), -1)).flux
        return torch.where(outside, torch.nan, flux)

    return _in_batches(codes, decode, grid.device)


def fields(codes: Codes, codec: FieldTokenizer) -> Float32[ndarray, "*batch y x"]:
    """Maps of values from 0 to 1."""
    return _in_batches(codes, codec.decode, codec.from_code.weight.device)


def coefficients(
    codes: Codes, codec: MultiScalarTokenizer
) -> Float32[ndarray, "*batch coefficient"]:
    """Gaia XP coefficients of one arm."""
    return _in_batches(codes, codec.decode, next(codec.buffers()).device)


def numbers(codes: Codes, codec: GridTokenizer | ScalarTokenizer) -> Float32[ndarray, "*batch"]:
    """Values of a stream of one number, in its unit: the upper edge of each bin, as released."""
    return _in_batches(codes, codec.decode, next(codec.buffers()).device)


@torch.no_grad()
def _in_batches(
    codes: Codes, decode: Callable[[Tensor], Tensor], device: torch.device
) -> Float32[ndarray, "*shape"]:
    lines = codes.reshape(-1, codes.shape[-1])
    parts = [
        decode(lines[start : start + MAX_BATCH].to(device)).float().cpu().numpy()
        for start in range(0, len(lines), MAX_BATCH)
    ]
    values = np.concatenate(parts)
    return values.reshape(*codes.shape[:-1], *values.shape[1:])
