"""Which tokens an object shows to the encoder, and which it is asked for.

The sampler of AION-1: one modality is chosen at random and shows a uniformly random number of its
tokens, the rest of the input budget is filled evenly from the tokens of all others. What is asked
for is drawn from the tokens not shown: one modality first, in a number from a Beta distribution
skewed to 0 (so that training meets the short last steps of generation), the rest filled evenly.

Added to it, and absent by default: `hidden_share` of the objects show some kinds of stream only
(images, spectra, numbers ...), each kind hidden by the toss of a coin. The paper's sampler fills
its budget from the longest streams: numbers alone, or an image alone, are never met in training.

Absent by default too: with `target_fill` "streams" what is left of the budget to ask for is shared
evenly by streams instead of tokens, so that single numbers are asked for in nearly every row. With
"tokens", as in the paper, an image and a spectrum of hundreds of tokens leave them few chances.

A sequence (`catalog`) shows its beginning and is asked for what follows, in order.

Chance comes from a counter: what one object of one step draws depends on (seed, step, place in the
batch) alone, so any number of processes draw what one would.

Source: arXiv 2510.17960, section on masked modelling. The Beta parameters are not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from scipy.special import betaincinv
from torch import Tensor

_DRAWS = 3  # single numbers an object: a count, a Beta variate, whether kinds are hidden
_PER_STREAM = 3  # numbers of a stream: when chosen to show, to ask, and whether hidden
_BLOCK = 4  # numbers that one count of the Philox generator gives


@checked_dataclass(
    frozen=True,
    slots=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False),
)
class MaskingConfig:
    """Budgets of tokens an object; the paper has 256 shown and 128 asked for."""

    num_input_tokens: int = Field(default=256, gt=0)
    num_target_tokens: int = Field(default=128, gt=0)
    target_alpha: float = Field(
        default=0.1, gt=0
    )  # Beta distribution of the asked share of a modality
    target_beta: float = Field(default=1.0, gt=0)
    hidden_share: float = Field(default=0.0, ge=0, le=1)  # of the objects that hide whole kinds
    target_fill: Literal["tokens", "streams"] = "tokens"  # who shares what is left


@dataclass(frozen=True, slots=True)
class Masks:
    """Positions in the model's layout; a row shorter than the longest is padded."""

    inputs: Int[Tensor, "batch input"]
    input_valid: Bool[Tensor, "batch input"]
    targets: Int[Tensor, "batch target"]
    target_valid: Bool[Tensor, "batch target"]


@dataclass(frozen=True, slots=True)
class Chance:
    """Uniform random numbers in [0, 1), all that one batch needs."""

    order: Float64[Tensor, "batch 2 position"]  # of tokens: when shown, when asked for
    stream: Float64[Tensor, "batch 3 stream"]
    number: Float64[Tensor, "batch 3"]

    @classmethod
    def draw(
        cls, seed: int, step: int, places: range, *, num_positions: int, num_streams: int
    ) -> Chance:
        """Numbers for some places of the batch of a step, whoever asks for the others.

        Args:
            seed: Of the run.
            step: Of the run.
            places: Consecutive places in the global batch.
            num_positions: Positions of the layout.
            num_streams: Streams of the layout.
        """
        of_positions, of_streams = 2 * num_positions, _PER_STREAM * num_streams
        width = of_positions + of_streams + _DRAWS
        width += -width % _BLOCK
        bits = np.random.Philox(key=[seed % 2**64, step])
        bits.advance(places.start * width // _BLOCK)
        numbers = torch.from_numpy(np.random.Generator(bits).random((len(places), width)))
        order = numbers[:, :of_positions].reshape(-1, 2, num_positions)
        stream = numbers[:, of_positions:][:, :of_streams].reshape(-1, _PER_STREAM, num_streams)
        return cls(order, stream, numbers[:, of_positions + of_streams :][:, :_DRAWS])


def sample_masks(
    available: Bool[Tensor, "batch position"],
    stream_of_position: Int[Tensor, " position"],
    config: MaskingConfig,
    chance: Chance,
    *,
    kind_of_stream: Int[Tensor, " stream"] | None = None,
    askable: Bool[Tensor, " stream"] | None = None,
    sequences: Sequence[slice] = (),
) -> Masks:
    """Draw shown and asked-for tokens for a batch of objects; the two never overlap.

    Args:
        available: Which tokens each object has; of a sequence the first ones.
        stream_of_position: For every position of the layout the number of its stream.
        config: Budgets.
        chance: All randomness.
        kind_of_stream: For every stream the number of its kind; streams of a kind hide together.
            None = each is a kind of its own.
        askable: Streams that can be asked for; None = all.
        sequences: Positions of streams that are shown from their start and asked for in order.

    Returns:
        Masks. Every row shows at least one token, and asks for at least one where its object has
        two or more (that can be asked for).

    Raises:
        ValueError: an object has no token at all.
    """
    num_streams = chance.stream.shape[2]
    member = torch.nn.functional.one_hot(stream_of_position, num_streams).double()
    sizes = available.double() @ member  # (batch, stream) tokens of each stream
    if not available.any(dim=1).all():
        empty = int((~available.any(dim=1)).nonzero()[0, 0])
        raise ValueError(f"object {empty} of the batch has no tokens")
    whole = available
    available = (
        available & ~_hidden(sizes > 0, kind_of_stream, config, chance)[:, stream_of_position]
    )
    hidden = whole & ~available
    if askable is not None:
        hidden &= askable[stream_of_position]
    sizes = available.double() @ member
    first = _one_of(sizes > 0, chance.stream[:, 0])  # the modality drawn first
    most = sizes.gather(1, first[:, None])[:, 0].clamp(max=config.num_input_tokens)
    num_first = (chance.number[:, 0] * most).floor() + 1  # uniform on 1 ... most
    to_leave = (~hidden.any(dim=1)).double()  # something must be left to ask for
    budget = (sizes.sum(dim=1) - to_leave).clamp(min=1, max=config.num_input_tokens)
    order = _ordered(chance.order[:, 0], available, sequences)
    chosen, inputs, input_valid = _draw(
        available, stream_of_position == first[:, None], order,
        num_first=torch.minimum(num_first, budget), budget=budget, most=config.num_input_tokens,
    )  # fmt: skip

    left = whole & ~chosen
    if askable is not None:
        left &= askable[stream_of_position]
    sizes = left.double() @ member
    first = _one_of(sizes > 0, chance.stream[:, 1])
    size_first = sizes.gather(1, first[:, None])[:, 0]
    share = betaincinv(config.target_alpha, config.target_beta, chance.number[:, 1].numpy())
    num_first = (torch.from_numpy(share) * size_first).ceil().clamp(min=1)
    budget = sizes.sum(dim=1).clamp(max=config.num_target_tokens)
    order = _ordered(chance.order[:, 1], left, sequences)
    if config.target_fill == "streams":
        order = _in_turns(order, left, stream_of_position)
    _, targets, target_valid = _draw(
        left, stream_of_position == first[:, None], order,
        num_first=torch.minimum(num_first, budget), budget=budget, most=config.num_target_tokens,
    )  # fmt: skip
    return Masks(inputs, input_valid, targets, target_valid)


def _draw(
    available: Bool[Tensor, "batch position"],
    of_first: Bool[Tensor, "batch position"],
    order: Float64[Tensor, "batch position"],
    *,
    num_first: Float[Tensor, " batch"],
    budget: Float[Tensor, " batch"],
    most: int,
) -> tuple[Bool[Tensor, "batch position"], Int[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
    """Take num_first tokens of one stream, then others up to the budget, the lowest first."""
    most = min(most, order.shape[1])
    of_first = available & of_first
    lowest = torch.where(of_first, order, 2.0).topk(most, dim=1, largest=False).values
    last = lowest.gather(1, (num_first.long() - 1).clamp(min=0)[:, None])
    kept = of_first & (order <= last)
    score = torch.where(available & ~of_first, order, torch.inf)
    score = torch.where(kept, order - 1, score)
    score, positions = score.topk(most, dim=1, largest=False)
    valid = score.isfinite() & (torch.arange(most) < budget[:, None])
    longest = max(int(valid.sum(dim=1).max()), 1)
    positions, valid = positions[:, :longest], valid[:, :longest]
    chosen = torch.zeros_like(available).scatter(1, positions, valid)
    return chosen, torch.where(valid, positions, 0), valid


def _in_turns(
    order: Float64[Tensor, "batch position"],
    available: Bool[Tensor, "batch position"],
    stream_of_position: Int[Tensor, " position"],
) -> Float64[Tensor, "batch position"]:
    """Numbers in [0, 1) by which streams take turns; within each the order stays."""
    turn = torch.zeros_like(order)
    for number in range(int(stream_of_position.max()) + 1):
        mine = stream_of_position == number
        of_stream = torch.where(available[:, mine], order[:, mine], 2.0)
        turn[:, mine] = of_stream.argsort(dim=1, stable=True).argsort(dim=1).double()
    return (turn + order) / (order.shape[1] + 1)


def _ordered(
    order: Float64[Tensor, "batch position"],
    available: Bool[Tensor, "batch position"],
    sequences: Sequence[slice],
) -> Float64[Tensor, "batch position"]:
    """The same numbers, but those of a sequence rise along it: it is taken from its start."""
    if not sequences:
        return order
    order = order.clone()
    for mine in sequences:
        there = available[:, mine]
        rising = torch.where(there, order[:, mine], 2.0).sort(dim=1).values
        rank = (there.cumsum(dim=1) - 1).clamp(min=0)
        order[:, mine] = rising.gather(1, rank)
    return order


def _hidden(
    present: Bool[Tensor, "batch stream"],
    kind_of_stream: Int[Tensor, " stream"] | None,
    config: MaskingConfig,
    chance: Chance,
) -> Bool[Tensor, "batch stream"]:
    """Streams that an object does not show; never all that it has."""
    if not config.hidden_share:
        return torch.zeros_like(present)
    num_streams = present.shape[1]
    kinds = torch.arange(num_streams) if kind_of_stream is None else kind_of_stream
    tossed = chance.stream[:, 2, kinds] < 0.5  # the number of a kind is one of its streams'
    hidden = tossed & (chance.number[:, 2] < config.hidden_share)[:, None]
    nothing_left = ~(present & ~hidden).any(dim=1)
    return hidden & ~nothing_left[:, None]


def _one_of(
    choices: Bool[Tensor, "batch choice"], chance: Float64[Tensor, "batch choice"]
) -> Int[Tensor, " batch"]:
    """One of the true columns of each row, evenly; 0 where there is none."""
    return torch.where(choices, chance, -1.0).argmax(dim=1)
