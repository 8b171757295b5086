"""Rankings of held-out objects and what they are worth: nDCG@10, its error, and chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from held_out import BANDS, HeldOut, HeldOutSky
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from index.evaluation import chance_ndcg, ndcg

K = 10
BLOCK = 512  # queries at a time
NUM_RESAMPLES = 1000
CATALOGUE_ERROR = 0.03  # relative, of the simulated survey's fluxes beside their noise

Vectors = Float32[ndarray, "n dim"]  # unit length


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one measure on one sky: a value for each query, and what a random order would give."""

    values: Float64[ndarray, " query"]
    chance: float


def figure(skies: Sequence[Scores]) -> dict[str, float]:
    """Median over skies of the mean over queries, and its standard error by bootstrap."""
    rng = np.random.default_rng(0)
    medians = [
        np.median(
            [each.values[rng.integers(len(each.values), size=len(each.values))].mean()
             for each in skies]
        )
        for _ in range(NUM_RESAMPLES)
    ]  # fmt: skip
    return {
        f"ndcg@{K}": float(np.median([each.values.mean() for each in skies])),
        "error": float(np.std(medians)),
        "chance": float(np.median([each.chance for each in skies])),
    }


def of_class(vectors: Vectors, is_class: Bool[ndarray, " n"]) -> Scores:
    """Every object of a class asks for its like among all the others."""
    gains = is_class.astype(np.float64)
    queries = np.flatnonzero(is_class)
    values = [
        ndcg(gains, some, _nearest(vectors, some))
        for some in np.array_split(queries, max(1, len(queries) // BLOCK))
    ]
    chance = chance_ndcg(gains, queries, K).mean()
    return Scores(np.concatenate(values), float(chance))


def of_lenses(background: Vectors, lenses: Vectors, sky: HeldOutSky) -> Scores:
    """The lenses of each set ask for those of their set, in the same background."""
    values, chances = [], []
    for start in range(0, len(lenses), sky.set_size):
        some = lenses[start : start + sky.set_size]
        is_lens = np.arange(len(background) + len(some)) >= len(background)
        scores = of_class(np.concatenate([background, some]), is_lens)
        values.append(scores.values)
        chances.append(scores.chance)
    return Scores(np.concatenate(values), float(np.mean(chances)))


def across(queries: Vectors, keys: Vectors) -> Scores:
    """Every query asks for the one key that is of the same object."""
    ranks = []
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ keys.T
        ranks.append(_ranks(scores, start))
    return _of_ranks(np.concatenate(ranks), len(keys))


def found(scores: Scores) -> float:
    """How often the one that was asked for is among the first ten."""
    return float((scores.values > 0).mean())


def oracle(sky: HeldOut) -> tuple[Scores, Scores]:
    """Image to spectrum and back by photometry: what an observer with the true fluxes reaches.

    The catalogue's griz fluxes stand for the truth that a spectrum could tell at best; the image
    measures them with the noise of its own catalogue entry, and the likelihood ranks.
    """
    rng = np.random.default_rng(0)
    truth, noise = sky.known["flux"][:, : len(BANDS)], sky.known["sigma"]
    seen = np.isfinite(truth) & np.isfinite(noise)
    # a flux that the image did not measure is still part of what a spectrum tells
    truth = np.where(np.isfinite(truth), truth, np.nanmedian(truth, axis=0))
    noise = np.where(seen, noise, 1.0)
    measured = truth * np.exp(rng.normal(0, CATALOGUE_ERROR, truth.shape))
    measured += rng.normal(0, 1, truth.shape) * noise
    forth, back = [], np.zeros(len(truth), dtype=np.int64)
    own = np.zeros(len(truth))
    for start in range(0, len(truth), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(truth)))
        scores = _likelihood(measured[rows], noise[rows], seen[rows], truth)
        forth.append(_ranks(scores, start))
        own[rows] = scores[np.arange(len(rows)), rows]
    for start in range(0, len(truth), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(truth)))
        back += (_likelihood(measured[rows], noise[rows], seen[rows], truth) > own).sum(axis=0)
    return _of_ranks(np.concatenate(forth), len(truth)), _of_ranks(back, len(truth))


def _likelihood(
    measured: Float64[ndarray, "image band"],
    noise: Float64[ndarray, "image band"],
    seen: Bool[ndarray, "image band"],
    truth: Float64[ndarray, "spectrum band"],
) -> Float64[ndarray, "image spectrum"]:
    total = np.zeros((len(measured), len(truth)))
    for band in range(truth.shape[1]):
        flux = truth[:, band]
        variance = noise[:, band, None] ** 2 + (CATALOGUE_ERROR * flux) ** 2
        residual = measured[:, band, None] - flux
        total -= np.where(seen[:, band, None], residual**2 / variance + np.log(variance), 0) / 2
    return total


def _ranks(
    scores: Float64[ndarray, "query key"] | Float32[ndarray, "query key"], start: int
) -> Int64[ndarray, " query"]:
    """How many keys come before the own one of each query; the own key of row i is start + i."""
    own = scores[np.arange(len(scores)), start + np.arange(len(scores))]
    return (scores > own[:, None]).sum(axis=1)


def _of_ranks(ranks: Int64[ndarray, " query"], num_keys: int) -> Scores:
    values = np.where(ranks < K, 1 / np.log2(ranks + 2), 0.0)
    return Scores(values, float((1 / np.log2(np.arange(2, K + 2))).sum() / num_keys))


def _nearest(vectors: Vectors, queries: Int64[ndarray, " query"]) -> Int64[ndarray, "query k"]:
    scores = vectors[queries] @ vectors.T
    scores[np.arange(len(queries)), queries] = -np.inf
    k = min(K, len(vectors) - 1)
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1).astype(np.int64)
