"""Sources that share a cutout: the ellipse catalogue and the object mask of the Legacy Survey.

Ellipticity is Tractor's: e = (a - b) / (a + b), e1 = e cos 2 phi, e2 = e sin 2 phi, phi from north
to east, and the half-light radius is that of the major axis (legacysurvey.org, DR10 catalogs,
"Ellipticities"; tractor, ellipses.py, EllipseE).

The object mask paints the half-light ellipse of every source whose centre lies in the cutout with
a value for its type. That values run from 0.2 to 1.0 by type is said in arXiv 2510.17960; the order
PSF, REX, EXP, DEV, SER, and that a source is at least 2 pixels in radius, are those of the
Multimodal Universe (scripts/legacysurvey/build_parent_sample.py: 1 to 5, painted as discs). That
AION-1 used exactly fifths of 1 in that order could not be verified. Types of older releases get
the value of what replaced them: SIMP that of REX, COMP that of SER.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Ellipses, Field

NUM_ELLIPSES = 20  # what the ellipse stream of AION-1 holds
MIN_RADIUS_PIXELS = 2.0
MIN_AXIS_RATIO = 1e-3  # as in Tractor
OBJECT_VALUE = {
    **{"PSF": 0.2, "REX": 0.4, "EXP": 0.6, "DEV": 0.8, "SER": 1.0},
    **{"SIMP": 0.4, "COMP": 1.0},  # until DR5 and DR8
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Types and shapes of sources; a point source has radius 0."""

    kind: Shaped[ndarray, " source"]  # text: a key of OBJECT_VALUE, or another type
    radius_arcsec: Float64[ndarray, " source"]
    e1: Float64[ndarray, " source"]
    e2: Float64[ndarray, " source"]

    def take(self, chosen: Int64[ndarray, " n"] | Bool[ndarray, " source"]) -> Shapes:
        """Some of the sources."""
        return Shapes(
            kind=self.kind[chosen],
            radius_arcsec=self.radius_arcsec[chosen],
            e1=self.e1[chosen],
            e2=self.e2[chosen],
        )


def join(shapes: Sequence[Shapes]) -> Shapes:
    """The sources of all of them, in order."""
    return Shapes(
        kind=np.concatenate([each.kind for each in shapes]),
        radius_arcsec=np.concatenate([each.radius_arcsec for each in shapes]),
        e1=np.concatenate([each.e1 for each in shapes]),
        e2=np.concatenate([each.e2 for each in shapes]),
    )


def drawable(
    x: Float64[ndarray, " source"], y: Float64[ndarray, " source"], shapes: Shapes
) -> Bool[ndarray, " source"]:
    """Which sources have their centre in the cutout, a type that is known, and a finite shape."""
    whole = np.isfinite(shapes.radius_arcsec) & np.isfinite(shapes.e1) & np.isfinite(shapes.e2)
    inside = (x > -0.5) & (x < IMAGE_SIZE - 0.5) & (y > -0.5) & (y < IMAGE_SIZE - 0.5)
    return inside & whole & np.isin(shapes.kind, list(OBJECT_VALUE))


def ellipses(
    x: Float64[ndarray, " source"], y: Float64[ndarray, " source"], shapes: Shapes
) -> Ellipses:
    """The nearest sources to the centre, at most 20, on whole pixels as AION-1 has them."""
    column, row = np.rint(x), np.rint(y)
    centre = (IMAGE_SIZE - 1) / 2
    # Among sources on one pixel the exact distance decides, then the size, not the table's order.
    order = np.lexsort(
        (
            shapes.radius_arcsec,
            np.hypot(x - centre, y - centre),
            np.hypot(column - centre, row - centre),
        )
    )[:NUM_ELLIPSES]
    return Ellipses(
        x=column[order].astype(np.float32),
        y=row[order].astype(np.float32),
        shape_e1=shapes.e1[order].astype(np.float32),
        shape_e2=shapes.e2[order].astype(np.float32),
        shape_r_arcsec=shapes.radius_arcsec[order].astype(np.float32),
    )


def object_mask(
    x: Float64[ndarray, " source"], y: Float64[ndarray, " source"], shapes: Shapes
) -> Field:
    """Half-light ellipses painted by type, small ones over large ones, 0 where there is none."""
    value = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    radius = np.maximum(shapes.radius_arcsec / PIXEL_SCALE_ARCSEC, MIN_RADIUS_PIXELS)
    for source in np.lexsort((y, x, -radius)):
        reach = float(radius[source])
        rows, columns = _reach(float(y[source]), reach), _reach(float(x[source]), reach)
        inside = _inside(
            np.arange(columns.start, columns.stop) - x[source],
            np.arange(rows.start, rows.stop) - y[source],
            radius=reach,
            e1=float(shapes.e1[source]),
            e2=float(shapes.e2[source]),
        )
        value[rows, columns][inside] = OBJECT_VALUE[str(shapes.kind[source])]
    return Field(value)


def _reach(centre: float, radius: float) -> slice:
    """The pixels of one axis that a source may touch."""
    return slice(
        max(0, int(np.floor(centre - radius))), min(IMAGE_SIZE, int(np.ceil(centre + radius)) + 1)
    )


def _inside(
    dx: Float64[ndarray, " column"],
    dy: Float64[ndarray, " row"],
    *,
    radius: float,
    e1: float,
    e2: float,
) -> Bool[ndarray, "row column"]:
    """Which pixels, relative to its centre, an ellipse covers."""
    ellipticity = min(float(np.hypot(e1, e2)), 1.0)
    ratio = max((1 - ellipticity) / (1 + ellipticity), MIN_AXIS_RATIO)
    minor = max(radius * ratio, MIN_RADIUS_PIXELS)
    angle = np.arctan2(e2, e1) / 2  # from north (+y) to east (-x)
    along = -np.sin(angle) * dx[None, :] + np.cos(angle) * dy[:, None]
    across = np.cos(angle) * dx[None, :] + np.sin(angle) * dy[:, None]
    return np.asarray((along / radius) ** 2 + (across / minor) ** 2 <= 1)
