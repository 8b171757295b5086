"""Reading and embedding on the machines of a Ray cluster, as a stream of Ray Data.

Readers, which need a CPU, hand observations to encoders, which have a GPU each where the cluster
has any. Ray Data holds readers back when encoders fall behind, so memory stays bounded. What comes
out are the tasks and pieces that `workers.stream` gives on one machine, and embedding.py treats
them alike: the store is written by the one process that builds, so a build that was killed goes on
from it in the same way, on a cluster or without.

Ray tries again what it lost with a machine or a process, for ever, and would so with a file that
ends every process that reads it. So each step notes on the shared disk that it has begun, and does
not begin a second time what was never finished. And what arrives is counted: pieces of a task go on
in order and from one reading alone, and a task that did not come to its end is told as `Died`, for
which embedding.py has its files read again one by one, and lists a file that fails alone.
"""

from __future__ import annotations

import logging
import os
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from index import disk, workers
from index.ray_nodes import Cluster, joined, num_cpus

if TYPE_CHECKING:
    from index.embedding import Work

# A reader waits for disks half of its time. Besides, Ray Data makes one step of two that ask for
# the same: then encoders would read.
READER_CPUS = 0.5
READERS_SHARE = 8  # of so many CPUs one is left to readers, where there is no GPU
MOST_BLOCKS = 10_000  # of tasks: each costs Ray some memory on the machine that builds
BLOCK_BYTES = 1 << 20  # what is handed on at a time; a batch may be larger


@dataclass(frozen=True, slots=True)
class _Task:
    number: int
    content: Any


@dataclass(frozen=True, slots=True)
class _Failed:
    """A step raised: a fault of ours, not of a file."""

    text: str


@dataclass(frozen=True, slots=True)
class _Item:
    """A batch on its way to an encoder, or the piece that was made of it."""

    task: int
    reading: str  # that gave it; a task that is read twice has two
    index: int  # in the reading
    is_last: bool
    content: Any  # None: lost


@dataclass(slots=True)
class _Arrivals:
    """What came of a task, put back in order."""

    reading: str | None = None
    num_given: int = 0
    is_whole: bool = False
    waiting: dict[int, _Item] = field(default_factory=dict)

    def take(self, item: _Item) -> Iterator[Any]:
        """Pieces that are next, now that this item is here."""
        self.reading = self.reading or item.reading
        if item.reading == self.reading and item.content is not None:
            self.waiting.setdefault(item.index, item)
        while (following := self.waiting.pop(self.num_given, None)) is not None:
            self.num_given += 1
            self.is_whole = following.is_last
            yield following.content


def stream(
    work: Work, tasks: deque[Any], *, cluster: Cluster, folder: Path
) -> Generator[tuple[Any, Any]]:
    """Work through tasks, in no order, and give (task, piece) as pieces come.

    Args:
        work: Picklable; read on one machine, embedded on another.
        tasks: Emptied on the way. The caller may append, say when a task died.
        cluster: Where.
        folder: That all machines see, for notes of what has begun; nothing stays in it.

    Yields:
        Task and piece. A task of which something was lost ends with a `workers.Died`.

    Raises:
        ClusterUnavailable: there is no such cluster.
        RuntimeError: a step raised; the text is its traceback.
    """
    with joined(cluster.address):
        while tasks:
            mine = [*tasks]
            tasks.clear()
            with disk.new_folder(folder) as begun:
                arrivals = [_Arrivals() for _ in mine]
                for item in _items(work, mine, begun, cluster):
                    if isinstance(item.content, _Failed):
                        raise RuntimeError(f"a worker failed:\n{item.content.text}")
                    for piece in arrivals[item.task].take(item):
                        yield mine[item.task], piece
            for task, arrived in zip(mine, arrivals, strict=True):
                if not arrived.is_whole:
                    yield task, workers.Died(None)


def _items(work: Work, tasks: Sequence[Any], begun: Path, cluster: Cluster) -> Iterator[_Item]:
    """Every batch of every task, embedded, as they come."""
    import ray
    import ray.data

    cpus, gpus = num_cpus(cluster.address), int(ray.cluster_resources().get("GPU", 0))
    if gpus:
        num_encoders, device, takes = gpus, "cuda", {"num_gpus": 1.0}
    else:
        num_encoders, device = max(1, cpus - max(1, cpus // READERS_SHARE)), "cpu"
        takes = {"num_cpus": 1.0 if cpus > 1 else 1 - READER_CPUS - 0.1}
    with _ray_data_settings():
        numbered = [{"item": _Task(number, task)} for number, task in enumerate(tasks)]
        found = (
            ray.data.from_items(numbered, override_num_blocks=min(len(numbered), MOST_BLOCKS))
            .map_batches(
                _read, batch_size=1, num_cpus=READER_CPUS,
                fn_kwargs={"read": work.read, "begun": str(begun)},
            )
            .map_batches(
                _Embedder, batch_size=1, compute=ray.data.ActorPoolStrategy(size=num_encoders),
                fn_constructor_args=(work.setup, device, str(begun)), **takes,
            )
        )  # fmt: skip
        for row in found.iter_rows():
            yield row["item"]


@contextmanager
def _ray_data_settings() -> Iterator[None]:
    """What Ray Data is told for the while: to be quiet, and to go on past what it lost."""
    import ray.data

    context = ray.data.DataContext.get_current()
    wanted = {
        "enable_progress_bars": False, "print_on_execution_start": False,
        "target_max_block_size": BLOCK_BYTES,
        "max_errored_blocks": -1,  # what is lost is found out by counting
    }  # fmt: skip
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # Ray's own files of the session have it all
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def _read(
    items: Mapping[str, ndarray], *, read: Callable[[Any], Iterator[Any]], begun: str
) -> Iterator[dict[str, ndarray]]:
    """The batches of tasks, one by one; nothing of a task that a process ended over."""
    for task in items["item"].tolist():
        note = Path(begun) / f"read-{task.number}"
        if not _begins(note):
            continue
        reading, index, batch = uuid.uuid4().hex, 0, None
        try:
            for following in read(task.content):
                if batch is not None:
                    yield _one(_Item(task.number, reading, index, False, batch))
                    index += 1
                batch = following
        except Exception:
            batch = _Failed(traceback.format_exc())
        yield _one(_Item(task.number, reading, index, True, batch))
        note.unlink(missing_ok=True)


class _Embedder:
    """Makes pieces of batches. It opens the encoder when the first comes, so that a fault shows."""

    def __init__(self, setup: Callable[[str], Callable[[Any], Any]], device: str, begun: str):
        self._setup, self._device, self._begun = setup, device, begun
        self._embed: Callable[[Any], Any] | None = None

    def __call__(self, items: Mapping[str, ndarray]) -> dict[str, ndarray]:
        (item,) = items["item"].tolist()
        if isinstance(item.content, _Failed):
            return _one(item)
        note = Path(self._begun) / f"embed-{item.reading}-{item.index}"
        if not _begins(note):
            return _one(replace(item, content=None))
        try:
            self._embed = self._embed or self._setup(self._device)
            content = self._embed(item.content)
        except Exception:
            content = _Failed(traceback.format_exc())
        note.unlink(missing_ok=True)
        return _one(replace(item, content=content))


def _begins(note: Path) -> bool:
    """Note that something begins; False where it began before and never ended."""
    try:
        os.close(os.open(note, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _one(item: _Item) -> dict[str, ndarray]:
    """One row of Ray Data."""
    column = np.empty(1, object)
    column[0] = item
    return {"item": column}
