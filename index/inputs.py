"""The input manifest: what a version was made from, so that unchanged files are not read again.

A file is unchanged when its size and time of modification are those written down; else its content
is hashed, and the same content is not read either. A file that gave the version no row is not
written down: it is tried again by every build.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from index import disk
from index.errors import VersionCorrupt
from training.observations import Skipped

_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "survey": pa.string(),
        "num_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "sha256": pa.string(),
        "num_rows": pa.int64(),
        "skipped": pa.list_(pa.struct({"file": pa.string(), "reason": pa.string()})),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file as it was read."""

    path: str
    survey: str
    num_bytes: int
    modified_ns: int
    sha256: str
    num_rows: int  # objects it gave
    skipped: tuple[Skipped, ...]  # what in it was left out

    def unchanged(self) -> bool:
        """Whether the file still has the size and the time of modification written down."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.num_bytes, self.modified_ns)


def write_inputs(path: Path, inputs: Iterable[Input]) -> None:
    lines = sorted(inputs, key=lambda each: (each.survey, each.path))
    disk.write_table(path, pa.Table.from_pylist([asdict(each) for each in lines], _SCHEMA))


def read_inputs(path: Path) -> dict[tuple[str, str], Input]:
    """Inputs by survey and path."""
    try:
        lines = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise VersionCorrupt(f"{path} is damaged: {error}") from error
    for line in lines:
        line["skipped"] = tuple(Skipped(**each) for each in line["skipped"])
    inputs = [Input(**line) for line in lines]
    return {(each.survey, each.path): each for each in inputs}
