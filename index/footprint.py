"""Where a sky has objects: its MOC.

The footprint is every HEALPix cell of order 10 (3.4 arcmin) that has an object, and the eight cells
around it. At order 10 an imaging survey (10,000 objects a square degree) has some thirty objects a
cell, so its footprint has no holes between objects, only true gaps; the cells around keep the edges
of cells from cutting off a position close to an object, and join the objects of a sparse
spectroscopic survey (three a neighbourhood at 30 a square degree). Every position within an
arcminute of an object lies inside. Finer cells would fall apart into islands, coarser ones would
promise sky that was never observed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy import units
from astropy.coordinates import Latitude, Longitude
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from index import disk
from index.errors import VersionCorrupt

if TYPE_CHECKING:  # mocpy and what it needs take a second to import, which a quiet night has not
    from mocpy import MOC

ORDER = 10


def footprint(ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"]) -> MOC:
    """The footprint of some positions (ICRS degrees)."""
    return cells_of(ra_deg, dec_deg).add_neighbours()


def cells_of(ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"]) -> MOC:
    """The cells of order 10 that some positions lie in."""
    from mocpy import MOC

    longitude = Longitude(ra_deg * units.deg)
    latitude = Latitude(dec_deg * units.deg)
    return MOC.from_lonlat(longitude, latitude, max_norder=ORDER)


def footprint_of(cells: Int64[ndarray, " n"]) -> MOC:
    """The footprint of objects in these cells of order 10, in which one may be named often."""
    return _as_moc(cells).add_neighbours()


def coarse_cells(healpix_29: Int64[ndarray, " n"]) -> Int64[ndarray, " m"]:
    """Cells of order 10 of some cells of order 29; -1, which is none, is left out."""
    return healpix_29[healpix_29 >= 0] >> 2 * (29 - ORDER)


def changed_footprint(
    before: MOC,
    *,
    there: Int64[ndarray, " n"],
    went: Int64[ndarray, " m"],
    came: Int64[ndarray, " k"],
) -> MOC:
    """A footprint after some objects went and others came; the same as one made anew.

    Args:
        before: Footprint with the objects that went, and without those that came.
        there: Cells of order 10 of all objects that there are now.
        went: Cells in which an object was that went or changed.
        came: Cells in which an object is that came or changed.
    """
    came, went, there = np.unique(came), np.unique(went), np.sort(there)
    left = went[~_among(went, there)]  # nobody is there any more
    if len(left):
        # add_neighbours changes the MOC itself
        unsure = _as_moc(left).add_neighbours()
        around = _as_cells(_as_moc(_as_cells(unsure)).add_neighbours())
        still = _as_moc(around[_among(around, there)]).add_neighbours()
        before = before.difference(unsure).union(still)
    return before.union(_as_moc(came).add_neighbours()) if len(came) else before


def _among(cells: Int64[ndarray, " n"], there: Int64[ndarray, " m"]) -> Bool[ndarray, " n"]:
    """Which cells are among many that ascend; np.isin would look at all of these, one by one."""
    if not len(there):
        return np.zeros(len(cells), bool)
    place = np.minimum(np.searchsorted(there, cells), len(there) - 1)
    return there[place] == cells


def _as_moc(cells: Int64[ndarray, " n"]) -> MOC:
    from mocpy import MOC

    depth = np.full(len(cells), ORDER, np.uint8)
    return MOC.from_healpix_cells(cells.astype(np.uint64), depth, max_depth=ORDER)


def _as_cells(moc: MOC) -> Int64[ndarray, " n"]:
    found: ndarray = moc.flatten()
    return np.unique(found.astype(np.int64))


def covers(
    moc: MOC, ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"]
) -> Bool[ndarray, " n"]:
    """Which positions lie in a MOC."""
    inside: ndarray = moc.contains_lonlat(
        Longitude(ra_deg * units.deg), Latitude(dec_deg * units.deg)
    )
    return inside


def write_footprint(path: Path, moc: MOC) -> None:
    content = io.BytesIO()
    moc.serialize(format="fits").writeto(content)
    with disk.new_file(path) as handle:
        handle.write(content.getvalue())


def read_moc(path: Path) -> MOC:
    """A MOC that somebody made: FITS, JSON or ASCII, by its content.

    Raises:
        ValueError: it is missing, none of these, or covers nothing.
    """
    from mocpy import MOC

    try:
        content = path.read_bytes()
        if content.startswith(b"SIMPLE"):
            moc = MOC.load(path, format="fits")
        else:
            text = content.decode("ascii")
            kind = "json" if text.lstrip().startswith("{") else "ascii"
            moc = MOC.from_string(text, format=kind)
        # nothing is what mocpy makes of JSON that is no MOC, too much of a range from high to low
        if not 0 < moc.sky_fraction <= 1:
            raise ValueError(
                f"expected cells of the sky, got {moc.sky_fraction:.3g} times all of it"
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a MOC in FITS, JSON or ASCII: {error}"
        ) from error
    return moc


def read_footprint(path: Path) -> MOC:
    from mocpy import MOC

    try:
        return MOC.load(path, format="fits")
    except (OSError, ValueError) as error:
        raise VersionCorrupt(f"{path} is damaged: {error}") from error
