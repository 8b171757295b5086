"""How far objects are from a position of the sky: those within a radius, and the nearest.

Objects without a position are never found.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from index.object_table import ObjectTable
from training.observations import check_position

_MARGIN_DEG = 1e-5  # what rounding makes of a separation, near 180 degrees


def in_cone(
    table: ObjectTable, ra_deg: float, dec_deg: float, radius_arcsec: float
) -> tuple[Int64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Keys and separations (arcsec) within a radius, nearest first, then by key.

    Raises:
        ValueError: the position is off the sky or the radius not in (0, 648,000] arcsec.
    """
    check_position(ra_deg, dec_deg)
    if not 0 < radius_arcsec <= 648_000:
        raise ValueError(f"expected a radius above 0 and up to 648,000 arcsec, got {radius_arcsec}")
    keys, separations = [np.empty(0, np.int64)], [np.empty(0)]
    for some in table.positions():
        # as far apart as their declinations at least; most of the sky goes here
        band = np.abs(some.dec_deg - dec_deg) <= radius_arcsec / 3600 + _MARGIN_DEG
        near = np.flatnonzero(band)
        apart = _separations(some.ra_deg[near], some.dec_deg[near], ra_deg, dec_deg)
        inside = apart <= radius_arcsec
        keys.append(some.keys[near[inside]])
        separations.append(apart[inside])
    found, apart = np.concatenate(keys), np.concatenate(separations)
    order = np.lexsort((found, apart))
    return found[order], apart[order]


def nearest(table: ObjectTable, ra_deg: float, dec_deg: float) -> tuple[int, float] | None:
    """Key and separation (arcsec) of the object nearest to a position; None where none has one.

    Of objects equally near the one of the lowest key.

    Raises:
        ValueError: the position is off the sky.
    """
    check_position(ra_deg, dec_deg)
    best: tuple[float, int] | None = None
    for some in table.positions():
        apart = _separations(some.ra_deg, some.dec_deg, ra_deg, dec_deg)
        least = apart.min()
        found = float(least), int(some.keys[apart == least].min())
        best = found if best is None else min(best, found)
    return None if best is None else (best[1], best[0])


def _separations(
    ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"], of_ra: float, of_dec: float
) -> Float64[ndarray, " n"]:
    """How far positions are from another, in arcsec."""
    centre = _points(np.array([of_ra]), np.array([of_dec]))[0]
    chord = np.linalg.norm(_points(ra_deg, dec_deg) - centre, axis=1)
    return np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))) * 3600


def _points(ra_deg: ndarray, dec_deg: ndarray) -> Float64[ndarray, "n 3"]:
    """Points on the unit sphere."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
