"""First light: build speed, search latency, memory and retrieval quality of the whole chain.

    python benchmarks/first_light.py [--quick] [--json] [--data ../shared/data]

Runs `skykin demo --check` on a fresh simulated sky and watches its memory, searches that sky with
random seeds, then builds the 1,400 Galaxy Zoo 2 composites (where they are at hand) with the
shipped encoder and asks for spirals by spirals. stdout with --json is one JSON document.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import discovery
from index.building import build

GIB = 2**30


def proportional_set_bytes(pid: int) -> int:
    """Memory of one process, pages shared with others counted in proportion; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # the process has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def process_tree(pid: int) -> list[int]:
    """The process and all that it started."""
    family = [pid]
    for parent in family:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                family += [int(child) for child in task.read_text().split()]
            except OSError:  # the process has ended
                continue
    return family


def run_and_watch(command: list[str]) -> tuple[str, float, float]:
    """Run a command; its standard output, seconds and peak memory (GiB, all its processes)."""
    started, peak_bytes = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, stdout=output) as process:
            while process.poll() is None:
                tree = process_tree(process.pid)
                peak_bytes = max(peak_bytes, sum(proportional_set_bytes(pid) for pid in tree))
                time.sleep(0.2)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
        output.seek(0)
        return output.read(), time.perf_counter() - started, peak_bytes / GIB


def search_p50_ms(sky_folder: Path, *, num_queries: int) -> float:
    """Median time of one search by object id, k = 50, in an opened sky."""
    sky = discovery.open(sky_folder)
    seeds = [sky.random_bright(seed) for seed in range(num_queries)]
    elapsed_ms = []
    for object_id in seeds:
        started = time.perf_counter()
        sky.search(discovery.Query(like=(object_id,), k=50))
        elapsed_ms.append(1e3 * (time.perf_counter() - started))
    return float(np.median(elapsed_ms))


def galaxy_zoo_2(data: Path, folder: Path, *, num_images: int) -> dict[str, Any]:
    """Build the spiral / not spiral composites and evaluate spirals as seeds."""
    source = data / "gz2_spiral_nonspiral" / "train"
    sources = [source / kind for kind in ("spirals", "non_spirals")]
    files = [file for kind in sources for file in sorted(kind.glob("*.jpg"))[: num_images // 2]]
    labels = folder / "labels.csv"
    with labels.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["object_id", "spiral"])
        writer.writerows((file.stem, int(file.parent.name == "spirals")) for file in files)
    report = build(folder / "sky", files, survey="composite")
    scored = discovery.evaluate(discovery.open(folder / "sky"), labels, "spiral", view="image")
    return {
        "images": report.num_embedded,
        "images_per_s": report.num_embedded / report.seconds,
        "ndcg@10": scored.ndcg,
        "error": scored.error,
        "chance": scored.chance,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, for a look")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "demo"
        num_objects = 200 if arguments.quick else 2000
        command = [str(Path(sys.executable).with_name("skykin")), "demo", "--check", "--json"]
        command += ["--objects", str(num_objects), "--folder", str(folder)]
        output, figures["demo_seconds"], figures["peak_memory_gib"] = run_and_watch(command)
        figures["simulated"] = json.loads(output)["labels"]
        (sky,) = folder.glob("sky-*")
        num_queries = 50 if arguments.quick else 500
        figures["search_p50_ms"] = search_p50_ms(sky, num_queries=num_queries)
        if (arguments.data / "gz2_spiral_nonspiral").is_dir():
            gz2 = Path(scratch) / "gz2"
            gz2.mkdir()
            figures["gz2"] = galaxy_zoo_2(
                arguments.data, gz2, num_images=200 if arguments.quick else 1400
            )
            figures["images_per_s"] = figures["gz2"]["images_per_s"]
        else:
            figures["images_per_s"] = None
            print(f"images_per_s not measured: no images at {arguments.data}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
