"""Candidates of a scan where vectors lie, against products in double precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from index import disk, mapped_vectors
from index.mapped_vectors import MappedVectors
from tests.index.exact_answers import unit

DIM, NUM = 24, 900


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ndarray:
    vectors = unit(NUM, DIM, 1).astype(np.float16)
    vectors[300:420] = vectors[7]  # a hundred that tie
    file: Path = tmp_path_factory.mktemp("mapped") / "vectors.npy"
    np.save(file, vectors)
    mapped: ndarray = np.load(file, mmap_mode="r")
    return mapped


def cosines(queries: ndarray, stored: ndarray) -> ndarray:
    vectors = stored.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(queries.astype(np.float64) @ vectors.T)


@given(
    num=st.integers(1, 40),
    share=st.sampled_from([0.004, 0.015, 0.2, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_best_and_all_that_tie_with_them_are_candidates(
    stored: ndarray, num: int, share: float, seed: int
) -> None:
    """By rows gathered (few), by a bitmap (many), and of all."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(NUM) < share)
    queries = unit(3, DIM, seed).astype(np.float32)
    queries[0] = stored[7]
    found = MappedVectors(stored).candidates(queries, num, rows=None if share == 1 else rows)

    scores = cosines(queries, stored)
    for i, line in enumerate(found):
        assert len(set(line[line >= 0])) == (line >= 0).sum()
        assert np.isin(line[line >= 0], rows).all()
        if len(rows):
            least = np.sort(scores[i, rows])[::-1][min(num, len(rows)) - 1]
            assert set(rows[scores[i, rows] >= least]) <= set(line.tolist())


def test_no_rows_give_no_candidates(stored: ndarray) -> None:
    found = MappedVectors(stored).candidates(
        unit(2, DIM, 0).astype(np.float32), 5, rows=np.empty(0, np.int64)
    )
    assert found.shape == (2, 0)


def test_nothing_is_copied(stored: ndarray) -> None:
    vectors = MappedVectors(stored)
    assert np.shares_memory(vectors.stored, stored)
    assert vectors.index.ntotal == NUM
    with pytest.raises(ValueError, match="expected float16 vectors in C order, got float32"):
        mapped_vectors.MappedVectors(stored.astype(np.float32))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
def test_the_kernel_is_told_to_read_single_pages_through_one_map_alone(tmp_path: Path) -> None:
    """VmFlags of the maps: "rr" is MADV_RANDOM (proc_pid_smaps(5))."""
    file = tmp_path / "vectors.npy"
    np.save(file, unit(NUM, DIM, 2).astype(np.float16))
    whole, scattered = disk.read_array(file, mapped=True), disk.read_array(file, scattered=True)

    np.testing.assert_array_equal(whole, scattered)
    assert "rr" not in _flags_of_map(whole)
    assert "rr" in _flags_of_map(scattered)


def _flags_of_map(array: ndarray) -> list[str]:
    """What the kernel was told of the map that an array lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *words = line.split()
        if "-" in name:
            first, last = (int(each, 16) for each in name.split("-"))
            inside = first <= array.ctypes.data < last
        elif inside and name == "VmFlags:":
            return words
    raise AssertionError("the array lies in no map")


@pytest.mark.parametrize("num", [0, 1, 3, 4, 500])
def test_rows_are_those_of_the_file_by_either_map(stored: ndarray, num: int, seed: int) -> None:
    here = np.random.default_rng(seed).integers(0, NUM, num)
    vectors = MappedVectors(stored, stored.copy())

    np.testing.assert_array_equal(vectors.rows(here), stored[here])
    np.testing.assert_array_equal(vectors.rows(here, of=NUM), stored[here])


def test_single_rows_are_not_read_through_the_map_of_scans(stored: ndarray) -> None:
    vectors = MappedVectors(stored, np.zeros_like(stored))

    assert not vectors.rows(np.arange(3)).any()
    np.testing.assert_array_equal(vectors.rows(np.arange(4)), stored[:4])
    np.testing.assert_array_equal(vectors.rows(np.arange(3), of=4), stored[:3])
