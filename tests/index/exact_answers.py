"""Indexes for tests on devices, and the exact answers by numpy that these are held to."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from index.exact_scan import NearRows


def unit(num: int, dim: int, seed: int) -> Float32[ndarray, "num dim"]:
    vectors = np.random.default_rng(seed).standard_normal((num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_numpy(
    queries: ndarray, vectors: ndarray, k: int, allowed: ndarray | None = None
) -> NearRows:
    """All cosines in double precision, sorted by score and then row."""
    wide = vectors.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    scores = (queries.astype(np.float64) @ wide.T).astype(np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for i, line in enumerate(scores):
        use = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
        order = use[np.lexsort((use, -line[use]))][:k]
        rows[i, : len(order)], best[i, : len(order)] = order, line[order]
    return NearRows(rows, best)


def recall(rows: Int64[ndarray, "query k"], truth: Int64[ndarray, "query n"]) -> float:
    """Share of the true rows that are among the candidates."""
    hits = [np.isin(t[t >= 0], r).sum() for r, t in zip(rows, truth, strict=True)]
    return float(sum(hits) / max(1, (truth >= 0).sum()))


def ivf(vectors: ndarray, *, lists: int = 16, key: str = "IVF{},SQ8") -> Any:
    """An index of FAISS over these vectors."""
    index: Any = faiss.index_factory(vectors.shape[1], key.format(lists))
    index.train(vectors)
    index.add(vectors)
    return index
