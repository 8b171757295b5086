"""Versions of a sky: open, list, publish, roll back, verify.

A version is a folder that never changes. CURRENT names the published one and is replaced in one
step, so a reader sees the old version or the new one, never half of either; a reader that has a
version open keeps it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from index import disk
from index.asked_recall import DEFAULT_RECALL
from index.coding import recall_again
from index.errors import VersionCorrupt
from index.exact_scan import torch_device
from index.manifest import FileRecord, Manifest, SkyHead, read_head, read_manifest
from index.pointer import read_pointer, write_pointer
from index.ray_nodes import Cluster
from index.version import Version

MAX_LOST_RECALL = 0.03  # of two measurements on a few hundred rows

__all__ = [
    "Base",
    "Problem",
    "VerifyReport",
    "Version",
    "VersionSummary",
    "current_number",
    "find_base",
    "numbers",
    "open_version",
    "publish",
    "rollback",
    "verify",
    "versions",
]


UNPROVED = "unproved"  # file


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """One line of `skykin versions`."""

    number: int
    published: bool
    built_at_utc: str
    num_objects: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not what was written, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` read."""

    versions: tuple[int, ...]
    num_files: int
    num_bytes: int
    problems: tuple[Problem, ...]
    recall: Mapping[str, float]  # recall@10 of each view with a codec, measured now
    published: int | None  # None: CURRENT names no version that is there
    damaged: tuple[int, ...]  # versions that a problem is in; problems of the store are in none
    unproved: int | None  # version that a nightly left unmeasured, which is not gone back to

    @property
    def advice(self) -> str:
        """What to do where the published version is damaged, else empty."""
        if self.published in self.versions and self.published not in self.damaged:
            return ""
        unfit = {*self.damaged, self.unproved}
        whole = [each for each in self.versions if each not in unfit]
        if not whole:
            return "no version is whole: build the sky again, which embeds nothing that is stored"
        return f"the published version is not whole: `skykin rollback SKY {whole[-1]}`"


def current_number(sky: Path) -> int:
    """Number of the published version.

    Raises:
        VersionCorrupt: no version is published, or CURRENT names none.
    """
    if not os.path.lexists(sky / "CURRENT"):
        there = ", ".join(map(str, numbers(sky))) or "none"
        raise VersionCorrupt(
            f"{sky} has no published version (no file CURRENT): run `skykin build`, which goes on "
            f"where it stopped, or `skykin rollback SKY NUMBER` to a version that is there: {there}"
        )
    return read_pointer(sky / "CURRENT")


def open_version(
    sky: Path,
    number: int | None = None,
    *,
    device: str = "cpu",
    cluster: Cluster | None = None,
) -> Version:
    """Open the published version, or another by its number.

    Args:
        sky: Its folder.
        number: Of a version; None: the published one.
        device: Where large segments are searched: cpu, or a device of torch such as cuda (gpu.md).
        cluster: Whose actors hold the segments and search them; None: this process does.

    Raises:
        NotASky: the folder is missing or foreign.
        VersionCorrupt: the version is not there or not whole.
        GpuUnavailable: the device is not there, or has too little memory.
        ValueError: torch knows no such device.
        ClusterUnavailable: there is no such cluster, or segments cannot be opened on it.
    """
    sky = Path(sky)
    read_head(sky)
    if number is not None:
        return _opened(sky, number, device, cluster)
    while True:
        published = current_number(sky)
        try:
            return _opened(sky, published, device, cluster)
        except VersionCorrupt:
            # another may have been published meanwhile, and this one pruned
            if current_number(sky) == published:
                raise


def _opened(sky: Path, number: int, device: str, cluster: Cluster | None) -> Version:
    if cluster is None:
        torch_device(device)  # also where no segment is large enough to go there
        return Version(sky, number, device=device)
    from index.cluster import Holders  # it imports Version

    version = Version(sky, number)  # here for its objects; a device is that of the actors
    version.holders = Holders(version, cluster, device=device)
    return version


@dataclass(frozen=True, slots=True)
class Base:
    """What an update adds to."""

    version: Version | None  # None: the sky has none yet
    is_published: bool  # False: CURRENT is lost, this is the newest version that is whole


def find_base(sky: Path) -> Base:
    """The published version; where CURRENT is missing or names none, the newest that is whole.

    The caller holds the sky's lock, so nothing is pruned meanwhile but by the caller.

    Raises:
        VersionCorrupt: the published version is there, but not whole.
    """
    there = numbers(sky)
    try:
        number = current_number(sky)
    except VersionCorrupt:
        number = -1
    if number in there:
        return Base(Version(sky, number, held=False), is_published=True)
    for number in reversed(there):  # so that nothing that was there is lost
        try:
            return Base(Version(sky, number, held=False), is_published=False)
        except VersionCorrupt:
            continue
    return Base(None, is_published=False)


def numbers(sky: Path) -> list[int]:
    """Numbers of all versions that are there, ascending."""
    folder = sky / "versions"
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]*", name))


def unproved_number(sky: Path) -> int | None:
    """Number of the version that a nightly writes but has not measured yet (see unproved.py)."""
    try:
        return read_pointer(sky / UNPROVED)
    except VersionCorrupt:  # most of the time there is none
        return None


def versions(sky: Path) -> list[VersionSummary]:
    """All versions, oldest first."""
    sky = Path(sky)
    read_head(sky)
    published = current_number(sky)
    out = []
    for number in numbers(sky):
        manifest = read_manifest(sky, number)
        out.append(
            VersionSummary(
                number, number == published, manifest.built_at_utc, manifest.num_objects,
                manifest.num_rows,
            )
        )  # fmt: skip
    return out


def publish(sky: Path, number: int) -> None:
    """Make a version that is whole on disk the one that readers open."""
    write_pointer(sky / "CURRENT", number)


def rollback(sky: Path, number: int | None = None) -> int:
    """Publish an older version again, by default the one before the published; gives its number.

    Raises:
        ValueError: there is no such version, or it has not passed the gates of its nightly.
        VersionCorrupt: it is not whole; what is published stays.
    """
    sky = Path(sky)
    read_head(sky)
    there = numbers(sky)
    if number is None:
        older = [each for each in there if each < current_number(sky)]
        if not older:
            raise ValueError(f"{sky} has no version before the published one to roll back to")
        number = older[-1]
    if number not in there:
        known = ", ".join(map(str, there)) or "none"
        raise ValueError(f"{sky} has no version {number}: expected one of {known}")
    with disk.only_writer(sky):
        disk.remove_leftovers(sky)
        if number == unproved_number(sky) and number != _number_or_none(sky):
            raise ValueError(
                f"version {number} of {sky} was left by a nightly that was stopped before it was "
                "measured: run the nightly again"
            )
        open_version(sky, number)
        publish(sky, number)
    return number


def _number_or_none(sky: Path) -> int | None:
    try:
        return current_number(sky)
    except VersionCorrupt:
        return None


def verify(sky: Path, *, progress: Callable[[str, int, int], None] | None = None) -> VerifyReport:
    """Read every file of every version, and of the store, and compare it with its checksum.

    Where all of the published version is as it was written, its recall is measured again, on other
    rows than when it was written.

    Args:
        sky: Folder of the sky.
        progress: Called with "checking" or "recall", how many are done, how many there are.

    Raises:
        NotASky: the folder is missing or foreign.
    """
    sky = Path(sky)
    problems: dict[str, str] = {}
    expected: dict[str, FileRecord] = {}
    found = numbers(sky)
    encoders: set[str] = set()
    files_of: dict[int, set[str]] = {}  # version -> names below the sky
    published: int | None = None
    head: SkyHead | None = None
    try:
        head = read_head(sky)
    except (VersionCorrupt, OSError) as error:
        problems["sky.json"] = _told(error)
    try:
        number = current_number(sky)
        if number in found:
            published = number
        else:
            problems["CURRENT"] = f"names version {number}, which is not there"
    except (VersionCorrupt, OSError) as error:
        problems["CURRENT"] = _told(error)
    for number in found:
        files_of[number] = {f"versions/{number}/manifest.json"}
        try:
            manifest = read_manifest(sky, number)
            encoders.add(manifest.encoder.hash)
            files = _files_of(sky, manifest, problems)
            files_of[number].update(files)
            expected.update(files)
        except (VersionCorrupt, OSError) as error:
            problems[f"versions/{number}/manifest.json"] = _told(error)
    if head is not None and encoders and head.encoder.hash not in encoders:
        problems["sky.json"] = "names an encoder that no version was made with"
    for part in sorted((sky / "store").glob("*/*/*/")):
        if not part.name.startswith(disk.TEMPORARY):
            expected.update(_files_of_part(sky, part, problems))
    num_bytes = 0
    for done, (file, record) in enumerate(expected.items()):
        if progress:
            progress("checking", done, len(expected))
        path = sky / file
        if not path.is_file():
            problems[file] = "is missing"
            continue
        try:
            size = path.stat().st_size
            num_bytes += size
            if size != record.num_bytes:
                problems[file] = f"expected {record.num_bytes:,} bytes, got {size:,}"
            elif disk.sha256_of(path) != record.sha256:
                problems[file] = "its content has changed: the checksum does not hold"
        except OSError as error:
            problems[file] = _told(error)
    damaged = tuple(number for number in found if not files_of[number].isdisjoint(problems))
    recall = {} if problems else _measured(sky, problems, progress)
    listed = tuple(Problem(file, reason) for file, reason in sorted(problems.items()))
    return VerifyReport(
        tuple(found), len(expected), num_bytes, listed, recall, published, damaged,
        unproved_number(sky),
    )  # fmt: skip


def _told(error: VersionCorrupt | OSError) -> str:
    """Why a file cannot be used; of an OSError, as of a failing disk or without the right."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    return str(error)


def _measured(
    sky: Path, problems: dict[str, str], progress: Callable[[str, int, int], None] | None
) -> dict[str, float]:
    """recall@10 of the published version at the default, by view; lost recall is a problem."""
    version = open_version(sky)
    measured: dict[str, float] = {}
    for done, curve in enumerate(version.manifest.curves):
        if progress:
            progress("recall", done, len(version.manifest.curves))
        effort = curve.effort(DEFAULT_RECALL, direction=False)
        lives = [live for live in version.segments if live.segment.view == curve.view]
        reached = 1.0 if effort is None else recall_again(lives, effort, seed=version.number)
        written = curve.recall_at_10(DEFAULT_RECALL)
        if reached < written - MAX_LOST_RECALL:
            problems[f"versions/{version.number}/manifest.json"] = (
                f"recall@10 of view {curve.view} was {written:.4f} when it was measured and is "
                f"{reached:.4f}: `skykin reindex` makes its codes anew"
            )
        measured[curve.view] = reached
    return measured


def _files_of(sky: Path, manifest: Manifest, problems: dict[str, str]) -> dict[str, FileRecord]:
    """Every file of a version by its name below the sky."""
    files = {file.file: file for file in manifest.files}
    for record in manifest.segments:
        files[record.head.file] = record.head
        if record.deleted is not None:
            files[record.deleted.file] = record.deleted
        try:
            content = disk.read_json(sky / record.head.file)
        except (VersionCorrupt, OSError) as error:
            problems[record.head.file] = _told(error)
            continue
        listed = content["files"]
        assert isinstance(listed, dict)
        for name, entry in listed.items():
            file = f"segments/{record.name}/{name}"
            files[file] = FileRecord(file=file, **entry)
    return files


def _files_of_part(sky: Path, part: Path, problems: dict[str, str]) -> dict[str, FileRecord]:
    place = str(part.relative_to(sky))
    try:
        listed = disk.read_json(part / "part.json")["files"]
    except (VersionCorrupt, OSError) as error:
        problems[f"{place}/part.json"] = _told(error)
        return {}
    assert isinstance(listed, dict)
    return {
        f"{place}/{name}": FileRecord(file=f"{place}/{name}", **entry)
        for name, entry in listed.items()
    }
