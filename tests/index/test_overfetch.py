"""Filters of indexes that obey selectors and of those that do not, against the exact answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from jaxtyping import Bool
from numpy import ndarray

from index import gpu, overfetch
from index.overfetch import search_allowed
from tests.index.exact_answers import by_numpy, ivf, recall, unit


def ignorant(index: Any) -> gpu.DeviceIndex:
    """An index as one that takes no selector."""
    return replace(gpu.on_cpu(index), obeys_selectors=False)


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02, 0.001])
@pytest.mark.parametrize("correlated", [True, False])
def test_filters_keep_their_recall(
    monkeypatch: pytest.MonkeyPatch, obeys: bool, share: float, correlated: bool, seed: int
) -> None:
    monkeypatch.setattr(overfetch, "EXACT_ROWS", 100)
    random = np.random.default_rng(seed)
    centres = unit(200, 32, seed)
    member = random.integers(200, size=20_000)
    vectors = centres[member] + 0.1 * random.standard_normal((20_000, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    whole_clusters, any_rows = member < 200 * share, random.random(20_000) < share
    allowed = whole_clusters if correlated else any_rows
    index = ivf(vectors, lists=64)
    wrapped = gpu.on_cpu(index) if obeys else ignorant(index)
    queries = vectors[random.choice(20_000, 50)]
    rows = search_allowed(wrapped, queries, vectors, k=20, nprobe=8, allowed=allowed)
    truth = by_numpy(queries, vectors, 10, allowed).rows
    assert allowed[rows[rows >= 0]].all()
    assert recall(rows, truth) >= 0.95


def test_fewer_allowed_than_asked_for_are_all_found(seed: int) -> None:
    vectors = unit(3000, 16, seed)
    index = ignorant(ivf(vectors))
    allowed: Bool[ndarray, " row"] = np.zeros(3000, bool)
    queries = unit(4, 16, seed + 1)
    rows = search_allowed(index, queries, vectors, k=5, nprobe=4, allowed=allowed)
    assert (rows == -1).all()
    allowed[[17, 2999, 0]] = True
    rows = search_allowed(index, queries, vectors, k=5, nprobe=4, allowed=allowed)
    assert {frozenset(line) for line in rows.tolist()} == {frozenset((0, 17, 2999, -1))}


@pytest.mark.parametrize(("k", "nprobe"), [(3000, 4), (5, 3000)])
def test_what_a_gpu_does_not_take_is_scanned_exactly(k: int, nprobe: int, seed: int) -> None:
    vectors = unit(3500, 16, seed)
    queries = unit(2, 16, seed + 1)
    index = gpu.on_cpu(ivf(vectors))
    rows = search_allowed(index, queries, vectors, k=k, nprobe=nprobe, allowed=None)
    np.testing.assert_array_equal(rows, by_numpy(queries, vectors, k).rows)


def test_queries_whose_lists_hold_too_few_rows_are_scanned_exactly(seed: int) -> None:
    vectors = unit(3000, 16, seed)
    queries = unit(3, 16, seed + 1)
    index = gpu.on_cpu(ivf(vectors, lists=64))  # 47 rows a list, 500 asked for
    rows = search_allowed(index, queries, vectors, k=500, nprobe=1, allowed=None)
    np.testing.assert_array_equal(rows, by_numpy(queries, vectors, 500).rows)
