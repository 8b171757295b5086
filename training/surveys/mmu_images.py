"""Images of Multimodal Universe files: pixels, object masks, neighbours, and display pictures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from training.observations import IMAGE_SIZE, Ellipses, Field, Image
from training.surveys import mmu_columns as columns
from training.surveys.cutout import cut_out
from training.surveys.mmu_block import centre
from training.surveys.mmu_columns import Names, Pixels, first_of
from training.surveys.mmu_rows import Row, array, plain_text
from training.surveys.nanomaggies import ZERO_POINT_MAG
from training.surveys.neighbours import OBJECT_VALUE, Shapes, drawable, ellipses
from training.surveys.stretch import grey_level_nmgy, look_of, undo

SCALE_TOLERANCE = 0.005
MAX_PICTURE_PX = 4096
# The value of each number in object_mask; a duplicate is no object of its own.
_OBJECT_VALUES = np.array([OBJECT_VALUE.get(kind, 0) for kind in columns.SOURCE_TYPES], np.float32)


@dataclass(frozen=True, slots=True)
class Central:
    """The central pixels of an image, and the size of the image in the file."""

    image: Image
    stored: tuple[int, int]  # y, x


def image(pixels: Pixels, row: Row, notes: list[str]) -> Central:
    """The central 96 px in nanomaggies.

    Raises:
        ValueError: shapes, bands or scale are not as expected, the mask means the opposite, or no
            pixel is usable.
    """
    flux, stored = _cut(row, columns.IMAGE["flux"], (3,))
    ivar, ivar_stored = _cut(row, columns.IMAGE["ivar"], (3,))
    mask, mask_stored = _cut(row, columns.IMAGE["mask"], (2, 3))
    if not stored == ivar_stored == mask_stored or not len(flux) == len(ivar) == (
        len(flux) if mask.ndim == 2 else len(mask)
    ):
        raise ValueError(
            f"flux, ivar and mask differ in shape: {flux.shape[:-2]} x {stored}, "
            f"{ivar.shape[:-2]} x {ivar_stored} and {mask.shape[:-2]} x {mask_stored}"
        )
    bands = _bands(pixels, row, len(flux))
    scale_arcsec = _scale(pixels, row)
    stated_bad = mask.astype(bool) == (pixels.mask_true_is == "bad")
    middle = slice(IMAGE_SIZE // 2 - 2, IMAGE_SIZE // 2 + 2)
    if stated_bad[..., middle, middle].all() and stated_bad.mean() > 0.5:
        raise ValueError(
            f"the mask says that {stated_bad.mean():.0%} of the pixels and the centre are bad: "
            f"expected True where a pixel is {pixels.mask_true_is}"
        )
    flux, ivar = flux.astype(np.float32), ivar.astype(np.float32)
    if pixels.zero_point_mag != ZERO_POINT_MAG:
        per_nmgy = np.float32(10 ** ((pixels.zero_point_mag - ZERO_POINT_MAG) / 2.5))
        with np.errstate(over="ignore", invalid="ignore"):
            flux /= per_nmgy
            ivar *= per_nmgy**2
    bad = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)) | stated_bad
    usable = ~bad.all(axis=(1, 2))
    if not usable.any():
        raise ValueError("no usable pixel: every one is masked, NaN, or its ivar is not positive")
    if not usable.all():
        lost = [band for band, kept in zip(bands, usable, strict=True) if not kept]
        notes.append(f"no usable pixel in {', '.join(lost)}: left out")
        flux, ivar, bad = flux[usable], ivar[usable], bad[usable]
        bands = tuple(band for band, kept in zip(bands, usable, strict=True) if kept)
    flux[bad] = 0
    ivar[bad] = 0
    return Central(Image(flux, ivar, bad, bands, pixel_scale_arcsec=scale_arcsec), stored)


def _cut(row: Row, names: Names, num_axes: tuple[int, ...]) -> tuple[ndarray, tuple[int, int]]:
    """The central pixels of a cell, and how large it is in the file."""
    cell = np.asarray(row.get(names))
    if cell.ndim not in num_axes or cell.dtype.kind not in "fiub":
        axes = " or ".join(("(y, x)", "(band, y, x)")[number - 2] for number in num_axes)
        raise ValueError(f"{names[0]}: expected {axes}, got {cell.dtype} of shape {cell.shape}")
    stored = row.shapes.get(first_of(names, row.values))
    if stored is not None:
        return cell, stored
    y, x = centre(cell.shape[-2], cell.shape[-1], IMAGE_SIZE)
    return cell[..., y, x], (cell.shape[-2], cell.shape[-1])


def _bands(pixels: Pixels, row: Row, num_bands: int) -> tuple[str, ...]:
    names = [
        plain_text(name).upper() for name in np.asarray(row.get(columns.IMAGE["band"])).reshape(-1)
    ]
    if len(names) != num_bands:
        raise ValueError(f"expected {num_bands} bands, one a plane, got {', '.join(names)}")
    return tuple(
        name if name.startswith(pixels.band_prefix) else f"{pixels.band_prefix}{name}"
        for name in names
    )


def _scale(pixels: Pixels, row: Row) -> float:
    scales = array(row, columns.IMAGE["scale"], 1, "a scale a band")
    if not np.allclose(scales, pixels.pixel_scale_arcsec, rtol=SCALE_TOLERANCE):
        raise ValueError(
            f"expected pixels of {pixels.pixel_scale_arcsec} arcsec, got {scales.tolist()}"
        )
    return pixels.pixel_scale_arcsec


def object_mask(row: Row, stored: tuple[int, int]) -> Field | None:
    """Which pixel shows which type of source, None where the file does not say."""
    value = row.get(columns.OBJECT_MASK)
    if value is None:
        return None
    if isinstance(value, bytes):
        value = _decoded(value, mode="L")
    name = first_of(columns.OBJECT_MASK, row.values)
    kinds, mask_stored = _cut(
        Row({columns.OBJECT_MASK[0]: value}, row.shapes), columns.OBJECT_MASK, (2,)
    )
    if mask_stored != stored:
        raise ValueError(f"{name}: expected the size of the image, {stored}, got {mask_stored}")
    if kinds.dtype.kind not in "iu" or kinds.min() < 0 or kinds.max() >= len(_OBJECT_VALUES):
        raise ValueError(
            f"{name}: expected types from 0 to {len(_OBJECT_VALUES) - 1}, got {kinds.dtype} from "
            f"{kinds.min()} to {kinds.max()}"
        )
    return Field(_OBJECT_VALUES[kinds])


def neighbours(row: Row, stored: tuple[int, int]) -> Ellipses | None:
    """Sources in the cutout, None where the file has none; rows of zeros only fill its table up."""
    names = columns.SOURCES
    found = {key: row.get(names[key]) for key in names}
    if any(found[key] is None for key in names if key != "TYPE"):
        return None
    numbers = {
        key: array(row, names[key], 1, "a number a source").astype(np.float64)
        for key in names
        if key != "TYPE"
    }
    radius = numbers["SHAPE_R"]
    if found["TYPE"] is None:
        filled = np.any([values != 0 for values in numbers.values()], axis=0)
        kind = np.where(filled, np.where(radius > 0, "SER", "PSF"), "")
    else:
        kind = np.array([_source_type(each) for each in np.asarray(found["TYPE"]).reshape(-1)])
    if len({len(values) for values in (*numbers.values(), kind)}) != 1:
        raise ValueError("catalog: columns differ in length")
    shapes = Shapes(kind=kind, radius_arcsec=radius, e1=numbers["SHAPE_E1"], e2=numbers["SHAPE_E2"])
    first_y, first_x = (each.start for each in centre(*stored, IMAGE_SIZE))
    x, y = numbers["X"] - first_x, numbers["Y"] - first_y
    chosen = drawable(x, y, shapes)
    return ellipses(x[chosen], y[chosen], shapes.take(chosen))


def _source_type(value: Any) -> str:
    if isinstance(value, bytes | str):
        return plain_text(value)
    number = int(value) if np.isfinite(value) else 0
    return columns.SOURCE_TYPES[number] if 0 < number < len(columns.SOURCE_TYPES) else ""


def picture(file: Path, row: Row, notes: list[str]) -> Image | None:
    """The display image of Galaxy10, stretch undone approximately; None where there is none."""
    rgb = row.get(columns.PICTURE["rgb"])
    if rgb is None:
        return None
    if isinstance(rgb, bytes):
        rgb = _decoded(rgb, mode="RGB")
    if not (
        isinstance(rgb, ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    ):
        raise ValueError(f"expected a picture (y, x, 3) of bytes, got {str(rgb)[:40]}")
    if rgb.min() == rgb.max():
        raise ValueError(f"an empty picture: every pixel is {rgb.flat[0]}")
    scale = row.number(columns.PICTURE["scale"])
    if scale is None or not scale > 0:
        raise ValueError(f"expected a pixel scale of the picture in arcsec, got {scale}")
    look = look_of(file, rgb)
    cutout = cut_out(
        undo(look, rgb)[:, ::-1],  # pictures start in the north, images in the south
        bands=look.bands,
        scale_y_arcsec=scale,
        scale_x_arcsec=scale,
        min_sigma_nmgy=grey_level_nmgy(look) / 2,
    )
    notes += [f"look: {look.name}", *cutout.notes]
    return cutout.image


def _decoded(content: bytes, *, mode: str) -> ndarray:
    from PIL import Image as Picture
    from PIL import UnidentifiedImageError

    try:
        with Picture.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if max(picture.size) > MAX_PICTURE_PX:
                raise ValueError(f"expected {MAX_PICTURE_PX} px at most, got {picture.size}")
            return np.asarray(picture.convert(mode))
    except UnidentifiedImageError as error:  # its text names a buffer of ours
        raise ValueError("broken picture: neither PNG nor JPEG") from error
    except (OSError, SyntaxError, Picture.DecompressionBombError) as error:
        raise ValueError(f"broken picture: {error}") from error
