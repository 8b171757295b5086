"""Recall that is measured: how much a search has to look at to find what an exact scan finds.

A curve is measured when a version is made, on queries that are rows of the sky (each looks for its
neighbours, itself left out) and on directions: differences and sums of rows, as a classifier's
weights or a seed with a counter-example are. These point where no row is near, and need more. A
user asks for a recall; the cheapest effort that reached it when it was measured is taken.

What is close to rows and what is a direction is told by the best score found (`told_apart`). A
recall counts as reached where it was by more than its standard error, for it was measured on some
hundred queries, and the cheapest of many that seem to reach it is one that was lucky.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from pydantic import BaseModel, ConfigDict

from index.asked_recall import DEFAULT_RECALL, check_recall
from index.probing import LOOK_COST, Effort

EFFORTS = tuple(
    Effort(num_probes, depth)
    for depth in (2, 4, 8, 16)
    for num_probes in (4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 128, 256, 512, 1024)
)
ENOUGH = 0.999  # recall at which more lists are not tried with the same depth
HARDLY_MORE = 0.0005
NUM_QUERIES = 512  # of each kind
NUM_LONG = 128  # of them, asked for the most results, which costs ten times as much
NUM_TIMED = 32  # of them, one at a time
NUM_TURNS = 3  # so often
DEPTHS = (10, 100)  # results that recall is measured at
ROWS_A_DIRECTION = 5  # added, and as many taken off

# What a search finds for queries, so many each, with an effort: rows or objects, -1 after the last.
Candidates = Callable[[Float32[ndarray, "query dim"], int, Effort], Int64[ndarray, "query num"]]


class Point(BaseModel):
    """What one effort reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_probes: int
    depth: int
    recall_at_10: float
    recall_at_100: float
    error_at_10: float = 0.0  # standard error over the queries
    error_at_100: float = 0.0
    p50_ms: float  # of CPU, one query at a time, k = 10, on the machine that measured

    @property
    def effort(self) -> Effort:
        return Effort(self.num_probes, self.depth)

    def reaches(self, recall: float | int, *, k: int = 10) -> bool:
        """Whether it reached a recall by more than the error; above k of 10 that at 100 counts."""
        if k <= 10:
            return self.recall_at_10 - self.error_at_10 >= recall
        return self.recall_at_100 - self.error_at_100 >= recall


class RecallCurve(BaseModel):
    """What efforts reached in one view of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: str
    codec_hash: str  # of the codec that it was measured with
    num_rows: int  # live rows of the view then
    num_changed: int = 0  # rows that came or went since
    num_queries: int  # of each kind
    near: float  # best score below which a query counts as a direction
    rows: tuple[Point, ...]  # cheapest first
    directions: tuple[Point, ...]

    def carried(self, num_changed: int) -> RecallCurve:
        """The same curve in a version with so many rows more or less than the one before."""
        return self.model_copy(update={"num_changed": self.num_changed + num_changed})

    def text(self, recall: float | int = DEFAULT_RECALL) -> str:
        """One line for people: the effort for a recall, and what it reached."""
        for name, points in (("rows", self.rows), ("directions", self.directions)):
            if not any(each.reaches(recall) for each in points):
                return f"no effort reaches recall {recall} for {name}: every row is looked at"
        point = next(each for each in self.rows if each.reaches(recall))
        return (
            f"{point.num_probes} lists, {point.depth} candidates a result: recall@10 "
            f"{point.recall_at_10:.4f}, {point.p50_ms:.2f} ms"
        )

    def recall_at_10(self, recall: float | int) -> float:
        """What rows reached at the effort for a recall; 1 where every row is looked at."""
        for point in self.rows:
            if point.reaches(recall):
                return point.recall_at_10
        return 1.0

    def effort(self, recall: float | int, *, direction: bool, k: int = 10) -> Effort | None:
        """The cheapest effort that reached a recall; None: only an exact scan does.

        Args:
            recall: From 0 to 1.
            direction: Whether the query points where no row is near.
            k: Results asked for. Above 10 recall at 100 counts; above 100, where nothing was
                measured, lists grow with k, up to where as many rows would be compared by their
                vectors that a scan of all is as quick.

        Raises:
            ValueError: recall is not in (0, 1].
        """
        check_recall(recall)
        points = self.directions if direction else self.rows
        for point in points:
            if point.reaches(recall, k=k):
                return self._for_results(point, k)
        return None

    def _for_results(self, point: Point, k: int) -> Effort | None:
        hundreds = -(-k // max(DEPTHS))
        if hundreds > 1 and LOOK_COST * point.depth * k >= self.num_rows:
            return None
        return Effort(point.num_probes * max(hundreds, 1), point.depth)


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
    length = np.linalg.norm(made, axis=1, keepdims=True)
    # of few rows the same may be drawn on both sides, which leaves nothing
    made = np.where(length > 0, made, rows[:1])
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def told_apart(rows: Float32[ndarray, " query"], along: Float32[ndarray, " direction"]) -> float:
    """The best score below which a query counts as a direction.

    Half-way between what 99 % of directions stay below and what 99 % of rows reach; the latter
    where the two overlap.

    Args:
        rows: Best score of each measured row, itself left out.
        along: Best score of each measured direction.
    """
    reached, stay_below = float(np.quantile(rows, 0.01)), float(np.quantile(along, 0.99))
    return min(reached, (reached + stay_below) / 2)


def measure(
    view: str,
    candidates: Candidates,
    rows: Queries,
    along: Queries,
    *,
    near: float,
    codec_hash: str,
    num_rows: int,
    efforts: Sequence[Effort],
) -> RecallCurve:
    """Measure a curve; efforts that cost more than another and reach less are left out.

    Args:
        view: That is searched.
        candidates: Rows that a search finds for queries, so many each, with an effort.
        rows: Rows of the view, with their neighbours but themselves.
        along: Directions.
        near: From `told_apart`.
        codec_hash: Of the codec that is searched with.
        num_rows: Live rows of the view.
        efforts: To try, of each depth the fewest lists first.
    """
    return RecallCurve(
        view=view,
        codec_hash=codec_hash,
        num_rows=num_rows,
        num_queries=len(rows.vectors),
        near=near,
        rows=_front(_points(candidates, rows, efforts)),
        directions=_front(_points(candidates, along, efforts)),
    )


def _points(candidates: Candidates, queries: Queries, efforts: Sequence[Effort]) -> list[Point]:
    """Efforts measured; more lists of the same depth only while they find more."""
    points: list[Point] = []
    for effort in efforts:
        same_depth = [each for each in points if each.depth == effort.depth]
        if not _is_enough(same_depth):
            points.append(_point(candidates, queries, effort))
    return _timed(candidates, queries, points)


def _timed(candidates: Candidates, queries: Queries, points: Sequence[Point]) -> list[Point]:
    """What each effort costs. They take turns, and the best turn counts, as machines are shared."""
    best = dict.fromkeys((point.effort for point in points), float("inf"))
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # others would wait for work, which is CPU time too
    try:
        for _ in range(NUM_TURNS):
            for effort in best:
                seconds = []
                for query in queries.vectors[:NUM_TIMED]:
                    started = time.process_time()  # without what else the machine does
                    candidates(query[None], min(DEPTHS), effort)
                    seconds.append(time.process_time() - started)
                best[effort] = min(best[effort], float(np.median(seconds)))
    finally:
        faiss.omp_set_num_threads(num_threads)
    return [point.model_copy(update={"p50_ms": 1e3 * best[point.effort]}) for point in points]


def _is_enough(points: Sequence[Point]) -> bool:
    """Whether all is found, or twice the lists hardly found more."""
    if not points:
        return False
    last = points[-1]
    if min(last.recall_at_10, last.recall_at_100) >= ENOUGH:
        return True
    half = [each for each in points if 2 * each.num_probes <= last.num_probes]
    if not half:
        return False
    more_at_10 = last.recall_at_10 - half[-1].recall_at_10
    return max(more_at_10, last.recall_at_100 - half[-1].recall_at_100) < HARDLY_MORE


def _point(candidates: Candidates, queries: Queries, effort: Effort) -> Point:
    at: dict[int, ndarray] = {}
    for depth, num in zip(DEPTHS, (NUM_QUERIES, NUM_LONG), strict=True):
        # one more, for a row finds itself; as many as a user asks for, as more are found better
        found = without(candidates(queries.vectors[:num], depth + 1, effort), queries.own[:num])
        at[depth] = shares_of(found[:, :depth], queries.neighbours[:num, :depth])
    error = {depth: float(each.std() / np.sqrt(len(each))) for depth, each in at.items()}
    return Point(
        num_probes=effort.num_probes, depth=effort.depth,
        recall_at_10=float(at[10].mean()), recall_at_100=float(at[100].mean()),
        error_at_10=error[10], error_at_100=error[100], p50_ms=float("nan"),
    )  # fmt: skip


def without(found: Int64[ndarray, "query n"], own: Int64[ndarray, " query"]) -> ndarray:
    """Rows found, less the query's own, in their order."""
    kept = found != own[:, None]
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, found, -1), order, axis=1)


def recall_of(found: Int64[ndarray, "query k"], expected: Int64[ndarray, "query k"]) -> float:
    """Share of the expected rows that were found; -1 pads both and never counts."""
    return float(shares_of(found, expected).mean())


def shares_of(
    found: Int64[ndarray, "query k"], expected: Int64[ndarray, "query k"]
) -> Float64[ndarray, " query"]:
    """Share of the expected rows that were found, of each query; 1 where none is expected.

    -1 pads and never counts.
    """
    # rows of one query never meet those of another
    offset = (max(found.max(initial=0), expected.max(initial=0)) + 1) * np.arange(len(found))
    mine, true = found + offset[:, None], expected + offset[:, None]
    hits = np.isin(true, mine[found >= 0]) & (expected >= 0)
    num_expected = (expected >= 0).sum(axis=1)
    return np.where(num_expected, hits.sum(axis=1) / np.maximum(num_expected, 1), 1.0)


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
