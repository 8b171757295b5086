"""A file that holds the number of a version and a checksum of it.

One flipped bit turns 2 into 3: without the checksum another version would be published, or taken
away. A number alone is read too, as older releases wrote it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from index import disk
from index.errors import VersionCorrupt

_SEALED = re.compile(r"([1-9][0-9]{0,17}) ([0-9a-f]{16})\n")
_BARE = re.compile(r"([1-9][0-9]{0,17})\s*")


def write_pointer(path: Path, number: int) -> None:
    """Replace the file in one step; DiskFull as disk.new_file."""
    with disk.new_file(path) as handle:
        handle.write(f"{number} {_checksum(str(number))}\n".encode())


def read_pointer(path: Path) -> int:
    """The number of a version.

    Raises:
        VersionCorrupt: the file is missing, holds something else, or its checksum does not hold.
    """
    with disk.found(path):
        text = path.read_bytes()[:100].decode(errors="replace")
    sealed = _SEALED.fullmatch(text)
    if sealed and sealed[2] == _checksum(sealed[1]):
        return int(sealed[1])
    bare = _BARE.fullmatch(text)
    if bare:
        return int(bare[1])
    if sealed:
        raise VersionCorrupt(f"{path} is damaged: its checksum does not hold")
    raise VersionCorrupt(f"{path}: expected the number of a version, got {text.strip()!r}")


def _checksum(number: str) -> str:
    return hashlib.sha256(number.encode()).hexdigest()[:16]
