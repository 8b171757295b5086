"""How far a run is, and what the learning rate is there.

A run ends with what runs out first, its steps or its seconds, and the cosine ends with it.
"""

from __future__ import annotations

import math

_LOWEST = 1e-4  # share of the run that the very first step counts as done


def share_done(step: int, seconds: float, *, steps: int, max_seconds: float | None) -> float:
    """The share of a run that is done, 1 or more at its end."""
    time_share = 0.0 if max_seconds is None else seconds / max_seconds
    return max(step / steps, time_share)


def rate_share(done: float, warmup_share: float) -> float:
    """The learning rate as a share of its peak: linear up to 1, then a cosine to 0."""
    if done < warmup_share:
        return max(done, _LOWEST) / warmup_share
    return 0.5 * (1 + math.cos(math.pi * (min(done, 1.0) - warmup_share) / (1 - warmup_share)))


def warm_cosine(step: int, warmup_steps: int, done: float) -> float:
    """The learning rate as a share of its peak: a cosine to 0 from the start, times a warm-up.

    Args:
        step: From 1.
        warmup_steps: Steps until the warm-up is over.
        done: The share of the run that is done; above 1 it counts as 1.
    """
    return min(step / warmup_steps, 1.0) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
