"""Which tokens an object shows to the encoder, and which it is asked for.

The sampler of AION-1: one modality is chosen at random and shows a uniformly random number of its
tokens, the rest of the input budget is filled evenly from all other tokens. What is asked for is
drawn from the tokens not shown: one modality first, in a number from a Beta distribution skewed
to 0 (so that training meets the short last steps of generation), the rest filled evenly.

Source: arXiv 2510.17960, section on masked modelling. The Beta parameters are not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MaskingConfig:
    """Budgets of tokens an object; the paper has 256 shown and 128 asked for."""

    num_input_tokens: int = Field(default=256, gt=0)
    num_target_tokens: int = Field(default=128, gt=0)
    target_alpha: float = Field(
        default=0.1, gt=0
    )  # Beta distribution of the asked share of a modality
    target_beta: float = Field(default=1.0, gt=0)


@dataclass(frozen=True, slots=True)
class Masks:
    """Positions in the model's layout; a row shorter than the longest is padded."""

    inputs: Int[Tensor, "batch input"]
    input_valid: Bool[Tensor, "batch input"]
    targets: Int[Tensor, "batch target"]
    target_valid: Bool[Tensor, "batch target"]


def sample_masks(
    present: Bool[Tensor, "batch stream"],
    stream_of_position: Int[Tensor, " position"],
    config: MaskingConfig,
    generator: torch.Generator,
) -> Masks:
    """Draw shown and asked-for tokens for a batch of objects; the two never overlap.

    Args:
        present: Which streams each object has.
        stream_of_position: For every position of the layout the number of its stream.
        config: Budgets.
        generator: Source of all randomness.

    Returns:
        Masks. Every row shows at least one token, and asks for at least one where its object has
        two or more.

    Raises:
        ValueError: an object has no stream at all.
    """
    if not present.any(dim=1).all():
        empty = int((~present.any(dim=1)).nonzero()[0, 0])
        raise ValueError(f"object {empty} of the batch has no tokens")
    device = present.device
    batch, num_streams = present.shape
    available = present[:, stream_of_position]  # (batch, position)
    member = torch.nn.functional.one_hot(stream_of_position, num_streams).float()

    sizes = available.float() @ member  # (batch, stream) tokens of each stream
    first = _one_of(present, generator)  # the modality drawn first
    size_first = sizes.gather(1, first[:, None])[:, 0]
    most = size_first.clamp(max=config.num_input_tokens)
    num_first = (
        torch.rand(batch, generator=generator, device=device) * most
    ).floor() + 1  # uniform on 1 ... most
    budget = (sizes.sum(dim=1) - 1).clamp(min=1, max=config.num_input_tokens)  # leave one to ask
    num_first = torch.minimum(num_first, budget)
    chosen, inputs, input_valid = _draw(
        available, stream_of_position, first, num_first, budget, generator
    )

    left = available & ~chosen
    sizes = left.float() @ member
    first = _one_of(sizes > 0, generator)
    size_first = sizes.gather(1, first[:, None])[:, 0]
    share = _beta(batch, config.target_alpha, config.target_beta, generator, device)
    budget = sizes.sum(dim=1).clamp(max=config.num_target_tokens)
    num_first = torch.minimum((share * size_first).ceil().clamp(min=1), budget)
    _, targets, target_valid = _draw(left, stream_of_position, first, num_first, budget, generator)
    return Masks(inputs, input_valid, targets, target_valid)


def _draw(
    available: Bool[Tensor, "batch position"],
    stream_of_position: Int[Tensor, " position"],
    first: Int[Tensor, " batch"],
    num_first: Float[Tensor, " batch"],
    budget: Float[Tensor, " batch"],
    generator: torch.Generator,
) -> tuple[Bool[Tensor, "batch position"], Int[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
    """Take num_first random tokens of one stream, then others at random up to the budget."""
    noise = torch.rand(available.shape, generator=generator, device=available.device)
    of_first = available & (stream_of_position[None] == first[:, None])
    # Order: the random choice of the first stream, then all other streams mixed, then the rest.
    rank = torch.where(of_first, noise, 2.0).argsort(dim=1).argsort(dim=1)
    kept = of_first & (rank < num_first[:, None])
    score = torch.where(kept, noise - 1, noise)
    score = torch.where(available & (kept | ~of_first), score, torch.inf)
    score, positions = score.sort(dim=1)
    valid = score.isfinite()
    valid &= torch.arange(valid.shape[1], device=valid.device) < budget[:, None]
    longest = max(int(valid.sum(dim=1).max()), 1)
    positions, valid = positions[:, :longest], valid[:, :longest]
    chosen = torch.zeros_like(available).scatter(1, positions, valid)
    return chosen, positions, valid


def _one_of(
    choices: Bool[Tensor, "batch choice"], generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """One of the true columns of each row, evenly; 0 where there is none."""
    noise = torch.rand(choices.shape, generator=generator, device=choices.device)
    return torch.where(choices, noise, -1.0).argmax(dim=1)


def _beta(
    num: int, alpha: float, beta: float, generator: torch.Generator, device: torch.device
) -> Float[Tensor, " num"]:
    """Beta samples from a generator, which torch.distributions does not take."""
    # A quotient of Gamma samples, drawn in float64 because a small alpha underflows float32.
    shape = torch.tensor([alpha, beta], dtype=torch.float64, device=device).expand(num, 2)
    gamma = torch._standard_gamma(shape, generator=generator)
    total = gamma.sum(dim=1)
    return torch.where(total > 0, gamma[:, 0] / total, 0.0).float()
