"""The true nearest neighbours of queries, found block by block: what recall is measured against.

A single-precision product finds every row that may be among the best; their cosines are computed
again in double precision. Ties go to the lower row. Needs numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64
    from numpy import ndarray

_SLACK = 1e-5  # error of a single-precision product of unit vectors, generously


class ExactNeighbors:
    """The k best rows so far of each query.

    Attributes:
        rows: (query, k), best first; -1 where fewer rows were seen.
        scores: (query, k), cosines; -inf where there is no row.
    """

    def __init__(self, queries: Float32[ndarray, "query dim"], *, k: int) -> None:
        self.queries = queries
        self.rows: Int64[ndarray, "query k"] = np.full((len(queries), k), -1, np.int64)
        self.scores: Float64[ndarray, "query k"] = np.full((len(queries), k), -np.inf)

    def add(
        self,
        rows: Int64[ndarray, " row"],
        vectors: Float32[ndarray, "row dim"],
        products: Float32[ndarray, "query row"] | None = None,
    ) -> None:
        """Take more rows into account.

        Args:
            rows: Their numbers, none of which was given before.
            vectors: Unit vectors.
            products: queries @ vectors.T where the caller has it.
        """
        if not len(rows):
            return
        if products is None:
            products = self.queries @ vectors.T
        k = self.rows.shape[1]
        least = self.scores[:, -1].copy()  # a row below it is of no use
        if k < len(rows):
            new = np.isneginf(least)
            least[new] = np.partition(products[new], len(rows) - k, axis=1)[:, len(rows) - k]
        query, place = np.nonzero(products >= (least - _SLACK)[:, None].astype(np.float32))
        scores = np.einsum(
            "nd,nd->n", vectors[place].astype(np.float64), self.queries[query].astype(np.float64)
        )
        bounds = np.searchsorted(query, np.arange(len(self.queries) + 1))
        for i in np.unique(query).tolist():
            here = slice(bounds[i], bounds[i + 1])
            all_rows = np.concatenate([self.rows[i], rows[place[here]]])
            all_scores = np.concatenate([self.scores[i], scores[here]])
            best = np.lexsort((all_rows, -all_scores))[:k]
            self.rows[i], self.scores[i] = all_rows[best], all_scores[best]

    @property
    def distances(self) -> Float64[ndarray, "query k"]:
        """Euclidean distances between unit vectors."""
        return np.sqrt(np.maximum(2 - 2 * self.scores, 0))


def recall(
    found: Int64[ndarray, "query k"], truth: Int64[ndarray, "query k"]
) -> Float64[ndarray, " query"]:
    """Share of the true rows that were found; NaN where there are none. -1 stands for no row."""
    hits = [len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, truth, strict=True)]
    num_true = (truth >= 0).sum(axis=1)
    return np.where(num_true > 0, np.array(hits) / np.maximum(num_true, 1), np.nan)
