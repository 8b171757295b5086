"""What a new version has to pass before it is published.

A gate that refuses costs a night; a bad version that is published costs every query until somebody
sees it. Each gate says what it measured and what it asked for, also where it passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from index.comparison import Outage
from index.evaluation import OpenVersion, evaluate
from index.manifest import Manifest
from index.nightly_config import LabelGate, NightlyConfig
from index.recall import RecallCurve
from index.updating import Draft, lines_removed
from index.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One figure and its bound."""

    name: str
    passed: bool
    measured: float | None  # None: nothing to measure
    bound: float
    text: str  # one line for people


def reach_gate(outages: Sequence[Outage]) -> Gate:
    """Where everything is to be read again: whether it can be."""
    out = [each for each in outages if each.num_files]
    num = sum(each.num_files for each in out)
    text = "; ".join(f"{each.place}: {each.reason}" for each in out[:3])
    return Gate(
        name="all sources are there",
        passed=not num,
        measured=float(num),
        bound=0.0,
        text=f"{num:,} files cannot be read again" + (f": {text}" if text else ""),
    )


def removal_gates(base: Version, draft: Draft, *, max_removed_share: float) -> Iterator[Gate]:
    """Before anything is written: how much would go, in all and of each view."""
    lines = lines_removed(draft.changes)
    views = base.live_rows.columns(["view"])["view"].take(lines) if len(lines) else None
    before = rows_by_view(base.manifest)
    total = sum(before.values())
    yield _share("removed rows", len(lines), total, max_removed_share)
    for view, num in sorted(before.items()):
        # of removed observations, not joint views that only change their parts
        gone = 0 if views is None else int(pc.sum(pc.equal(views, view)).as_py())
        yield _share(f"removed rows of view {view}", gone, num, max_removed_share)
    left = total - int(np.count_nonzero(draft.plan.gone))
    left += sum(table.num_rows for table in draft.plan.new.values())
    yield Gate(
        name="rows left",
        passed=left > 0,
        measured=float(left),
        bound=1.0,
        text=f"{left:,} rows would be left",
    )


def _share(name: str, num: int, total: int, bound: float) -> Gate:
    share = num / max(total, 1)
    return Gate(
        name=name,
        passed=share <= bound,
        measured=share,
        bound=bound,
        text=f"{num:,} of {total:,} rows ({share:.2%}), at most {bound:.2%}",
    )


def version_gates(
    sky: Path, base: Version | None, draft: Draft, manifest: Manifest, config: NightlyConfig
) -> Iterator[Gate]:
    """Of a version that is written: it is whole, counts add up, it finds what it should."""
    # opening it checks that every file is there; who has the sky's lock needs no lease
    version = Version(sky, manifest.number, held=False)
    yield _counts(base, draft, version)
    yield from recall_gates(manifest.curves, config.min_recall)
    if config.labels is not None:
        yield from _label_gates(base, version, config.labels)


def _counts(base: Version | None, draft: Draft, version: Version) -> Gate:
    """Rows before - gone + new, by view, against what is there."""
    want = {} if base is None else rows_by_view(base.manifest)
    if base is not None and draft.plan.gone.any():
        views = base.live_rows.columns(["view"])["view"]
        for view in views.take(np.flatnonzero(draft.plan.gone)).to_pylist():
            want[view] -= 1
    for view, table in draft.plan.new.items():
        want[view] = want.get(view, 0) + table.num_rows
    found = {view: 0 for view in want}
    for live in version.segments:
        num = live.segment.num_rows if live.alive is None else int(live.alive.sum())
        found[live.segment.view] = found.get(live.segment.view, 0) + num
    wrong = [view for view in sorted(found) if found[view] != want.get(view, 0)]
    text = ", ".join(f"{view} {num:,}" for view, num in sorted(found.items()))
    if wrong:
        text += "; expected " + ", ".join(f"{view} {want.get(view, 0):,}" for view in wrong)
    num_rows, expected = sum(found.values()), sum(want.values())
    passed = not wrong and num_rows == version.manifest.num_rows
    return Gate(
        name="row counts", passed=passed, measured=float(num_rows), bound=float(expected), text=text
    )


def recall_gates(curves: Sequence[RecallCurve], bound: float) -> Iterator[Gate]:
    """recall@10 that codes reach with the most effort, for rows as queries, view by view.

    Not that of searches, which look at every row where codes do not reach what was asked for: no
    answer tells then that the codec has become useless, only the time it takes. Directions are few,
    and where codes do not serve them they are looked up exactly, as planned.

    Args:
        curves: Of the views that are not searched exactly.
        bound: That each has to reach.
    """
    if not curves:
        yield Gate(
            name="recall@10", passed=True, measured=None, bound=bound, text="exact, not measured"
        )
    for curve in curves:
        reached = max((point.recall_at_10 for point in curve.rows), default=0.0)
        yield Gate(
            name=f"recall@10 of view {curve.view}",
            passed=reached >= bound,
            measured=reached,
            bound=bound,
            text=f"{reached:.4f}, at least {bound:.4f}",
        )


def _label_gates(base: Version | None, version: Version, labels: LabelGate) -> Iterator[Gate]:
    def measured(one: Version) -> float:
        return evaluate(
            OpenVersion(one),
            labels.file,
            labels.label,
            query_above=labels.query_above,
            view=labels.view,
        ).ndcg

    try:
        new = measured(version)
    except ValueError as error:
        yield Gate(
            name=f"nDCG@10 of {labels.label}",
            passed=False,
            measured=None,
            bound=labels.min_ndcg,
            text=f"cannot be measured: {error}",
        )
        return
    yield Gate(
        name=f"nDCG@10 of {labels.label}",
        passed=new >= labels.min_ndcg,
        measured=new,
        bound=labels.min_ndcg,
        text=f"{new:.4f}, at least {labels.min_ndcg:.4f}",
    )
    if base is None:
        return
    name = f"drop of nDCG@10 of {labels.label}"
    try:
        drop = measured(base) - new
    except ValueError as error:  # what is labelled came only now
        text = f"the published version cannot be measured: {error}"
        yield Gate(name=name, passed=True, measured=None, bound=labels.max_drop, text=text)
        return
    yield Gate(
        name=name,
        passed=drop <= labels.max_drop,
        measured=drop,
        bound=labels.max_drop,
        text=f"{drop:+.4f} below the published version, at most {labels.max_drop:.4f}",
    )


def rows_by_view(manifest: Manifest) -> dict[str, int]:
    """Live rows of each view."""
    rows: dict[str, int] = {}
    for record in manifest.segments:
        rows[record.view] = rows.get(record.view, 0) + record.num_rows - record.num_deleted
    return rows
