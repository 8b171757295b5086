"""Rows of two surveys that saw the same objects, joined into shards of both surveys' tokens.

Nothing is tokenized again: the shards of the two surveys are read, and a match table says which
rows are one object. A stream that both have is taken from the left one where that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from training.shards import TokenSet, TokenShard, concatenate

PAIRS_A_SHARD = 65_536


def write_pairs(
    left: TokenSet,
    right: TokenSet,
    left_ids: Sequence[str],
    right_ids: Sequence[str],
    folder: Path,
    *,
    pairs_a_shard: int = PAIRS_A_SHARD,
) -> int:
    """Join the rows of matched sources; the number of rows written.

    Copies of an object are paired in their order, the surplus of the side with more is left out.

    Args:
        left: Shards of one survey.
        right: Shards of the other.
        left_ids: Source ids, the same length as right_ids.
        right_ids: Source ids that are the same objects.
        folder: Receives the shards.
        pairs_a_shard: Rows a shard.

    Raises:
        ValueError: no pair has tokens on both sides.
    """
    of_left, of_right = _places(left, left_ids), _places(right, right_ids)
    keys = ("match", "copy")
    _, a, b = np.intersect1d(
        _joined(of_left[keys[0]], of_left[keys[1]]),
        _joined(of_right[keys[0]], of_right[keys[1]]),
        return_indices=True,
    )
    if not len(a):
        raise ValueError(
            f"none of {len(left_ids):,} matches joins a row of {left.name!r} to one of "
            f"{right.name!r}: are the source ids of the match table those of these data sets?"
        )
    for number, start in enumerate(range(0, len(a), pairs_a_shard)):
        some = slice(start, start + pairs_a_shard)
        one = _gather(left, of_left["shard"][a[some]], of_left["row"][a[some]])
        other = _gather(right, of_right["shard"][b[some]], of_right["row"][b[some]])
        _side_by_side(one, other).write(folder / f"{number:05d}")
    return len(a)


def _places(data: TokenSet, ids: Sequence[str]) -> dict[str, Int64[ndarray, " place"]]:
    """Where matched sources are: number of the match, copy, shard and row."""
    wanted = np.array([each.encode() for each in ids], dtype=np.bytes_)
    order = np.argsort(wanted, kind="stable")
    wanted = wanted[order]
    found: list[tuple[ndarray, ndarray, ndarray]] = []
    for number, shard in enumerate(data.shards):
        mine = np.asarray(shard.ids)
        at = np.searchsorted(wanted, mine).clip(max=max(len(wanted) - 1, 0))
        rows = np.flatnonzero(wanted[at] == mine) if len(wanted) else np.empty(0, np.int64)
        found.append((order[at[rows]], np.full(len(rows), number), rows))
    match, shards, rows = (
        np.concatenate(parts).astype(np.int64) for parts in zip(*found, strict=True)
    )
    by_match = np.argsort(match, kind="stable")
    match, shards, rows = match[by_match], shards[by_match], rows[by_match]
    starts = np.searchsorted(match, match)  # the first place of the same match
    return {"match": match, "copy": np.arange(len(match)) - starts, "shard": shards, "row": rows}


def _joined(match: Int64[ndarray, " n"], copy: Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
    return match * 1_000_000 + copy


def _gather(data: TokenSet, shards: Int64[ndarray, " n"], rows: Int64[ndarray, " n"]) -> TokenShard:
    """Rows of any shards, in the order asked for."""
    parts, where = [], []
    for number in np.unique(shards):
        mine = np.flatnonzero(shards == number)
        parts.append(data.shards[number].take(rows[mine]))
        where.append(mine)
    return concatenate(parts).take(np.argsort(np.concatenate(where), kind="stable"))


def _side_by_side(left: TokenShard, right: TokenShard) -> TokenShard:
    tokens, lengths = dict(right.tokens), dict(right.lengths)
    for key, codes in left.tokens.items():
        there = left.lengths[key] > 0
        if key in tokens:
            codes = np.where(there[:, None], codes, tokens[key])
            lengths[key] = np.where(there, left.lengths[key], lengths[key])
        else:
            lengths[key] = left.lengths[key]
        tokens[key] = codes
    return TokenShard(
        tokens=tokens,
        lengths=lengths,
        schema={**right.schema, **left.schema},
        objects=np.concatenate([left.objects, right.objects], axis=1),
        ids=np.array([b"+".join(pair) for pair in zip(left.ids, right.ids, strict=True)]),
    )
