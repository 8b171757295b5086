"""What is known of some objects: a CSV table with a column object_id and columns of 0 and 1.

The simulated sky writes such a table, labels.csv. Objects that are not in it have no label.
"""

from __future__ import annotations

import csv
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
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, strict=True)
            header = next(lines, [])
            rows = [(lines.line_num, row) for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: no table of labels ({error})") from error
    there = [name for name in header if name != OBJECT_ID]
    if header.count(OBJECT_ID) != 1 or not rows:
        raise ValueError(f"{file}: expected rows with a column {OBJECT_ID} and columns of 0 and 1")
    names = tuple(columns) or tuple(there)
    lacking = [name for name in names if there.count(name) != 1]
    if lacking or not names:
        what = ", ".join(lacking) or "of labels"
        raise ValueError(f"{file}: expected a column {what}, it has {', '.join(there)}")
    ids: list[str] = []
    table = np.zeros((len(rows), len(names)), dtype=bool)
    for place, (line, row) in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"{file}, line {line}: {len(row)} cells under {len(header)} columns")
        values = dict(zip(header, row, strict=True))
        ids.append(values[OBJECT_ID])
        wrong = next((name for name in names if values[name] not in ("0", "1")), None)
        if wrong is not None or not ids[-1]:
            key, what = (OBJECT_ID, "an id") if wrong is None else (wrong, "0 or 1")
            raise ValueError(f"{file}, line {line}: {key} is {values[key]!r}, expected {what}")
        table[place] = [values[name] == "1" for name in names]
    numbers = object_numbers(ids)
    order = np.argsort(numbers, kind="stable")
    twice = np.flatnonzero(np.diff(numbers[order]) == 0)
    if len(twice):
        raise ValueError(f"{file}: the {OBJECT_ID} {ids[order[twice[0]]]!r} comes twice")
    return Labels(names=names, numbers=numbers[order], table=table[order])
