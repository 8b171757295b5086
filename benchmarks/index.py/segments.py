"""What a query costs when the same rows lie in 1 to 64 segments."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

from curve import point
from engines import Engine
from measuring import Plan, Show
from truth import Truth
from worker import OURS, folder_of

NUM_SEGMENTS = (1, 2, 4, 8, 16, 32, 64)
NIGHTLY_SHARE = 0.001  # of all rows, in each segment that a night adds


def divided(layout: str, num_rows: int, num_segments: int) -> list[int]:
    """Rows of each segment.

    Args:
        layout: "equal", or "nightly": one of most rows, the others with NIGHTLY_SHARE of all each.
        num_rows: Of all.
        num_segments: At most as many as rows.

    Raises:
        ValueError: an unknown layout.
    """
    if layout == "equal":
        bounds = [num_rows * i // num_segments for i in range(num_segments + 1)]
        return [stop - start for start, stop in pairwise(bounds)]
    if layout != "nightly":
        raise ValueError(f"expected layout 'equal' or 'nightly', got {layout!r}")
    small = max(1, int(num_rows * NIGHTLY_SHARE))
    return [num_rows - small * (num_segments - 1), *[small] * (num_segments - 1)]


def measure(
    folder: Path, truth: Truth, plan: Plan, *, num_rows: int, seed: int, dim: int, show: Show
) -> list[dict[str, Any]]:
    """Build and ask one sky after the other, at the default effort; a line for each.

    Where a division gives the same rows a segment as another layout's, it is measured again: the
    difference tells the noise.
    """
    lines = []
    jobs = [(layout, number) for layout in ("equal", "nightly") for number in NUM_SEGMENTS]
    for done, (layout, number) in enumerate(jobs):
        show("segments", done / len(jobs))
        rows = divided(layout, num_rows, number)
        shutil.rmtree(folder_of(OURS, folder), ignore_errors=True)
        with Engine(OURS, folder, python=Path(), num_threads=plan.build_threads) as engine:
            engine.ask("build", num_rows=num_rows, seed=seed, dim=dim, segment_rows=rows)
        with Engine(OURS, folder, python=Path(), num_threads=1) as engine:
            engine.ask("open", core=max(os.sched_getaffinity(0)))
            answers = [
                engine.ask(
                    "measure", first=0, last=plan.num_queries, effort=None, seconds=plan.seconds,
                    warm=True,
                )
                for _ in range(plan.rounds)
            ]  # fmt: skip
        longest = max((each["rows"] for each in answers), key=len)
        made = point(None, [each["ms"] for each in answers], longest, truth.rows)
        lines.append(
            {
                "layout": layout,
                "num_segments": number,
                "largest_rows": max(rows),
                "recall@10": made.recall,
                "p50_ms": made.p50_ms,
            }
        )
    show("segments", 1)
    return lines
