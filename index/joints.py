"""Joint views of objects that several surveys saw.

One observation with image and spectrum has its joint vector from the encoder at once. Where the
image is one survey's and the spectrum another's, the observations are read again, merged, and
embedded together; that vector stands in place of the joint vectors of the single observations. It
is made again when a part changes, and tried again by every build where a part could not be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index import workers
from index.embedding import BATCH, Job, Progress, Work, choose_workers, open_job, stream
from index.objects import ROW_FIELDS
from index.predicate import connection
from index.store import Store
from index.vectors import Vectors, add_vectors, vectors_of
from training.encoder import Encoder
from training.observations import Observation, Skipped, fingerprint, merge
from training.surveys import reader

_OBSERVATION = ("survey", "release", "source_id")
_COLUMNS = ("object_key", "view", *_OBSERVATION, "reader", "source", "source_part", "fingerprint")


@dataclass(frozen=True, slots=True)
class JointTask:
    """An object seen by several surveys, whose joint vector is to be made from all of them."""

    object_id: str
    fingerprint: str  # of the parts together
    parts: tuple[tuple[str, str, str, str], ...]  # reader, source, source_part, fingerprint


@dataclass(slots=True)
class _Parts:
    """What was read again of some objects."""

    num_tried: int
    merged: list[tuple[JointTask, Observation]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(slots=True)
class _Made:
    """What a worker sends."""

    num_tried: int
    vectors: list[Vectors] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Joint:
    """A joint vector to be had from several observations, and the row that will stand for it."""

    object_key: int
    task: JointTask
    surveys: tuple[str, ...]
    calibrated: bool

    def row(self) -> dict[str, Any]:
        empty: dict[str, Any] = dict.fromkeys(ROW_FIELDS)
        return empty | {
            "object_key": self.object_key,
            "reader": "",
            "survey": "+".join(self.surveys),
            "release": "",
            "source_id": self.task.object_id,
            "object_id": self.task.object_id,
            "source": "",
            "source_part": "",
            "fingerprint": self.task.fingerprint,
            "calibrated": self.calibrated,
            "notes": [],
        }


def find_joints(rows: pa.Table, object_id_of: Callable[[int], str]) -> dict[int, Joint]:
    """Objects whose joint view has to be made from several observations, by key.

    Args:
        rows: All rows that the new version will have of some objects: object_key, view, ROW_FIELDS.
        object_id_of: By key.
    """
    with connection() as database:
        database.register("seen", rows.select([*_COLUMNS]))
        keys = database.sql(
            """
            SELECT object_key FROM seen WHERE source <> '' AND "view" IN ('image', 'spectrum')
            GROUP BY object_key
            HAVING count(DISTINCT (survey, release, source_id)) > 1
               AND count(DISTINCT "view") = 2
            """
        ).to_arrow_table()["object_key"]
    joints = {}
    if len(keys):
        some = rows.filter(pc.is_in(rows["object_key"], keys.combine_chunks()))
        lines: dict[int, list[dict[str, Any]]] = {}
        for line in some.select([*_COLUMNS, "calibrated"]).to_pylist():
            lines.setdefault(line["object_key"], []).append(line)
        for key, mine in lines.items():
            joint = _joint(key, mine, object_id_of)
            if joint is not None:
                joints[key] = joint
    return joints


def _rank(line: dict[str, Any]) -> tuple[Any, ...]:
    """The order in which merge_rows takes values too."""
    return (not line["calibrated"], *(line[name] for name in _OBSERVATION))


def _joint(
    key: int, lines: list[dict[str, Any]], object_id_of: Callable[[int], str]
) -> Joint | None:
    lines = sorted((line for line in lines if line["source"]), key=_rank)
    parts: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        parts.setdefault(tuple(line[name] for name in _OBSERVATION), line)
    best = {}
    for view in ("image", "spectrum"):
        line = next(line for line in lines if line["view"] == view)
        best[view] = tuple(line[name] for name in _OBSERVATION)
    if best["image"] == best["spectrum"]:
        return None
    task = JointTask(
        object_id_of(key),
        fingerprint("joint", *(line["fingerprint"] for line in parts.values())),
        tuple(
            (line["reader"], line["source"], line["source_part"], line["fingerprint"])
            for line in parts.values()
        ),
    )
    surveys = tuple(dict.fromkeys(line["survey"] for line in parts.values()))
    return Joint(key, task, surveys, all(line["calibrated"] for line in parts.values()))


def embed_joints(
    joints: Sequence[JointTask],
    *,
    job: Job,
    store: Store,
    num_workers: int | None,
    progress: Progress | None,
) -> list[Skipped]:
    """Make joint vectors from observations that are read again; gives what could not be made."""
    num_workers = choose_workers(num_workers, len(joints))
    tasks = deque(list(joints[start : start + BATCH]) for start in range(0, len(joints), BATCH))
    skipped: list[Skipped] = []
    num_done = 0
    work = Work(_read, partial(_embedder, job.in_processes(num_workers)))
    for task, piece in stream(work, tasks, job=job, num_workers=num_workers):
        if isinstance(piece, workers.Died):
            if len(task) > 1:
                tasks.extend([joint] for joint in task)
            else:
                reason = f"reading it ended the process (exit code {piece.exit_code})"
                skipped.append(_left_out(task[0], reason))
            continue
        for vectors in piece.vectors:
            add_vectors(store, vectors)
        skipped.extend(piece.skipped)
        num_done += piece.num_tried
        if progress:
            progress("joint views", num_done, len(joints))
    store.flush()
    return skipped


def _read(task: Sequence[JointTask]) -> Iterator[_Parts]:
    read = _Parts(len(task))
    for joint in task:
        try:
            read.merged.append((joint, _merged(joint)))
        except (ValueError, RuntimeError, OSError) as error:
            read.skipped.append(_left_out(joint, str(error)))
    yield read


def _embedder(job: Job, device: str) -> Callable[[_Parts], _Made]:
    encoder, _ = open_job(job, device)
    return partial(_embed, encoder=encoder)


def _embed(read: _Parts, *, encoder: Encoder) -> _Made:
    made = _Made(read.num_tried, skipped=read.skipped)
    for joint, observation in read.merged:
        try:
            # what the values are like was noted when the parts were embedded
            (vectors,), _ = vectors_of([observation], encoder, views=("joint",))
        except (ValueError, RuntimeError) as error:
            made.skipped.append(_left_out(joint, str(error)))
            continue
        made.vectors.append(replace(vectors, fingerprints=(joint.fingerprint,)))
    return made


def _left_out(joint: JointTask, reason: str) -> Skipped:
    _, source, _, _ = joint.parts[0]
    return Skipped(source, f"joint view of {joint.object_id} left out: {reason}")


def _merged(joint: JointTask) -> Observation:
    parts = []
    for name, source, source_part, content in joint.parts:
        part = reader(name).read_one(Path(source), source_part)
        if part.fingerprint != content:
            raise ValueError(f"{source} has changed since it was indexed: build {name} again")
        # one id for all: to the later of two image surveys the object has a prefixed one
        parts.append(replace(part, object_id=joint.object_id))
    return merge(parts)
