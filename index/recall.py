"""Recall that is measured: how much a search has to look at to find what an exact scan finds.

A curve is measured when a version is made, on queries that are rows of the sky (each looks for its
neighbours, itself left out) and on directions: differences and sums of rows, as a classifier's
weights or a seed with a counter-example are. These point where no row is near, and need more. A
user asks for a recall; the cheapest effort that reached it when it was measured is taken.

What is close to rows and what is a direction is told by the best score found: below what all but a
hundredth of the measured rows had, a query counts as a direction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from pydantic import BaseModel, ConfigDict

from index.probing import Effort

EFFORTS = tuple(
    Effort(num_probes, depth)
    for num_probes in (2, 4, 8, 16, 32, 64, 128, 256, 512)
    for depth in (2, 4, 8, 16)
)
NUM_QUERIES = 256  # of each kind
DEPTHS = (10, 100)  # results that recall is measured at
ROWS_A_DIRECTION = 5  # added, and as many taken off

Candidates = Callable[[Float32[ndarray, "query dim"], int, Effort], Int64[ndarray, "query num"]]


class Point(BaseModel):
    """What one effort reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_probes: int
    depth: int
    recall_at_10: float
    recall_at_100: float
    p50_ms: float  # one query at a time, k = 10, on the machine that measured

    @property
    def effort(self) -> Effort:
        return Effort(self.num_probes, self.depth)


class RecallCurve(BaseModel):
    """What efforts reached in one view of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: str
    num_queries: int
    near: float  # best score that 99 % of the measured rows found
    rows: tuple[Point, ...]  # cheapest first
    directions: tuple[Point, ...]

    def effort(self, recall: float, *, direction: bool, k: int = 10) -> Effort | None:
        """The cheapest effort that reached a recall; None: only an exact scan does.

        Args:
            recall: From 0 to 1.
            direction: Whether the query points where no row is near.
            k: Results asked for; above 10 recall at 100 counts.

        Raises:
            ValueError: recall is not in (0, 1].
        """
        if not 0 < recall <= 1:
            raise ValueError(f"expected a recall above 0 and up to 1, got {recall}")
        points = self.directions if direction else self.rows
        for point in points:
            if (point.recall_at_10 if k <= 10 else point.recall_at_100) >= recall:
                return point.effort
        return None


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries with their exact answers."""

    vectors: Float32[ndarray, "query dim"]
    neighbours: Int64[ndarray, "query 100"]
    own: Int64[ndarray, " query"]  # the row that a query is; -1 for directions


def directions(rows: Float32[ndarray, "row dim"], num: int, *, seed: int) -> ndarray:
    """Unit sums of some rows less as many others."""
    rng = np.random.default_rng(seed)
    signs = np.repeat([1.0, -1.0], ROWS_A_DIRECTION)
    made = np.empty((num, rows.shape[1]), np.float32)
    for number in range(num):
        made[number] = signs @ rows[rng.integers(len(rows), size=len(signs))]
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def measure(
    view: str,
    candidates: Candidates,
    rows: Queries,
    along: Queries,
    *,
    near: float,
    efforts: Sequence[Effort] = EFFORTS,
) -> RecallCurve:
    """Measure a curve; efforts that cost more than another and reach less are left out.

    Args:
        view: That is searched.
        candidates: Rows that a search finds for queries, so many each, with an effort.
        rows: Rows of the view, with their neighbours but themselves.
        along: Directions.
        near: Best score that 99 % of rows find.
        efforts: To try.
    """
    return RecallCurve(
        view=view,
        num_queries=len(rows.vectors),
        near=near,
        rows=_front([_point(candidates, rows, effort) for effort in efforts]),
        directions=_front([_point(candidates, along, effort) for effort in efforts]),
    )


def _point(candidates: Candidates, queries: Queries, effort: Effort) -> Point:
    found = candidates(queries.vectors, max(DEPTHS) + 1, effort)
    seconds = []
    for query in queries.vectors[:64]:
        started = time.perf_counter()
        candidates(query[None], min(DEPTHS), effort)
        seconds.append(time.perf_counter() - started)
    at = {
        depth: recall_of(_without(found, queries.own)[:, :depth], queries.neighbours[:, :depth])
        for depth in DEPTHS
    }
    return Point(
        num_probes=effort.num_probes, depth=effort.depth,
        recall_at_10=at[10], recall_at_100=at[100], p50_ms=1e3 * float(np.median(seconds)),
    )  # fmt: skip


def _without(found: Int64[ndarray, "query n"], own: Int64[ndarray, " query"]) -> ndarray:
    """Rows found, less the query's own, in their order."""
    kept = found != own[:, None]
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, found, -1), order, axis=1)


def recall_of(found: Int64[ndarray, "query k"], expected: Int64[ndarray, "query k"]) -> float:
    """Share of the expected rows that were found; -1 pads both and never counts."""
    shares = [
        len(set(mine[mine >= 0].tolist()) & set(true[true >= 0].tolist()))
        / max((true >= 0).sum(), 1)
        for mine, true in zip(found, expected, strict=True)
    ]
    return float(np.mean(shares))


def _front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that no cheaper one matches, cheapest first."""
    kept: list[Point] = []
    at_10 = at_100 = -1.0
    for point in sorted(points, key=lambda each: (each.p50_ms, each.num_probes, each.depth)):
        if point.recall_at_10 > at_10 or point.recall_at_100 > at_100:
            kept.append(point)
            at_10 = max(at_10, point.recall_at_10)
            at_100 = max(at_100, point.recall_at_100)
    return tuple(kept)
