"""Files that are there whole or not at all.

Everything is written beside its place, forced to disk, then renamed. A process killed at any
instant leaves only names that begin with `.tmp-`, which the next build removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy import ndarray

from index.errors import DiskFull, SkyBusy, VersionCorrupt
from training.disk import flush

TEMPORARY = ".tmp-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 1 << 22  # bytes read or written at a time


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only once it is whole and on disk.

    Raises:
        DiskFull: no space, quota or file size is left; nothing appears under the name.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        with temporary.open("wb", buffering=0) as raw:
            with os.fdopen(os.dup(raw.fileno()), "wb", buffering=_CHUNK) as handle:
                yield handle
                handle.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(f"no space left to write {path}: {os.strerror(error.errno)}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder to fill; it is removed unless `seal` gave it a name."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = parent / f"{TEMPORARY}{uuid.uuid4().hex[:12]}"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(temporary: Path, final: Path) -> None:
    """Give a filled folder its name; one of that name is kept, as names tell content."""
    flush(temporary)
    if not final.exists():
        os.rename(temporary, final)
    flush(final.parent)


def write_array(path: Path, array: ndarray) -> None:
    write_array_blocks(path, (array,), shape=array.shape, dtype=array.dtype)


def write_array_blocks(
    path: Path, blocks: Iterable[ndarray], *, shape: tuple[int, ...], dtype: np.dtype
) -> None:
    """Write a .npy file block by block, so that no more than one block is in memory."""
    with new_file(path) as handle:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(handle, header | {"shape": shape})
        num_written = 0
        for block in blocks:
            content = np.ascontiguousarray(block, dtype=dtype)
            num_written += len(content)
            # ndarray.tofile hides the reason when a disk is full; write() tells it
            handle.write(content.reshape(-1).view(np.uint8).data)
        if num_written != shape[0]:
            raise AssertionError(f"{path}: {shape[0]} rows announced, {num_written} written")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name, or a copy where that cannot be had.

    Raises:
        DiskFull: nothing more can be written.
    """
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with open(source, "rb") as old, new_file(target) as new:
            shutil.copyfileobj(old, new)


def read_array(path: Path, *, mapped: bool = False) -> ndarray:
    """Read a .npy file, or map it into memory.

    Raises:
        VersionCorrupt: it is missing or damaged.
    """
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise VersionCorrupt(f"{path} is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise VersionCorrupt(f"{path} is damaged: {error}") from error


def write_table(path: Path, table: pa.Table, *, rows_a_group: int | None = None) -> None:
    with new_file(path) as handle:
        pq.write_table(table, handle, compression="zstd", row_group_size=rows_a_group)


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def described(path: Path) -> dict[str, object]:
    """Size and checksum of a file, for the document that vouches for it."""
    return {"num_bytes": path.stat().st_size, "sha256": sha256_of(path)}


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write a document that carries its own checksum."""
    sealed = content | {"checksum": _checksum(content)}
    with new_file(path) as handle:
        handle.write(json.dumps(sealed, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, object]:
    """Read a document written by `write_json`.

    Raises:
        VersionCorrupt: the file is missing, is no JSON, or its checksum does not hold.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise VersionCorrupt(f"{path} is missing") from error
    except ValueError as error:
        raise VersionCorrupt(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.pop("checksum", None) != _checksum(content):
        raise VersionCorrupt(f"{path} is damaged: its checksum does not hold")
    return content


def _checksum(content: dict[str, object]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder against a second build; the lock goes with the process.

    Raises:
        SkyBusy: another process holds it.
    """
    with (folder / "build.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SkyBusy(f"another build is writing to {folder}: wait for it to end") from error
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed build left half written. Only the holder of the lock may call this."""
    for path in list(folder.rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
