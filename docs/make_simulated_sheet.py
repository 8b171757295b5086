"""Make docs/simulated_sheet.jpg: objects of every kind of the simulated sky, as colour pictures.

.venv/bin/python docs/make_simulated_sheet.py [--each 10] [--kinds ring,merger] [--out FILE]
    [--look legacysurvey_dr10] [--beside FOLDER]

The colours are those of the Legacy Survey's viewer; --look takes another name of
training.surveys.stretch. The last row shows what spoils frames. With --beside, real pictures (the
middle of each JPEG or PNG in the folder, at its own scale) stand below, in their own colours.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image as Picture
from PIL import ImageDraw

from training.observations import PIXEL_SCALE_ARCSEC, Observation
from training.sky.objects import KINDS
from training.surveys.simulated import clear_sky, draw
from training.surveys.stretch import LOOKS, Look

SIZE, GAP = 96, 2  # pixels of a picture, and between pictures
LABEL_WIDTH = 78
SPOILED, REAL = "spoiled", "real"


def colour_picture(observed: Observation, look: Look) -> ndarray:
    """The image in that look, 8-bit red, green, blue, north up."""
    image = observed.image
    assert image is not None
    area = (look.native_pixel_arcsec / PIXEL_SCALE_ARCSEC) ** 2
    planes = []
    for band, scale in zip(look.bands, look.scales, strict=True):
        flux = np.zeros(image.flux.shape[1:])
        if band in image.bands:
            flux = image.flux[image.bands.index(band)] * area
        planes.append(flux * scale + look.offset)
    colours = np.stack(planes, axis=-1)
    if look.kind == "apart":
        low, high = np.arcsinh(look.black), np.arcsinh(look.white)
        stretched = (np.arcsinh(colours) - low) / (high - low)
    else:
        if look.mix is not None:
            colours = colours @ np.array(look.mix).T
        mean = np.maximum(colours.mean(axis=-1, keepdims=True), 1e-6)
        stretched = colours * np.arcsinh(look.softening * mean) / (look.span * mean)
    return (np.clip(stretched, 0, 1) * 255).astype(np.uint8)[::-1]


def row_of(kind: str, each: int, seed: int, look: Look) -> list[Picture.Image]:
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
    return [Picture.fromarray(colour_picture(observed, look)) for observed in draw(config)]


def real_pictures(folder: Path, each: int) -> list[Picture.Image]:
    """The middles of pictures in a folder, without changing their scale where they are large."""
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in (".jpg", ".jpeg", ".png")]
    pictures = []
    for file in files[:each]:
        with Picture.open(file) as opened:
            picture = opened.convert("RGB")
        left, top = ((side - SIZE) // 2 for side in picture.size)
        pictures.append(picture.crop((left, top, left + SIZE, top + SIZE)))
    return pictures


def sheet(rows: dict[str, list[Picture.Image]], num_columns: int) -> Picture.Image:
    """All pictures, kind below kind, with their names."""
    size = SIZE + GAP
    heights = {kind: -(-len(pictures) // num_columns) * size for kind, pictures in rows.items()}
    page = Picture.new("RGB", (LABEL_WIDTH + num_columns * size, sum(heights.values())), "white")
    pen, top = ImageDraw.Draw(page), 0
    for kind, pictures in rows.items():
        pen.text((4, top + size // 2 - 6), kind.replace("_", " "), fill="black")
        for k, picture in enumerate(pictures):
            place = (LABEL_WIDTH + k % num_columns * size, top + k // num_columns * size)
            page.paste(picture, place)
        top += heights[kind]
    return page


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=10, help="objects of a kind")
    parser.add_argument("--columns", type=int, default=10, help="pictures in a row")
    parser.add_argument("--kinds", default=",".join((*KINDS, SPOILED)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--look", default="legacysurvey_dr10", choices=sorted(LOOKS))
    parser.add_argument("--beside", type=Path, help="folder of real pictures")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("simulated_sheet.jpg"))
    asked = parser.parse_args()
    look = LOOKS[asked.look]
    rows = {kind: row_of(kind, asked.each, asked.seed, look) for kind in asked.kinds.split(",")}
    if asked.beside is not None:
        rows[REAL] = real_pictures(asked.beside, asked.each)
    page = sheet(rows, asked.columns)
    page.save(asked.out, quality=62)


if __name__ == "__main__":
    main()
