"""The index beside other libraries: recall, speed, memory, building, filters.

    python benchmarks/index.py [--rows 1e6] [--queries 1000] [--seed 0] [--dim 256]
        [--peers NAME ... | --peers none] [--peers-python PATH] [--rounds 3] [--seconds 20]
        [--build-threads N] [--segments] [--nightly] [--work FOLDER] [--json]

This is a folder, which Python runs by its `__main__.py`: a file of this name would be found by
every other script here that imports the package `index`.

Rows and queries are synthetic (synthetic_vectors.py). Our index is a version of a sky, written by
the index's own writers and searched one query at a time as a user does, at the default and at
several recalls asked for. Every peer runs in a process of its own, in the environment of
`make benchmark-peers` where that is there; one that cannot be imported is not measured, and
`run.not_measured` says so. Building may use all cores (or
--build-threads); a query has one thread, and all engines the
same core. They are open together and take turns, round by round; the best round of each counts.

recall@10 is the share of the ten nearest, found exactly among the vectors as drawn. `qps_at_098` is
interpolated between efforts (curve.py). Memory is what a fresh process holds after opening and
searching, beyond what it held before: anonymous memory and mapped pages of the index. What the page
cache has of our `vectors.npy` stands in `run`. A filter's time includes resolving the predicate.

With --nightly a sky of as many objects is built and followed by the nightly (nightly.py, which says
what is measured); all of its figures stand in `run.nightly`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # synthetic_vectors.py and others, found last

import nightly
import numpy as np
import segments
from curve import rate_at
from measuring import NUM_COLD, Measured, Plan, Show, build, serve
from peers import PEERS
from synthetic_vectors import Population
from truth import all_filters, prepare
from worker import OURS

from index.manifest import git_revision
from training.progress import progress_bars

WANTED = 0.98  # recall at which engines are compared
PEERS_PYTHON = Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument(
        "--peers", nargs="+", choices=[*PEERS, "none"], default=list(PEERS), metavar="NAME",
        help=f"default: {', '.join(PEERS)}",
    )  # fmt: skip
    parser.add_argument("--peers-python", type=Path, help="default: .venv-bench, else this one")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for an engine at an effort in a round, at most"
    )
    parser.add_argument(
        "--build-threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)),
        help="default: $OMP_NUM_THREADS, else all cores",
    )  # fmt: skip
    parser.add_argument("--segments", action="store_true", help="also 1 to 64 segments")
    parser.add_argument("--nightly", action="store_true", help="also the nightly; takes long")
    parser.add_argument("--work", type=Path, help="where files go; default: a folder that goes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    if given.rows < 1000 or given.queries < 1 or given.rounds < 1 or given.dim < 2:
        parser.error(
            "expected 1,000 rows or more, and at least one query, one round, two dimensions"
        )
    peers = [] if "none" in given.peers else list(given.peers)
    default = PEERS_PYTHON if PEERS_PYTHON.exists() else Path(sys.executable)
    with tempfile.TemporaryDirectory(dir=given.work) as scratch, progress_bars() as show:
        report = measure(
            Path(scratch),
            num_rows=int(given.rows),
            population=Population(seed=given.seed, dim=given.dim),
            plan=Plan(
                num_queries=given.queries,
                num_filtered=min(given.queries, 200),
                rounds=given.rounds,
                seconds=given.seconds,
                build_threads=given.build_threads or os.cpu_count() or 1,
            ),
            peers=peers,
            python=given.peers_python or default,
            with_segments=given.segments,
            with_nightly=given.nightly,
            show=lambda what, share: show(what, share, 1),
        )
    if given.json:
        print(json.dumps(report))
    else:
        print_table(report)


def measure(
    folder: Path,
    *,
    num_rows: int,
    population: Population,
    plan: Plan,
    peers: Sequence[str],
    python: Path,
    with_segments: bool,
    with_nightly: bool,
    show: Show,
) -> dict[str, Any]:
    """The document of one run."""
    show("drawing", 0)
    truth = prepare(
        folder,
        population,
        num_rows=num_rows,
        num_queries=plan.num_queries,
        num_more=NUM_COLD,
        num_filtered=plan.num_filtered,
        filters=all_filters(),
        with_vectors=bool(peers),
    )
    show("drawing", 1)
    same = {"num_rows": num_rows, "seed": population.seed, "dim": population.dim}
    measured, missing = build(
        [OURS, *peers],
        folder,
        python=python,
        ours=same,
        num_threads=plan.build_threads,
        show=show,
    )
    serve(measured, folder, truth, plan, python=python, show=show)
    lines = None
    if with_segments:
        lines = segments.measure(folder, truth, plan, **same, show=show)
    report = document(measured, [each for each in peers if each in missing])
    nights = None
    if with_nightly:
        (folder / "nightly").mkdir()
        nights = nightly.measure(
            folder / "nightly",
            num_objects=num_rows,
            seed=population.seed,
            show=lambda what, done, total: show(f"nightly: {what}", done / total),
        )
        report["nightly"] = nights["nightly"]
    else:
        missing |= {"nightly": "not asked for: --nightly"}
    report["run"] = {
        **_circumstances(),
        "rows": num_rows,
        "dim": population.dim,
        "queries": plan.num_queries,
        "seed": population.seed,
        "rounds": plan.rounds,
        "build_threads": plan.build_threads,
        "intrinsic_dimension": truth.intrinsic_dimension,
        "not_measured": missing,
        **_details(measured),
        "segments": lines,
        "nightly": nights,
    }
    return report


def document(measured: Mapping[str, Measured], missing: Sequence[str]) -> dict[str, Any]:
    """The figures that are asked of the index; null stands for what was not measured."""
    ours = measured[OURS]
    assert ours.default is not None
    return {
        "recall@10": ours.default.recall,
        "p50_ms": ours.default.p50_ms,
        "qps_1_thread": ours.default.queries_per_second,
        "qps_at_098": rate_at(ours.points or [ours.default], WANTED),
        "peers": {
            name: {
                "qps_at_098": rate_at(each.points, WANTED),
                "memory_mib": each.memory_mib,
                "build_s": each.build_s,
            }
            for name, each in measured.items()
            if name != OURS
        }
        | {name: dict.fromkeys(("qps_at_098", "memory_mib", "build_s")) for name in missing},
        "memory_mib": ours.memory_mib,
        "build_s": ours.build_s,
        "filters": ours.filters,
        "nightly": None,
    }


def _details(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """What else was seen, by engine."""
    ours = measured[OURS]
    assert ours.default is not None
    efforts = {name: [each.line() for each in one.points] for name, one in measured.items()}
    efforts[OURS].insert(0, ours.default.line())
    return {
        "efforts": efforts,
        "versions": {name: each.version for name, each in measured.items()},
        "cold_p99_ms": {
            name: float(np.percentile(each.cold_ms, 99)) for name, each in measured.items()
        },
        "page_cache_mib": {name: each.page_cache_mib for name, each in measured.items()},
        "ours": ours.more,
    }


def _circumstances() -> dict[str, Any]:
    """Machine, date, commit."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "machine": {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory_gib, 1)},
        "measured_at_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_revision(),
    }


def print_table(report: Mapping[str, Any]) -> None:
    """The same for people."""
    run = report["run"]
    print(
        f"{run['rows']:,} x {run['dim']}, {run['queries']:,} queries, seed {run['seed']}, commit "
        f"{(run['commit'] or 'unknown')[:8]}, {run['machine']['cpu']}"
    )
    if run["intrinsic_dimension"] is not None:
        print(f"intrinsic dimension {run['intrinsic_dimension']:.1f}")
    print(
        f"ours at the default: recall@10 {report['recall@10']:.4f}, p50 {report['p50_ms']:.3f} ms, "
        f"{report['qps_1_thread']:,.0f} queries/s on one thread"
    )
    print(f"{'':28}{'q/s at 0.98':>12}{'memory MiB':>12}{'build s':>10}{'cold p99 ms':>13}")
    for name, figures in {OURS: report, **report["peers"]}.items():
        if name in run["not_measured"]:
            print(f"{name:28}not measured: {run['not_measured'][name]}")
            continue
        rate = figures["qps_at_098"]
        print(
            f"{name:28}{'not reached' if rate is None else f'{rate:,.0f}':>12}"
            f"{figures['memory_mib']:12,.0f}{figures['build_s']:10.1f}"
            f"{run['cold_p99_ms'][name]:13.2f}"
        )
    cached_mib = run["page_cache_mib"][OURS]["vectors_page_cache_mib"]
    print(f"page cache of vectors.npy: {cached_mib:,.0f} MiB")
    print(f"{'filter':12}{'selectivity':>12}{'recall@10':>12}{'p95 ms':>10}")
    for line in report["filters"]:
        recall = line["recall@10"]
        print(
            f"{line['kind']:12}{line['selectivity']:12.2%}"
            f"{'nothing' if recall is None else f'{recall:.4f}':>12}{line['p95_ms']:10.2f}"
        )
    for line in run["segments"] or ():
        print(
            f"{line['num_segments']:3} segments, {line['layout']:8} largest "
            f"{line['largest_rows']:,} rows: p50 {line['p50_ms']:.3f} ms, "
            f"recall@10 {line['recall@10']:.4f}"
        )
    if run["nightly"] is None:
        print(f"nightly not measured: {run['not_measured']['nightly']}")
    else:
        nightly.print_table(run["nightly"])


if __name__ == "__main__":
    main()
