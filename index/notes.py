"""What a user should know of the values that a build read."""

from __future__ import annotations

from collections.abc import Mapping

from training.modalities import STREAM


def worded(below_range: Mapping[str, int], *, num_objects: int) -> tuple[str, ...]:
    """A line for each stream that has values below all that its tokenizer tells apart.

    Args:
        below_range: Stream -> number of objects, see `training.encoder.Embedded`.
        num_objects: That were read in all.
    """
    return tuple(
        f"{key}: {num:,} of {num_objects:,} objects have a value below what its tokenizer tells "
        f"apart{' (zero and negative values are)' if STREAM[key].log else ''}"
        for key, num in sorted(below_range.items())
        if num
    )
