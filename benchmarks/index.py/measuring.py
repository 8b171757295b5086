"""All engines beside each other on the same rows: built in turn, then asked in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from curve import Point, mean_recall, point
from engines import Engine, EngineFailed
from peers import K
from truth import Truth
from worker import OURS

NUM_COLD = 200  # queries asked first of all, with nothing in the page cache

Show = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    num_queries: int
    num_filtered: int  # queries for each filter
    rounds: int  # of which the best counts
    seconds: float  # at most, for one engine at one effort in one round
    build_threads: int  # of each engine; a query has one


@dataclass(slots=True)
class Measured:
    """What came out for one engine."""

    version: str | None = None
    build_s: float = float("nan")
    more: dict[str, float] = field(default_factory=dict)  # what else building told
    memory_mib: float = float("nan")
    page_cache_mib: dict[str, float] = field(default_factory=dict)
    cold_ms: list[float] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)  # of asked efforts
    default: Point | None = None  # ours only
    filters: list[dict[str, Any]] = field(default_factory=list)  # ours only


def build(
    names: Sequence[str],
    folder: Path,
    *,
    python: Path,
    ours: Mapping[str, Any],
    num_threads: int,
    show: Show,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Build every index; gives those that are there, and why others are not."""
    done, missing = {}, {}
    for number, name in enumerate(names):
        show("building", number / len(names))
        with Engine(name, folder, python=python, num_threads=num_threads) as engine:
            arguments = ours if name == OURS else {"num_threads": num_threads}
            try:
                version = engine.ask("check")["version"]
                told = engine.ask("build", **arguments)
            except EngineFailed as error:
                if name == OURS:
                    raise
                missing[name] = str(error)
                continue
            seconds = told.pop("build_s")
            done[name] = Measured(version=version, build_s=seconds, more=told)
    show("building", 1)
    return done, missing


def serve(
    measured: dict[str, Measured],
    folder: Path,
    truth: Truth,
    plan: Plan,
    *,
    python: Path,
    show: Show,
) -> None:
    """Ask every engine at every effort, round by round in turn; fills in `measured`.

    All of them are open at once, so that a busy machine slows all alike. Each has one thread and
    the same core.

    Raises:
        EngineFailed: one of them cannot open what it built, or fails at a query.
    """
    core = max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        open_ones: dict[str, Engine] = {}
        efforts: dict[str, list[Any]] = {}
        for name, each in measured.items():
            engine = Engine(name, folder, python=python, num_threads=1)
            open_ones[name] = stack.enter_context(engine)
            efforts[name] = engine.ask("open", core=core)["efforts"]
            middle = None if name == OURS else efforts[name][len(efforts[name]) // 2]
            cold = engine.ask(
                "measure", first=plan.num_queries, last=plan.num_queries + NUM_COLD, effort=middle,
                seconds=plan.seconds, warm=False,
            )  # fmt: skip
            each.cold_ms = cold["ms"]
            if name == OURS:
                efforts[name].insert(0, None)
        todo = [(name, effort) for name in open_ones for effort in efforts[name]]
        times: list[list[list[float]]] = [[] for _ in todo]
        found: list[list[list[int]]] = [[] for _ in todo]
        for turn in range(plan.rounds):
            for i, (name, effort) in enumerate(todo):
                show("searching", (turn * len(todo) + i) / (plan.rounds * len(todo)))
                answer = open_ones[name].ask(
                    "measure", first=0, last=plan.num_queries, effort=effort,
                    seconds=plan.seconds, warm=True,
                )  # fmt: skip
                times[i].append(answer["ms"])
                found[i] = max(found[i], answer["rows"], key=len)
        show("searching", 1)
        for (name, effort), rounds, rows in zip(todo, times, found, strict=True):
            made = point(effort, rounds, rows, truth.rows)
            if effort is None:
                measured[name].default = made
            else:
                measured[name].points.append(made)
        for name, engine in open_ones.items():
            told = engine.ask("memory")
            measured[name].memory_mib = told.pop("memory_mib")
            measured[name].page_cache_mib = told
        if OURS in open_ones:
            measured[OURS].filters = _filtered(open_ones[OURS], truth, plan, show)
            measured[OURS].more["memory_with_filters_mib"] = open_ones[OURS].ask("memory")[
                "memory_mib"
            ]


def _filtered(engine: Engine, truth: Truth, plan: Plan, show: Show) -> list[dict[str, Any]]:
    """A line for each filter; times have resolving the predicate in them."""
    lines = []
    for number, (each, rows) in enumerate(truth.filtered.items()):
        show("filtering", number / len(truth.filtered))
        answer = engine.ask(
            "filtered", predicate=each.predicate, num_queries=plan.num_filtered, effort=None,
            seconds=plan.seconds,
        )  # fmt: skip
        recall = mean_recall(answer["rows"], rows)
        lines.append(
            {
                "kind": each.kind,
                "selectivity": each.selectivity,
                f"recall@{K}": None if np.isnan(recall) else recall,  # nothing passes it
                "p95_ms": float(np.percentile(answer["ms"], 95)),
            }
        )
    show("filtering", 1)
    return lines
