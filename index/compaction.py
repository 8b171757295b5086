"""Which segments of a version are written again as one.

Every update adds a segment a view, and a search asks every segment. Segments of like size (within a
factor of FANOUT) are put together when there are FANOUT of them, so that a view of n rows has at
most FANOUT segments of each size, and a row is written again log(n) times in its life. A segment
with more than a fifth of its rows deleted is written without them. Nothing is embedded again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from index.manifest import SegmentRecord

SMALL_ROWS = 50_000  # below, all segments are of one size
FANOUT = 16
MAX_DELETED_SHARE = 0.2


def due(
    records: Sequence[SegmentRecord], *, fanout: int = FANOUT, small_rows: int = SMALL_ROWS
) -> tuple[int, ...]:
    """Places of the segments to write again, those of a view as one.

    Args:
        records: Segments of a version.
        fanout: So many segments of one size are put together.
        small_rows: Segments below it are of one size.
    """
    chosen = set()
    sizes: dict[tuple[str, int], list[int]] = {}
    for i, each in enumerate(records):
        if each.num_deleted > MAX_DELETED_SHARE * each.num_rows:
            chosen.add(i)
        sizes.setdefault(
            (each.view, _size(each.num_rows - each.num_deleted, small_rows)), []
        ).append(i)
    for some in sizes.values():
        if len(some) >= fanout:
            chosen.update(some)
    return tuple(sorted(chosen))


def _size(num_rows: int, small_rows: int) -> int:
    """0 below small_rows, then one more for each factor of FANOUT."""
    if num_rows < small_rows:
        return 0
    return 1 + int(math.log(num_rows / small_rows, FANOUT))
