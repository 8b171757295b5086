"""Continuous values to integer codes and back: the quantizers that every tokenizer is built on.

The formulas are those of the released AION-1 package: finite scalar quantization (Mentzer et al.
2023) for images, lookup-free quantization (Yu et al. 2023) for spectra, tables for scalars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

FSQ_MARGIN = 1e-3  # widens the tanh so that the outermost level can be reached
LFQ_INVERSE_TEMPERATURE = 100.0  # of the released AION-1


@dataclass(frozen=True, slots=True)
class Quantized:
    """What a quantizer gives: values for the decoder (gradient passes straight through), codes."""

    values: Float[Tensor, "*batch dim"]
    codes: Int64[Tensor, "*batch"]


class FiniteScalarQuantizer(nn.Module):
    """Round each of a few bounded dimensions to its own number of levels.

    A code is the mixed-radix number of the levels, first dimension fastest.

    Raises:
        ValueError: a dimension has fewer than two levels.
    """

    counts: Tensor  # levels of each dimension
    basis: Tensor  # what one step in each dimension adds to the code

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"every dimension needs two levels or more, got {tuple(levels)}")
        self.levels = tuple(int(level) for level in levels)
        self.num_codes = math.prod(self.levels)
        counts = torch.tensor(self.levels, dtype=torch.int64)
        basis = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), counts[:-1]]), dim=0)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, latent: Float[Tensor, "*batch dim"]) -> Quantized:
        """Quantize; values lie in [-1, 1]."""
        latent = latent.float()  # rounding in bfloat16 would move codes
        levels = self.counts.to(latent.dtype)
        half = (levels - 1) * (1 + FSQ_MARGIN) / 2
        offset = torch.where(self.counts % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(latent + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        steps = torch.div(self.counts, 2, rounding_mode="floor")
        digits = bounded.detach().round().to(torch.int64) + steps
        codes = (digits * self.basis).sum(dim=-1)
        return Quantized(rounded / steps, codes)

    def decode(self, codes: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Give the values of codes in [0, num_codes)."""
        digits = torch.div(codes[..., None], self.basis, rounding_mode="floor") % self.counts
        steps = torch.div(self.counts, 2, rounding_mode="floor")
        return (digits - steps).float() / steps


class LookupFreeQuantizer(nn.Module):
    """Keep only the sign of each dimension: a code is the big-endian number of the signs."""

    bits: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_codes = 2**dim
        self.register_buffer("bits", 2 ** torch.arange(dim - 1, -1, -1), persistent=False)

    def forward(self, latent: Float[Tensor, "*batch dim"]) -> Quantized:
        """Quantize; values are -1 or +1, and 0 counts as -1."""
        latent = latent.float()
        positive = latent > 0
        signs = torch.where(positive, 1.0, -1.0)
        codes = (positive * self.bits).sum(dim=-1)
        return Quantized(latent + (signs - latent).detach(), codes)

    def decode(self, codes: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Give the signs of codes in [0, 2^dim)."""
        return torch.where((codes[..., None] & self.bits) > 0, 1.0, -1.0)

    def entropy_loss(
        self,
        latent: Float[Tensor, "*batch dim"],
        *,
        inverse_temperature: float = LFQ_INVERSE_TEMPERATURE,
    ) -> Float[Tensor, ""]:
        """Mean entropy of one vector's code less the entropy of the batch's codes, in nats.

        Low when each vector is sure of its code and all codes are in use. The probability of a
        code is the softmax of -2 x distance: with codes of signs it is a product over dimensions,
        so the entropy of one vector is a sum of binary entropies.
        """
        logits = 4 * inverse_temperature * latent.float().reshape(-1, self.dim)
        log_yes, log_no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        per_vector = -(log_yes.exp() * log_yes + log_no.exp() * log_no).sum(dim=-1).mean()
        joint = torch.zeros(len(logits), 1, device=logits.device)
        for bit in range(self.dim):  # grows to (vector, code), first bit slowest
            choice = torch.stack([log_no[:, bit], log_yes[:, bit]], dim=-1)
            joint = (joint[:, :, None] + choice[:, None, :]).flatten(1)
        used = joint.exp().mean(dim=0)
        return per_vector + (used * used.clamp_min(1e-10).log()).sum()

    def commitment_loss(self, latent: Float[Tensor, "*batch dim"]) -> Float[Tensor, ""]:
        """Mean squared distance to the signs: keeps the latent near the cube."""
        signs = torch.where(latent > 0, 1.0, -1.0).detach()
        return (latent.float() - signs).square().mean()


class LinearQuantizer(nn.Module):
    """Equal steps between two values; what lies outside goes to the outermost codes.

    `buckets` is saved with the weights, and a loaded artefact is believed over the constructor:
    the released redshift grid differs from its own configuration.
    """

    buckets: Tensor  # (bin,)

    def __init__(self, *, lowest: float, highest: float, num_bins: int) -> None:
        super().__init__()
        if not lowest < highest:
            raise ValueError(f"expected lowest < highest, got {lowest} and {highest}")
        self.num_codes = num_bins
        self.register_buffer("buckets", torch.linspace(lowest, highest, num_bins))

    def encode(self, values: Float[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
        """Give the first step at or above each value."""
        codes = torch.bucketize(values.contiguous(), self.buckets)
        return codes.clamp(0, self.num_codes - 1)

    def decode(self, codes: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Give the value of each step."""
        return self.buckets[codes]


class QuantileQuantizer(nn.Module):
    """Bins of equal population, learned from data.

    The release keeps a sample of the data, its reservoir, beside the table. Nothing reads it, but
    a released artefact that is loaded and saved must not lose it.

    Args:
        num_bins: Size of the table.
        reservoir_size: Values of the sample to keep; 0 keeps none.
    """

    table: Tensor  # (bin,), ascending
    reservoir: Tensor  # (sample,); absent where its size is 0

    def __init__(self, num_bins: int, *, reservoir_size: int = 0) -> None:
        super().__init__()
        self.num_codes = num_bins
        self.register_buffer("table", torch.linspace(0.0, 1.0, num_bins))
        self.reservoir_size = reservoir_size
        if reservoir_size:
            self.register_buffer("reservoir", torch.zeros(reservoir_size))

    def fit(self, values: Float[Tensor, " n"]) -> None:
        """Set the table to the empirical quantiles, linearly interpolated.

        The reservoir becomes quantiles too, as many as it holds: a sample without chance.

        Raises:
            ValueError: fewer than two finite values, or values that are not finite.
        """
        if len(values) < 2 or not torch.isfinite(values).all():
            raise ValueError(f"expected two or more finite values, got {values.shape[0]:,}")
        ordered = values.double().sort().values
        self.table.copy_(_quantiles(ordered, self.num_codes))
        if self.reservoir_size:
            self.reservoir.copy_(_quantiles(ordered, self.reservoir_size))

    def encode(self, values: Float[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
        """Give the first quantile at or above each value."""
        return torch.bucketize(values.contiguous(), self.table[:-1])

    def decode(self, codes: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Give the quantile of each code."""
        return self.table[codes]


def _quantiles(ordered: Float[Tensor, " n"], count: int) -> Float[Tensor, " count"]:
    where = torch.linspace(0, 1, count, dtype=torch.float64) * (len(ordered) - 1)
    below = where.floor().long().clamp(max=len(ordered) - 2)
    return torch.lerp(ordered[below], ordered[below + 1], where - below)
