"""Rows of a file that follow one another, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Column = Any  # a sequence with one entry a row: an array, a number, or text


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows that follow one another, or why they cannot be read."""

    start: int
    num_rows: int
    columns: Mapping[str, Column]
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of cropped ones, stored
    problem: str = ""


def centre(height: int, width: int, size: int) -> tuple[slice, slice]:
    """The central size x size pixels, as AION-1 crops: start = (side - size) // 2.

    Raises:
        ValueError: the image is smaller.
    """
    if min(height, width) < size:
        raise ValueError(f"expected images of {size} x {size} px or more, got {height} x {width}")
    y, x = (height - size) // 2, (width - size) // 2
    return slice(y, y + size), slice(x, x + size)
