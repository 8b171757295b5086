"""benchmarks/gpu.py, whose parts run on a CPU too."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from index import gpu
from index.exact_scan import exact_search

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
WITHOUT = f"""
import runpy, sys
for name in ("pyarrow", "pandas", "duckdb", "pydantic", "astropy", "mocpy", "typer", "faiss"):
    sys.modules[name] = None
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.fixture
def benchmark() -> ModuleType:
    """The script as a module, with few queries."""
    found = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
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
    truth = exact_search(queries, vectors, k=benchmark.K).rows
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
    assert more["recall@10_ranked_anew"] >= max(0.95, more["recall@10"])
    assert more["recall@10_ranked_anew"] >= few_lists["recall@10_ranked_anew"]
    assert "found" not in more
    assert {"p50_ms", "qps_batch_32", "ratio_to_one_read_batch_1"} <= set(more)


def test_it_starts_where_little_is_installed() -> None:
    """On a machine without network there are numpy, torch, jaxtyping and maybe FAISS."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "--help"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--rows" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_not_measured(benchmark: ModuleType) -> None:
    report = benchmark.measure(4000, 6, time.perf_counter() + 1000)
    assert report["faiss"]["ivf_sq8"] == report["selectors_obeyed"] == "not measured"
    assert "GPU" in report["faiss"]["reason"]
    assert report["exact_torch"]["rows"] == 4000
    assert report["rows"] == 4000


def test_a_rehearsal_on_a_cpu_measures_every_figure(benchmark: ModuleType) -> None:
    vars(benchmark).update(FILTER_PROBES=16)
    report = benchmark.measure(6_000, 6, time.perf_counter() + 1000, device="cpu")
    assert json.loads(json.dumps(report)) == report
    faiss_rows = report["faiss"]["search"]
    assert [row["nprobe"] for row in faiss_rows] == [4, 16]
    codes, anew = (faiss_rows[1][f"recall@10{name}"] for name in ("", "_ranked_anew"))
    assert 1 >= anew >= codes >= faiss_rows[0]["recall@10"] > 0.5
    random, correlated = report["faiss"]["filters"]
    assert random["answered_by_overfetch"] > 0.99
    assert random["recall@10_of_40_candidates"] >= 0.9
    assert correlated["answered_by_overfetch"] < 0.9  # the others: an exact scan
    assert {random["kind"], correlated["kind"]} == {"random", "correlated"}
    assert all(0.08 < each["selectivity"] < 0.14 for each in (random, correlated))
    assert report["faiss"]["device_gib_in_use"] == "not measured"  # there is none


def test_a_run_out_of_time_says_so_and_measures_what_it_has(benchmark: ModuleType) -> None:
    vars(benchmark).update(CPU_BLOCK_ROWS=4096)
    report = benchmark.measure(5_000, 6, time.perf_counter(), device="cpu")
    assert report["stopped_early"] == "out of time"
    assert report["rows"] == 4096
    assert [row["reason"] for row in report["faiss"]["search"]] == ["out of time"] * 2
