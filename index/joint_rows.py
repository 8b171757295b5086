"""Which joint rows a new version has: those of single observations, and those of several surveys.

Where an object is seen by several surveys its joint vector is made from all of them and stands in
place of those of the single observations (joints.py). When an object is left with one survey, the
joint rows of its observations come back from the store.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from index.changes import Changes, by_view
from index.embedding import Job, Progress
from index.joints import Joint, embed_joints, find_joints
from index.store import Store
from index.version import Version
from index.writing import labelled, object_ids_of
from training.observations import Skipped

_OBSERVATION = ("survey", "release", "source_id")


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The rows that come and go."""

    new: dict[str, pa.Table]  # by view
    gone: Bool[ndarray, " row"]  # of Version.all_rows
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
    # all_rows of a large version costs seconds; a version older than the field says None
    if base is not None and nothing_new and base.manifest.num_joint_left_out == 0:
        return RowPlan({}, np.zeros(base.manifest.num_rows, bool), 0, 0, [])
    num_old = 0 if base is None else base.all_rows.num_rows
    gone = np.zeros(num_old, bool)
    gone[changes.gone] = True
    there = [labelled(table, view) for view, table in new.items()]
    if base is not None:
        there.insert(0, base.all_rows.filter(pa.array(~gone)))
    if not there:
        return RowPlan(new, gone, 0, 0, [])
    rows = pa.concat_tables(there, promote_options="permissive")
    ids = object_ids_of(base, changes)
    names = dict(zip(ids["object_key"].to_pylist(), ids["object_id"].to_pylist(), strict=True))
    joints = find_joints(rows, names)
    have, single = _old_joints(base, joints, gone)
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
        schema = next(iter(new.values())).schema if new else _plain(base).schema
        _add(new, "joint", pa.Table.from_pylist([joint.row() for joint in made], schema))
    new = {view: table for view, table in new.items() if table.num_rows}
    return RowPlan(new, gone, len(made), len(missing) - len(made), skipped)


def _old_joints(
    base: Version | None, joints: dict[int, Joint], gone: Bool[ndarray, " row"]
) -> tuple[set[int], set[int]]:
    """Keys whose joint row stays, and keys that are of one survey again; marks what goes."""
    have: set[int] = set()
    single: set[int] = set()
    if base is None:
        return have, single
    old = base.all_rows.select(["object_key", "view", "source", "fingerprint"])
    is_joint = pc.equal(old["view"], "joint").to_numpy(zero_copy_only=False)
    of_several = pc.equal(old["source"], "").to_numpy(zero_copy_only=False)
    wanted = np.isin(old["object_key"].to_numpy(), np.fromiter(joints, np.int64, len(joints)))
    lines = np.flatnonzero(is_joint & ~gone & (of_several | wanted))
    for line, row in zip(lines, old.take(pa.array(lines)).to_pylist(), strict=True):
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


def _plain(base: Version | None) -> pa.Table:
    assert base is not None
    return base.all_rows.drop_columns(["view"])
