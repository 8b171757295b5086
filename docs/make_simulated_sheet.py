"""Make docs/simulated_sheet.jpg: objects of every kind of the simulated sky, as colour pictures.

.venv/bin/python docs/make_simulated_sheet.py [--each 10] [--kinds ring,merger] [--out FILE]

The colours are those of Galaxy Zoo DECaLS (g, r, z). The last row shows what spoils frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image as Picture
from PIL import ImageDraw

from training.observations import Observation
from training.sky.objects import KINDS
from training.surveys.simulated import clear_sky, draw
from training.surveys.stretch import LOOKS

GAP = 2  # pixels between pictures
LABEL_WIDTH = 78
SPOILED = "spoiled"


def colour_picture(observed: Observation) -> ndarray:
    """The image in the look of Galaxy Zoo DECaLS, 8-bit red, green, blue, north up."""
    look = LOOKS["galaxyzoo_decals"]
    assert observed.image is not None
    image = observed.image
    low, high = np.arcsinh(look.black), np.arcsinh(look.white)
    planes = []
    for band, scale in zip(look.bands, look.scales, strict=True):
        if band not in image.bands:
            planes.append(np.zeros(image.flux.shape[1:]))
            continue
        flux = image.flux[image.bands.index(band)]
        planes.append((np.arcsinh(flux * scale) - low) / (high - low))
    pixels = np.clip(np.stack(planes, axis=-1), 0, 1) * 255
    return pixels.astype(np.uint8)[::-1]


def row_of(kind: str, each: int, seed: int) -> list[ndarray]:
    """Pictures of that many objects of one kind."""
    changes: dict[str, Any] = {name: 0.0 for name in KINDS if name != "elliptical"}
    if kind == SPOILED:
        changes |= {
            "spiral": 0.6,
            "saturated_star": 0.6,
            "satellite_trail": 0.4,
            "bad_columns": 0.4,
            "missing_band": 0.2,
            "depth_scatter_mag": 0.6,
            "seeing_scatter": 0.3,
        }
    elif kind != "elliptical":
        changes[kind] = 1.0
    config = clear_sky(
        num_objects=each,
        seed=seed,
        spectrum_fraction=0.0,
        i_band_fraction=1.0,
        clumpy_source=0.5,
        **changes,
    )
    return [colour_picture(observed) for observed in draw(config)]


def sheet(kinds: list[str], each: int, seed: int, num_columns: int) -> Picture.Image:
    """All pictures, kind below kind, with their names."""
    size = 96 + GAP
    rows_a_kind = -(-each // num_columns)
    page = Picture.new(
        "RGB", (LABEL_WIDTH + num_columns * size, len(kinds) * rows_a_kind * size), "white"
    )
    pen = ImageDraw.Draw(page)
    for number, kind in enumerate(kinds):
        top = number * rows_a_kind * size
        pen.text((4, top + size // 2 - 6), kind.replace("_", " "), fill="black")
        for k, pixels in enumerate(row_of(kind, each, seed)):
            place = (LABEL_WIDTH + k % num_columns * size, top + k // num_columns * size)
            page.paste(Picture.fromarray(pixels), place)
    return page


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=10, help="objects of a kind")
    parser.add_argument("--columns", type=int, default=10, help="pictures in a row")
    parser.add_argument("--kinds", default=",".join((*KINDS, SPOILED)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("simulated_sheet.jpg"))
    asked = parser.parse_args()
    page = sheet(asked.kinds.split(","), asked.each, asked.seed, asked.columns)
    page.save(asked.out, quality=85)


if __name__ == "__main__":
    main()
