"""What is known of some objects: a CSV table with a column object_id and columns of 0 and 1.

The simulated sky writes such a table, labels.csv. Objects that are not in it have no label.
"""

from __future__ import annotations

import csv
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
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: no table of labels ({error})") from error
    if not rows or OBJECT_ID not in rows[0]:
        raise ValueError(f"{file}: expected rows with a column {OBJECT_ID} and columns of 0 and 1")
    names = tuple(columns) or tuple(name for name in rows[0] if name != OBJECT_ID)
    lacking = [name for name in names if name not in rows[0]]
    if lacking or not names:
        there = ", ".join(name for name in rows[0] if name != OBJECT_ID)
        raise ValueError(f"{file}: no column {', '.join(lacking) or 'of labels'}, it has {there}")
    for line, row in enumerate(rows, start=2):
        wrong = next((name for name in names if row[name] not in ("0", "1")), None)
        if wrong is not None:
            raise ValueError(f"{file}, line {line}: {wrong} is {row[wrong]!r}, expected 0 or 1")
    numbers = object_numbers([row[OBJECT_ID] for row in rows])
    table = np.array([[row[name] == "1" for name in names] for row in rows], dtype=bool)
    order = np.argsort(numbers, kind="stable")
    if (np.diff(numbers[order]) == 0).any():
        raise ValueError(f"{file}: an {OBJECT_ID} comes twice")
    return Labels(names=names, numbers=numbers[order], table=table[order])
