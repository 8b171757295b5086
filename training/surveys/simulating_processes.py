"""Parts of a simulation in processes of one thread each, results as they come."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from training.processes import end_with_parent


@dataclass(frozen=True, slots=True)
class Done:
    """What one task gave."""

    number: int  # of the task
    result: Any


def in_processes(
    work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, num_workers: int | None
) -> Generator[Done, None, None]:
    """Call work with the arguments of each task; tasks may end in any order.

    Closing the generator ends the processes once their tasks in hand are done.

    Args:
        work: A function of a module, which processes can import.
        tasks: Arguments of each call.
        num_workers: Processes; all cores by default, 1 = this process.
    """
    workers = min(num_workers or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        for number, task in enumerate(tasks):
            yield Done(number, work(*task))
        return
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool,
    ):
        try:
            running = {pool.submit(work, *task): number for number, task in enumerate(tasks)}
            for future in as_completed(running):
                yield Done(running[future], future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile use one thread each, so that cores are not oversubscribed."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
