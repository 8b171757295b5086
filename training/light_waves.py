"""Light as a part of search vectors: waves whose cosine is high for equal light alone.

Random Fourier features (Rahimi and Recht 2007): the cosine of two sets of waves is about
exp(-d^2 / 2), d the distance of two lights in units of WIDTH_MAG, and about 0 beyond. So light
tells the few objects that it fits from all others, and says nothing about how unlike these are:
what the encoder knows of their kind decides there, as it does where light is not known.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from training.fibre_light import NUM_LIGHT, UNIT_MAG

NUM_WAVES = 96  # a cosine and a sine of each frequency
# Of r, g - r and r - z: somewhat more than an image and a spectrum of an object differ by.
WIDTH_MAG = (0.04, 0.08, 0.08)


def wave_frequencies() -> Float[Tensor, "light frequency"]:
    """Frequencies of the waves, for light as it stands in encoder vectors; always the same."""
    drawn = torch.randn(NUM_LIGHT, NUM_WAVES // 2, generator=torch.Generator().manual_seed(0))
    return drawn * UNIT_MAG / torch.tensor(WIDTH_MAG)[:, None]


def with_waves(
    vectors: Float[Tensor, "n dim"],
    light: Float[Tensor, "n light"],
    frequencies: Float[Tensor, "light frequency"],
    *,
    share: float,
) -> Float[Tensor, "n more"]:
    """Unit vectors with their waves behind them, of unit length together.

    Args:
        vectors: Of unit length.
        light: As fibre_light gives it; all zeros: not known, then the waves are zeros too.
        frequencies: From `wave_frequencies`.
        share: Of the squared length, for the waves.
    """
    phases = light @ frequencies
    waves = torch.cat([phases.cos(), phases.sin()], dim=1) / frequencies.shape[1] ** 0.5
    shares = share * (light != 0).any(dim=1, keepdim=True).to(vectors.dtype)
    return torch.cat([vectors * (1 - shares).sqrt(), waves * shares.sqrt()], dim=1)
