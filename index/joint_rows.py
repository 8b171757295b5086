"""Which joint rows a new version has: those of single observations, and those of several surveys.

Where an object is seen by several surveys its joint vector is made from all of them and stands in
place of those of the single observations (joints.py). When an object is left with one survey, the
joint rows of its observations come back from the store.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64
from numpy import ndarray

from index.changes import Changes, by_view
from index.embedding import Job, Progress
from index.joints import Joint, embed_joints, find_joints
from index.store import Store
from index.version import Version
from index.writing import labelled, object_id_of
from training.observations import Skipped

_OBSERVATION = ("survey", "release", "source_id")


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The rows that come and go."""

    new: dict[str, pa.Table]  # by view
    gone: Bool[ndarray, " row"]  # of Version.live_rows
    num_joint: int  # joint vectors of several surveys that are new
    num_left_out: int  # joint vectors that could not be made: tried again next time
    skipped: list[Skipped]


def plan_rows(
    base: Version | None,
    changes: Changes,
    store: Store,
    *,
    job: Job,
    num_workers: int | None,
    progress: Progress | None,
) -> RowPlan:
    """New rows by view, joint views of several surveys among them, and which old rows go."""
    new = by_view(changes.rows)
    nothing_new = base is not None and not new and not len(changes.gone)
    # every live row of a large version costs seconds; a version older than the field says None
    if base is not None and nothing_new and base.manifest.num_joint_left_out == 0:
        return RowPlan({}, np.zeros(base.manifest.num_rows, bool), 0, 0, [])
    gone = np.zeros(0 if base is None else base.manifest.num_rows, bool)
    gone[changes.gone] = True
    there = [labelled(table, view) for view, table in new.items()]
    lines = np.empty(0, np.int64)
    if base is not None:
        lines = _lines_of_interest(base, there, gone)
        stay = lines[~gone[lines]]
        if len(stay):
            there.insert(0, base.live_rows.at(stay))
    if not there:
        return RowPlan(new, gone, 0, 0, [])
    rows = pa.concat_tables(there, promote_options="permissive")
    joints = find_joints(rows, partial(object_id_of, base, changes))
    have, single = _old_joints(base, joints, gone, lines)
    if "joint" in new:
        of_one = pc.is_in(new["joint"]["object_key"], pa.array(list(joints), pa.int64()))
        new["joint"] = new["joint"].filter(pc.invert(of_one))
    if single:
        _add(new, "joint", _of_single(rows, single, store))
    missing = [joint for key, joint in joints.items() if key not in have]
    stored = store.has("joint", [joint.task.fingerprint for joint in missing])
    to_embed = [
        joint.task for joint, is_stored in zip(missing, stored, strict=True) if not is_stored
    ]
    skipped: list[Skipped] = []
    if to_embed:
        skipped = embed_joints(
            to_embed, job=job, store=store, num_workers=num_workers, progress=progress
        )
    stored = store.has("joint", [joint.task.fingerprint for joint in missing])
    made = [joint for joint, is_stored in zip(missing, stored, strict=True) if is_stored]
    if made:
        schema = next(iter(new.values())).schema if new else rows.drop_columns(["view"]).schema
        _add(new, "joint", pa.Table.from_pylist([joint.row() for joint in made], schema))
    new = {view: table for view, table in new.items() if table.num_rows}
    return RowPlan(new, gone, len(made), len(missing) - len(made), skipped)


def _lines_of_interest(
    base: Version, there: Sequence[pa.Table], gone: Bool[ndarray, " row"]
) -> Int64[ndarray, " n"]:
    """Lines of Version.live_rows of the objects whose joint rows may change."""
    if base.manifest.num_joint_left_out != 0:  # of any object
        return np.arange(len(gone))
    keys = base.live_rows.columns(["object_key"])["object_key"].to_numpy()
    touched = [keys[gone], *(table["object_key"].to_numpy() for table in there)]
    return np.flatnonzero(np.isin(keys, np.unique(np.concatenate(touched))))


def _old_joints(
    base: Version | None,
    joints: dict[int, Joint],
    gone: Bool[ndarray, " row"],
    of_interest: Int64[ndarray, " n"],
) -> tuple[set[int], set[int]]:
    """Keys whose joint row stays, and keys that are of one survey again; marks what goes."""
    have: set[int] = set()
    single: set[int] = set()
    if base is None:
        return have, single
    names = ["object_key", "view", "source", "fingerprint"]
    old = base.live_rows.columns(names).take(pa.array(of_interest))
    is_joint = pc.equal(old["view"], "joint").to_numpy(zero_copy_only=False)
    of_several = pc.equal(old["source"], "").to_numpy(zero_copy_only=False)
    wanted = np.isin(old["object_key"].to_numpy(), np.fromiter(joints, np.int64, len(joints)))
    some = np.flatnonzero(is_joint & ~gone[of_interest] & (of_several | wanted))
    lines = of_interest[some].tolist()
    for line, row in zip(lines, old.take(pa.array(some)).to_pylist(), strict=True):
        key = row["object_key"]
        if key in joints and row["fingerprint"] == joints[key].task.fingerprint:
            have.add(key)
            continue
        gone[line] = True
        if key not in joints:
            single.add(key)
    return have, single


def _of_single(rows: pa.Table, keys: Collection[int], store: Store) -> pa.Table:
    """Joint rows of the single observations that these objects are left with."""
    mine = pc.and_(
        pc.is_in(rows["object_key"], pa.array(sorted(keys), pa.int64())),
        pc.not_equal(rows["source"], ""),
    )
    lines = rows.filter(mine)
    chosen, seen = [], set()
    there = {_identity(line) for line in lines.to_pylist() if line["view"] == "joint"}
    for i, line in enumerate(lines.to_pylist()):
        identity = _identity(line)
        if identity not in there and identity not in seen:
            seen.add(identity)
            chosen.append(i)
    found = lines.take(pa.array(chosen, pa.int64())).drop_columns(["view"])
    return found.filter(pa.array(store.has("joint", found["fingerprint"].to_pylist())))


def _identity(line: dict[str, object]) -> tuple[object, ...]:
    return tuple(line[name] for name in ("object_key", *_OBSERVATION))


def _add(new: dict[str, pa.Table], view: str, table: pa.Table) -> None:
    tables = [new[view], table] if view in new else [table]
    new[view] = pa.concat_tables(tables, promote_options="permissive")
