"""A version that is written but has not passed its gates yet, so that no killed run leaves one.

While it lasts, SKY/unproved holds the number of the version. A run that finds it there takes that
version away, unless it was published: else a version that nobody measured could be rolled back to,
or be found as the newest where CURRENT is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.errors import VersionCorrupt
from index.pointer import write_pointer
from index.pruning import take_away
from index.versions import UNPROVED, current_number, numbers, unproved_number


@contextmanager
def unproved(sky: Path) -> Iterator[None]:
    """Whatever version is written meanwhile goes, unless it is published before this ends.

    The caller holds the sky's lock.
    """
    number = max(numbers(sky), default=0) + 1
    write_pointer(sky / UNPROVED, number)
    try:
        yield
    finally:
        withdraw(sky)


def withdraw(sky: Path) -> None:
    """Take away the version that a killed run left unproved, if any. The caller holds the lock.

    Its segments go with the next pruning, as another version may have them too.
    """
    number = unproved_number(sky)
    if number in numbers(sky):
        try:
            published = current_number(sky)
        except VersionCorrupt:
            published = -1
        if number != published:
            take_away(sky / "versions" / str(number))
    (sky / UNPROVED).unlink(missing_ok=True)
