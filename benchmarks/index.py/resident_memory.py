"""What this process holds in memory, and what the kernel caches of files, in MiB (Linux).

Needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path

MIB = 2**20
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")  # address range, ..., path


def anonymous_mib() -> float:
    """Memory of this process that no file stands behind, freed memory given back first."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    rollup = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Anonymous:\s+(\d+) kB$", rollup, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / MIB


def mapped_mib(folder: Path, *, without: Iterable[str] = ()) -> float:
    """Resident pages of files of a folder that this process has mapped.

    Args:
        folder: Searched to any depth.
        without: Names of files that do not count.
    """
    total_kib, counts = 0, False
    prefix, left_out = os.path.join(os.path.realpath(folder), ""), set(without)
    with open("/proc/self/smaps") as lines:
        for line in lines:
            mapping = _MAPPING.match(line)
            if mapping:
                path = mapping[1]
                counts = path.startswith(prefix) and os.path.basename(path) not in left_out
            elif counts and line.startswith("Rss:"):
                total_kib += int(line.split()[1])
    return total_kib * 1024 / MIB


def cached_mib(files: Iterable[Path]) -> float:
    """Pages of files that are in the page cache, whoever read them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    num_pages = 0
    for file in files:
        size = file.stat().st_size
        if not size:
            continue
        with file.open("rb") as handle:
            place = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle.fileno(), 0)
        if place == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"cannot map {file}")
        pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        failed = libc.mincore(place, size, pages)
        libc.munmap(place, size)
        if failed:
            raise OSError(ctypes.get_errno(), f"cannot tell what of {file} is cached")
        num_pages += sum(byte & 1 for byte in pages.raw[: -(-size // mmap.PAGESIZE)])
    return num_pages * mmap.PAGESIZE / MIB


def forget(files: Iterable[Path]) -> None:
    """Ask the kernel to drop files from its cache, so that they are read from disk again."""
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())  # pages not written yet are never dropped
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder, to any depth."""
    return [path for path in folder.rglob("*") if path.is_file()]
