"""Pictures in all of their eight turns: four quarter turns, each as it is and mirrored.

What a picture shows has no up and no left, but tokens of an encoder depend on them, the more so of
pictures, whose noise is drawn over. The mean over the eight turns is the same however a picture
was turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from training.observations import Image, Observation


def turned(image: Image, quarters: int, *, mirrored: bool) -> Image:
    """The image turned by so many right angles and then mirrored: no pixel is resampled."""

    def of(plane: ndarray) -> ndarray:
        plane = np.rot90(plane, quarters, axes=(1, 2))
        return np.ascontiguousarray(plane[:, :, ::-1] if mirrored else plane)

    return replace(image, flux=of(image.flux), ivar=of(image.ivar), mask=of(image.mask))


def all_turns(image: Image) -> list[Image]:
    """The image in its eight turns, first as it is."""
    return [
        turned(image, quarters, mirrored=mirrored)
        for quarters in range(4)
        for mirrored in (False, True)
    ]


def picture_of(observation: Observation) -> Image | None:
    """Its image, if that is a display image with nothing else on its pixels."""
    alone = observation.object_mask is None and observation.ellipses is None
    return observation.image if alone and not observation.calibrated else None


def in_turns(observations: Sequence[Observation]) -> tuple[list[Observation], list[int]]:
    """Every picture in its eight turns, all else as it is, and which observation each is of."""
    seen: list[Observation] = []
    rows: list[int] = []
    for row, observation in enumerate(observations):
        turns = [observation]
        if (image := picture_of(observation)) is not None:
            turns = [replace(observation, image=each) for each in all_turns(image)]
        seen += turns
        rows += [row] * len(turns)
    return seen, rows


def means(
    made: Sequence[tuple[int, str]], vectors: Float32[ndarray, "n dim"]
) -> tuple[list[tuple[int, str]], Float32[ndarray, "m dim"]]:
    """Vectors of one observation and view put together, in the order of their first.

    Args:
        made: Observation and view of each vector.
        vectors: Of all turns.
    """
    place = {each: number for number, each in enumerate(dict.fromkeys(made))}
    of = [place[each] for each in made]
    total = np.zeros((len(place), vectors.shape[1]))
    np.add.at(total, of, vectors)
    return list(place), (total / np.bincount(of)[:, None]).astype(np.float32)
