"""A hold on a version while somebody reads it, so that pruning leaves its files alone.

Readers open files when they first need them, so a version that lost its folder would fail them in
the middle of a query. A reader therefore holds a shared lock on the manifest of its version, and
pruning takes a version away only where it gets the lock for itself. Locks go with the process, so
a reader that was killed holds nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index import disk
from index.errors import VersionCorrupt

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def hold(version: Path, owner: object) -> None:
    """Hold a version's folder for as long as `owner` lives.

    Raises:
        VersionCorrupt: the version was pruned in this moment.
    """
    manifest = version / "manifest.json"
    with disk.found(manifest):
        descriptor = os.open(manifest, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # nothing is pruned there either: pruning gets no lock
        warnings.warn(f"{manifest}: the file system has no locks, {error}", stacklevel=2)
        return
    if not manifest.exists():
        raise VersionCorrupt(f"{manifest} is missing: the version was pruned while it was opened")


@contextmanager
def alone(version: Path) -> Iterator[bool]:
    """Whether nobody reads the version; while this lasts, nobody begins to."""
    try:
        # for writing: where flock is made of other locks, as on NFS, a lock of one's own needs it
        descriptor = os.open(version / "manifest.json", os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
