"""Which rows of each segment a search may find, made once for as many searches as ask for it.

Deleted rows, a predicate, a cone and exclusions all come down to a bit for each row. Where few rows
are left a search looks at each of them; where many are, it looks through lists (probing.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from index.probing import Allowed
from index.segment import Segment

# Rows of which an exact scan costs less than a search through lists: 5 ms at 256 dimensions.
FEW_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Live:
    """A segment as one version sees it."""

    segment: Segment
    alive: Bool[ndarray, " row"] | None  # None: no row is deleted


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The rows of one segment that may be found."""

    rows: Int64[ndarray, " found"] | None  # few enough to look at each; None: use `in_lists`
    in_lists: Allowed | None  # None with `rows` None: every row


@dataclass(slots=True)
class Filter:
    """Objects that may be found; rows of segments are looked up when first asked for.

    Attributes:
        allowed: By object key; None allows all.
    """

    allowed: Bool[ndarray, " key"] | None = None
    _known: dict[str, RowFilter] = field(default_factory=dict)

    def of(self, live: Live, *, exact: bool) -> RowFilter:
        """The rows of a segment.

        Args:
            live: The segment.
            exact: Each row is to be looked at, however many they are.
        """
        segment = live.segment
        listed = not exact and segment.has_lists
        name = f"{segment.name}/{listed}"
        if name not in self._known:
            self._known[name] = self._made(live, listed=listed)
        return self._known[name]

    def _made(self, live: Live, *, listed: bool) -> RowFilter:
        segment, use = live.segment, live.alive
        if self.allowed is not None:
            mine = self.allowed[segment.object_key]
            use = mine if use is None else use & mine
        if use is None:
            rows = None if listed else np.arange(segment.num_rows)
            return RowFilter(rows, None)
        rows = np.flatnonzero(use)
        if not listed or len(rows) <= FEW_ROWS:
            return RowFilter(rows, None)
        assert segment.lists is not None
        return RowFilter(None, segment.lists.allow(use))
