"""Files to a published version: read, embed, sort out, index, publish.

A build adds and updates, never deletes. It can be killed at any instant: the published version
stays whole, and the next build goes on from what the store has. A build that finds nothing new
publishes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from index import disk
from index.embedding import Progress
from index.errors import DiskFull
from index.manifest import FORMAT, SkyHead, write_head
from index.notes import worded
from index.precision import checked
from index.ray_nodes import Cluster, cluster_of, joined_if_asked
from index.reference import (
    encoder_name,
    head_of,
    is_empty,
    local_name,
    reference_of,
    write_down,
)
from index.unproved import withdraw
from index.updating import Update
from index.versions import find_base, publish
from training import encoder as encoders
from training.observations import Skipped
from training.precision import Precision
from training.surveys import reader


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did. Counts of objects and rows are those of the whole version."""

    version: int
    num_objects: int
    num_rows: int  # a row is one view of one observation
    num_embedded: int  # observations that went through the encoder
    num_joint: int  # objects whose joint view was made from several surveys
    skipped: tuple[Skipped, ...]
    seconds: float
    published: bool  # False: nothing had changed, the version is the one there was
    precision: Precision  # of the vectors that this build made
    # View -> smallest cosine of an object's vectors in this and in the sky's precision, both
    # centred; empty: not measured, this is the sky's own.
    centred_cosine: Mapping[str, float]
    notes: tuple[str, ...]  # what a user should know of the values that were read


def build(
    sky: Path,
    sources: Sequence[Path],
    *,
    survey: str,
    encoder: str | Path | None = None,
    precision: str | None = None,
    num_workers: int | None = None,
    cluster: str | Cluster | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Read files of a survey and publish a version of the sky with what is in them.

    Args:
        sky: Folder of the sky; made when it is not there.
        sources: Files, or folders read recursively.
        survey: Name of a reader (training.surveys).
        encoder: Shipped name, path of an artefact, or owner/name on the Hub; None: the sky's own,
            "nano" for a new sky. One without a search head gets the sky's own (sky_head.py).
        precision: Of the encoder's arithmetic, see training.encoder; None: the sky's own,
            float32 for a new sky. Another than the sky's is measured first (precision.py).
        num_workers: Processes; None: one a core, none for a few files; 0: work in this process.
        cluster: Whose machines read and embed (docs/cluster.md), by its address or as a Cluster;
            None: processes of this machine.
        progress: Called with stage, done, total.

    Raises:
        ValueError: an unknown survey, a source that is missing or holds no file of it, or no usable
            object in any file; nothing is published.
        NotASky: the folder holds something else.
        EncoderMismatch: the sky was made with another encoder, with a search head that is gone,
            or in a precision that the one asked for does not agree with.
        SkyBusy: another build runs.
        ClusterUnavailable: there is no such cluster.
        DiskFull: nothing more can be written; the published version stays whole.
    """
    started = time.monotonic()
    sky = Path(os.path.abspath(sky))
    if not sources:
        raise ValueError("expected at least one file or folder to read")
    files = [path for source in sources for path in list_files(source, survey=survey, sky=sky)]
    files = list(dict.fromkeys(files))
    head = head_of(sky)
    name = encoder_name(encoder, head)
    local = local_name(name)
    asked = None if precision is None else checked(precision)
    is_new = head is None or is_empty(sky)
    recorded = checked("float32" if head is None else head.encoder.precision)
    own = asked if asked is not None and is_new else recorded
    loaded = encoders.load(local, precision=asked or own)
    reference = reference_of(name, loaded, sky, head, precision=own)
    asked_cluster = cluster_of(cluster)
    with explained(sky), joined_if_asked(asked_cluster):
        sky.mkdir(parents=True, exist_ok=True)
        with disk.only_writer(sky):
            disk.remove_leftovers(sky)
            withdraw(sky)
            if is_new:
                write_head(sky, SkyHead(format=FORMAT, encoder=reference))
            update = Update(
                sky, find_base(sky), reference, loaded, local, num_workers, progress,
                cluster=asked_cluster,
            )  # fmt: skip
            report = _run(update, survey, files)
            write_down(sky, update.encoder)
    return replace(report, seconds=time.monotonic() - started)


def _run(update: Update, survey: str, files: Sequence[str]) -> BuildReport:
    base = update.base.version
    draft = update.prepare(update.read([update.sort_files(survey, files)]))
    if base is None and draft.changes.rows is None:
        raise ValueError(nothing_usable(len(files), draft.skipped))
    notes = draft.notes
    if base is not None and draft.unchanged:
        manifest = base.manifest
    else:
        manifest, more = update.write(draft)
        notes += more
    news = base is None or manifest.number != base.number or not update.base.is_published
    if news:
        publish(update.sky, manifest.number)
    return BuildReport(
        version=manifest.number,
        num_objects=manifest.num_objects,
        num_rows=manifest.num_rows,
        num_embedded=draft.num_embedded,
        num_joint=draft.plan.num_joint,
        skipped=draft.skipped,
        seconds=0.0,
        published=news,
        precision=draft.precision,
        centred_cosine=draft.centred_cosine,
        notes=(*worded(draft.below_range, num_objects=draft.num_embedded), *notes),
    )


def list_files(source: Path, *, survey: str, sky: Path) -> list[str]:
    """Absolute paths of a survey's files below a folder, or the file itself.

    Raises:
        ValueError: the source is missing or holds no file of the survey.
    """
    files = map(os.path.abspath, reader(survey).list_files(Path(os.path.abspath(source))))
    # a sky may lie in the folder of its sources: its own files are none of the survey's
    own = os.path.join(sky, "")
    return [file for file in files if not file.startswith(own)]


@contextmanager
def explained(sky: Path) -> Iterator[None]:
    """Say, when the disk is full, what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in disk.FULL:
            raise
        raise DiskFull(f"{error}. {_SAFE}") from error
    except DiskFull as error:
        raise DiskFull(f"{error}. {_SAFE}") from error


_SAFE = (
    "What was published stays whole. Make room and run the same build again: it goes on where it "
    "stopped"
)


def nothing_usable(num_files: int, skipped: Sequence[Skipped]) -> str:
    """Why no version was made."""
    shown = "; ".join(f"{each.file}: {each.reason}" for each in skipped[:3])
    more = f"; and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
    return f"no usable object in {num_files:,} files: {shown or 'they hold none'}{more}"
