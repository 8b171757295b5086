"""benchmarks/gpu.py, whose parts run on a CPU too."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from index import gpu


@pytest.fixture
def benchmark() -> ModuleType:
    """The script as a module, with few queries."""
    file = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    found = importlib.util.spec_from_file_location("gpu_benchmark", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    vars(module).update(QUERIES=64, BATCHES=(1, 32), PROBES=(4, 16))
    return module


def test_blocks_are_the_same_again_and_unlike_each_other(benchmark: ModuleType) -> None:
    sky = benchmark.Sky(6, "cpu")
    first, again, other = sky.block(0, 100), sky.block(0, 100), sky.block(1, 100)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first != other).any()
    torch.testing.assert_close(first.float().norm(dim=1), torch.ones(100), atol=1e-3, rtol=0)


def test_searches_are_measured_against_the_truth(benchmark: ModuleType) -> None:
    sky = benchmark.Sky(6, "cpu")
    sizes = [3000, 3000, 500]
    vectors = np.concatenate([sky.block(i, n).numpy() for i, n in enumerate(sizes)])
    queries = benchmark.unit(sky.block(len(sizes), 64))
    index: Any = faiss.index_factory(benchmark.DIM, "IVF32,SQ8")
    index.train(vectors[:3000].astype(np.float32))
    index.add(vectors.astype(np.float32))
    truth = gpu.exact_search(queries, vectors, k=benchmark.K).rows
    rows = benchmark.searches(
        gpu.on_cpu(index),
        index.quantizer.reconstruct_n(0, 32),
        queries,
        truth,
        bandwidth=1e9,
        deadline=time.perf_counter() + 60,
    )
    benchmark.rerank(rows, sky, sizes, 3000, queries, truth)
    few_lists, more = rows
    assert more["recall@10_ranked_anew"] >= max(0.99, more["recall@10"])
    assert more["recall@10_ranked_anew"] >= few_lists["recall@10_ranked_anew"]
    assert "found" not in more
    assert {"p50_ms", "qps_batch_32", "ratio_to_one_read_batch_1"} <= set(more)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_not_measured(benchmark: ModuleType) -> None:
    report = benchmark.measure(4000, 6, time.perf_counter() + 1000)
    assert report["faiss"]["ivf_sq8"] == report["selectors_obeyed"] == "not measured"
    assert "GPU" in report["faiss"]["reason"]
    assert report["exact_torch"]["rows"] == 4000
    assert report["rows"] == 4000
