"""Old versions taken away, and with them the files that no version has any more.

Kept are the published version, the newest ones by number, those younger than some days by the time
they wrote down, and those that somebody reads (lease.py). The newest by number always stays: it
knows which object keys and numbers were given. What lies in segments/, codecs/, objects/ and head/
and is no version's goes too, so that what a killed run left behind goes with it. The store is never
touched.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from index import disk, lease
from index.coding import CODECS
from index.errors import VersionCorrupt
from index.manifest import read_head, read_manifest
from index.versions import current_number, numbers
from training.disk import flush


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was taken away."""

    versions: tuple[int, ...]
    held: tuple[int, ...]  # due, but somebody reads them
    num_files: int  # that were no version's, besides the folders of the versions
    num_bytes: int


def prune(
    sky: Path, *, keep_versions: int, keep_days: float, now: datetime | None = None
) -> Pruned:
    """Take away versions that the policy does not keep. The caller holds the sky's lock.

    Args:
        sky: Folder of the sky.
        keep_versions: So many of the highest numbers stay, at least 1.
        keep_days: Versions younger than this stay. One that was made in the future, by a clock that
            was wrong, is young.
        now: UTC; None: the clock's.

    Raises:
        ValueError: keep_versions below 1 or keep_days below 0.
        VersionCorrupt: CURRENT or a manifest cannot be read: nothing is taken away.
    """
    if keep_versions < 1 or not keep_days >= 0:
        raise ValueError(
            "expected keep_versions of 1 or more and keep_days of 0 or more, got "
            f"{keep_versions} and {keep_days}"
        )
    published = current_number(sky)
    there = numbers(sky)
    if published not in there:
        raise VersionCorrupt(f"CURRENT of {sky} names version {published}, which is not there")
    manifests = {number: read_manifest(sky, number) for number in there}
    kept = {published, *there[-keep_versions:]}
    now = now or datetime.now(UTC)
    days_old = {
        number: (now - datetime.fromisoformat(manifest.built_at_utc)) / timedelta(days=1)
        for number, manifest in manifests.items()
    }
    due = [number for number in there if number not in kept and days_old[number] >= keep_days]
    gone, held = [], []
    for number in due:
        folder = sky / "versions" / str(number)
        with lease.alone(folder) as is_alone:
            if not is_alone:
                held.append(number)
                continue
            take_away(folder)
        gone.append(number)
    num_files, num_bytes = sweep(sky)
    return Pruned(tuple(gone), tuple(held), num_files, num_bytes)


def take_away(version: Path) -> None:
    """Remove the folder of a version, in one step, so that no reader ever finds half of it."""
    out = version.with_name(f"{disk.TEMPORARY}{uuid.uuid4().hex[:12]}")
    os.rename(version, out)
    flush(version.parent)
    disk.remove_folder(out)


def sweep(sky: Path) -> tuple[int, int]:
    """Take away what no version has; gives files and bytes. The caller holds the sky's lock.

    Raises:
        VersionCorrupt: a manifest cannot be read: nothing is taken away.
    """
    segments = set[str]()
    files = set[str]()
    codecs = set[str]()
    heads = {read_head(sky).encoder.head_hash[:16]}
    for number in numbers(sky):
        manifest = read_manifest(sky, number)
        segments |= {record.name for record in manifest.segments}
        codecs |= {codec.name for codec in manifest.codecs}
        files |= {file for partition in manifest.partitions for file in partition.files}
        heads.add(manifest.encoder.head_hash[:16])
    unused = [each for each in _folders(sky / "segments") if each.name not in segments]
    unused += [each for each in _folders(sky / CODECS) if each.name not in codecs]
    unused += [each for each in _folders(sky / "head") if each.name not in heads]
    lost = [file for folder in unused for file in folder.rglob("*") if file.is_file()]
    lost += [
        file
        for ending in ("parquet", "arrow")
        for file in (sky / "objects").rglob(f"*.{ending}")
        if str(file.relative_to(sky)) not in files
    ]
    num_bytes = 0
    for file in lost:
        num_bytes += file.stat().st_size
        file.unlink()
    for folder in unused:
        disk.remove_folder(folder)
    return len(lost), num_bytes


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if path.is_dir()]
