"""What a sky and each of its versions write down about themselves.

SKY/
    sky.json                     format, encoder of the published version
    CURRENT                      number of the published version, see pointer.py
    versions/<number>/           manifest.json, inputs.parquet, moc.fits, deleted/<segment>.npy
    objects/  segments/  codecs/  store/  head/   immutable files that versions share
    nightly/                     reports
    build.lock                   held while a build runs
    unproved                     number of a version that was not measured yet, see unproved.py
    empty_files.json             files that nightlies read in vain, see empty_files.py
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from index import disk
from index.codec import BY_THE_RULE, IndexConfig
from index.errors import NotASky, VersionCorrupt
from index.partitions import Partition
from index.recall import RecallCurve

FORMAT = 1


class EncoderReference(BaseModel):
    """Which encoder made the vectors, and which search head: its own or the sky's (sky_head)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # of a shipped encoder, absolute path of a folder, or owner/name on the Hub
    hash: str  # of transformer and tokenizers
    head_hash: (
        str  # "" only in sky.json, until the first vectors of a sky of its own head are there
    )
    dim: int  # of a stored vector
    search_dim: int
    precision: str  # of a build that asks for none, see training.encoder


class FileRecord(BaseModel):
    """A file as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str  # below the sky's folder
    num_bytes: int
    sha256: str


class SegmentRecord(BaseModel):
    """A segment, and which of its rows this version no longer has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    view: str
    num_rows: int
    head: FileRecord  # segment.json, which holds the checksums of the others
    deleted: FileRecord | None = None  # packed bits, one a row
    num_deleted: int = 0


class CodecRecord(BaseModel):
    """The codec of a view."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: str
    name: str  # of its folder below codecs/
    files: tuple[FileRecord, ...]


class Manifest(BaseModel):
    """One version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    number: int
    built_at_utc: str
    software: str
    git_revision: str | None
    encoder: EncoderReference
    codecs: tuple[CodecRecord, ...] = ()  # of the views that have one; others are scanned exactly
    recall: float | None = None  # at 10, the lowest of the views that have a codec; None: exact
    curves: tuple[RecallCurve, ...] = ()  # of the views that have a codec
    segments: tuple[SegmentRecord, ...]
    partitions: tuple[Partition, ...]
    files: tuple[FileRecord, ...]  # partitions, input manifest and footprint
    inputs: str
    moc: str | None  # None: no object has a position
    num_objects: int
    num_rows: int  # live rows, all views
    num_without_position: int
    next_object_key: int
    # joint views of several surveys that could not be made; None: older, not written down
    num_joint_left_out: int | None = None


class SkyHead(BaseModel):
    """sky.json: what makes a folder a sky."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    encoder: EncoderReference
    index: IndexConfig = BY_THE_RULE


def read_head(sky: Path) -> SkyHead:
    """Read sky.json.

    Raises:
        NotASky: no such folder, or it is not a sky of this format.
        VersionCorrupt: sky.json is damaged.
    """
    if not sky.exists():
        raise NotASky(f"expected a sky made by `skykin build`, but there is no folder {sky}")
    if not sky.is_dir() or not (sky / "sky.json").is_file():
        raise NotASky(f"expected a sky made by `skykin build`, but {sky} has no sky.json")
    content = disk.read_json(sky / "sky.json")
    if content.get("format") != FORMAT:
        raise NotASky(
            f"{sky / 'sky.json'}: expected format {FORMAT}, got {content.get('format')!r}: "
            "it was made by another release of skykin"
        )
    try:
        return SkyHead.model_validate(content)
    except ValidationError as error:
        raise VersionCorrupt(f"{sky / 'sky.json'} is damaged: {error}") from error


def write_head(sky: Path, head: SkyHead) -> None:
    disk.write_json(sky / "sky.json", head.model_dump(mode="json"))


def read_manifest(sky: Path, number: int) -> Manifest:
    """Read the manifest of a version; VersionCorrupt names what is wrong with it."""
    path = sky / "versions" / str(number) / "manifest.json"
    content = disk.read_json(path)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise VersionCorrupt(f"{path} is damaged: {error}") from error
    if manifest.number != number:
        raise VersionCorrupt(f"{path} is that of version {manifest.number}")
    return manifest


def record(sky: Path, path: Path, *, place: Path | None = None) -> FileRecord:
    """Describe a file; `place` is where it will lie when that is not where it is."""
    return FileRecord(
        file=str((place or path).relative_to(sky)),
        num_bytes=path.stat().st_size,
        sha256=disk.sha256_of(path),
    )


def git_revision() -> str | None:
    """Revision of the working copy that this code runs from; None when installed elsewhere."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
