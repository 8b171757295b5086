"""Queries, their true neighbours with and without filters, and the vectors that peers index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from exact_neighbors import ExactNeighbors
from jaxtyping import Int64
from numpy import ndarray
from peers import K
from synthetic_vectors import ATTRIBUTES, Population, intrinsic_dimension, row_numbers

KINDS = dict(zip(("random", "correlated"), ATTRIBUTES, strict=True))
SELECTIVITIES = (0.5, 0.1, 0.01, 0.001, 0.0001)
_DEPTH = 20  # neighbours that the intrinsic dimension is estimated from


@dataclass(frozen=True, slots=True)
class Filter:
    """A predicate that takes a share of the rows."""

    kind: str  # of KINDS
    selectivity: float

    @property
    def predicate(self) -> str:
        """As a user would write it."""
        return f"{KINDS[self.kind]} < {self.selectivity}"


@dataclass(frozen=True, slots=True)
class Truth:
    """What a perfect index would answer."""

    rows: Int64[ndarray, "query k"]
    filtered: dict[Filter, Int64[ndarray, "some_query k"]]  # of the first queries
    intrinsic_dimension: float | None  # None: too few rows to tell


def all_filters() -> list[Filter]:
    """Every kind at every selectivity."""
    return [Filter(kind, share) for kind in KINDS for share in SELECTIVITIES]


def prepare(
    folder: Path,
    population: Population,
    *,
    num_rows: int,
    num_queries: int,
    num_more: int,
    num_filtered: int,
    filters: Sequence[Filter],
    with_vectors: bool,
) -> Truth:
    """Write queries.npy, and vectors.npy if asked for; find the true neighbours on the way.

    Args:
        folder: That is there.
        population: What rows and queries are drawn from.
        num_rows: To draw.
        num_queries: With true neighbours.
        num_more: Queries behind them, without.
        num_filtered: Queries, the first ones, that are filtered.
        filters: To find true neighbours for.
        with_vectors: Whether peers need the vectors as a file.
    """
    queries = population.queries(num_queries + num_more)
    np.save(folder / "queries.npy", queries)
    all_of_them = ExactNeighbors(queries[:num_queries], k=max(_DEPTH, K))
    some = queries[:num_filtered]
    of_filter = {each: ExactNeighbors(some, k=K) for each in filters}
    shape = (num_rows, population.dim)
    with open(folder / "vectors.npy", "wb") if with_vectors else nullcontext() as file:
        if file is not None:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        for block in population.blocks(num_rows):
            rows = row_numbers(block)
            all_of_them.add(rows, block.vectors)
            products = some @ block.vectors.T
            for each, neighbors in of_filter.items():
                passed = np.flatnonzero(block.attribute(KINDS[each.kind]) < each.selectivity)
                neighbors.add(rows[passed], block.vectors[passed], products[:, passed])
            if file is not None:
                file.write(block.vectors.tobytes())
    distances = all_of_them.distances
    return Truth(
        all_of_them.rows[:, :K],
        {each: neighbors.rows for each, neighbors in of_filter.items()},
        intrinsic_dimension(distances) if num_rows > 10 * _DEPTH else None,
    )
