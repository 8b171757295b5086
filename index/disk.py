"""Files that are there whole or not at all.

Everything is written beside its place, forced to disk, then renamed. A process killed at any
instant leaves only names that begin with `.tmp-`, which the next build removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import tokenize
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy import ndarray

from index.errors import DiskFull, SkyBusy, VersionCorrupt
from training.disk import flush

TEMPORARY = ".tmp-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
_CHUNK = 1 << 22  # bytes read or written at a time
ROW_GROUP_ROWS = 16_384  # of a Parquet file


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


@contextmanager
def found(path: Path) -> Iterator[None]:
    """Tell a file that is not there from one that cannot be read now, which stays an OSError.

    Raises:
        VersionCorrupt: there is no such file, or a folder or a link in a circle in its place.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise VersionCorrupt(f"{path} is missing") from error
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise VersionCorrupt(f"{path} is not a file: {os.strerror(error.errno)}") from error


def read_array(path: Path, *, mapped: bool = False, scattered: bool = False) -> ndarray:
    """Read a .npy file, or map it into memory.

    Args:
        path: Of the file.
        mapped: Instead of reading it.
        scattered: Mapped to be read here and there: the kernel is told to read single pages, where
            else it reads up to megabytes around each.

    Raises:
        VersionCorrupt: it is missing or damaged.
    """
    mode: Literal["r"] | None = "r" if mapped or scattered else None
    with found(path):
        try:
            array: ndarray = np.load(path, mmap_mode=mode, allow_pickle=False)
        except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
            raise VersionCorrupt(f"{path} is damaged: {error}") from error
    if scattered and isinstance(array.base, mmap.mmap):  # without rows there is no map
        array.base.madvise(mmap.MADV_RANDOM)
    return array


def write_table(path: Path, table: pa.Table, *, row_group_rows: int = ROW_GROUP_ROWS) -> None:
    """Write a Parquet file whose pages carry checksums.

    Who looks for one row of it later reads as many as a group has.
    """
    with new_file(path) as handle:
        pq.write_table(
            table,
            handle,
            compression="zstd",
            row_group_size=row_group_rows,
            write_page_checksum=True,
        )


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns of it.

    Raises:
        VersionCorrupt: it is missing or damaged.
    """
    with found(path), _of_arrow(path), path.open("rb") as handle:
        return pq.ParquetFile(handle, page_checksum_verification=True).read(columns)


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write one batch of an Arrow file, not compressed, for `map_batch`."""
    with new_file(path) as handle, pa.ipc.new_file(handle, batch.schema) as writer:
        writer.write_batch(batch)


def map_batch(path: Path) -> pa.RecordBatch:
    """Map the one batch of an Arrow file into memory: nothing is read before it is looked at.

    Raises:
        VersionCorrupt: it is missing or damaged.
    """
    with found(path), _of_arrow(path):
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


@contextmanager
def _of_arrow(path: Path) -> Iterator[None]:
    """Tell what Arrow cannot make sense of from what the system cannot do."""
    try:
        yield
    except (pa.ArrowException, ValueError) as error:
        raise VersionCorrupt(f"{path} is damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:  # of the system, not of Arrow
            raise
        raise VersionCorrupt(f"{path} is damaged: {error}") from error


def check(path: Path, sha256: str) -> None:
    """Raise VersionCorrupt unless the content of a file is what was written down."""
    with found(path):
        same = sha256_of(path) == sha256
    if not same:
        raise VersionCorrupt(f"{path}: its content has changed: the checksum does not hold")


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
    with found(path):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
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


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; of a link to a folder, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed build left half written. Only the holder of the lock may call this."""
    for path in list(folder.rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
