"""Exact search by torch against numpy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index import exact_scan
from index.errors import GpuUnavailable
from index.exact_scan import ExactScan, exact_search, ranked
from tests.index.exact_answers import by_numpy, unit


@pytest.mark.parametrize("block_rows", [7, 64, 100_000])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_exact_search_equals_numpy(block_rows: int, num_queries: int, seed: int) -> None:
    vectors = unit(1000, 24, seed).astype(np.float16)
    queries = unit(num_queries, 24, seed + 1)
    scan = ExactScan(queries, k=10)
    order = np.random.default_rng(seed).permutation(1000)
    for start in range(0, 1000, block_rows):
        rows = order[start : start + block_rows]
        scan.add(vectors[rows], rows)
    found, truth = scan.found(), by_numpy(queries, vectors, 10)
    np.testing.assert_array_equal(found.rows, truth.rows)
    np.testing.assert_array_equal(found.scores, truth.scores)
    whole = exact_search(queries, vectors, k=10)
    np.testing.assert_array_equal(whole.rows, truth.rows)


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(1, 60), k=st.integers(1, 12), share=st.floats(0, 1), seed=st.integers(0, 2**31)
)
def test_exact_search_of_allowed_rows_equals_numpy(
    num: int, k: int, share: float, seed: int
) -> None:
    vectors = unit(num, 8, seed).astype(np.float16)
    queries = unit(3, 8, seed + 1)
    allowed = np.random.default_rng(seed).random(num) < share
    found = exact_search(queries, vectors, k=k, allowed=allowed)
    truth = by_numpy(queries, vectors, k, allowed)
    np.testing.assert_array_equal(found.rows, truth.rows)
    np.testing.assert_array_equal(found.scores, truth.scores)


def test_ties_go_to_the_lower_row_however_many_there_are(seed: int) -> None:
    vectors = np.repeat(unit(4, 32, seed).astype(np.float16), 500, axis=0)  # 500 of each
    vectors = vectors[np.random.default_rng(seed).permutation(2000)]
    queries = unit(3, 32, seed + 1)
    found = exact_search(queries, vectors, k=20)
    np.testing.assert_array_equal(found.rows, by_numpy(queries, vectors, 20).rows)
    assert (np.diff(found.rows, axis=1) > 0).all()
    assert (np.diff(found.scores, axis=1) == 0).all()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_coarser_product_changes_no_answer(precision: str, seed: int) -> None:
    vectors = unit(2000, 64, seed).astype(np.float16)
    queries = unit(8, 64, seed + 1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = exact_search(queries, vectors, k=10)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found.rows, by_numpy(queries, vectors, 10).rows)


def test_negative_and_zero_cosines_are_ordered_too() -> None:
    vectors = np.array([[-1, 0], [0, 1], [0, -1], [1, 0], [0, 0]], np.float16)
    found = exact_search(np.array([[1, 0]], np.float32), vectors, k=6)
    assert found.rows.tolist() == [[3, 1, 2, 4, 0, -1]]
    assert found.scores.tolist() == [[1, 0, 0, 0, -1, -np.inf]]


def test_vectors_mapped_from_a_file_and_tensors_give_the_same(tmp_path: Any, seed: int) -> None:
    vectors = unit(300, 16, seed).astype(np.float16)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    queries = unit(2, 16, seed + 1)
    allowed = np.arange(300) % 3 == 0
    truth = by_numpy(queries, vectors, 5, allowed)
    for each in (mapped, torch.from_numpy(vectors)):
        found = exact_search(queries, each, k=5, allowed=allowed)
        np.testing.assert_array_equal(found.rows, truth.rows)


def test_bad_input_is_named(seed: int) -> None:
    vectors, queries = unit(10, 8, seed), unit(1, 8, seed)
    with pytest.raises(ValueError, match="unit length, query 0 has 2"):
        exact_search(2 * queries, vectors, k=1)
    with pytest.raises(ValueError, match="k of at least 1"):
        exact_search(queries, vectors, k=0)
    with pytest.raises(ValueError, match="10 flags"):
        exact_search(queries, vectors, k=1, allowed=np.ones(9, bool))
    vectors[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        exact_search(queries, vectors, k=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_cuda_device_is_named(seed: int) -> None:
    with pytest.raises(GpuUnavailable, match="cuda is asked for"):
        exact_search(unit(1, 8, seed), unit(5, 8, seed), k=1, device="cuda")


def test_a_device_that_torch_does_not_know_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="such as cpu, cuda or cuda:1, got 'abacus'"):
        exact_search(unit(1, 8, seed), unit(5, 8, seed), k=1, device="abacus")


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_candidates_are_ranked_as_an_exact_search_ranks(n: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = unit(60, 8, seed).astype(np.float16)
    vectors[7] = vectors[50]  # a tie
    queries = unit(3, 8, seed + 1)
    rows = np.stack([random.permutation(60)[:n] for _ in range(3)])
    rows[random.random(rows.shape) < 0.2] = -1
    found = ranked(queries, vectors, rows, k=k)
    for i, mine in enumerate(rows):
        allowed = np.isin(np.arange(60), mine)
        truth = exact_search(queries[i : i + 1], vectors, k=k, allowed=allowed)
        np.testing.assert_array_equal(found.rows[i], truth.rows[0])
        np.testing.assert_array_equal(found.scores[i], truth.scores[0])


def test_ranking_in_steps_changes_nothing(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    vectors = torch.from_numpy(unit(300, 16, seed).astype(np.float16))
    queries = unit(7, 16, seed + 1)
    rows = np.tile(np.arange(300), (7, 1))
    whole = ranked(queries, vectors, rows, k=9)
    monkeypatch.setattr(exact_scan, "RANKED_SIZE", 2 * 300 * 16)  # two queries at a time
    np.testing.assert_array_equal(ranked(queries, vectors, rows, k=9).rows, whole.rows)
    np.testing.assert_array_equal(whole.rows, by_numpy(queries, vectors.numpy(), 9).rows)
