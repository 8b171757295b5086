"""Search vectors of a sky that never was, as many as are asked for, a block at a time.

About 3,000 clusters whose sizes follow a power law lie in a latent space of 30 dimensions; a
tanh network bends it into the search space; isotropic noise of a tenth of the signal is added and
everything scaled to unit length. Among a million vectors of 256 dimensions the intrinsic dimension
is about 16 (`intrinsic_dimension`; among 100,000 it is 10, for then clusters are what it sees),
which is what makes approximate search easy or hard.

A block follows from seed and number alone, so 50 million vectors need never be in one place, and
the first rows are the same however many are taken. Queries come from the same distribution and
are no rows. Each row has two attributes to filter by, both uniform between 0 and 1, so that
"< 0.01" takes 1 % of the rows: `random_share` knows nothing of the vectors, `cluster_share` takes
cluster by cluster, and within a cluster goes along one latent direction.

Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64
    from numpy import ndarray

BLOCK_ROWS = 16_384
ATTRIBUTES = ("random_share", "cluster_share")
_MODEL, _ROWS, _QUERIES = range(3)  # streams of random numbers
_NUM_CLUSTERS = 3_000
_POWER = 0.8  # size of the cluster of rank r goes as r ** -_POWER
_LATENT_DIM = 30
_HIDDEN = 256
_SPREAD = 1.25  # of a cluster along its widest axis, where the centres spread by 1
_TAPER = 0.6  # the spread along axis j goes as j ** -_TAPER
_NOISE = 0.10  # length of the noise over that of the signal


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows: unit vectors and attributes."""

    start: int  # number of the first row
    vectors: Float32[ndarray, "row dim"]
    random_share: Float64[ndarray, " row"]  # [0, 1)
    cluster_share: Float64[ndarray, " row"]  # [0, 1)

    def attribute(self, name: str) -> Float64[ndarray, " row"]:
        """One of ATTRIBUTES."""
        values: Float64[ndarray, " row"] = getattr(self, name)
        return values


@dataclass(frozen=True)
class Population:
    """What vectors are drawn from.

    Attributes:
        seed: Of everything.
        dim: Of the vectors, at least 2.
    """

    seed: int = 0
    dim: int = 256

    def block(self, number: int) -> Block:
        """BLOCK_ROWS rows, from row number * BLOCK_ROWS on."""
        rng = self._rng(_ROWS, number)
        cluster, offset = self._draw(rng, BLOCK_ROWS)
        vectors = self._vectors(rng, cluster, offset)
        before = self._shares[cluster]
        along = _normal_share(offset[:, 0].astype(np.float64) / _SPREAD)
        cluster_share = before + (self._shares[cluster + 1] - before) * along
        return Block(number * BLOCK_ROWS, vectors, rng.random(BLOCK_ROWS), cluster_share)

    def blocks(self, num_rows: int) -> Iterator[Block]:
        """The first `num_rows` rows."""
        for number in range(ceil(num_rows / BLOCK_ROWS)):
            block = self.block(number)
            here = slice(0, num_rows - block.start)
            yield Block(
                block.start,
                block.vectors[here],
                block.random_share[here],
                block.cluster_share[here],
            )

    def queries(self, num: int) -> Float32[ndarray, "query dim"]:
        """Unit vectors that are no rows; the first are the same however many are taken."""
        pieces = []
        for number in range(ceil(num / BLOCK_ROWS)):
            rng = self._rng(_QUERIES, number)
            pieces.append(self._vectors(rng, *self._draw(rng, BLOCK_ROWS)))
        return np.concatenate(pieces)[:num]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def _draw(self, rng: np.random.Generator, num: int) -> tuple[ndarray, ndarray]:
        """Cluster of each row, and its latent place as seen from the cluster's centre."""
        cluster = np.searchsorted(self._shares[1:-1], rng.random(num), side="right")
        axes = _SPREAD * np.arange(1, _LATENT_DIM + 1, dtype=np.float32) ** -_TAPER
        return cluster, axes * rng.standard_normal((num, _LATENT_DIM), dtype=np.float32)

    def _vectors(
        self, rng: np.random.Generator, cluster: ndarray, offset: ndarray
    ) -> Float32[ndarray, "row dim"]:
        vectors = self._signal(self._centres[cluster] + offset)
        noise = rng.standard_normal(vectors.shape, dtype=np.float32)
        vectors += np.float32(_NOISE * self._signal_rms) * noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _signal(self, latent: ndarray) -> ndarray:
        first, second = self._weights
        return np.tanh(latent @ first) @ second

    @cached_property
    def _shares(self) -> Float64[ndarray, " boundary"]:
        """Cluster i has the rows from share i to share i + 1; large and small ones are mixed."""
        sizes = np.arange(1, _NUM_CLUSTERS + 1) ** -_POWER
        sizes = self._rng(_MODEL, 0).permutation(sizes)
        return np.concatenate([[0.0], np.cumsum(sizes / sizes.sum())])

    @cached_property
    def _centres(self) -> Float32[ndarray, "cluster latent"]:
        return self._rng(_MODEL, 1).standard_normal((_NUM_CLUSTERS, _LATENT_DIM), dtype=np.float32)

    @cached_property
    def _weights(self) -> tuple[ndarray, ndarray]:
        rng = self._rng(_MODEL, 2)
        first = rng.standard_normal((_LATENT_DIM, _HIDDEN), dtype=np.float32)
        second = rng.standard_normal((_HIDDEN, self.dim), dtype=np.float32)
        return first / np.float32(_LATENT_DIM**0.5), second / np.float32(_HIDDEN**0.5)

    @cached_property
    def _signal_rms(self) -> float:
        """Of one component."""
        cluster, offset = self._draw(self._rng(_MODEL, 3), BLOCK_ROWS)
        return float(np.sqrt(np.mean(self._signal(self._centres[cluster] + offset) ** 2)))


def intrinsic_dimension(distances: Float64[ndarray, "point k"]) -> float:
    """Maximum-likelihood estimate of the dimension that points fill around them.

    Args:
        distances: From some points to their k nearest neighbours (at least 3), ascending, above 0.

    Returns:
        Mean over points.

    Raises:
        ValueError: a distance is zero: a point is its own neighbour, or has a twin.

    Source: Levina & Bickel 2004, NIPS 17, 777, equation 8.
    """
    if not (distances > 0).all():
        raise ValueError("expected distances above 0, got a point that is its own neighbour")
    logs = np.log(distances[:, -1:] / distances[:, :-1])  # (point, k - 1)
    return float(np.mean(1 / logs.mean(axis=1)))


def _normal_share(x: Float64[ndarray, " n"]) -> Float64[ndarray, " n"]:
    """Share of a normal distribution below x, to 1e-7.

    Source: Abramowitz & Stegun 1964, 26.2.17.
    """
    t = 1 / (1 + 0.2316419 * np.abs(x))
    series = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
    tail = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    tail *= sum(c * t ** (i + 1) for i, c in enumerate(series))
    return np.where(x > 0, 1 - tail, tail)


def row_numbers(block: Block) -> Int64[ndarray, " row"]:
    """Numbers of the rows of a block."""
    return np.arange(block.start, block.start + len(block.vectors))
