"""What an encoder notes of the values that it read, summed up over the batches of a build."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# "KEY: 3 of 20 objects WHAT" as training.encoder words it: the text around the two counts
_COUNTED = re.compile(r"(?P<key>\S+): (?P<num>\d+) of \d+ objects (?P<what>.+)", re.DOTALL)

Note = tuple[str, str]  # key and what; a note without counts is all key


def parsed(notes: Iterable[str]) -> Counter[Note]:
    """Number of objects by note. A batch without any object of a note has no such note."""
    found: Counter[Note] = Counter()
    for note in notes:
        parts = _COUNTED.fullmatch(note)
        if parts is None:
            found[note, ""] += 1
        else:
            found[parts["key"], parts["what"]] += int(parts["num"])
    return found


def worded(notes: Counter[Note], *, num_objects: int) -> tuple[str, ...]:
    """A line each, in the order of their texts; `num_objects` were read in all."""
    return tuple(
        f"{key}: {num:,} of {num_objects:,} objects {what}" if what else key
        for (key, what), num in sorted(notes.items())
    )
