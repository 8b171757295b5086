"""Top-k over the segments of a view: filter, scan, merge.

Scores are cosines. Where rows are looked at one by one, a product of the stored numbers finds the
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
from index.segment import Segment, unit_rows

SMALLEST_SUM = 1e-3  # of unit vectors; below it only the rounding of float16 vectors is left
_PRODUCT_SIZE = 1 << 24  # scores held at a time: queries x rows
_BLOCK_ROWS = 1 << 16  # vectors held at a time
_FEW_QUERIES = 16  # up to here a scan by FAISS is faster than a product of blocks
_GATHERED = 1 << 14  # vectors held at a time
_SLACK = 1e-5  # error of a single-precision product of unit vectors, generously
_TINY = float(np.finfo(np.float64).tiny)
_FUSION = 60.0  # Cormack, Clarke & Buettcher 2009, SIGIR: reciprocal rank fusion


# Keys and double-precision scores, of one query or of several.
Scored = tuple[ndarray, ndarray]


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
    wide = queries.astype(np.float64)
    length = np.sqrt(np.vecdot(wide, wide))
    # one by one, which is quicker than numpy for a query or two; NaN is neither
    if not all(0 < each < np.inf for each in length.tolist()):
        bad = int((np.isfinite(length) & (length > 0)).argmin())
        raise ValueError(
            f"query {bad} cannot be scaled to unit length: its length is {length[bad]}"
        )
    return (wide / length[:, None]).astype(np.float32)


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
    found: list[Scored] = []
    distinct = len(segments) == 1
    for live in segments:
        segment = live.segment
        distinct &= segment.max_rows_per_object <= 1
        rows_of = chosen.of(live, exact=effort is None and not segment.on_device)
        num_best = k * segment.max_rows_per_object
        if rows_of.listed:
            assert segment.lists is not None
            rows = segment.lists.candidates(
                queries, num=num_best, effort=effort, allowed=rows_of.in_lists
            )
            found.append(_scored(queries, segment, rows))
        elif len(queries) <= _FEW_QUERIES:
            rows = segment.mapped.candidates(queries, num_best, rows=rows_of.rows)
            found.append(_scored(queries, segment, rows))
        else:
            found.append(_looked_at(queries, segment, rows_of.rows, num_best))
    if not found:
        return nothing(len(queries), k)
    if distinct:
        return _first(*found[0], k=k)
    keys, scores = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return ranked(keys, scores, k=k)


def _looked_at(
    queries: Float32[ndarray, "query dim"],
    segment: Segment,
    rows: Int64[ndarray, " row"] | None,
    num_best: int,
) -> Scored:
    """The best of some rows, or of all, for each of many queries, by products of blocks."""
    num_rows = segment.num_rows if rows is None else len(rows)
    wide = queries.astype(np.float64)
    found: list[list[Scored]] = [[] for _ in queries]
    best = np.full((len(queries), num_best), -np.inf)  # scores so far
    least = np.full(len(queries), -np.inf, np.float32)  # score that so many rows reach at least
    for start in range(0, num_rows, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, num_rows)
        if rows is None:
            here: slice | ndarray = slice(start, stop)
            stored = segment.mapped.stored[start:stop]
        else:
            here = rows[start:stop]
            stored = segment.mapped.rows(here, of=len(rows))
        keys = segment.object_key[here]
        vectors = unit_rows(stored)
        step = max(1, _PRODUCT_SIZE // len(vectors))
        for first in range(0, len(queries), step):
            products = queries[first : first + step] @ vectors.T
            some = slice(first, first + len(products))
            if num_best <= len(vectors) and not np.isfinite(least[some]).all():
                place = len(vectors) - num_best
                least[some] = np.partition(products, place, axis=1)[:, place]
            line, near = np.nonzero(products >= (least[some] - np.float32(_SLACK))[:, None])
            ends = np.cumsum(np.bincount(line, minlength=len(products)))[:-1]
            for i, places in enumerate(np.split(near, ends), first):
                if len(places):
                    scores = _cosines(wide[i], stored[places].astype(np.float64))
                    found[i].append((keys[places], scores))
                    best[i] = np.partition(np.append(best[i], scores), len(scores))[len(scores) :]
            least[some] = np.maximum(least[some], best[some].min(axis=1))
    if not num_rows:
        return np.full((len(queries), 0), -1), np.full((len(queries), 0), -np.inf)
    return _padded(found)


def _scored(
    queries: Float32[ndarray, "query dim"], segment: Segment, rows: Int64[ndarray, "query n"]
) -> Scored:
    """Keys and exact scores of some rows for each query, -1 and -inf where the row is -1."""
    stored, wide = segment.mapped.scattered, queries.astype(np.float64)
    scores = np.empty(rows.shape)
    step = max(1, _GATHERED // max(rows.shape[1], 1))
    for start in range(0, len(queries), step):
        here = slice(start, start + step)
        vectors = stored.take(rows[here], axis=0, mode="wrap")  # (query, n, dim); any for -1
        scores[here] = _cosines(wide[here, None], vectors.astype(np.float64))
    if -1 not in rows[:, -1:].ravel().tolist():  # which comes after all that was found
        return segment.object_key[rows], scores
    there = rows >= 0
    return np.where(there, segment.object_key[rows], -1), np.where(there, scores, -np.inf)


def _cosines(
    queries: Float64[ndarray, "*#batch dim"], vectors: Float64[ndarray, "*#batch dim"]
) -> Float64[ndarray, "*batch"]:
    """Of unit queries and stored vectors, the same in any batch."""
    squares = np.vecdot(vectors, vectors)
    cosines: ndarray = np.vecdot(queries, vectors) / np.sqrt(np.maximum(squares, _TINY))
    return cosines


def _padded(pieces: Sequence[Sequence[Scored]]) -> Scored:
    """What was found for each query, in lines of one length."""
    joined = [[np.concatenate(part) for part in zip(*some, strict=True)] for some in pieces]
    longest = max(len(keys) for keys, _ in joined)
    keys = np.full((len(joined), longest), -1, np.int64)
    scores = np.full((len(joined), longest), -np.inf)
    for i, (some_keys, some_scores) in enumerate(joined):
        keys[i, : len(some_keys)], scores[i, : len(some_keys)] = some_keys, some_scores
    return keys, scores


def ranked(
    keys: Int64[ndarray, "query n"], scores: Float64[ndarray, "query n"], *, k: int
) -> Neighbors:
    """The best k objects of each query, each once and with its best score; ties by key.

    Args:
        keys: -1 for none.
        scores: -inf for none.
        k: At least 1.
    """
    best = scores.astype(np.float32)
    order = np.lexsort((keys, -best), axis=1)
    keys, best = np.take_along_axis(keys, order, 1), np.take_along_axis(best, order, 1)
    by_key = np.argsort(keys, axis=1, kind="stable")
    in_order = np.take_along_axis(keys, by_key, 1)
    again = np.zeros(keys.shape, bool)
    np.put_along_axis(again, by_key[:, 1:], in_order[:, 1:] == in_order[:, :-1], 1)
    kept = np.argsort(again | (keys < 0), axis=1, kind="stable")[:, :k]
    found = nothing(len(keys), k)
    none = np.take_along_axis(again | (keys < 0), kept, 1)
    found.keys[:, : kept.shape[1]] = np.where(none, -1, np.take_along_axis(keys, kept, 1))
    found.scores[:, : kept.shape[1]] = np.where(
        none, np.float32(-np.inf), np.take_along_axis(best, kept, 1)
    )
    return found


def _first(
    keys: Int64[ndarray, "query n"], scores: Float64[ndarray, "query n"], *, k: int
) -> Neighbors:
    """As `ranked`, of objects that differ: several times quicker for a few."""
    best = scores.astype(np.float32)
    order = np.lexsort((keys, -best), axis=1)[:, :k]
    line = np.arange(len(keys))[:, None]
    found = Neighbors(keys[line, order], best[line, order])
    if keys.shape[1] >= k:
        return found
    padded = nothing(len(keys), k)
    padded.keys[:, : keys.shape[1]], padded.scores[:, : keys.shape[1]] = found.keys, found.scores
    return padded


def nothing(num_queries: int, k: int) -> Neighbors:
    """Lines without an object."""
    keys = np.full((num_queries, k), -1, np.int64)
    return Neighbors(keys, np.full((num_queries, k), -np.inf, np.float32))


def without(neighbors: Neighbors, keys: Int64[ndarray, " excluded"], *, k: int) -> Neighbors:
    """The first k of each query that are none of these objects."""
    if not len(keys):
        if neighbors.keys.shape[1] == k:
            return neighbors
        return Neighbors(neighbors.keys[:, :k], neighbors.scores[:, :k])
    dropped = np.isin(neighbors.keys, keys)
    order = np.argsort(dropped, axis=1, kind="stable")[:, :k]
    kept = Neighbors(
        np.take_along_axis(np.where(dropped, -1, neighbors.keys), order, axis=1),
        np.take_along_axis(np.where(dropped, np.float32(-np.inf), neighbors.scores), order, axis=1),
    )
    return kept


def fuse(views: Sequence[Neighbors], *, k: int) -> Neighbors:
    """Fuse the rankings of several views: the score is the sum of 1 / (60 + rank), ranks from 1.

    Cosines of two views are not comparable, ranks are. An object that a view does not have, or
    ranks below the depth that was searched, gets nothing from that view.
    """
    fused = nothing(len(views[0].keys), k)
    for i in range(len(fused.keys)):
        keys = np.concatenate([view.keys[i] for view in views])
        gain = np.concatenate([1 / (_FUSION + 1 + np.arange(view.keys.shape[1])) for view in views])
        keys, gain = keys[keys >= 0], gain[keys >= 0]
        objects, place = np.unique(keys, return_inverse=True)
        gained = np.bincount(place, weights=gain, minlength=len(objects))
        if len(objects):
            one = ranked(objects[None], gained[None], k=k)
            fused.keys[i], fused.scores[i] = one.keys[0], one.scores[0]
    return fused
