"""Filters where FAISS's lists may not obey them: fetch more, take out, and scan what is left over.

FAISS's own GPU kernels take a selector of rows and, as their sources read, never look at it.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray
from torch import Tensor

from index.exact_scan import exact_search
from index.gpu import MAX_K, DeviceIndex

OVERFETCH = 2.0  # rows fetched for each that a filter lets through, where filters come afterwards
EXACT_ROWS = 20_000  # so few allowed rows are scanned


def search_allowed(
    index: DeviceIndex,
    queries: Float32[ndarray, "query dim"],
    vectors: ndarray | Tensor,
    *,
    k: int,
    nprobe: int,
    allowed: Bool[ndarray, " row"] | None,
) -> Int64[ndarray, "query k"]:
    """The k nearest allowed rows, whether or not the index obeys selectors.

    More lists are probed the fewer rows are allowed. An index that does not obey is asked for more
    rows than k and what is not allowed is taken out; the first k that are left are then the k
    nearest allowed ones. Few allowed rows are scanned exactly, and so are they all for queries that
    end with fewer than k, and for k or nprobe above what a GPU takes.

    Args:
        index: It holds the codes of `vectors`.
        queries: Unit vectors.
        vectors: (row, dim), for exact scans.
        k: At least 1.
        nprobe: Lists that are enough without a filter.
        allowed: By row; None allows all.

    Returns:
        Rows, best first as the codes tell, then -1 where fewer than k are allowed.
    """
    rows = np.full((len(queries), k), -1, np.int64)
    num_rows = len(vectors)
    num_allowed = num_rows if allowed is None else int(np.count_nonzero(allowed))
    if not num_allowed:
        return rows
    share = num_allowed / num_rows
    obeys = allowed is None or index.obeys_selectors
    depth = k if obeys else math.ceil(OVERFETCH * k / share)
    few = allowed is not None and num_allowed <= EXACT_ROWS
    if not few and depth <= MAX_K and nprobe <= MAX_K:
        lists = min(math.ceil(nprobe / share), MAX_K)
        if allowed is None or index.obeys_selectors:
            rows = index.search(queries, k=k, nprobe=lists, allowed=allowed)
        else:
            rows = first_allowed(index.search(queries, k=depth, nprobe=lists), allowed, k)
    short = (rows >= 0).sum(axis=1) < min(k, num_allowed)
    if short.any():
        exact = exact_search(queries[short], vectors, k=k, allowed=allowed, device=index.device)
        rows[short] = exact.rows
    return rows


def first_allowed(
    found: Int64[ndarray, "query n"], allowed: Bool[ndarray, " row"], k: int
) -> Int64[ndarray, "query k"]:
    """Of the rows found for each query the first k that are allowed, then -1."""
    keep = (found >= 0) & allowed[found]  # row -1 is the last, and masked before
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    rows = np.take_along_axis(found, order, axis=1)
    return np.where(np.take_along_axis(keep, order, axis=1), rows, -1)
