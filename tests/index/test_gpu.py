"""FAISS on a GPU: what needs none, and where FAISS and a GPU are there, the rest.

`make test-gpu` runs this file with faiss-gpu, which imports without a GPU; tests marked gpu need
one.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from index import codec as codecs
from index import gpu
from index.codec import CodecConfig
from index.errors import GpuUnavailable
from index.exact_scan import exact_search
from index.overfetch import search_allowed
from tests.index.exact_answers import by_numpy, ivf, recall, unit

HAS_GPU_CODE = hasattr(faiss, "StandardGpuResources")
HAS_GPU = HAS_GPU_CODE and faiss.get_num_gpus() > 0
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="FAISS finds no GPU")


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_missing_gpu_is_named(seed: int) -> None:
    reason = "finds 0" if HAS_GPU_CODE else "no GPU code: run `make gpu`"
    index = ivf(unit(700, 8, seed))
    for ask in (
        lambda: gpu.to_gpu(index),
        lambda: gpu.train(unit(700, 8, seed), num_lists=16),
        lambda: gpu.fill(index, []),
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
        gpu.on_cpu(ivf(unit(700, 8, seed), key="IVF{},Flat"))
    with pytest.raises(ValueError, match="expected a rotation before lists, got NormalizationTran"):
        gpu.on_cpu(ivf(unit(700, 8, seed), key="L2norm,IVF{},SQ8"))
    rabitq = codecs.train(
        unit(700, 16, seed), CodecConfig(kind="rabitq", dim=16, num_lists=4, num_iterations=1)
    )
    with pytest.raises(ValueError, match="got IndexIVFRaBitQFastScan"):
        gpu.on_cpu(rabitq.empty())


def test_whether_selectors_are_obeyed_is_found_out(seed: int) -> None:
    index = ivf(unit(700, 16, seed))
    assert gpu.obeys_selectors(index)
    # FAISS's own container that drops selectors without a word (facebookresearch/faiss #5584)
    coarse = faiss.clone_index(index.quantizer)  # which shards do not keep alive
    shards = faiss.IndexShardsIVF(coarse, 16, False, False)
    shards.add_shard(index)
    assert not gpu.obeys_selectors(shards)


def test_limits_of_a_gpu_are_named(seed: int) -> None:
    index = gpu.on_cpu(ivf(unit(700, 8, seed)))
    query = unit(1, 8, seed)
    with pytest.raises(ValueError, match="nprobe from 1 to 2048, got 4096"):
        index.search(query, k=1, nprobe=4096)
    with pytest.raises(ValueError, match="k from 1 to 2048, got 2049"):
        index.search(query, k=2049, nprobe=1)
    with pytest.raises(ValueError, match="does not obey selectors"):
        replace(index, obeys_selectors=False).search(
            query, k=1, nprobe=1, allowed=np.ones(700, bool)
        )


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


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("code_dim", [None, 8])
@pytest.mark.parametrize("graph_size", [0, 1 << 20])
def test_filled_through_a_device_is_what_the_codec_fills(
    num_blocks: int,
    code_dim: int | None,
    graph_size: int,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codecs, "GRAPH_SIZE", graph_size)
    vectors = unit(3000, 16, seed)
    config = CodecConfig(kind="sq8", dim=16, code_dim=code_dim, num_lists=16, num_iterations=2)
    codec = codecs.train(vectors, config)
    blocks = np.array_split(vectors, num_blocks)
    ours, theirs = gpu.fill(codec.empty(), blocks, gpu=None), codecs.fill(codec, blocks)
    coarse = faiss.IndexFlatIP if graph_size else faiss.IndexHNSWFlat
    assert type(faiss.downcast_index(gpu.parts(ours)[1].quantizer)) is coarse
    queries = unit(20, 16, seed + 1)
    for index in (ours, faiss.deserialize_index(faiss.serialize_index(ours))):
        np.testing.assert_array_equal(
            gpu.on_cpu(index).search(queries, k=10, nprobe=16),
            gpu.on_cpu(theirs).search(queries, k=10, nprobe=16),
        )


def test_a_rotated_index_is_searched_as_faiss_searches_it(seed: int) -> None:
    vectors, queries = unit(3000, 16, seed), unit(20, 16, seed + 1)
    index = gpu.train(vectors, num_lists=16, num_iterations=2, gpu=None)
    index.add(vectors)
    gpu.parts(index)[1].nprobe = 16
    np.testing.assert_array_equal(
        gpu.on_cpu(index).search(queries, k=10, nprobe=16), index.search(queries, 10)[1]
    )
    truth = by_numpy(queries, vectors, 10).rows
    assert recall(gpu.on_cpu(index).search(queries, k=20, nprobe=16), truth) >= 0.98


def test_too_few_vectors_to_train_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="a vector a list or more, got 10 for 16"):
        gpu.train(unit(10, 8, seed), num_lists=16, gpu=None)


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
    index = ivf(unit(700, 8, 0))
    flat = gpu.flattened(index)  # which index must outlive
    if not HAS_GPU:
        with pytest.raises(RuntimeError, match="Invalid GPU device 0"):
            library.index_cpu_to_gpu(resources, 0, flat, options)
    assert type(library.index_gpu_to_cpu(flat)) is library.IndexIVFScalarQuantizer  # a plain copy


@pytest.mark.gpu
@needs_gpu
def test_an_index_goes_to_the_gpu_and_back_unchanged(seed: int) -> None:
    vectors = unit(20_000, 64, seed)
    empty = gpu.train(vectors, num_lists=64, gpu=None)
    index = faiss.clone_index(empty)
    index.add(vectors)
    moved = gpu.to_gpu(index)
    back = gpu.to_cpu(moved, empty)
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
    truth = exact_search(queries, vectors, k=10, device="cuda").rows
    np.testing.assert_array_equal(truth, by_numpy(queries, vectors, 10).rows)
    assert recall(index.search(queries, k=20, nprobe=64), truth) >= 0.98


@pytest.mark.gpu
@needs_gpu
def test_filters_keep_their_recall_on_the_gpu(seed: int) -> None:
    vectors = unit(50_000, 32, seed)
    index = gpu.to_gpu(ivf(vectors, lists=64))
    queries = unit(20, 32, seed + 1)
    for allowed in (vectors[:, 0] > 0.2, np.arange(50_000) % 2 == 0):
        rows = search_allowed(index, queries, vectors, k=20, nprobe=32, allowed=allowed)
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
