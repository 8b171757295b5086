"""Search on a device: exact by torch on the CPU, FAISS's GPU code where FAISS and GPU are there.

`make test-gpu` runs this file with faiss-gpu, which imports without a GPU; tests marked gpu need
one.
"""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from index import gpu
from index.errors import GpuUnavailable

HAS_GPU_CODE = hasattr(faiss, "StandardGpuResources")
HAS_GPU = HAS_GPU_CODE and faiss.get_num_gpus() > 0
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="FAISS finds no GPU")


def unit(num: int, dim: int, seed: int) -> Float32[ndarray, "num dim"]:
    vectors = np.random.default_rng(seed).standard_normal((num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_numpy(
    queries: ndarray, vectors: ndarray, k: int, allowed: ndarray | None = None
) -> gpu.NearRows:
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
    return gpu.NearRows(rows, best)


def ivf(vectors: ndarray, *, lists: int = 16, key: str = "IVF{},SQ8") -> Any:
    index = faiss.index_factory(vectors.shape[1], key.format(lists))
    index.train(vectors)
    index.add(vectors)
    return index


def ignorant(index: Any) -> gpu.DeviceIndex:
    """An index as one that takes no selector."""
    return gpu.DeviceIndex(index, threading.Lock(), obeys_selectors=False, device="cpu")


@pytest.mark.parametrize("block_rows", [7, 64, 100_000])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_exact_search_equals_numpy(
    monkeypatch: pytest.MonkeyPatch, block_rows: int, num_queries: int, seed: int
) -> None:
    vectors = unit(1000, 24, seed).astype(np.float16)
    queries = unit(num_queries, 24, seed + 1)
    scan = gpu.ExactScan(queries, k=10)
    order = np.random.default_rng(seed).permutation(1000)
    for start in range(0, 1000, block_rows):
        rows = order[start : start + block_rows]
        scan.add(vectors[rows], rows)
    found, truth = scan.found(), by_numpy(queries, vectors, 10)
    np.testing.assert_array_equal(found.rows, truth.rows)
    np.testing.assert_array_equal(found.scores, truth.scores)
    whole = gpu.exact_search(queries, vectors, k=10)
    np.testing.assert_array_equal(whole.rows, truth.rows)


@given(
    num=st.integers(1, 60), k=st.integers(1, 12), share=st.floats(0, 1), seed=st.integers(0, 2**31)
)
def test_exact_search_of_allowed_rows_equals_numpy(
    num: int, k: int, share: float, seed: int
) -> None:
    vectors = unit(num, 8, seed).astype(np.float16)
    queries = unit(3, 8, seed + 1)
    allowed = np.random.default_rng(seed).random(num) < share
    found = gpu.exact_search(queries, vectors, k=k, allowed=allowed)
    truth = by_numpy(queries, vectors, k, allowed)
    np.testing.assert_array_equal(found.rows, truth.rows)
    np.testing.assert_array_equal(found.scores, truth.scores)


def test_ties_go_to_the_lower_row_however_many_there_are(seed: int) -> None:
    vectors = np.repeat(unit(4, 32, seed).astype(np.float16), 500, axis=0)  # 500 of each
    vectors = vectors[np.random.default_rng(seed).permutation(2000)]
    queries = unit(3, 32, seed + 1)
    found = gpu.exact_search(queries, vectors, k=20)
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
        found = gpu.exact_search(queries, vectors, k=10)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found.rows, by_numpy(queries, vectors, 10).rows)


def test_negative_and_zero_cosines_are_ordered_too() -> None:
    vectors = np.array([[-1, 0], [0, 1], [0, -1], [1, 0], [0, 0]], np.float16)
    found = gpu.exact_search(np.array([[1, 0]], np.float32), vectors, k=6)
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
        found = gpu.exact_search(queries, each, k=5, allowed=allowed)
        np.testing.assert_array_equal(found.rows, truth.rows)


def test_bad_input_is_named(seed: int) -> None:
    vectors, queries = unit(10, 8, seed), unit(1, 8, seed)
    with pytest.raises(ValueError, match="unit length, query 0 has 2"):
        gpu.exact_search(2 * queries, vectors, k=1)
    with pytest.raises(ValueError, match="k of at least 1"):
        gpu.exact_search(queries, vectors, k=0)
    with pytest.raises(ValueError, match="10 flags"):
        gpu.exact_search(queries, vectors, k=1, allowed=np.ones(9, bool))
    vectors[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        gpu.exact_search(queries, vectors, k=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_cuda_device_is_named(seed: int) -> None:
    with pytest.raises(GpuUnavailable, match="cuda is asked for"):
        gpu.exact_search(unit(1, 8, seed), unit(5, 8, seed), k=1, device="cuda")


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_missing_gpu_is_named(seed: int) -> None:
    reason = "finds 0" if HAS_GPU_CODE else "no GPU code: run `make gpu`"
    index = ivf(unit(700, 8, seed))
    for ask in (
        lambda: gpu.to_gpu(index),
        lambda: gpu.train(unit(700, 8, seed), num_lists=16),
        gpu.gpu_obeys_selectors,
    ):
        with pytest.raises(GpuUnavailable, match=reason):
            ask()


@pytest.mark.parametrize("key", ["IVF{},SQ8", "IVF{}_HNSW8,SQ8"])
def test_a_flattened_index_gives_the_answers_of_its_own(key: str, seed: int) -> None:
    vectors = unit(2000, 16, seed)
    index = ivf(vectors, key=key)
    flat = gpu.flattened(index)
    assert type(faiss.downcast_index(flat.quantizer)) is faiss.IndexFlat
    index.nprobe = flat.nprobe = index.nlist  # all, so that HNSW's lists are those of flat
    theirs, ours = index.search(vectors[:50], 10), flat.search(vectors[:50], 10)
    np.testing.assert_array_equal(theirs[1], ours[1])
    np.testing.assert_array_equal(theirs[0], ours[0])
    del flat
    assert index.search(vectors[:1], 1)[1][0, 0] == 0  # its lists are still its own


def test_only_lists_of_scalar_codes_can_move(seed: int) -> None:
    with pytest.raises(ValueError, match="expected an IVF,SQ8 index in memory, got IndexIVFFlat"):
        gpu.flattened(ivf(unit(700, 8, seed), key="IVF{},Flat"))


def test_whether_selectors_are_obeyed_is_found_out(seed: int) -> None:
    index = ivf(unit(700, 16, seed))
    assert gpu.obeys_selectors(index)
    # FAISS's own container that drops selectors without a word (facebookresearch/faiss #5584)
    coarse = faiss.clone_index(index.quantizer)  # which shards do not keep alive
    shards = faiss.IndexShardsIVF(coarse, 16, False, False)
    shards.add_shard(index)
    assert not gpu.obeys_selectors(shards)


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02, 0.001])
@pytest.mark.parametrize("correlated", [True, False])
def test_filters_keep_their_recall(
    monkeypatch: pytest.MonkeyPatch, obeys: bool, share: float, correlated: bool, seed: int
) -> None:
    monkeypatch.setattr(gpu, "EXACT_ROWS", 100)
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
    rows = gpu.search_allowed(wrapped, queries, vectors, k=20, nprobe=8, allowed=allowed)
    truth = by_numpy(queries, vectors, 10, allowed).rows
    assert allowed[rows[rows >= 0]].all()
    assert recall(rows, truth) >= 0.95


def recall(rows: Int64[ndarray, "query k"], truth: Int64[ndarray, "query n"]) -> float:
    """Share of the true rows that are among the candidates."""
    hits = [np.isin(t[t >= 0], r).sum() for r, t in zip(rows, truth, strict=True)]
    return float(sum(hits) / max(1, (truth >= 0).sum()))


def test_fewer_allowed_than_asked_for_are_all_found(seed: int) -> None:
    vectors = unit(3000, 16, seed)
    index = ignorant(ivf(vectors))
    allowed: Bool[ndarray, " row"] = np.zeros(3000, bool)
    queries = unit(4, 16, seed + 1)
    rows = gpu.search_allowed(index, queries, vectors, k=5, nprobe=4, allowed=allowed)
    assert (rows == -1).all()
    allowed[[17, 2999, 0]] = True
    rows = gpu.search_allowed(index, queries, vectors, k=5, nprobe=4, allowed=allowed)
    assert {frozenset(line) for line in rows.tolist()} == {frozenset((0, 17, 2999, -1))}


def test_limits_of_a_gpu_are_named(seed: int) -> None:
    index = gpu.on_cpu(ivf(unit(700, 8, seed)))
    query = unit(1, 8, seed)
    with pytest.raises(ValueError, match="nprobe from 1 to 2048, got 4096"):
        index.search(query, k=1, nprobe=4096)
    with pytest.raises(ValueError, match="k from 1 to 2048, got 2049"):
        index.search(query, k=2049, nprobe=1)
    with pytest.raises(ValueError, match="does not obey selectors"):
        ignorant(index.index).search(query, k=1, nprobe=1, allowed=np.ones(700, bool))


def test_tensors_are_added_as_arrays_are(seed: int) -> None:
    vectors = unit(2000, 16, seed)
    whole = ivf(vectors)
    parts = faiss.clone_index(whole)
    parts.reset()
    index = gpu.on_cpu(parts)
    for start in range(0, 2000, 700):
        index.add(torch.from_numpy(vectors[start : start + 700]), first_row=start)
    np.testing.assert_array_equal(
        index.search(vectors[:50], k=10, nprobe=16),
        gpu.on_cpu(whole).search(vectors[:50], k=10, nprobe=16),
    )
    with pytest.raises(ValueError, match="expected dim 16, got 8"):
        index.add(torch.zeros(1, 8), first_row=0)


@pytest.mark.skipif(not HAS_GPU_CODE, reason="FAISS has no GPU code: make test-gpu")
def test_the_gpu_code_has_what_is_asked_of_it() -> None:
    """Names and options that index.gpu uses, on a host without a GPU too."""
    library: Any = faiss  # whose GPU names mypy does not see
    options = library.GpuClonerOptions()
    options.indicesOptions = library.INDICES_32_BIT
    options.useFloat16CoarseQuantizer = True
    assert callable(library.index_cpu_to_gpu)
    assert callable(library.index_gpu_to_cpu)
    for name in ("reserveMemory", "reclaimMemory", "add_with_ids_c", "copyFrom", "copyTo"):
        assert hasattr(library.GpuIndexIVFScalarQuantizer, name)
    resources = library.StandardGpuResources()
    resources.setDefaultNullStreamAllDevices()
    flat = gpu.flattened(ivf(unit(700, 8, 0)))
    if not HAS_GPU:
        with pytest.raises(RuntimeError, match="Invalid GPU device 0"):
            library.index_cpu_to_gpu(resources, 0, flat, options)
    assert type(library.index_gpu_to_cpu(flat)) is library.IndexIVFScalarQuantizer  # a plain copy


@pytest.mark.gpu
@needs_gpu
def test_an_index_goes_to_the_gpu_and_back_unchanged(seed: int) -> None:
    vectors = unit(20_000, 64, seed)
    index = ivf(vectors, lists=64)
    moved = gpu.to_gpu(index)
    back = gpu.to_cpu(moved)
    queries = unit(50, 64, seed + 1)
    there = moved.search(queries, k=10, nprobe=64)
    here = gpu.on_cpu(index).search(queries, k=10, nprobe=64)
    assert recall(there, here) >= 0.99
    np.testing.assert_array_equal(gpu.on_cpu(back).search(queries, k=10, nprobe=64), here)


@pytest.mark.gpu
@needs_gpu
def test_trained_and_filled_on_the_gpu(seed: int) -> None:
    vectors = unit(50_000, 32, seed)
    index = gpu.to_gpu(gpu.train(vectors[:20_000], num_lists=64), num_rows=50_000)
    for start in range(0, 50_000, 8192):
        index.add(torch.from_numpy(vectors[start : start + 8192]).cuda(), first_row=start)
    queries = unit(50, 32, seed + 1)
    truth = gpu.exact_search(queries, vectors, k=10, device="cuda").rows
    np.testing.assert_array_equal(truth, by_numpy(queries, vectors, 10).rows)
    assert recall(index.search(queries, k=20, nprobe=64), truth) >= 0.98


@pytest.mark.gpu
@needs_gpu
def test_filters_keep_their_recall_on_the_gpu(seed: int) -> None:
    vectors = unit(50_000, 32, seed)
    index = gpu.to_gpu(ivf(vectors, lists=64))
    queries = unit(20, 32, seed + 1)
    for allowed in (vectors[:, 0] > 0.2, np.arange(50_000) % 2 == 0):
        rows = gpu.search_allowed(index, queries, vectors, k=20, nprobe=32, allowed=allowed)
        assert allowed[rows].all()
        assert recall(rows, by_numpy(queries, vectors, 10, allowed).rows) >= 0.95


@pytest.mark.gpu
@needs_gpu
def test_threads_take_turns(seed: int) -> None:
    vectors = unit(20_000, 32, seed)
    index = gpu.to_gpu(ivf(vectors, lists=64))
    truth = index.search(vectors[:32], k=10, nprobe=16)
    wrong: list[int] = []

    def ask() -> None:
        for _ in range(50):
            if (index.search(vectors[:32], k=10, nprobe=16) != truth).any():
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
