"""A version with the same rows written otherwise: in fewer segments, or with other codecs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import compaction, disk
from index.building import explained
from index.changes import Changes
from index.codec import IndexConfig
from index.embedding import Progress
from index.inputs import read_inputs
from index.manifest import Manifest, read_head, write_head
from index.unproved import withdraw
from index.versions import Version, open_version, publish
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
        withdraw(sky)
        base = open_version(sky)
        before = base.manifest
        again = compaction.due(before.segments, fanout=2)
        if not again:
            num = len(before.segments)
            return CompactReport(base.number, False, num, num, before.num_rows)
        after = _written_again(sky, base, again, progress)
        publish(sky, after.number)
    return CompactReport(
        after.number, True, len(before.segments), len(after.segments), after.num_rows
    )


def reindex(
    sky: Path, config: IndexConfig | None = None, *, progress: Progress | None = None
) -> Manifest:
    """Choose the codecs of the published version anew, and publish a version that has them.

    Segments whose codec changes are coded again from their vectors; nothing is embedded. Recall is
    measured again in every view that has a codec.

    Args:
        sky: Its folder.
        config: What the sky asks for from now on; None: what it asked for before.
        progress: Called with stage, done, total.

    Raises:
        ValueError: the codes would not fit into the memory that the configuration allows.
        NotASky, VersionCorrupt, SkyBusy, DiskFull: as `compact`.
    """
    sky = Path(os.path.abspath(sky))
    head = read_head(sky)
    with explained(sky), disk.only_writer(sky):
        disk.remove_leftovers(sky)
        withdraw(sky)
        if config is not None:
            write_head(sky, head.model_copy(update={"index": config}))
        try:
            after = _written_again(sky, open_version(sky), (), progress, measure=True)
        except BaseException:
            write_head(sky, head)
            raise
        publish(sky, after.number)
    return after


def _written_again(
    sky: Path,
    base: Version,
    again: Sequence[int],
    progress: Progress | None,
    *,
    measure: bool = False,
) -> Manifest:
    """A version with the rows of another, some of its segments put together."""
    before = base.manifest
    writer = VersionWriter(sky, base.encoder, None, None, base, progress)
    writer.again, writer.measure = again, measure
    writer.num_joint_left_out = before.num_joint_left_out
    nothing = Changes(None, np.empty(0, np.int64), {}, before.next_object_key)
    inputs = read_inputs(sky / before.inputs)
    after = writer.write({}, np.zeros(before.num_rows, bool), nothing, inputs)
    if (after.num_rows, after.num_objects) != (before.num_rows, before.num_objects):
        raise AssertionError(f"writing again changed {before.num_rows} rows into {after.num_rows}")
    return after
