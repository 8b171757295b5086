"""Files to encoder vectors: read by the survey's reader, embedded, kept in the store.

Processes of this machine read and embed in turn; on a cluster some processes read for others that
embed (cluster_embedding.py). What comes of it goes into the store here, by the same loop.

What the store already has is not embedded again, so a build that was killed goes on where it
stopped. A bad file, and an observation that the encoder refuses, is left out and listed with its
reason.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from index import workers
from index.errors import EncoderMismatch
from index.inputs import FileState, content_of, file_state, printable
from index.objects import as_rows
from index.ray_nodes import Cluster, num_cpus
from index.row_tables import RowTables
from index.store import Store
from index.vectors import Vectors, add_vectors, embed_each
from training import encoder as encoders
from training import surveys
from training.encoder import Encoder
from training.observations import Observation, Skipped
from training.precision import Precision

BATCH = 32  # observations that a worker holds at a time
FILES_PER_TASK = 64
LARGE_FILE_BYTES = 4 << 20  # a task of its own
FLUSH_SECONDS = 10.0  # what a killed build may have to embed again
NO_VIEW = "the encoder has no view for it"
FEW_FILES = 16  # up to here starting processes costs more than it saves

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read; `number` is its place in the order of all files of the build."""

    number: int
    path: str
    known_sha256: str | None = None  # content that is in the sky already: not read when unchanged
    companions: tuple[str, ...] = ()  # other files that are read with it


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file that was read to its end."""

    number: int
    path: str
    num_bytes: int
    modified_ns: int
    sha256: str
    num_rows: int
    skipped: tuple[Skipped, ...]
    unchanged: bool = False
    companions: tuple[FileState, ...] = ()


@dataclass(frozen=True, slots=True)
class Unseen:
    """Observations of one file that the encoder cannot read."""

    file: str
    first: str  # source_id
    num: int

    def reason(self, kinds: str) -> str:
        one = f"{self.first}: {NO_VIEW}"
        if self.num == 1:
            return f"{one} ({kinds})"
        return f"{one} ({kinds}), nor for {self.num - 1:,} more"


@dataclass(slots=True)
class Batch:
    """What reading hands on: observations with the numbers of their files, and finished files."""

    observations: list[tuple[int, Observation]]
    files: list[ReadFile] = field(default_factory=list)


@dataclass(slots=True)
class Piece:
    """What a worker sends: small rows, vectors, and which inputs are finished."""

    rows: pa.Table | None = None
    vectors: list[Vectors] = field(default_factory=list)
    num_embedded: int = 0
    below_range: Counter[str] = field(default_factory=Counter)  # see training.encoder.Embedded
    files: list[ReadFile] = field(default_factory=list)
    refused: list[tuple[int, Skipped]] = field(default_factory=list)  # with the number of the file
    # Observations that the encoder has no view for, by number of the file and what was seen: a
    # catalogue may hold millions, so they are counted.
    unseen: dict[tuple[int, str], Unseen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that reading the files of a build gave."""

    rows: pa.Table | None  # columns of objects.as_rows; None: no row
    files: list[ReadFile]  # by number
    num_embedded: int
    below_range: Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker needs to know."""

    cluster: Cluster | None = None  # where workers are; None: processes of this machine
    encoder: str  # shipped name or absolute path
    store: Path
    encoder_hash: str
    precision: Precision
    # Views that may be embedded in it: those that were measured where it is not the sky's own.
    views: tuple[str, ...] = encoders.VIEWS
    loaded: Encoder | None = None  # the encoder, as it may be in this process already

    def in_processes(self, num_workers: int) -> Job:
        """The same for so many; only work in this process takes what is loaded in it."""
        return self if num_workers == 0 and self.cluster is None else replace(self, loaded=None)


def choose_workers(num_workers: int | None, num_files: int) -> int:
    """Worker processes: as asked, else one a core, none for a few files.

    Raises:
        ValueError: a negative number is asked for.
    """
    if num_workers is None:
        return 0 if num_files <= FEW_FILES else workers.num_cores()
    if num_workers < 0:
        raise ValueError(f"expected num_workers of 0 or more, got {num_workers}")
    return num_workers


def embed_files(
    files: Sequence[InputFile],
    *,
    survey: str,
    job: Job,
    store: Store,
    num_workers: int | None,
    progress: Progress | None,
) -> Reading:
    """Read files, embed what the store lacks, and give a row for each observation and its views.

    Args:
        files: What to read, in the order of the build.
        survey: Whose reader reads them.
        job: What a worker needs to know.
        store: Where vectors go; on disk when this returns.
        num_workers: Processes; None: one a core, none for a few files; 0: work in this process.
        progress: Called with ("embedding", files done, files in all).
    """
    num_workers = choose_workers(num_workers, len(files))
    tasks = deque(_file_tasks(files, _num_at_once(num_workers, job.cluster if files else None)))
    rows = RowTables()
    refused: list[tuple[int, Skipped]] = []
    unseen: dict[tuple[int, str], Unseen] = {}
    finished: dict[int, ReadFile] = {}
    num_embedded = 0
    below_range: Counter[str] = Counter()
    flushed = time.monotonic()
    if progress and files:
        progress("embedding", 0, len(files))
    embedder = partial(_file_embedder, job.in_processes(num_workers), survey)
    work = Work(partial(_read_files, survey=survey), embedder)
    for task, piece in stream(work, tasks, job=job, num_workers=num_workers):
        if isinstance(piece, workers.Died):
            left = [file for file in task if file.number not in finished]
            rows.remove([file.number for file in left])
            if len(task) > 1:
                tasks.extend([file] for file in left)
            else:
                finished.update(_given_up(file, piece) for file in left)
            continue
        for vectors in piece.vectors:
            _check_measured(vectors, job, task)
            add_vectors(store, vectors)
        if piece.rows is not None:
            rows.add(piece.rows)
        refused.extend(piece.refused)
        for (number, kinds), more in piece.unseen.items():
            _count(unseen, number, kinds, more)
        num_embedded += piece.num_embedded
        below_range += piece.below_range
        finished.update((file.number, file) for file in piece.files)
        if time.monotonic() - flushed > FLUSH_SECONDS:
            store.flush()
            flushed = time.monotonic()
        if progress:
            progress("embedding", len(finished), len(files))
    store.flush()
    for (number, kinds), counted in unseen.items():
        refused.append((number, Skipped(counted.file, counted.reason(kinds))))
    for number, skipped in refused:
        file = finished[number]
        finished[number] = replace(file, skipped=(*file.skipped, skipped))
    return Reading(
        rows=rows.together(),
        files=[finished[number] for number in sorted(finished)],
        num_embedded=num_embedded,
        below_range=below_range,
    )


def _file_tasks(files: Sequence[InputFile], num_workers: int) -> Iterator[list[InputFile]]:
    most = max(1, min(FILES_PER_TASK, -(-len(files) // (4 * max(1, num_workers)))))
    task: list[InputFile] = []
    for file in files:
        large = os.path.exists(file.path) and os.path.getsize(file.path) > LARGE_FILE_BYTES
        if task and (large or len(task) >= most):
            yield task
            task = []
        task.append(file)
        if large:
            yield task
            task = []
    if task:
        yield task


def _given_up(file: InputFile, died: workers.Died) -> tuple[int, ReadFile]:
    reason = f"reading it ended the process (exit code {died.exit_code})"
    skipped = (Skipped(file.path, reason),)
    return file.number, ReadFile(file.number, file.path, 0, 0, "", 0, skipped)


@dataclass(frozen=True, slots=True)
class Work:
    """A task in two steps, which may be done by two processes."""

    read: Callable[[Any], Iterator[Any]]  # task -> batches, at least one
    setup: Callable[[str], Callable[[Any], Any]]  # device -> what makes a piece of each batch


def stream(
    work: Work, tasks: deque[Any], *, job: Job, num_workers: int
) -> Generator[tuple[Any, Any]]:
    """Task and piece as pieces come, as `workers.stream` gives them."""
    if job.cluster is None:
        return workers.stream(partial(_in_turn, work), tasks, num_workers=num_workers)
    from index import cluster_embedding  # it imports Ray, an extra

    return cluster_embedding.stream(work, tasks, cluster=job.cluster, folder=job.store.parent)


def _in_turn(work: Work) -> workers.Handler:
    embed = work.setup("cpu")
    return lambda task: map(embed, work.read(task))


def _num_at_once(num_workers: int, cluster: Cluster | None) -> int:
    """Processes among which files are shared out."""
    return num_workers if cluster is None else num_cpus(cluster.address)


def open_job(job: Job, device: str) -> tuple[Encoder, Store]:
    """The encoder and the store as it is now, in a worker."""
    encoder = job.loaded
    if encoder is None or (encoder.precision, encoder.device) != (job.precision, device):
        encoder = encoders.load(job.encoder, precision=job.precision, device=device)
    return encoder, Store(job.store, encoder_hash=job.encoder_hash)


def _file_embedder(job: Job, survey: str, device: str) -> Callable[[Batch], Piece]:
    encoder, store = open_job(job, device)
    return partial(_embed, encoder=encoder, store=store, reader=survey)


def _read_files(task: Sequence[InputFile], *, survey: str) -> Iterator[Batch]:
    """Read the files of a task, in batches that go across files."""
    batch = Batch([])
    for file in task:
        try:
            # before reading: a change while reading shows next time
            state, *others = (file_state(path) for path in (file.path, *file.companions))
            sha256 = content_of(file.path, file.companions)
        except (OSError, ValueError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            reason = Skipped(printable(file.path), f"cannot be read: {text}")
            batch.files.append(ReadFile(file.number, file.path, 0, 0, "", 0, (reason,)))
            continue
        same = sha256 == file.known_sha256
        num_rows, skipped = 0, []
        if not same:
            for item in read_observations(survey, Path(file.path)):
                if isinstance(item, Skipped):
                    skipped.append(item)
                    continue
                num_rows += 1
                batch.observations.append((file.number, item))
                if len(batch.observations) >= BATCH:
                    yield batch
                    batch = Batch([])
        batch.files.append(
            ReadFile(
                file.number, file.path, state.num_bytes, state.modified_ns, sha256, num_rows,
                tuple(skipped), same, tuple(others),
            )
        )  # fmt: skip
    yield batch


def read_observations(survey: str, file: Path) -> Iterator[Observation | Skipped]:
    """Every observation of a file, one by one. Whatever its content does, it is not fatal."""
    try:
        for batch in surveys.reader(survey).read(file, batch_size=BATCH):
            yield from batch.observations
            yield from batch.skipped
    except Exception as error:  # a fault of the reader costs its file, not a night of embedding
        yield Skipped(str(file), f"{type(error).__name__}: {error}")


def _embed(batch: Batch, *, encoder: Encoder, store: Store, reader: str) -> Piece:
    """Embed what the store lacks; rows and vectors of a batch."""
    piece = Piece(files=batch.files)
    seen: list[tuple[int, Observation, tuple[str, ...]]] = []
    for number, observation in batch.observations:
        views = encoder.views(observation)
        if not views:
            kinds = [name for name in ("image", "spectrum", "xp") if getattr(observation, name)]
            seen_as = " and ".join(kinds) or "catalogue values alone"
            one = Unseen(observation.source, observation.source_id, 1)
            _count(piece.unseen, number, seen_as, one)
            continue
        seen.append((number, observation, views))
    known = _stored(seen, store)
    fresh = [
        each for _, each, views in seen if not all((each.fingerprint, v) in known for v in views)
    ]
    vectors, below_range, refused = embed_each(fresh, encoder)
    piece.vectors += vectors
    piece.below_range.update(below_range)
    kept = [each for each in seen if each[1].fingerprint not in refused]
    for number, observation, _ in seen:
        if observation.fingerprint in refused:
            _refuse(piece, number, observation, refused[observation.fingerprint])
    piece.num_embedded += len(fresh) - len(refused)
    if kept:
        piece.rows = as_rows(kept, reader=reader)
    return piece


def _stored(
    seen: Sequence[tuple[int, Observation, tuple[str, ...]]], store: Store
) -> set[tuple[str, str]]:
    """Fingerprint and view of what the store has."""
    asked: dict[str, list[str]] = {}
    for _, observation, views in seen:
        for view in views:
            asked.setdefault(view, []).append(observation.fingerprint)
    return {
        (name, view)
        for view, names in asked.items()
        for name, there in zip(names, store.has(view, names), strict=True)
        if there
    }


def _count(unseen: dict[tuple[int, str], Unseen], number: int, kinds: str, more: Unseen) -> None:
    known = unseen.get((number, kinds))
    unseen[number, kinds] = more if known is None else replace(known, num=known.num + more.num)


def _refuse(piece: Piece, number: int, observation: Observation, reason: str) -> None:
    where = f" in part {observation.source_part}" if observation.source_part else ""
    skipped = Skipped(observation.source, f"{observation.source_id}{where}: {reason}")
    piece.refused.append((number, skipped))


def _check_measured(vectors: Vectors, job: Job, files: Sequence[InputFile]) -> None:
    if vectors.view not in job.views:
        where = " to ".join(dict.fromkeys((files[0].path, files[-1].path)))  # embedded together
        raise EncoderMismatch(
            f"{where}: whether the view {vectors.view} in {job.precision} fits in with the "
            f"sky was not measured, only that of {', '.join(job.views)} in the first files: build "
            "it on its own, or all in the precision of the sky"
        )
