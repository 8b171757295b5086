"""Which rows of each segment a search may find, made once for as many searches as ask for it.

Deleted rows, a predicate, a cone and exclusions all come down to a bit for each row. Where few rows
are left a search looks at each of them; where many are, it looks through lists (probing.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from index.probing import Allowed
from index.segment import Segment

# Rows of which an exact scan costs less than a search through lists: 5 ms at 256 dimensions.
FEW_ROWS = 20_000
MAX_BYTES = 1 << 29  # of filters that are kept for the next question


@dataclass(frozen=True, slots=True)
class Live:
    """A segment as one version sees it."""

    segment: Segment
    alive: Bool[ndarray, " row"] | None  # None: no row is deleted

    @property
    def num_rows(self) -> int:
        """Rows that are not deleted."""
        return self.segment.num_rows if self.alive is None else int(self.alive.sum())


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The rows of one segment that may be found."""

    listed: bool  # whether they are looked for through lists; else each is looked at
    rows: Int64[ndarray, " found"] | None = None  # to look at; None: every one
    in_lists: Allowed | None = None  # to look for; None: every one


@dataclass(slots=True)
class Filter:
    """Objects that may be found; rows of segments are looked up when first asked for.

    Attributes:
        allowed: By object key; None allows all.
    """

    allowed: Bool[ndarray, " key"] | None = None
    _known: dict[str, RowFilter] = field(default_factory=dict)

    @classmethod
    def of_keys(cls, keys: Int64[ndarray, " n"], num_keys: int, *, without: bool = False) -> Filter:
        """Only these objects, or all but these; keys outside of 0 ... num_keys - 1 are nobody's."""
        allowed = np.full(num_keys, without)
        allowed[keys[(keys >= 0) & (keys < num_keys)]] = not without
        return cls(allowed)

    def __and__(self, other: Filter) -> Filter:
        """What both allow."""
        if self.allowed is None or other.allowed is None:
            return other if self.allowed is None else self
        return Filter(self.allowed & other.allowed)

    def num_among(self, there: Bool[ndarray, " key"]) -> int:
        """How many of some objects it allows."""
        allowed = there if self.allowed is None else there & self.allowed
        return int(np.count_nonzero(allowed))

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
            return RowFilter(listed)
        rows = np.flatnonzero(use)
        if not listed or len(rows) <= FEW_ROWS:
            return RowFilter(False, rows)
        assert segment.lists is not None
        return RowFilter(True, in_lists=segment.lists.allow(use))


class Filters:
    """The filters that were asked for lately, each made once; safe to share between threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: dict[Hashable, Filter] = {}
        self._lock = threading.Lock()

    def get(self, asked: Hashable, make: Callable[[], Filter]) -> Filter:
        """The filter that was kept for a question, or a new one, which is kept."""
        with self._lock:
            known = self._kept.pop(asked, None)
            if known is not None:
                self._kept[asked] = known  # the last to go
                return known
        made = make()
        with self._lock:
            self._kept[asked] = made
            while len(self._kept) > 1 and self._num_bytes() > self.max_bytes:
                del self._kept[next(iter(self._kept))]
        return made

    def _num_bytes(self) -> int:
        # a byte a key, and as much again for the rows of segments
        sizes = [each.allowed.nbytes for each in self._kept.values() if each.allowed is not None]
        return 2 * sum(sizes)
