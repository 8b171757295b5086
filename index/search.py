"""Top-k over the segments of a view: filter, scan, merge.

Scores are cosines. Where rows are looked at one by one, a single-precision product finds the
candidates; where they are listed by a codec, their codes do. The scores of candidates are computed
again in double precision row by row, so that neither the batch of queries nor the order of rows
changes a score, and equal vectors tie exactly. Ties are ordered by key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from index.filtering import Filter, Live
from index.probing import Effort
from index.segment import RESIDENT_ROWS, Segment

_PRODUCT_SIZE = 1 << 24  # scores held at a time: queries x rows
_FEW_QUERIES = 4
_SLACK = 1e-5  # error of a single-precision product of unit vectors, generously
_FUSION = 60.0  # Cormack, Clarke & Buettcher 2009, SIGIR: reciprocal rank fusion


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Best-first objects. A row with fewer than k ends in key -1, score -inf."""

    keys: Int64[ndarray, "query k"]
    scores: Float32[ndarray, "query k"]


def unit_queries(queries: Float32[ndarray, "query dim"]) -> Float32[ndarray, "query dim"]:
    """Queries at unit length.

    Raises:
        ValueError: a query is zero or not finite.
    """
    length = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(length) & (length > 0)).ravel())[0])
        raise ValueError(
            f"query {bad} cannot be scaled to unit length: its length is {length[bad, 0]}"
        )
    return (queries / length).astype(np.float32)


def find(
    queries: Float32[ndarray, "query dim"],
    segments: Sequence[Live],
    *,
    k: int,
    chosen: Filter,
    effort: Effort | None = None,
) -> Neighbors:
    """The k objects of highest cosine to each unit query.

    Args:
        queries: Unit vectors.
        segments: Those of one view.
        k: At least 1.
        chosen: What may be found.
        effort: How far to look through the lists of segments that have some; None: look at every
            row.

    Returns:
        One line a query. An object with several rows counts with its best.
    """
    found: list[list[tuple[ndarray, ndarray]]] = [[] for _ in queries]
    for live in segments:
        segment = live.segment
        rows_of = chosen.of(live, exact=effort is None)
        num_best = k * segment.max_rows_per_object
        if rows_of.rows is None:
            assert effort is not None
            assert segment.lists is not None
            candidates = segment.lists.candidates(
                queries, num=num_best, effort=effort, allowed=rows_of.in_lists
            )
            for i, some in enumerate(candidates):
                rows = some[some >= 0]
                found[i].append(_scored(queries[i], segment, rows))
            continue
        for start in range(0, len(rows_of.rows), RESIDENT_ROWS):
            rows = rows_of.rows[start : start + RESIDENT_ROWS]
            _look_at(queries, segment, rows, num_best, found)
    neighbors = Neighbors(
        np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    )
    for i, pieces in enumerate(found):
        if pieces:
            keys = np.concatenate([piece[0] for piece in pieces])
            scores = np.concatenate([piece[1] for piece in pieces])
            _fill(neighbors, i, keys, scores)
    return neighbors


def _look_at(
    queries: Float32[ndarray, "query dim"],
    segment: Segment,
    rows: Int64[ndarray, " row"],
    num_best: int,
    found: list[list[tuple[ndarray, ndarray]]],
) -> None:
    """Add to what was found the best of some rows, for each query."""
    whole = slice(rows[0], rows[-1] + 1) if len(rows) and _consecutive(rows) else rows
    vectors, keys = segment.vectors(whole), segment.object_key[whole]
    if not len(rows):
        return
    step = max(1, _PRODUCT_SIZE // len(rows))
    for start in range(0, len(queries), step):
        products = _products(queries[start : start + step], vectors)
        for i, product in enumerate(products, start):
            found[i].append(_best(queries[i], vectors, keys, product, num_best))


def _consecutive(rows: Int64[ndarray, " row"]) -> bool:
    return int(rows[-1] - rows[0]) == len(rows) - 1


def _scored(
    query: Float32[ndarray, " dim"], segment: Segment, rows: Int64[ndarray, " row"]
) -> tuple[Int64[ndarray, " row"], Float64[ndarray, " row"]]:
    """Keys and exact scores of some rows."""
    vectors = segment.vectors(rows).astype(np.float64)
    return segment.object_key[rows], (vectors * query.astype(np.float64)).sum(axis=1)


def _products(
    queries: Float32[ndarray, "query dim"], vectors: Float32[ndarray, "row dim"]
) -> Float32[ndarray, "query row"]:
    if len(queries) > _FEW_QUERIES:
        return queries @ vectors.T
    # Bound by memory, so BLAS threads gain little, and waiting for a busy core costs them 8 ms.
    return np.stack([np.einsum("rd,d->r", vectors, query) for query in queries])


def _best(
    query: Float32[ndarray, " dim"],
    vectors: Float32[ndarray, "row dim"],
    keys: Int64[ndarray, " row"],
    product: Float32[ndarray, " row"],
    num_best: int,
) -> tuple[Int64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Keys and exact scores of every row that may be among the best."""
    if num_best < len(product):
        least = np.partition(product, len(product) - num_best)[len(product) - num_best]
        near = np.flatnonzero(product >= least - _SLACK)
    else:
        near = np.arange(len(product))
    scores = (vectors[near].astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    return keys[near], scores


def _fill(neighbors: Neighbors, i: int, keys: ndarray, scores: ndarray) -> None:
    scores = scores.astype(np.float32)
    order = np.lexsort((keys, -scores))
    first = np.sort(np.unique(keys[order], return_index=True)[1])  # each object once
    best = order[first][: neighbors.keys.shape[1]]
    neighbors.keys[i, : len(best)] = keys[best]
    neighbors.scores[i, : len(best)] = scores[best]


def fuse(views: Sequence[Neighbors], *, k: int) -> Neighbors:
    """Fuse the rankings of several views: the score is the sum of 1 / (60 + rank), ranks from 1.

    Cosines of two views are not comparable, ranks are. An object that a view does not have, or
    ranks below the depth that was searched, gets nothing from that view.
    """
    num_queries = len(views[0].keys)
    fused = Neighbors(
        np.full((num_queries, k), -1, np.int64), np.full((num_queries, k), -np.inf, np.float32)
    )
    for i in range(num_queries):
        keys = np.concatenate([view.keys[i] for view in views])
        gain = np.concatenate([1 / (_FUSION + 1 + np.arange(view.keys.shape[1])) for view in views])
        keys, gain = keys[keys >= 0], gain[keys >= 0]
        objects, place = np.unique(keys, return_inverse=True)
        _fill(fused, i, objects, np.bincount(place, weights=gain, minlength=len(objects)))
    return fused
