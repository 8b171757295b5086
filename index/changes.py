"""What newly read rows mean for a version: new, changed, known, or read twice.

A row is the same row when survey, release and source_id are. The same row with the same content
changes nothing; with other content, or from a file that took the place of one that is gone, it
replaces the old one. The same row from a second file is left out: what is there first, or first in
path order, stays. Which rows are one object is told in objects.py.

Rows go only where a caller says which files are gone and that rows may go (nightly.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from numpy import ndarray

from index.version import Version
from training.observations import Skipped

_KNOWN = (
    "reader",
    "survey",
    "release",
    "source_id",
    "object_id",
    "source",
    "source_part",
    "fingerprint",
)
_SHARED = ("reader", "survey", "release", "source")
LINES_AT_ONCE = 16_384
ALREADY_READ = "was already read from"  # then the file: inputs whose rows stood behind its own

Identity = tuple[str, str, str]  # survey, release, source_id


@dataclass(slots=True)
class Changes:
    """What a build does to rows and objects."""

    rows: pa.Table | None  # accepted, with object_key and views, in the order they came
    replaced: Int64[ndarray, " n"]  # lines of Version.live_rows that go for a newer row
    new_ids: dict[int, str]  # object_key -> object_id of objects that are new
    next_key: int
    skipped: list[tuple[int, Skipped]] = field(default_factory=list)  # with the number of the file
    num_rows: dict[int, int] = field(default_factory=dict)  # by file: rows that the sky has of it
    removed: Int64[ndarray, " m"] = field(default_factory=lambda: np.empty(0, np.int64))  # for none

    @property
    def gone(self) -> Int64[ndarray, " n"]:
        """Lines of Version.live_rows that go."""
        return np.union1d(self.replaced, self.removed)


@dataclass(slots=True)
class _Old:
    """A row that the version has, one line a view."""

    lines: list[int]
    object_key: int
    row: dict[str, Any]


def find_changes(
    read: pa.Table | None,
    *,
    base: Version | None,
    next_key: int,
    gone: Collection[str] = (),
    anew: bool = False,
) -> Changes:
    """Sort out what was read (columns of objects.as_rows) against the version before.

    Files in `gone` count as gone, also where they are still on disk. `anew`: of the version before
    only the objects go on, all its rows go.
    """
    changes = Changes(None, np.empty(0, np.int64), {}, next_key)
    if anew and base is not None:
        changes.replaced = np.arange(base.manifest.num_rows)
    if read is None:
        return changes
    read = read.take(pc.sort_indices(read["file"]))  # stable: the order within a file stays
    old: dict[Identity, _Old] = {}
    names = _Names()
    if base is not None:
        lines, rows = _rows_of_ids(base, read)
        old = _old_rows(lines, rows)
        names.know(base, read, rows)
    read_from, read_again = _places(read, of=old) if old else (set(), set())
    first: dict[Identity, str] = {}
    accepted, keys, replaced = [], [], []
    for i, row in enumerate(_lines(read)):
        identity = identity_of(row)
        if identity in first:
            _leave_out(changes, row, first[identity])
            continue
        before = old.get(identity)
        if before is not None and before.row["source"] != row["source"]:
            there = before.row["source"]
            moved = there in read_again and (*identity, there) not in read_from
            moved = moved or (anew and there not in read_again)
            if there not in gone and os.path.exists(there) and not moved:
                _leave_out(changes, row, there)
                continue
        first[identity] = row["source"]
        changes.num_rows[row["file"]] = changes.num_rows.get(row["file"], 0) + 1
        if before is not None:
            if not anew and all(before.row[name] == row[name] for name in _KNOWN):
                continue
            replaced.extend(before.lines)
        same_name = before is not None and before.row["object_id"] == row["object_id"]
        name = names.of(row)
        key = before.object_key if before is not None and same_name else names.keys.get(name)
        if key is None:
            key = changes.next_key
            changes.next_key += 1
            changes.new_ids[key] = name
            names.keys[name] = key
        accepted.append(i)
        keys.append(key)
    if not anew:
        changes.replaced = np.array(sorted(replaced), np.int64)
    if accepted:
        table = read.take(pa.array(accepted)).drop_columns(["file"])
        changes.rows = table.add_column(0, "object_key", pa.array(keys, pa.int64()))
    return changes


def _leave_out(changes: Changes, row: dict[str, Any], there: str) -> None:
    part = f" (part {row['source_part']})" if row["source_part"] else ""
    reason = f"object id {row['source_id']!r}{part} {ALREADY_READ} {there}"
    changes.skipped.append((row["file"], Skipped(row["source"], reason)))


def identity_of(row: dict[str, Any]) -> Identity:
    return row["survey"], row["release"], row["source_id"]


def _lines(read: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows one by one; a million of them as objects at once take more than a gigabyte."""
    same: dict[str, str] = {}  # what thousands of rows share is held once
    for batch in read.select(["file", *_KNOWN]).to_batches(max_chunksize=LINES_AT_ONCE):
        for row in batch.to_pylist():
            for name in _SHARED:
                row[name] = same.setdefault(row[name], row[name])
            yield row


def _rows_of_ids(base: Version, read: pa.Table) -> tuple[Int64[ndarray, " n"], pa.Table]:
    """Lines of the version, and their rows, that have the source_id of one of these."""
    known = base.live_rows.columns(["source", "source_id"])
    mine = pc.and_(
        pc.not_equal(known["source"], ""),
        pc.is_in(known["source_id"], pc.unique(read["source_id"])),
    )
    lines = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
    if not len(lines):
        return lines, pa.table({})
    return lines, base.live_rows.at(lines, list(_KNOWN)).select(["object_key", *_KNOWN])


def _old_rows(lines: Int64[ndarray, " n"], rows: pa.Table) -> dict[Identity, _Old]:
    """Rows of the version by identity."""
    old: dict[Identity, _Old] = {}
    for line, row in zip(lines.tolist(), rows.to_pylist(), strict=True):
        old.setdefault(identity_of(row), _Old([], row["object_key"], row)).lines.append(line)
    return old


def _places(
    read: pa.Table, *, of: Collection[Identity]
) -> tuple[set[tuple[str, str, str, str]], set[str]]:
    """Where rows of these identities were read, and all files that were read."""
    read_from = {
        (*identity_of(row), row["source"]) for row in _lines(read) if identity_of(row) in of
    }
    return read_from, set(pc.unique(read["source"]).to_pylist())


class _Names:
    """Object ids of rows, and the keys of those that the version has."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}  # object_id -> object_key
        self.taken: dict[str, str] = {}  # id -> the survey that uses it for its own rows
        self.own: dict[tuple[str, str], str] = {}  # (survey, source_id) -> object_id it has already

    def know(self, base: Version, read: pa.Table, rows: pa.Table) -> None:
        """Take in what the version has; `rows` are those of it with a source_id that was read."""
        prefixed = pc.binary_join_element_wise(read["survey"], read["source_id"], ":")
        candidates = pa.chunked_array([*read["object_id"].chunks, *prefixed.chunks], pa.string())
        self.keys = base.known_keys(pc.unique(candidates).to_pylist())
        if not rows.num_rows:
            return
        columns = rows.filter(pc.equal(rows["object_id"], rows["source_id"]))
        ids = base.ids_of(columns["object_key"].to_numpy())
        for line, object_id in zip(columns.to_pylist(), ids, strict=True):
            self.own.setdefault((line["survey"], line["source_id"]), object_id)
            if object_id == line["source_id"]:
                self.taken.setdefault(object_id, line["survey"])

    def of(self, row: dict[str, Any]) -> str:
        """The object id of a row, as objects.py tells the rule."""
        source_id = row["source_id"]
        if row["object_id"] != source_id:
            return str(row["object_id"])
        survey = row["survey"]
        if (survey, source_id) in self.own:
            return self.own[survey, source_id]
        taken_by = self.taken.setdefault(source_id, survey)
        return source_id if taken_by == survey else f"{survey}:{source_id}"


def by_view(rows: pa.Table | None) -> dict[str, pa.Table]:
    """One table a view, without the column `views`."""
    if rows is None:
        return {}
    views = rows["views"].to_pylist()
    plain = rows.drop_columns(["views"])
    names = sorted({view for some in views for view in some})
    return {name: plain.filter(pa.array([name in some for some in views])) for name in names}
