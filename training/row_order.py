"""In which order the rows of a token set are drawn, and which are held out of it.

Shards come in a random order, and rows in a random order within blocks of shards, another in every
epoch. Both follow from the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from training.shards import TokenSet, TokenShard

SHARDS_A_BLOCK = 16  # shuffled together; the order of blocks is shuffled too


class RowOrder:
    """The rows of one set in the order in which they are drawn, epoch after epoch.

    Args:
        tokens: The set.
        keys: Streams of the model.
        number: Of the set among those that are mixed.
        validation_share: Of the objects, which is held out.
        seed: Of the run.
    """

    def __init__(
        self,
        tokens: TokenSet,
        keys: Sequence[str],
        number: int,
        *,
        validation_share: float,
        seed: int,
    ) -> None:
        self._tokens, self._keys, self._number = tokens, keys, number
        self._validation_share, self._seed = validation_share, seed
        self._sizes = np.array(
            [len(self._rows(shard, held=False)) for shard in tokens.shards], dtype=np.int64
        )
        self.num_rows = int(self._sizes.sum())
        self._cached: dict[tuple[int, int], ndarray] = {}

    def at(self, nth: Int64[ndarray, " n"]) -> Int64[ndarray, "n 2"]:
        """Shard and row of the nth rows drawn."""
        found = np.empty((len(nth), 2), dtype=np.int64)
        if not len(nth):
            return found
        for epoch in np.unique(nth // self.num_rows).tolist():
            mine = np.flatnonzero(nth // self.num_rows == epoch)
            within = nth[mine] % self.num_rows
            shards = self._rng(epoch, 0).permutation(len(self._sizes))
            ends = np.cumsum(self._sizes[shards])
            last = np.minimum(
                np.arange(SHARDS_A_BLOCK, len(ends) + SHARDS_A_BLOCK, SHARDS_A_BLOCK), len(ends)
            )
            ends = ends[last - 1]  # of blocks
            block = np.searchsorted(ends, within, side="right")
            for one in np.unique(block).tolist():
                here = block == one
                start = ends[one - 1] if one else 0
                found[mine[here]] = self._block(epoch, one, shards)[within[here] - start]
        return found

    def copies(self, found: Int64[ndarray, "n 2"], num: int) -> Int64[ndarray, "n copy 2"]:
        """Each row and the next ones of its object, which lie side by side; again from the first.

        An object of one row comes as often as is asked. Rows with nothing to ask are passed over.
        """
        rows = np.repeat(found[:, None], num, axis=1)
        for place in range(len(found) if num > 1 else 0):
            shard = self._tokens.shards[found[place, 0]]
            objects = shard.objects
            row = first = last = int(found[place, 1])
            while first > 0 and (objects[first - 1] == objects[row]).all():
                first -= 1
            while last + 1 < len(objects) and (objects[last + 1] == objects[row]).all():
                last += 1
            mine = np.arange(first, last + 1)
            mine = mine[self._lengths(shard, slice(first, last + 1)) > 1]
            following = np.searchsorted(mine, row) + np.arange(num)
            rows[place, :, 1] = mine[following % len(mine)]
        return rows

    def held_out(self, most: int) -> Int64[ndarray, "n 2"]:
        """Shard and row of held-out rows, from shards in a random order."""
        parts = [np.empty((0, 2), dtype=np.int64)]
        if self._validation_share:
            for index in self._rng(0, 0).permutation(len(self._sizes)):
                rows = self._rows(self._tokens.shards[index], held=True)
                parts.append(np.column_stack([np.full(len(rows), index), rows]))
                if sum(map(len, parts)) >= most:
                    break
        return np.concatenate(parts)[:most]

    def _block(
        self, epoch: int, block: int, shards: Int64[ndarray, " shard"]
    ) -> Int64[ndarray, "n 2"]:
        if (epoch, block) not in self._cached:
            if len(self._cached) > 1:
                self._cached.pop(next(iter(self._cached)))
            parts = []
            for index in shards[block * SHARDS_A_BLOCK : (block + 1) * SHARDS_A_BLOCK]:
                rows = self._rows(self._tokens.shards[index], held=False)
                parts.append(np.column_stack([np.full(len(rows), index), rows]))
            pool = np.concatenate(parts)
            self._cached[epoch, block] = self._rng(epoch, 1 + block).permutation(pool)
        return self._cached[epoch, block]

    def _rng(self, epoch: int, part: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._number, epoch, part])

    def _rows(self, shard: TokenShard, *, held: bool) -> Int64[ndarray, " row"]:
        """Rows with something to show and something to ask, on one side of the split."""
        is_held = is_held_out(shard.objects, self._validation_share)
        lengths = self._lengths(shard, slice(0, len(shard)))
        return np.flatnonzero((lengths > 1) & (is_held == held))

    def _lengths(self, shard: TokenShard, rows: slice) -> Int64[ndarray, " row"]:
        """Tokens of some rows, of the model's streams."""
        lengths = np.zeros(rows.stop - rows.start, dtype=np.int64)
        for key in self._keys:
            if key in shard.lengths:
                lengths += shard.lengths[key][rows]
        return lengths


def is_held_out(objects: Int64[ndarray, "row part"], share: float) -> Bool[ndarray, " row"]:
    """Whether rows are kept for validation: a property of their objects, in every data set."""
    # the finaliser of splitmix64, so that numbers need not be random themselves
    mixed = objects.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53
    return np.any(uniform < share, axis=1)
