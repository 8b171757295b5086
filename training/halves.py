"""Work on many items at once, in halves where they do not fit into memory together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Made = TypeVar("Made")


def in_halves(
    run: Callable[[Sequence[Item]], Made], items: Sequence[Item]
) -> tuple[list[Made], int]:
    """Run on all items, or where they do not fit into memory on halves, and halves of these.

    Returns:
        What the runs gave, in order, and the largest number of items that fitted.
    """
    try:
        return [run(items)], len(items)
    except RuntimeError as error:
        if len(items) < 2 or not _out_of_memory(error):
            raise
    half = (len(items) + 1) // 2  # outside the handler, which keeps the memory of what failed
    log.warning("%d objects do not fit into memory at once: taking %d at a time", len(items), half)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    first, fits = in_halves(run, items[:half])
    second, also = in_halves(run, items[half:])
    return first + second, min(fits, half) if also >= len(items) - half else min(fits, also)


def _out_of_memory(error: RuntimeError) -> bool:
    # a CPU raises no error of its own kind
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
