"""Which of the processes that `torchrun` started this one is; its environment variables say so."""

from __future__ import annotations

import os


def num_processes() -> int:
    """How many there are; 1 without `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_processes() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that writes files and speaks to the user."""
    return int(os.environ.get("RANK", "0")) == 0
