"""Recall and speed of one engine against search effort, and what they are at a recall asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from exact_neighbors import recall
from jaxtyping import Int64
from numpy import ndarray


@dataclass(frozen=True, slots=True)
class Point:
    """One effort."""

    effort: Any  # a number, a pair, or None for the default
    recall: float  # at 10, mean over queries
    p50_ms: float
    p99_ms: float
    queries_per_second: float  # one after the other, one thread
    num_queries: int

    def line(self) -> dict[str, Any]:
        """As the document has it."""
        return {
            "effort": self.effort,
            "recall@10": self.recall,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "qps": self.queries_per_second,
            "queries": self.num_queries,
        }


def point(
    effort: Any,
    rounds: Sequence[Sequence[float]],
    found: Sequence[Sequence[int]],
    truth: Int64[ndarray, "query k"],
) -> Point:
    """A point from several rounds of the same queries; the round of most queries a second counts.

    Args:
        effort: Of the search.
        rounds: Milliseconds of each query, a round each; the first queries of `truth` were asked.
        found: Row numbers found, for each query of the first round.
        truth: The k nearest.
    """
    rates = [1000 * len(times) / sum(times) for times in rounds]
    best = np.array(rounds[int(np.argmax(rates))])
    return Point(
        effort=effort,
        recall=mean_recall(found, truth),
        p50_ms=float(np.percentile(best, 50)),
        p99_ms=float(np.percentile(best, 99)),
        queries_per_second=max(rates),
        num_queries=len(found),
    )


def mean_recall(found: Sequence[Sequence[int]], truth: Int64[ndarray, "query k"]) -> float:
    """Mean over the queries that have a true neighbour; NaN where none has."""
    k = truth.shape[1]
    padded = np.array([[*rows, *[-1] * k][:k] for rows in found], np.int64)
    each = recall(padded, truth[: len(padded)])
    return float(np.nan) if np.isnan(each).all() else float(np.nanmean(each))


def rate_at(points: Sequence[Point], wanted: float) -> float | None:
    """Queries a second at a recall, between the two efforts around it.

    Only efforts count that no other beats in both recall and speed. Between two of them the
    logarithm of the rate is taken as linear in recall. Where the quickest effort already reaches
    more recall its rate is given, for nothing says how much quicker less would be; None where no
    effort reaches it.
    """
    best: list[Point] = []
    for each in sorted(points, key=lambda one: (-one.recall, -one.queries_per_second)):
        if not best or each.queries_per_second > best[-1].queries_per_second:
            best.append(each)  # from thorough to quick
    above = [each for each in best if each.recall >= wanted]
    below = [each for each in best if each.recall < wanted]
    if not above:
        return None
    if not below:
        return above[-1].queries_per_second
    slow, quick = above[-1], below[0]
    share = (wanted - slow.recall) / (quick.recall - slow.recall)
    rates = np.log([slow.queries_per_second, quick.queries_per_second])
    return float(np.exp(rates[0] + share * (rates[1] - rates[0])))
