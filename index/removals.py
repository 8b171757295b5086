"""Rows whose file is gone, or that their file does not hold any more.

A row goes only on good evidence. Of a file that was read again, what was not found again goes when
nothing new went wrong in reading it: where something did, the row may be what could not be read, so
all rows of the file stay and the file is read again next time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from numpy import ndarray

from index.changes import Identity, identity_of
from index.embedding import NO_VIEW, ReadFile
from index.inputs import Input
from index.version import Version

InputKey = tuple[str, str]  # survey whose reader reads it, path


@dataclass(frozen=True, slots=True)
class Removals:
    """What goes, and what may not go yet."""

    lines: Int64[ndarray, " n"]  # of Version.live_rows
    unclear: Mapping[InputKey, int]  # file -> rows not found again that stay, as reading it failed


def find_removals(
    base: Version,
    *,
    gone: Collection[InputKey],
    read: pa.Table | None,
    files: Mapping[InputKey, ReadFile],
    inputs: Mapping[InputKey, Input],
) -> Removals:
    """Rows to take away.

    Args:
        base: The version before.
        gone: Files that are gone, or that no source lists any more.
        read: All rows read (objects.as_rows), by number of the file.
        files: Files that were read, and how that went.
        inputs: Files as they were for the version before.
    """
    again = {key: file for key, file in files.items() if key in inputs and not file.unchanged}
    if not gone and not again:
        return Removals(np.empty(0, np.int64), {})
    paths = sorted({path for _, path in (*gone, *again)})
    sources = base.live_rows.columns(["source"])["source"]
    mine = pc.is_in(sources, pa.array(paths, pa.string()))
    lines = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
    rows = base.live_rows.at(lines, ["reader", "source", "survey", "release", "source_id"])
    found = _identities(read, {file.number: key for key, file in again.items()})
    goes: list[int] = []
    missing: dict[InputKey, list[int]] = {}
    for line, row in zip(lines.tolist(), rows.to_pylist(), strict=True):
        key = (row["reader"], row["source"])
        if key in gone:
            goes.append(line)
        elif key in again and identity_of(row) not in found.get(key, ()):
            missing.setdefault(key, []).append(line)
    unclear = {}
    for key, some in missing.items():
        if went_wrong(again[key], inputs[key]):
            unclear[key] = len(some)
        else:
            goes += some
    return Removals(np.array(sorted(goes), np.int64), unclear)


def went_wrong(file: ReadFile, known: Input) -> bool:
    """Whether reading met a fault that it did not meet when the version was made."""
    before = {(each.file, each.reason) for each in known.skipped}
    return any(
        (each.file, each.reason) not in before and NO_VIEW not in each.reason
        for each in file.skipped
    )


def _identities(
    read: pa.Table | None, numbers: Mapping[int, InputKey]
) -> dict[InputKey, set[Identity]]:
    found: dict[InputKey, set[Identity]] = {}
    if read is None or not numbers:
        return found
    some = read.filter(pc.is_in(read["file"], pa.array(list(numbers), pa.int64())))
    for row in some.select(["file", "survey", "release", "source_id"]).to_pylist():
        found.setdefault(numbers[row["file"]], set()).add(identity_of(row))
    return found
