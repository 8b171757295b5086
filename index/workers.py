"""Spawned processes that work through tasks and send results piece by piece.

One pipe a worker and one task at a time: a worker that runs ahead waits at its full pipe, so memory
stays bounded, and a worker that dies takes no lock with it. Processes are spawned, never forked:
FAISS and OpenMP hang in forked children.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

OPENMP_THREADS = "OMP_NUM_THREADS"

Handler = Callable[[Any], Iterator[Any]]  # task -> pieces


@dataclass(frozen=True, slots=True)
class Died:
    """The process that worked on a task ended before the task did."""

    exit_code: int | None


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def stream(
    setup: Callable[[], Handler], tasks: deque[Any], *, num_workers: int
) -> Generator[tuple[Any, Any]]:
    """Work through tasks, in no order, and give (task, piece) as pieces come.

    Args:
        setup: Picklable; called once in each worker, gives the handler of tasks.
        tasks: Emptied on the way. The caller may append, say when a task died.
        num_workers: Processes; 0 works in this process.

    Yields:
        Task and piece. A task whose process died ends with a `Died` and its worker is replaced.

    Raises:
        RuntimeError: a handler raised; the text is the worker's traceback.
    """
    if num_workers == 0:
        handle = setup() if tasks else None
        while tasks and handle is not None:
            task = tasks.popleft()
            for piece in handle(task):
                yield task, piece
        return
    num_threads = max(1, num_cores() // num_workers)
    workers: dict[Connection, tuple[BaseProcess, Any]] = {}
    try:
        while tasks or workers:
            while tasks and len(workers) < num_workers:
                connection, process = _start(setup, num_threads)
                task = tasks.popleft()
                workers[connection] = (process, task)
                _send(connection, task)
            for ready in wait(list(workers)):
                connection = cast(Connection, ready)
                process, task = workers[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    del workers[connection]
                    connection.close()
                    yield task, Died(process.exitcode)
                    continue
                if kind == "failed":
                    raise RuntimeError(f"a worker failed:\n{content}")
                if kind == "piece":
                    yield task, content
                elif tasks:  # done with this task
                    workers[connection] = (process, tasks.popleft())
                    _send(connection, workers[connection][1])
                else:
                    _send(connection, None)
                    process.join()
                    del workers[connection]
                    connection.close()
    finally:
        for connection, (process, _) in workers.items():
            process.terminate()
            process.join()
            connection.close()


def _send(connection: Connection, task: Any) -> None:
    with suppress(ConnectionError):  # the death of the worker shows when its pipe is read
        connection.send(task)


def _start(setup: Callable[[], Handler], num_threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
    with _openmp_threads(num_threads):
        process.start()
    theirs.close()  # else the end of the worker would never show as the end of its pipe
    return ours, process


@contextmanager
def _openmp_threads(num_threads: int) -> Iterator[None]:
    """What a process started meanwhile finds in its environment.

    OpenMP reads it when it is loaded, and torch computes with as many threads.
    torch.set_num_threads comes too late for idle threads, which spin, and halved the speed of two
    workers on two cores.
    """
    before = os.environ.get(OPENMP_THREADS)
    os.environ[OPENMP_THREADS] = str(num_threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ[OPENMP_THREADS]
        else:
            os.environ[OPENMP_THREADS] = before


def _serve(connection: Connection, setup: Callable[[], Handler]) -> None:
    try:
        handle: Handler | None = None
        while (task := connection.recv()) is not None:
            handle = handle or setup()
            for piece in handle(task):
                connection.send(("piece", piece))
            connection.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # the parent is gone or stops
    except Exception:
        with suppress(ConnectionError):
            connection.send(("failed", traceback.format_exc()))
