"""Which of the processes that `torchrun` started this one is; its environment variables say so.

And what keeps several processes out of each other's way: one run a folder, no worker without it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "train.lock"


def num_processes() -> int:
    """How many there are; 1 without `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_processes() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that writes files and speaks to the user."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold a folder against a second run; the lock goes with the process.

    Raises:
        ValueError: another process holds it.
    """
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another `skykin train` is at work in {folder}: wait for it to end, or train in "
                "another folder"
            ) from error
        yield


def end_with_parent() -> None:
    """Let a worker process end when the process that started it does, even by SIGKILL.

    The pool's own workers would wait for tasks forever, or go on writing beside the next run.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
