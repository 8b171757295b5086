"""What the user says of the pictures of a folder: `look.toml` beside them, or up to three above.

    look = "legacysurvey_dr10"      # how they were drawn: a name of `stretch.LOOKS`
    pixel_scale_arcsec = 0.262      # size of a pixel on the sky

Either line may be left out. The nearest such file counts, alone.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from training.surveys.stretch import LOOKS, NUM_FOLDERS, Look

NAME = "look.toml"
MAX_BYTES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """How pictures were drawn and how large their pixels are; None = not said."""

    look: Look | None = None
    pixel_scale_arcsec: float | None = None


def legend_file(picture: Path) -> Path | None:
    """The legend that counts for a picture, None where there is none."""
    for folder in list(picture.parents)[:NUM_FOLDERS]:
        if (folder / NAME).is_file():
            return folder / NAME
    return None


def legend_of(picture: Path) -> Legend:
    """What is said of a picture.

    Raises:
        ValueError: the legend is no TOML, or holds another key or a value that cannot be.
        OSError: it cannot be read.
    """
    file = legend_file(picture)
    if file is None:
        return Legend()
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES)
    try:
        said = tomllib.loads(content.decode())
    except ValueError as error:
        raise ValueError(f"{file}: not TOML: {error}") from error
    unknown = sorted(said.keys() - {"look", "pixel_scale_arcsec"})
    if unknown:
        raise ValueError(f"{file}: expected look and pixel_scale_arcsec, got {unknown[0]!r}")
    look, scale = said.get("look"), said.get("pixel_scale_arcsec")
    if look is not None and look not in LOOKS:
        raise ValueError(f"{file}: expected look to be one of {', '.join(LOOKS)}, got {look!r}")
    if scale is not None and (
        isinstance(scale, bool) or not isinstance(scale, int | float) or not (0 < scale < math.inf)
    ):
        raise ValueError(f"{file}: expected pixel_scale_arcsec above 0, got {scale!r}")
    return Legend(
        look=None if look is None else LOOKS[look],
        pixel_scale_arcsec=None if scale is None else float(scale),
    )
