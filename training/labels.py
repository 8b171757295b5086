"""What is known of some objects: a CSV table with a column object_id and columns of 0 and 1.

The simulated sky writes such a table, labels.csv. Objects that are not in it have no label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from training.shards import object_number

OBJECT_ID = "object_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labels of objects by number."""

    names: tuple[str, ...]
    numbers: Int64[ndarray, " object"]  # ascending
    table: Bool[ndarray, "object label"]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def digest(self) -> str:
        """Changes when any name, object or label does."""
        parts = (repr(self.names).encode(), self.numbers.tobytes(), self.table.tobytes())
        return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()

    def of(self, numbers: Int64[ndarray, " row"]) -> Bool[ndarray, "row label"]:
        """Labels of some objects; all False for one that is not known."""
        if not len(self):
            return np.zeros((len(numbers), len(self.names)), dtype=bool)
        place = np.searchsorted(self.numbers, numbers).clip(max=len(self) - 1)
        known = self.numbers[place] == numbers
        return self.table[place] & known[:, None]


def object_numbers(object_ids: Sequence[str]) -> Int64[ndarray, " row"]:
    """The numbers that objects have in token shards."""
    return np.array([object_number(each) for each in object_ids], dtype=np.int64)


NO_LABELS = Labels(names=(), numbers=np.zeros(0, np.int64), table=np.zeros((0, 0), dtype=bool))


def read_labels(file: Path, columns: Sequence[str] = ()) -> Labels:
    """Read a table of labels.

    Args:
        file: A CSV table.
        columns: Labels to read; empty: every column but object_id.

    Raises:
        ValueError: not such a table, or a column is missing; names file, line and column.
    """
    import pandas as pd  # on demand: only recipes with labels need it

    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: of pandas and of text that is no UTF-8
        raise ValueError(f"{file}: no table of labels ({error})") from error
    there = [name for name in rows.columns if name != OBJECT_ID]
    if OBJECT_ID not in rows.columns or not len(rows):
        raise ValueError(f"{file}: expected rows with a column {OBJECT_ID} and columns of 0 and 1")
    if not isinstance(rows.index, pd.RangeIndex):
        raise ValueError(f"{file}: its rows have more cells than it has columns")
    names = tuple(columns) or tuple(there)
    lacking = [name for name in names if name not in there]
    if lacking or not names:
        what = ", ".join(lacking) or "of labels"
        raise ValueError(f"{file}: no column {what}, it has {', '.join(there)}")
    ids = rows[OBJECT_ID].tolist()
    if not all(ids):
        raise ValueError(f"{file}: row {ids.index('') + 1} has no {OBJECT_ID}")
    for name in names:
        wrong = np.flatnonzero(~rows[name].isin(["0", "1"]))
        if len(wrong):
            found = rows[name].iloc[wrong[0]]
            raise ValueError(
                f"{file}: {name} of object {ids[wrong[0]]!r} is {found!r}, expected 0 or 1"
            )
    twice = rows[OBJECT_ID][rows[OBJECT_ID].duplicated()]
    if len(twice):
        raise ValueError(f"{file}: the {OBJECT_ID} {twice.iloc[0]!r} comes twice")
    numbers = object_numbers(ids)
    order = np.argsort(numbers, kind="stable")
    table = rows[list(names)].to_numpy() == "1"
    return Labels(names=names, numbers=numbers[order], table=table[order])
