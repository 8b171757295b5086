"""The input manifest: what a version was made from, so that unchanged files are not read again.

A file is unchanged when its size and time of modification are those written down; else its content
is hashed, and the same content is not read either. The same holds for its companions, the other
files that its reader opens with it (redshifts beside spectra, one band beside another). A file
that gave the version no row is not written down: it is tried again by every build, and by nightlies
until two found the same (empty_files.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from index import disk
from training.observations import Skipped, fingerprint

_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "survey": pa.string(),
        "num_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "sha256": pa.string(),
        "num_rows": pa.int64(),
        "companions": pa.list_(
            pa.struct({"path": pa.string(), "num_bytes": pa.int64(), "modified_ns": pa.int64()})
        ),
        "skipped": pa.list_(pa.struct({"file": pa.string(), "reason": pa.string()})),
    }
)


@dataclass(frozen=True, slots=True)
class FileState:
    """A file by what shows without reading it that it has changed."""

    path: str
    num_bytes: int
    modified_ns: int

    def holds(self) -> bool:
        """Whether the file still is as written down."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.num_bytes, self.modified_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file as it was read."""

    path: str
    survey: str  # whose reader read it
    num_bytes: int
    modified_ns: int
    sha256: str
    num_rows: int  # objects it gave
    skipped: tuple[Skipped, ...]  # what in it was left out
    companions: tuple[FileState, ...] = ()

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Input:
        """An input as its line of the table has it."""
        skipped = tuple(Skipped(**each) for each in line["skipped"])
        beside = tuple(FileState(**each) for each in line["companions"])
        return cls(**line | {"skipped": skipped, "companions": beside})

    def unchanged(self, companions: Sequence[str] = ()) -> bool:
        """Whether the file and its companions, those that there are now, are as written down."""
        if tuple(companions) != tuple(each.path for each in self.companions):
            return False
        states = (FileState(self.path, self.num_bytes, self.modified_ns), *self.companions)
        return all(state.holds() for state in states)


def write_inputs(path: Path, inputs: Iterable[Input]) -> None:
    lines = sorted(inputs, key=lambda each: (each.survey, each.path))
    disk.write_table(path, pa.Table.from_pylist([asdict(each) for each in lines], _SCHEMA))


def read_inputs(path: Path) -> dict[tuple[str, str], Input]:
    """Inputs by survey and path; VersionCorrupt where the file is damaged."""
    inputs = [Input.from_line(line) for line in disk.read_table(path).to_pylist()]
    return {(each.survey, each.path): each for each in inputs}


def content_of(path: str, companions: Sequence[str]) -> str:
    """sha256 of a file; of the list of sha256 where others are read with it."""
    digests = [disk.sha256_of(Path(each)) for each in (path, *companions)]
    return digests[0] if len(digests) == 1 else fingerprint(*digests)


def file_state(path: str) -> FileState:
    """Size and time of a file.

    Raises:
        ValueError: what would stop the build, not only its own reading. Opening a pipe waits for
            ever; a name that is not UTF-8 fits no table and no JSON.
        OSError: it is not there.
    """
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ValueError("expected a regular file, got a pipe, socket or device")
    if printable(path) != path:
        raise ValueError("its name is not UTF-8: rename it")
    return FileState(path, status.st_size, status.st_mtime_ns)


def printable(path: str) -> str:
    """A name of a file, with escapes for what is not UTF-8."""
    return path.encode(errors="backslashreplace").decode()
