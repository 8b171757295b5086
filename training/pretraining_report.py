"""What a training run says of itself: where it is after a step, and what it reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingReport:
    """What a run reached. Losses are cross-entropies in nats a token, on held-out objects."""

    steps: int
    seconds: float
    objects_per_second: float
    tokens_per_second: float
    mfu: float  # of the last stretch between two lines of the curve
    data_wait: float  # share of that time
    world_size: int
    loss: Mapping[str, float]  # stream -> loss; streams that never came are absent

    def perplexity(self) -> dict[str, float]:
        """exp(loss): among how many equally likely codes the model is left to choose."""
        return {key: math.exp(value) for key, value in self.loss.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is after a step."""

    done: float  # share of the run, 1 at its end
    step: int
    loss: float  # of this step, of this process's objects
    seconds_left: float
    streams: Mapping[str, float]  # losses, means up to the last line of the curve
    tokens_per_second: float  # 0 before the first line
    mfu: float
