"""What a catalogue would say of every source in a simulated frame: type, place, size, ellipse.

Types and shapes are those that Tractor would fit, from the same draw as the light.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Ellipses, Field
from training.sky.objects import Galaxy, SkyObject
from training.surveys.mmu_columns import SOURCE_TYPES
from training.surveys.neighbours import (
    NUM_ELLIPSES,
    OBJECT_VALUE,
    Shapes,
    drawable,
    ellipses,
    object_mask,
)

# Of each number of a type, the value that it has in an object mask.
_VALUES = np.array([OBJECT_VALUE.get(kind, 0.0) for kind in SOURCE_TYPES], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tractor's type, half-light radius along the major axis, and ellipticity."""

    kind: str
    radius_arcsec: float = 0.0
    e1: float = 0.0
    e2: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The object itself, and all that is in its frame."""

    main: Shape
    ellipses: Ellipses
    types: UInt8[ndarray, " source"]  # of each ellipse, its place in SOURCE_TYPES
    mask: UInt8[ndarray, "y x"]  # likewise; 0 = no source


def sources_in(thing: SkyObject) -> Sources:
    """All sources whose centre lies in the frame."""
    places, found = [], []
    if thing.point is not None:
        places.append((0.0, 0.0))
        found.append(Shape(kind="PSF"))
    for galaxy in thing.galaxies:
        places.append((galaxy.x_arcsec, galaxy.y_arcsec))
        found.append(_of_galaxy(galaxy))
    for other in thing.neighbours:
        places.append((other.x_arcsec, other.y_arcsec))
        if other.radius_arcsec == 0:
            found.append(Shape(kind="PSF"))
        else:
            found.append(_shape("EXP", other.radius_arcsec, other.axis_ratio, other.angle_deg))
    x, y = (np.array(places, dtype=np.float64) / PIXEL_SCALE_ARCSEC + (IMAGE_SIZE - 1) / 2).T
    shapes = Shapes(
        kind=np.array([shape.kind for shape in found]),
        # as files hold them, so that order and mask are the same before and after writing
        radius_arcsec=_single([shape.radius_arcsec for shape in found]),
        e1=_single([shape.e1 for shape in found]),
        e2=_single([shape.e2 for shape in found]),
    )
    inside = drawable(x, y, shapes)
    column, row, shapes = np.rint(x[inside]), np.rint(y[inside]), shapes.take(inside)
    middle = (IMAGE_SIZE - 1) / 2
    order = np.lexsort((shapes.radius_arcsec, np.hypot(column - middle, row - middle)))
    column, row, shapes = column[order], row[order], shapes.take(order)
    painted = object_mask(column, row, shapes).value
    return Sources(
        main=found[0],
        ellipses=ellipses(column, row, shapes),
        types=np.array([SOURCE_TYPES.index(kind) for kind in shapes.kind[:NUM_ELLIPSES]], np.uint8),
        mask=np.searchsorted(_VALUES[:-1], painted).astype(np.uint8),
    )


def field_of(mask: UInt8[ndarray, "y x"]) -> Field:
    """The object mask as observations have it."""
    return Field(_VALUES[mask])


def _single(values: list[float]) -> ndarray:
    return np.array(values, np.float32).astype(np.float64)


def _shape(kind: str, radius_arcsec: float, ratio: float, angle_deg: float) -> Shape:
    # position angles run from north to east, and east is to the left
    strength, twice = (1 - ratio) / (1 + ratio), 2 * math.radians(angle_deg - 90)
    return Shape(
        kind=kind,
        radius_arcsec=radius_arcsec,
        e1=strength * math.cos(twice),
        e2=strength * math.sin(twice),
    )


def _of_galaxy(galaxy: Galaxy) -> Shape:
    if galaxy.thickness > 0:
        return _shape("EXP", galaxy.radius_arcsec, max(galaxy.thickness, 0.1), galaxy.angle_deg)
    if galaxy.bulge_share == 1:
        major = galaxy.radius_arcsec / math.sqrt(galaxy.axis_ratio)
        return _shape("SER", major, galaxy.axis_ratio, galaxy.angle_deg)
    kind = "EXP" if galaxy.bulge_share < 0.2 else "SER"
    return _shape(kind, galaxy.radius_arcsec, galaxy.axis_ratio, galaxy.angle_deg)
