"""Files that gave a sky no row: what a nightly read in vain it need not read every night.

    SKY/empty_files.json

A file is left alone when two nights in a row found the same in it, by the same encoder and
software, and it has not changed since: what failed once, on a disk that stutters, is tried again.
A file whose rows all stand behind those of others is read again when one of these changes. This is
a note and no part of a version: where it is missing or damaged, the files are read again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version as version_of
from pathlib import Path

from index import disk
from index.changes import ALREADY_READ
from index.errors import VersionCorrupt
from index.inputs import Input
from index.manifest import git_revision
from index.removals import InputKey
from training.observations import Skipped

FILE = "empty_files.json"
ENOUGH_NIGHTS = 2  # that found the same


@dataclass(frozen=True, slots=True)
class EmptyFile:
    """A file as it was read, and how many nights in a row found the same in it."""

    found: Input
    num_nights: int

    @property
    def is_settled(self) -> bool:
        return self.num_nights >= ENOUGH_NIGHTS

    @property
    def stands_behind(self) -> set[str]:
        """Files whose rows are there in place of its own."""
        return stands_behind(self.found.skipped)


def stands_behind(skipped: Collection[Skipped]) -> set[str]:
    """Files that the rows which were left out were already read from."""
    parts = [each.reason.rpartition(f" {ALREADY_READ} ") for each in skipped]
    return {there for _, found, there in parts if found}


def read_empty(sky: Path, *, encoder_hash: str) -> dict[InputKey, EmptyFile]:
    """What earlier nights read in vain with this encoder and this software."""
    if not (sky / FILE).exists():
        return {}
    try:
        content = disk.read_json(sky / FILE)
    except VersionCorrupt:
        return {}
    if content.get("made_by") != _made_by(encoder_hash):
        return {}
    lines = content["files"]
    assert isinstance(lines, list)
    files = [_from_line(line) for line in lines]
    return {(each.found.survey, each.found.path): each for each in files}


def write_empty(
    sky: Path,
    *,
    encoder_hash: str,
    before: Mapping[InputKey, EmptyFile],
    left_alone: Collection[InputKey],
    found: Mapping[InputKey, Input],
) -> None:
    """Write down what this night read in vain, beside what it left alone.

    Args:
        sky: Its folder, while it is locked.
        encoder_hash: Of the encoder.
        before: What `read_empty` gave.
        left_alone: Files of it that were not read.
        found: Files that were read and gave no row.
    """
    now = {key: before[key] for key in left_alone}
    for key, each in found.items():
        known = before.get(key)
        same = known is not None and _same(known.found, each)
        now[key] = EmptyFile(each, 1 + (known.num_nights if known and same else 0))
    if now == dict(before):
        return
    lines = [{**asdict(now[key].found), "num_nights": now[key].num_nights} for key in sorted(now)]
    disk.write_json(sky / FILE, {"made_by": _made_by(encoder_hash), "files": lines})


def _same(one: Input, other: Input) -> bool:
    return (one.sha256, one.skipped) == (other.sha256, other.skipped)


def _made_by(encoder_hash: str) -> dict[str, str | None]:
    return {
        "encoder_hash": encoder_hash,
        "software": f"skykin {version_of('skykin')}",
        "git_revision": git_revision(),
    }


def _from_line(line: dict[str, object]) -> EmptyFile:
    num_nights = int(str(line.pop("num_nights")))
    return EmptyFile(Input.from_line(line), num_nights)
