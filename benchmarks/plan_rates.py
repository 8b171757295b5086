"""The rates of the index that `skykin plan` reckons with, on this machine.

    python benchmarks/plan_rates.py [--lists 16384] [--objects 1000000] [--seed 0]

Needs no network and no sky. Prints one JSON document; the figures stand in RESULTS.md and in
index/plan.py, by these names:

    kmeans_cpu        flop a CPU second of k-means, 1,024 lists, 64 vectors a list
    graph_cpu         centroids a CPU second that the graph over all centroids takes in
    fill_rabitq_cpu   rows a CPU second coded and put into so many lists, found by the graph
    fill_sq8_cpu      the same, by one byte a dimension
    object_memory     bytes in memory an object takes of an open version, ids and positions used:
                      what so many objects take more than a tenth of them

CPU seconds are those of one core, so that other work beside disturbs them little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from synthetic_sky import write_sky
from synthetic_vectors import BLOCK_ROWS, Population

from index.codec import CodecConfig, IndexConfig, Kind, fill, train
from index.versions import open_version

DIM = 256
KMEANS_LISTS, KMEANS_ROWS_A_LIST, KMEANS_ROUNDS = 1024, 64, 2
FILL_ROWS = BLOCK_ROWS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=int, default=16_384)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        print(json.dumps(memory_of(options.memory_of)))
        return
    faiss.omp_set_num_threads(1)
    print(json.dumps(rates(options.lists, options.objects, options.seed), indent=1))


def rates(num_lists: int, num_objects: int, seed: int) -> dict[str, float]:
    """All of them; see the top of the file."""
    vectors = drawn(max(num_lists, KMEANS_LISTS * KMEANS_ROWS_A_LIST), seed)
    found = {"kmeans_cpu": kmeans_rate(vectors, seed)}
    rows = drawn(FILL_ROWS, seed + 1)
    kinds: tuple[Kind, ...] = ("rabitq", "sq8")
    for kind in kinds:
        started = time.process_time()
        # as many vectors as lists: they are the centroids, and what is left is the graph
        codec = train(vectors[:num_lists], CodecConfig(kind=kind, dim=DIM, num_lists=num_lists))
        trained = time.process_time()
        found["graph_cpu"] = num_lists / (trained - started)
        fill(codec, [rows])
        found[f"fill_{kind}_cpu"] = len(rows) / (time.process_time() - trained)
    found["object_memory"] = object_memory(num_objects, seed)
    rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
    return {"lists": num_lists} | rounded


def drawn(num_rows: int, seed: int) -> Float32[ndarray, "row dim"]:
    """Search vectors of no sky."""
    return np.concatenate([block.vectors for block in Population(seed=seed).blocks(num_rows)])


def kmeans_rate(vectors: Float32[ndarray, "row dim"], seed: int) -> float:
    """Flop a CPU second."""
    sample = vectors[: KMEANS_LISTS * KMEANS_ROWS_A_LIST]
    clustering = faiss.Clustering(DIM, KMEANS_LISTS)
    clustering.niter, clustering.seed, clustering.spherical = KMEANS_ROUNDS, seed, True
    started = time.process_time()
    clustering.train(sample, faiss.IndexFlatIP(DIM))
    flop = 2.0 * len(sample) * KMEANS_LISTS * DIM * KMEANS_ROUNDS
    return flop / (time.process_time() - started)


def object_memory(num_objects: int, seed: int) -> float:
    """Bytes an object, by two processes of their own."""
    few = num_objects // 10
    more = [_memory(num, seed) for num in (few, num_objects)]
    return (more[1] - more[0]) / (num_objects - few)


def _memory(num_objects: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        sky = Path(folder) / "sky"
        index = IndexConfig(exact_rows=num_objects)
        write_sky(sky, Population(seed=seed, dim=8), segment_rows=[num_objects], index=index)
        told = subprocess.run(
            [sys.executable, __file__, "--memory-of", str(sky)],
            check=True,
            capture_output=True,
            env=os.environ,
            text=True,
        ).stdout
    return int(json.loads(told))


def memory_of(sky: Path) -> int:
    """Bytes of memory that an open version takes once ids and positions were asked for."""
    version = open_version(sky)
    before = anonymous()
    version.keys_of(["0"])
    version.in_cone(0.0, 0.0, 1.0)
    return anonymous() - before


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
