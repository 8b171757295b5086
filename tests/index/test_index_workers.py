"""Spawned workers: all tasks done, the dead replaced, errors told."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from index.workers import Died, Handler, num_cores, stream


def squares(task: int) -> Iterator[int]:
    for number in range(task):
        yield number**2


def make_squares() -> Handler:
    return squares


def dies_at_three(task: list[int]) -> Iterator[int]:
    for number in task:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


def make_dying() -> Handler:
    return dies_at_three


def fails(task: int) -> Iterator[int]:
    yield task
    raise KeyError("no such column")


def make_failing() -> Handler:
    return fails


def make_nothing(reason: str) -> Handler:
    raise LookupError(reason)


def openmp_threads(task: int) -> Iterator[tuple[str | None, int]]:
    import torch

    yield os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()


def make_openmp_threads() -> Handler:
    return openmp_threads


def test_workers_share_the_cores_and_leave_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    found = list(stream(make_openmp_threads, deque([1]), num_workers=num_cores()))

    assert found == [(1, ("1", 1))]
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_piece_of_every_task_comes_once(num_workers: int) -> None:
    found = list(stream(make_squares, deque(range(6)), num_workers=num_workers))

    assert sorted(found) == [(task, n**2) for task in range(6) for n in range(task)]


def test_a_task_that_kills_its_process_is_told_and_the_others_go_on() -> None:
    tasks = deque([[1, 2], [3], [4], [5, 3, 6], [7]])
    found = list(stream(make_dying, tasks, num_workers=2))

    assert sorted(piece for _, piece in found if isinstance(piece, int)) == [1, 2, 4, 5, 7]
    dead = [(task, piece) for task, piece in found if isinstance(piece, Died)]
    assert sorted(dead, key=str) == [([3], Died(-9)), ([5, 3, 6], Died(-9))]


def test_a_task_may_be_given_again() -> None:
    tasks = deque([[2, 3, 4]])
    found = []
    for task, piece in stream(make_dying, tasks, num_workers=1):
        if isinstance(piece, Died) and len(task) > 1:
            tasks.extend([number] for number in task)
        else:
            found.append(piece)

    assert [piece for piece in found if isinstance(piece, int)].count(4) == 1
    assert found.count(Died(-9)) == 1


@pytest.mark.parametrize("make", [make_failing, partial(make_nothing, "no such column")])
def test_an_error_of_ours_ends_the_work_with_its_traceback(make: Callable[[], Handler]) -> None:
    with pytest.raises(RuntimeError, match="no such column"):
        list(stream(make, deque([1, 2]), num_workers=1))
