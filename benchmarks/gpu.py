"""Search on one GPU: 200M x 256 in IVF,SQ8 by FAISS, beside exact search by torch, in one command.

    python benchmarks/gpu.py [--rows 200e6] [--seed 6] [--minutes 9] [--device cuda|cpu] [--json]

Needs numpy, torch, jaxtyping and, for what is not exact search, FAISS with its GPU code.

Needs no network. Vectors are made on the device, block by block from the seed, and never held all
at once: clusters of power-law size in a 30-dimensional latent space, a tanh network to 256
dimensions, isotropic noise, unit length; intrinsic dimension about 16. One pass over all blocks
trains, fills the index and finds the true neighbours of held-out queries by exact search of the
float16 vectors; a second pass makes again the vectors of FAISS's candidates, to rank them anew.

For each number of probed lists: recall@10 of the codes alone and of 4 x 10 candidates ranked anew;
median latency of single queries; queries a second at batches of 1, 32 and 1,024, from arrays in
memory to row numbers; and the ratio of that time to reading the probed lists once at the bandwidth
at which the device copies (bytes read and written). Whether selectors are obeyed is asked of a
small index. Filters that let a tenth of the rows through, at random and cluster by cluster, are
answered by over-fetching where it finds enough: its share of the queries, recall@10 of 40 and
latency. Exact search by torch, which answers the others, is timed on rows that stay on the device.

Where there is no GPU or FAISS has no code for one, torch runs on the CPU (--rows 100000 for a
look) and the rest says "not measured" and why. --device cpu is a rehearsal of every step on a CPU,
lists and all. Past --minutes no further setting is begun.
stdout with --json is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from index import gpu
from index.errors import GpuUnavailable
from index.exact_scan import ExactScan, exact_search
from index.overfetch import OVERFETCH, first_allowed

DIM, LATENT, HIDDEN = 256, 30, 128
CLUSTERS, NOISE = 3000, 0.10  # noise: of the signal's length
GPU_BLOCK_ROWS, CPU_BLOCK_ROWS = 1 << 20, 1 << 15
QUERIES, K, CANDIDATES = 1024, 10, 40
BATCHES = (1, 32, 1024)
PROBES = (8, 16, 32, 64, 128)
FILTER_SHARE, FILTER_PROBES = 0.1, 32
NOT_MEASURED = "not measured"
RESERVE_S = 90  # kept for the searches


class Sky:
    """Vectors of a seed. Block b is the same whenever it is asked for on a device."""

    def __init__(self, seed: int, device: str) -> None:
        self.seed, self.device = seed, device
        made = self._generator(-1)
        self.centres = torch.randn(CLUSTERS, LATENT, generator=made, device=device)
        self.first = torch.randn(LATENT, HIDDEN, generator=made, device=device) / LATENT**0.5
        self.second = torch.randn(HIDDEN, DIM, generator=made, device=device) / HIDDEN**0.5
        share = torch.arange(1, CLUSTERS + 1, device=device, dtype=torch.float32) ** -0.7
        self.cumulative = (share / share.sum()).cumsum(0)

    def block(self, number: int, num_rows: int) -> Tensor:
        """float16 (row, DIM), unit length."""
        made = self._generator(number)
        latent = self.centres[self._members(made, num_rows)]
        latent = latent + 0.5 * torch.randn(num_rows, LATENT, generator=made, device=self.device)
        signal = torch.tanh(latent @ self.first) @ self.second
        noise = torch.randn(num_rows, DIM, generator=made, device=self.device)
        length = torch.linalg.vector_norm(signal, dim=1, keepdim=True)
        vectors = signal + noise * (NOISE * length / DIM**0.5)
        return torch.nn.functional.normalize(vectors, dim=1).half()

    def filters(self, number: int, num_rows: int) -> dict[str, Tensor]:
        """Rows of a block that filters of FILTER_SHARE let through, by kind of filter."""
        member = self._members(self._generator(number), num_rows)
        chance = torch.rand(num_rows, generator=self._generator(-2 - number), device=self.device)
        return {"random": chance < FILTER_SHARE, "correlated": member < self._num_filtered}

    @property
    def _num_filtered(self) -> int:
        return 1 + int(torch.searchsorted(self.cumulative, FILTER_SHARE))

    def _members(self, made: torch.Generator, num_rows: int) -> Tensor:
        """Cluster of each row: what a block's generator draws first."""
        pick = torch.rand(num_rows, generator=made, device=self.device)
        return torch.searchsorted(self.cumulative, pick).clamp_max(CLUSTERS - 1)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed * 4_000_003 + number + 2_000_001)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=200e6)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cpu: a rehearsal")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    deadline = time.perf_counter() + 60 * options.minutes
    report = measure(int(options.rows), options.seed, deadline, device=options.device)
    print(json.dumps(report) if options.json else json.dumps(report, indent=1))


def measure(
    num_rows: int, seed: int, deadline: float, *, device: str | None = None
) -> dict[str, Any]:
    """Everything, as plain values; "not measured" with its reason where something is missing.

    Args:
        num_rows: To be searched.
        seed: Of the vectors.
        deadline: By time.perf_counter; no further setting is begun after it.
        device: Of torch; cpu: lists are searched there too. None: a GPU, if there is one.
    """
    rehearsal = device == "cpu"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sky = Sky(seed, device)
    block_rows = min(num_rows, GPU_BLOCK_ROWS if device == "cuda" else CPU_BLOCK_ROWS)
    num_blocks = -(-num_rows // block_rows)
    sizes = [min(block_rows, num_rows - i * block_rows) for i in range(num_blocks)]
    queries = unit(sky.block(num_blocks, QUERIES))  # a block of their own: held out
    report: dict[str, Any] = {
        "machine": machine(device),
        "rows": num_rows,
        "dim": DIM,
        "seed": seed,
        "intrinsic_dimension": round(intrinsic_dimension(sky.block(0, min(sizes[0], 20_000))), 1),
        "copy_gb_per_s": round(copy_bandwidth(device) / 1e9, 1),
    }
    index, reason = trained(sky, sizes, rehearsal=rehearsal)
    scan = ExactScan(queries, k=K, device=device)
    filtered = {kind: ExactScan(queries, k=K, device=device) for kind in sky.filters(0, 1)}
    masks: dict[str, list[ndarray]] = {kind: [] for kind in filtered}
    seconds = {"generate": 0.0, "fill": 0.0, "truth": 0.0, "filtered_truth": 0.0}
    for number, first_row, vectors in blocks(sky, sizes, block_rows, seconds):
        if index is not None:
            clock = Clock(device)
            try:
                index[0].add(vectors, first_row=first_row)
            except RuntimeError as error:  # memory, as a rule
                index, reason = None, f"at row {first_row:,}: {error}"
            seconds["fill"] += clock.seconds()
        clock = Clock(device)
        numbers = torch.arange(first_row, first_row + len(vectors), device=device)
        scan.add(vectors, numbers)
        seconds["truth"] += clock.seconds()
        if index is not None:
            clock = Clock(device)
            for kind, allowed in sky.filters(number, len(vectors)).items():
                filtered[kind].add(vectors[allowed], numbers[allowed])
                masks[kind].append(allowed.cpu().numpy())
            seconds["filtered_truth"] += clock.seconds()
        if number % 20 == 0:
            told = {name: round(value, 1) for name, value in seconds.items()}
            print(f"block {number + 1} of {num_blocks}: {told}", file=sys.stderr)
        if time.perf_counter() > deadline - RESERVE_S and number + 1 < num_blocks:
            sizes = sizes[: number + 1]
            report["rows"], report["stopped_early"] = sum(sizes), "out of time"
            break
    num_rows = sum(sizes)
    truth = scan.found().rows
    report["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    report["exact_torch"] = exact_times(sky, sizes, queries, device, float(report["copy_gb_per_s"]))
    if index is None:
        report["faiss"] = {"ivf_sq8": NOT_MEASURED, "reason": reason}
        report["selectors_obeyed"] = NOT_MEASURED
        return report
    moved, centroids, training = index
    report["selectors_obeyed"] = moved.obeys_selectors
    num_lists = len(centroids)
    report["faiss"] = {
        "device": moved.device,
        "build_s": round(training + seconds["fill"], 1),
        "train_s": round(training, 1),
        "rows_per_s": round(num_rows / (training + seconds["fill"]), 1),
        "lists": num_lists,
        "index_gib": round(gpu.gpu_bytes(num_rows, DIM, num_lists, DIM) / 2**30, 2),
        "device_gib_in_use": gib_in_use(moved),
        "search": searches(
            moved,
            centroids,
            queries,
            truth,
            bandwidth=float(report["copy_gb_per_s"]) * 1e9,
            deadline=deadline,
        ),
        "filters": [
            filter_times(moved, queries, np.concatenate(masks[kind]), each.found().rows, kind)
            for kind, each in filtered.items()
        ],
    }
    rerank(report["faiss"]["search"], sky, sizes, block_rows, queries, truth)
    return report


def gib_in_use(index: gpu.DeviceIndex) -> float | str:
    """Memory of the whole GPU that is taken, after FAISS gave back what it had set aside."""
    if index.device == "cpu":
        return NOT_MEASURED
    index.index.reclaimMemory()
    free, all_bytes = torch.cuda.mem_get_info()
    return round((all_bytes - free) / 2**30, 2)


def blocks(
    sky: Sky, sizes: list[int], block_rows: int, seconds: dict[str, float]
) -> Iterator[tuple[int, int, Tensor]]:
    """Number, first row and vectors of every block."""
    for number, size in enumerate(sizes):
        clock = Clock(sky.device)
        vectors = sky.block(number, size)
        seconds["generate"] += clock.seconds()
        yield number, number * block_rows, vectors


def trained(
    sky: Sky, sizes: list[int], *, rehearsal: bool
) -> tuple[tuple[gpu.DeviceIndex, ndarray, float] | None, str]:
    """An empty index on the GPU, its centroids and the seconds it took, or why there is none."""
    num_rows = sum(sizes)
    num_lists = min(65_536, 1 << round(np.log2(4 * np.sqrt(num_rows))))
    try:
        if not rehearsal:
            gpu.require_gpu()
        start = time.perf_counter()
        wanted, sample = 48 * num_lists, []  # blocks are random, so the first are a fair sample
        for number, size in enumerate(sizes):
            sample.append(unit(sky.block(number, size)))
            if sum(map(len, sample)) >= wanted:
                break
        vectors = np.concatenate(sample)[:wanted]
        if rehearsal:
            moved = gpu.on_cpu(gpu.train(vectors, num_lists=num_lists, gpu=None))
            centroids = moved.index.quantizer.reconstruct_n(0, num_lists)
        else:
            empty = gpu.train(vectors, num_lists=num_lists)
            moved = gpu.to_gpu(empty, num_rows=num_rows, half_centroids=True)
            centroids = gpu.parts(empty)[1].quantizer.reconstruct_n(0, num_lists)
    except (GpuUnavailable, ImportError, OSError, RuntimeError) as error:
        return None, str(error)
    return (moved, centroids, time.perf_counter() - start), ""


def searches(
    index: gpu.DeviceIndex,
    centroids: ndarray,
    queries: ndarray,
    truth: ndarray,
    *,
    bandwidth: float,
    deadline: float,
) -> list[dict[str, Any]]:
    """A row for each number of probed lists; bandwidth in bytes a second."""
    lengths = index.list_lengths()
    turned = queries if index.rotation is None else queries @ index.rotation.T
    near = torch.from_numpy(turned @ centroids.T)
    nearest = near.argsort(dim=1, descending=True)[:, : max(PROBES)].numpy()  # (query, list)
    rows: list[dict[str, Any]] = []
    for nprobe in (each for each in PROBES if each <= len(lengths)):
        if time.perf_counter() > deadline:
            rows.append({"nprobe": nprobe, "recall@10": NOT_MEASURED, "reason": "out of time"})
            continue
        found = index.search(queries, k=CANDIDATES, nprobe=nprobe)
        row: dict[str, Any] = {"nprobe": nprobe, "recall@10": recall(found[:, :K], truth)}
        row["found"] = found  # taken out again by rerank
        for batch in BATCHES:
            times = timed(index, queries, batch, nprobe)
            read = np.mean(
                [
                    lengths[np.unique(nearest[i : i + batch, :nprobe])].sum() * (DIM + 4)
                    for i in range(0, len(queries) - batch + 1, batch)
                ]
            )
            row[f"qps_batch_{batch}"] = round(batch / float(np.mean(times)), 1)
            row[f"ratio_to_one_read_batch_{batch}"] = round(
                float(np.median(times)) / (read / bandwidth), 2
            )
            if batch == 1:
                row["p50_ms"] = round(1000 * float(np.median(times)), 3)
                row["p99_ms"] = round(1000 * float(np.quantile(times, 0.99)), 3)
        rows.append(row)
    return rows


def timed(index: gpu.DeviceIndex, queries: ndarray, batch: int, nprobe: int) -> list[float]:
    """Seconds of searches of a batch each; the first few are not counted."""
    num = {1: 500, 32: 100}.get(batch, 10)
    times = []
    for i in range(num + 3):
        start = (i * batch) % (len(queries) - batch + 1)
        begin = time.perf_counter()
        index.search(queries[start : start + batch], k=K, nprobe=nprobe)
        times.append(time.perf_counter() - begin)
    return times[3:]


def filter_times(
    index: gpu.DeviceIndex, queries: ndarray, allowed: ndarray, truth: ndarray, kind: str
) -> dict[str, Any]:
    """Over-fetching for a filter of FILTER_SHARE; queries that it leaves short are not its own."""
    depth = min(gpu.MAX_K, math.ceil(OVERFETCH * CANDIDATES / FILTER_SHARE))
    nprobe = min(gpu.MAX_K, math.ceil(FILTER_PROBES / FILTER_SHARE))
    rows = first_allowed(index.search(queries, k=depth, nprobe=nprobe), allowed, CANDIDATES)
    enough = (rows >= 0).all(axis=1)
    times = []
    for query in queries[:100]:
        begin = time.perf_counter()
        first_allowed(index.search(query[None], k=depth, nprobe=nprobe), allowed, CANDIDATES)
        times.append(time.perf_counter() - begin)
    found = recall(rows[enough], truth[enough]) if enough.any() else NOT_MEASURED
    return {
        "kind": kind,
        "selectivity": round(float(allowed.mean()), 4),
        "nprobe": nprobe,
        "fetched": depth,
        "answered_by_overfetch": round(float(enough.mean()), 4),
        f"recall@10_of_{CANDIDATES}_candidates": found,
        "p50_ms": round(1000 * float(np.median(times[3:])), 3),
        "p95_ms": round(1000 * float(np.quantile(times[3:], 0.95)), 3),
    }


def rerank(
    rows: list[dict[str, Any]],
    sky: Sky,
    sizes: list[int],
    block_rows: int,
    queries: ndarray,
    truth: ndarray,
) -> None:
    """Add recall@10 after ranking the candidates by their float16 vectors, made again."""
    measured = [row for row in rows if "found" in row]
    found = [row.pop("found") for row in measured]
    if not found:
        return
    wanted = np.unique(np.concatenate([each.ravel() for each in found]))
    wanted = wanted[wanted >= 0]
    vectors = np.empty((len(wanted), DIM), np.float16)
    for number, size in enumerate(sizes):
        first = number * block_rows
        here = slice(*np.searchsorted(wanted, (first, first + size)))
        if here.start < here.stop:
            rows_here = torch.from_numpy(wanted[here] - first).to(sky.device)
            vectors[here] = sky.block(number, size)[rows_here].cpu().numpy()
    for row, candidates in zip(measured, found, strict=True):
        place = np.searchsorted(wanted, np.maximum(candidates, wanted[0]))
        scores = np.einsum("qd,qnd->qn", queries, vectors[place].astype(np.float32))
        scores[candidates < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        again = np.take_along_axis(candidates, order, axis=1)
        row["recall@10_ranked_anew"] = recall(again, truth)


def exact_times(
    sky: Sky, sizes: list[int], queries: ndarray, device: str, copy_gb_per_s: float
) -> dict[str, Any]:
    """Exact search of rows that stay on the device: a block or, on a GPU, up to eight."""
    kept = torch.cat([sky.block(i, size) for i, size in enumerate(sizes[:8])])
    report: dict[str, Any] = {"rows": len(kept)}
    allowed = np.random.default_rng(0).random(len(kept)) < 0.01
    cases: dict[str, Callable[[int], object]] = {
        "": lambda batch: exact_search(queries[:batch], kept, k=K, device=device),
        "_1_percent_allowed": lambda batch: exact_search(
            queries[:batch], kept, k=K, device=device, allowed=allowed
        ),
    }
    for name, search in cases.items():
        for batch in BATCHES:
            times = []
            for _ in range(4 if batch > 32 else 12):
                begin = time.perf_counter()
                search(batch)
                times.append(time.perf_counter() - begin)
            median = float(np.median(times[1:]))
            report[f"ms_batch_{batch}{name}"] = round(1000 * median, 3)
            if not name:
                one_read = kept.numel() * 2 / (copy_gb_per_s * 1e9)
                report[f"ratio_to_one_read_batch_{batch}"] = round(median / one_read, 1)
    return report


def recall(found: ndarray, truth: ndarray) -> float:
    """Mean share of the true rows among those found."""
    hits = [len(np.intersect1d(f, t)) for f, t in zip(found, truth, strict=True)]
    return round(float(np.mean(hits)) / truth.shape[1], 4)


def unit(vectors: Tensor) -> ndarray:
    """float32 in memory, unit length again after float16."""
    wide = vectors.float()
    return (wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True)).cpu().numpy()


def intrinsic_dimension(vectors: Tensor) -> float:
    """Levina-Bickel, 20 neighbours, of the first 500 vectors among these."""
    wide = vectors.float()
    distance = torch.cdist(wide[:500], wide).topk(21, dim=1, largest=False).values[:, 1:]
    ratio = torch.log(distance[:, -1:] / distance[:, :-1].clamp_min(1e-9))
    return float(1 / ratio.mean())


def copy_bandwidth(device: str) -> float:
    """Bytes read and written a second by a copy on the device, the best of ten."""
    source = torch.empty(1 << (32 if device == "cuda" else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        clock = Clock(device)
        target.copy_(source)
        best = max(best, 2 * source.numel() / clock.seconds())
    del source, target
    torch.cuda.empty_cache()  # else kept from FAISS; nothing where there is no GPU
    return best


class Clock:
    """Seconds since it was made, when everything asked of the device is done."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._wait()
        self.begin = time.perf_counter()

    def seconds(self) -> float:
        """Wait and read."""
        self._wait()
        return time.perf_counter() - self.begin

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def machine(device: str) -> str:
    """What it ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
