"""Hits that are one thing on the sky: deblended parts, two surveys' ids, a source listed twice."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy.spatial import cKDTree


def first_of_each_place(
    ra_deg: Float64[ndarray, " hit"], dec_deg: Float64[ndarray, " hit"], radius_arcsec: float
) -> Bool[ndarray, " hit"]:
    """Which hits to keep so that no two lie within a radius of each other.

    Args:
        ra_deg: ICRS, best hit first; NaN: no position, always kept.
        dec_deg: ICRS.
        radius_arcsec: Above 0.

    Returns:
        True for a hit that has no better one that is kept within the radius.
    """
    kept = np.ones(len(ra_deg), bool)
    known = np.flatnonzero(np.isfinite(ra_deg) & np.isfinite(dec_deg))
    ra, dec = np.radians(ra_deg[known]), np.radians(dec_deg[known])
    points = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    chord = 2 * np.sin(np.radians(radius_arcsec / 3600) / 2)
    tree = cKDTree(points)
    for number, near in zip(known, tree.query_ball_point(points, chord), strict=True):
        kept[number] = not any(kept[known[i]] for i in near if known[i] < number)
    return kept
