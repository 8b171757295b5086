"""How codes are drawn: how many tokens a step, how boldly, and from which random numbers.

Every sample of every object has random numbers of its own, from (seed, name, number of the sample)
alone, so that neither the batch nor the order of the objects changes what is drawn.

Source: random-order decoding as in 4M (arXiv 2312.06647) and AION-1 (arXiv 2510.17960); the cosine
schedule is MaskGIT's (arXiv 2202.04200), nucleus sampling that of arXiv 1904.09751.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.random import Generator
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from training.transformer import DecoderMask

Schedule = Literal["cosine", "linear", "at-once"]
DEFAULT_STEPS = 16


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SamplingConfig:
    """How missing tokens are drawn.

    Raises:
        ValueError: a value is out of range, or several steps are asked for at once.
    """

    schedule: Schedule = "cosine"  # few tokens first and many last; as many in each step; one step
    num_steps: int | None = None  # None: 16, or 1 with "at-once"; fewer where tokens are fewer
    temperature: float = 1.0  # below 1 sharpens, above 1 flattens
    top_p: float = 1.0  # only the likeliest codes that make up this share of the probability
    num_samples: int = 1  # of each object
    seed: int = 0
    mask: DecoderMask = "training"  # who sees whom in the decoder

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and be at most 1, got {self.top_p}")
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps must be 1 or more, got {self.num_steps}")
        if self.schedule == "at-once" and self.num_steps not in (None, 1):
            raise ValueError(f'schedule "at-once" is one step, got num_steps {self.num_steps}')
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be 1 or more, got {self.num_samples}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def tokens_per_step(self, num_tokens: int) -> tuple[int, ...]:
        """How many tokens each step draws, at least one; together `num_tokens`."""
        steps = 1 if self.schedule == "at-once" else self.num_steps or DEFAULT_STEPS
        done = [step / steps for step in range(1, steps + 1)]
        if self.schedule == "cosine":
            done = [1 - math.cos(math.pi / 2 * share) for share in done[:-1]] + [1.0]
        ends = [0, *(round(num_tokens * share) for share in done)]
        counts = (after - before for before, after in pairwise(ends))
        return tuple(count for count in counts if count)


def random_numbers(seed: int, name: str, sample: int) -> Generator:
    """The random numbers of one sample of one object."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
    return np.random.default_rng(np.random.SeedSequence([seed, sample, *words.tolist()]))


def log_probabilities(
    logits: Float[Tensor, "n code"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    allowed: Bool[Tensor, "n code"] | None = None,
) -> Float[Tensor, "n code"]:
    """What codes are drawn from, in natural logarithm; -infinity where never.

    The nucleus is that of the model's own probabilities, and the temperature acts within it, as in
    the reference package. It is the smallest set of likeliest codes that reaches `top_p`.

    Args:
        logits: Scores of all codes.
        temperature: What they are divided by.
        top_p: Share of the probability that the nucleus must reach.
        allowed: Codes that there are; None = all.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    logits = logits.float()
    if not torch.isfinite(logits).all():
        raise ValueError("the model gave NaN or infinite scores: its weights or tokens are damaged")
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if top_p < 1:
        ordered, order = logits.double().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        beyond[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    return (logits / temperature).log_softmax(dim=-1)


def draw(
    log_probability: Float[Tensor, "n code"], noise: Float[Tensor, "n code"]
) -> Int64[Tensor, " n"]:
    """One code a row, given standard exponential noise.

    The code whose waiting time is shortest, at a rate that is its probability. A rounding of the
    probabilities changes the outcome only where two codes are as near as that.
    """
    return (log_probability - noise.log()).argmax(dim=-1)
