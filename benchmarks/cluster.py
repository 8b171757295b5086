"""What a query costs on Ray actors of this machine, beside one process on the same sky.

    python benchmarks/cluster.py [--rows 200000] [--segments 4] [--queries 300] [--json]

Needs Ray (`make cluster`). Both ways are asked the same queries in turn, one at a time, so that
what else runs on the machine costs both the same; the ratio is the figure, milliseconds are for
orientation. Answers are compared too: they have to be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from synthetic_sky import VIEW, write_sky
from synthetic_vectors import Population

from index.codec import IndexConfig
from index.ray_nodes import Cluster
from index.version import Version
from index.versions import open_version

K = 10
NUM_WARM = 20  # queries before those that count


def main() -> None:
    """Write the sky, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=float, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    population = Population(dim=asked.dim)
    sizes = [int(asked.rows) // asked.segments] * asked.segments
    with tempfile.TemporaryDirectory() as folder:
        sky = Path(folder) / "sky"
        coded = IndexConfig(exact_rows=sum(sizes) // 2)
        write_sky(sky, population, segment_rows=sizes, index=coded)
        figures = compare(sky, population.queries(asked.queries + NUM_WARM), asked.actors)
    figures |= {"rows": sum(sizes), "dim": asked.dim, "segments": asked.segments}
    figures["actors"] = asked.actors
    figures["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    figures["date"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if asked.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<28} {value:.3f}" if isinstance(value, float) else f"{name:<28} {value}")


def compare(sky: Path, queries: ndarray, num_actors: int) -> dict[str, Any]:
    """p50 of both ways, through the codes and row by row, and whether answers are the same."""
    here = open_version(sky)
    started = time.perf_counter()
    there = open_version(sky, cluster=Cluster(address="local", num_actors=num_actors))
    figures: dict[str, Any] = {"start_s": time.perf_counter() - started}
    try:
        for name, recall in (("codes", 0.98), ("exact", 1)):
            some = queries if name == "codes" else queries[: max(NUM_WARM + 50, len(queries) // 5)]
            one, many, same = _in_turn(here, there, some, recall)
            figures[f"{name}_process_p50_ms"] = one
            figures[f"{name}_actors_p50_ms"] = many
            figures[f"{name}_ratio"] = many / one
            figures[f"{name}_same"] = same
    finally:
        assert there.holders is not None
        there.holders.close()
    return figures


def _in_turn(
    here: Version, there: Version, queries: ndarray, recall: float | int
) -> tuple[float, float, bool]:
    seconds: dict[Version, list[float]] = {here: [], there: []}
    same = True
    for query in queries:
        found = []
        for version, taken in seconds.items():
            started = time.perf_counter()
            found.append(version.search(query[None], view=VIEW, k=K, recall=recall))
            taken.append(time.perf_counter() - started)
        one, two = found
        same &= np.array_equal(one.keys, two.keys) and np.array_equal(one.scores, two.scores)
    p50 = [1e3 * float(np.median(taken[NUM_WARM:])) for taken in seconds.values()]
    return p50[0], p50[1], bool(same)


if __name__ == "__main__":
    main()
