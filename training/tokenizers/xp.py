"""Gaia XP coefficients to tokens and back: one table of quantiles for each coefficient of an arm.

The coefficients span ten decades, so they are compressed by arcsinh, twice, before the quantiles
are taken (configuration of the released codec bp_coefficients).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from training.observations import NUM_XP_COEFFICIENTS
from training.tokenizers.quantizers import QuantileQuantizer
from training.tokenizers.scalar import refuse_nan


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiScalarTokenizerConfig:
    """Quantile bins of several quantities. The defaults are the released XP tokenizers."""

    num_scalars: int = NUM_XP_COEFFICIENTS
    num_bins: int = 1024
    num_arcsinh: int = 2  # times that arcsinh is applied
    reservoir_size: int = 0  # values of the fit that are kept beside the table; 100,000 as released


class MultiScalarTokenizer(nn.Module):
    """Quantile bins for a row of numbers: one token a number, each with its own table."""

    def __init__(self, config: MultiScalarTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_scalars
        self.quantizers = nn.ModuleList(
            QuantileQuantizer(config.num_bins, reservoir_size=config.reservoir_size)
            for _ in range(config.num_scalars)
        )

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary, shared by all numbers."""
        return self.config.num_bins

    def fit(self, values: Float[Tensor, "n scalar"]) -> None:
        """Learn the bins. Raises ValueError where rows are fewer than two or not finite."""
        for quantizer, column in zip(self._tables(), self._compress(values).T, strict=True):
            quantizer.fit(column)

    def encode(self, values: Float[Tensor, "b scalar"]) -> Int64[Tensor, "b scalar"]:
        """Give each number its bin. Raises ValueError on NaN."""
        refuse_nan(values)
        # Column by column: whole, the arcsinh of a CPU rounds otherwise than the release's.
        columns = (self._compress(column) for column in values.float().unbind(dim=1))
        pairs = zip(self._tables(), columns, strict=True)
        return torch.stack([quantizer.encode(column) for quantizer, column in pairs], dim=1)

    def decode(self, tokens: Int64[Tensor, "b scalar"]) -> Float[Tensor, "b scalar"]:
        """Give the upper edge of each bin, in the unit of the fitted values."""
        pairs = zip(self._tables(), tokens.unbind(dim=1), strict=True)
        columns = [self._expand(quantizer.decode(codes)) for quantizer, codes in pairs]
        return torch.stack(columns, dim=1)

    def _compress(self, values: Tensor) -> Tensor:
        for _ in range(self.config.num_arcsinh):
            values = values.asinh()
        return values

    def _expand(self, values: Tensor) -> Tensor:
        for _ in range(self.config.num_arcsinh):
            values = values.sinh()
        return values

    def _tables(self) -> list[QuantileQuantizer]:
        return [table for table in self.quantizers if isinstance(table, QuantileQuantizer)]
