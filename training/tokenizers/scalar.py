"""One number to one token: quantile bins for fluxes and sizes, a linear grid for redshift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from training.tokenizers.quantizers import LinearQuantizer, QuantileQuantizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarTokenizerConfig:
    """Quantile bins of one quantity."""

    num_bins: int = 1024
    log: bool = False  # quantize the natural logarithm
    min_log_value: float = -3.0  # with log: smaller values, zero and below share the lowest code
    reservoir_size: int = 0  # values of the fit that are kept beside the table; 100,000 as released


class ScalarTokenizer(nn.Module):
    """Quantile bins, as AION-1's reservoir quantizers.

    Codes 1 to num_bins - 1 are equally common in the data of the fit; code 0 is its minimum and
    whatever lies below. With `log` that is every value up to exp(min_log_value) = 0.0498, so all
    negative fluxes and parallaxes are one token: `below_range` says which.
    """

    def __init__(self, config: ScalarTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = 1
        self.quantizer = QuantileQuantizer(config.num_bins, reservoir_size=config.reservoir_size)

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary."""
        return self.config.num_bins

    def fit(self, values: Float[Tensor, " n"]) -> None:
        """Learn the bins. Raises ValueError where values are fewer than two or not finite."""
        self.quantizer.fit(self._compress(values))

    def encode(self, values: Float[Tensor, " b"]) -> Int64[Tensor, "b 1"]:
        """Give each value its bin; what lies outside gets the outermost ones.

        Raises:
            ValueError: a value is NaN: absent values have no token.
        """
        refuse_nan(values)
        return self.quantizer.encode(self._compress(values).float())[:, None]

    def decode(self, tokens: Int64[Tensor, "b 1"]) -> Float[Tensor, " b"]:
        """Give the upper edge of each bin, in the unit of the fitted values."""
        values = self.quantizer.decode(tokens[:, 0])
        return values.exp() if self.config.log else values

    def below_range(self, values: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """True where a value lies below the lowest bin, which is all that its token will say.

        Negative parallaxes and fluxes of the logarithmic streams are such values.
        """
        below = self._compress(values).float() < self.quantizer.table[0]
        if self.config.log:  # clipped to the edge, so at it and not below it
            below = below | (values < math.exp(self.config.min_log_value))
        return below

    def _compress(self, values: Tensor) -> Tensor:
        if not self.config.log:
            return values
        return values.clamp_min(math.exp(self.config.min_log_value)).log()


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTokenizerConfig:
    """Equal steps between two values."""

    num_bins: int = 1024
    lowest: float = 0.0
    highest: float = 6.0

    def __post_init__(self) -> None:
        if self.num_bins < 2 or not -math.inf < self.lowest < self.highest < math.inf:
            raise ValueError(
                "a grid needs two bins and a highest value above its lowest, got num_bins "
                f"{self.num_bins}, lowest {self.lowest}, highest {self.highest}"
            )


class GridTokenizer(nn.Module):
    """A linear grid, for redshift."""

    def __init__(self, config: GridTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = 1
        self.quantizer = LinearQuantizer(
            lowest=config.lowest, highest=config.highest, num_bins=config.num_bins
        )

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary."""
        return self.config.num_bins

    def encode(self, values: Float[Tensor, " b"]) -> Int64[Tensor, "b 1"]:
        """Give each value its step. Raises ValueError on NaN."""
        refuse_nan(values)
        return self.quantizer.encode(values.float())[:, None]

    def decode(self, tokens: Int64[Tensor, "b 1"]) -> Float[Tensor, " b"]:
        """Give the value of each step."""
        return self.quantizer.decode(tokens[:, 0])


def refuse_nan(values: Float[Tensor, "*shape"]) -> None:
    """Raise ValueError where a value is NaN: it would be binned like any number."""
    if torch.isnan(values).any():
        raise ValueError("expected numbers, got NaN: leave the token out where there is none")
