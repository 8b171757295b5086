"""Compaction on request: a version with the same rows in fewer segments."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import compaction, disk
from index.building import explained
from index.changes import Changes
from index.embedding import Progress
from index.inputs import read_inputs
from index.manifest import read_head
from index.versions import open_version, publish
from index.writing import VersionWriter


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What `skykin compact` did."""

    version: int
    published: bool  # False: there was nothing to put together
    num_before: int  # segments
    num_after: int
    num_rows: int


def compact(sky: Path, *, progress: Progress | None = None) -> CompactReport:
    """Put the small segments of each view together, and leave out deleted rows where they are many.

    Vectors are copied from the segments, so searches give what they gave before, to the last bit.

    Raises:
        NotASky: the folder is missing or foreign.
        VersionCorrupt: no version is published, or it is not whole.
        SkyBusy: a build or nightly runs.
        DiskFull: nothing more can be written; the published version stays whole.
    """
    sky = Path(os.path.abspath(sky))
    read_head(sky)
    with explained(sky), disk.only_writer(sky):
        disk.remove_leftovers(sky)
        base = open_version(sky)
        before = base.manifest
        again = compaction.due(before.segments, fanout=2)
        if not again:
            num = len(before.segments)
            return CompactReport(base.number, False, num, num, before.num_rows)
        writer = VersionWriter(sky, base.encoder, None, None, base, progress)
        writer.again = again
        writer.num_joint_left_out = before.num_joint_left_out
        nothing = Changes(None, np.empty(0, np.int64), {}, before.next_object_key)
        inputs = read_inputs(sky / before.inputs)
        after = writer.write({}, np.zeros(before.num_rows, bool), nothing, inputs)
        if (after.num_rows, after.num_objects) != (before.num_rows, before.num_objects):
            raise AssertionError(f"compaction changed {before.num_rows} rows into {after.num_rows}")
        publish(sky, after.number)
    return CompactReport(
        after.number, True, len(before.segments), len(after.segments), after.num_rows
    )
