"""Which files of HSC cutouts are one object: the cutout service writes one file a band.

Names as the service (das_cutout) and its download script give them:

    cutout-HSC-I-9813-pdr3_wide.fits                    one request: filter, tract, rerun
    cutout-HSC-I-9813-pdr3_wide-231122-180146.fits      the same with the time of the request
    arch-231122-180146/2-cutout-HSC-I-9813-pdr3_wide.fits    a list: the line of the list in front
    44108482068930872-cutout-HSC-I-9813-pdr3_wide.fits  renamed by the user to the object

Files with an id in front (anything but a line number) are one object if all but the filter and the
time agree. A line number is no id: a list has one line for each band, two lists start alike, and a
tract holds thousands of objects. Those files, and the ones with nothing in front, are one object if
they are of one rerun and tract and their centres lie within 1 arcsec; they are named after that
place, so that different objects never share a name and one object keeps its own wherever it lies.

HSC-R2 and HSC-I2 (the filters that replaced HSC-R and HSC-I in 2016) count as HSC-R and HSC-I.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from scipy.spatial import KDTree

from training.surveys.celestial import celestial_wcs
from training.surveys.files import BROKEN_FITS, FITS_SUFFIXES, stem

BANDS = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")
SAME_OBJECT_ARCSEC = 1.0
TABLE_SUFFIXES = (".csv", ".csv.gz")
# What astropy lets through when a file is damaged, besides OSError and ValueError.
BROKEN = (*BROKEN_FITS, AssertionError)
_NAME = re.compile(
    r"^(?P<front>.*?)(?:^|[-_.])(?P<band>HSC-(?:G|R2?|I2?|Z|Y))(?=[-_.]|$)(?P<back>.*)$",
    re.IGNORECASE,
)
_TIME = re.compile(r"(-\d{6}-\d{6})?( \(\d+\))?$")
_TRACT = re.compile(r"^-(\d{1,5})(?=-|$)")
_RERUN = re.compile(r"(?:pdr|dr|s|la)\d\w*", re.IGNORECASE)
_PSF = re.compile(r"(^|[-_.])psf", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The files of one object, one a band, in the order of BANDS."""

    name: str  # "" where the files carry no id: the object is named after its place
    rerun: str
    files: tuple[Path, ...]
    bands: tuple[str, ...]  # by the names; "" where a name has no filter, then the header tells
    repeated: tuple[Path, ...] = ()  # left out: their band is there already


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The HSC files of one folder: the group of each file by its name, and tables."""

    groups: dict[str, Group]
    tables: tuple[Path, ...]  # CSV and FITS tables that may hold measurements of the objects


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    file: Path
    front: str
    band: str
    tract: str
    rerun: str

    @property
    def has_id(self) -> bool:
        return bool(self.front) and not re.fullmatch(r"\d{1,7}", self.front)


def folder_of(file: Path) -> Folder:
    """What the folder of a file holds; read again when a file there comes or goes."""
    folder = file.parent
    try:
        return _folder(folder, folder.stat().st_mtime_ns)
    except OSError:
        return Folder(groups={}, tables=())


def group_of(file: Path) -> Group:
    """The group that a file belongs to; alone where its name does not say."""
    found = folder_of(file).groups.get(file.name)
    return found or Group(name=stem(file), rerun="", files=(file,), bands=("",))


def band_of(text: str) -> str:
    """A filter name as one of BANDS, "" where it is none: HSC-R2, hsc-r and r are HSC-R."""
    letter = re.fullmatch(r"(?:HSC-)?([GRIZY])2?", text.strip(), re.IGNORECASE)
    return f"HSC-{letter[1].upper()}" if letter else ""


def place_name(rerun: str, ra_deg: float, dec_deg: float) -> str:
    """A name made of a place, to 0.15 arcsec: pdr3_wide-J100059.50+021353.1."""
    tenths = round(ra_deg % 360 * 24000) % 8_640_000  # hundredths of a second of time
    hours, minutes, seconds = tenths // 360_000, tenths // 6000 % 60, tenths % 6000
    south = round(abs(dec_deg) * 36_000)  # tenths of an arcsecond
    degrees, arcmin, arcsec = south // 36_000, south // 600 % 60, south % 600
    place = (
        f"J{hours:02}{minutes:02}{seconds // 100:02}.{seconds % 100:02}"
        f"{'-' if dec_deg < 0 and south else '+'}"
        f"{degrees:02}{arcmin:02}{arcsec // 10:02}.{arcsec % 10}"
    )
    return f"{rerun}-{place}" if rerun else place


@lru_cache(maxsize=16)
def _folder(folder: Path, mtime_ns: int) -> Folder:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    images, tables, groups = [], [], []
    for name in names:
        file = folder / name
        if not file.is_file():  # opening a pipe would wait for ever
            continue
        if name.lower().endswith(TABLE_SUFFIXES):
            tables.append(file)
        elif name.lower().endswith(FITS_SUFFIXES) and not _PSF.search(name):
            found = _NAME.match(stem(file))
            if found:
                images.append(_named(file, found))
            elif _is_table(file):
                tables.append(file)
            else:
                groups.append(Group(name=stem(file), rerun="", files=(file,), bands=("",)))
    groups += _by_id([one for one in images if one.has_id])
    groups += _by_place([one for one in images if not one.has_id])
    return Folder(
        groups={file.name: group for group in groups for file in (*group.files, *group.repeated)},
        tables=tuple(tables),
    )


def _named(file: Path, found: re.Match[str]) -> _Named:
    back = _TIME.sub("", found["back"])
    tract, rerun = _TRACT.match(back), _RERUN.search(back)
    return _Named(
        file=file,
        front=re.sub(r"(^|[-_.])cutout$", "", found["front"], flags=re.IGNORECASE),
        band=band_of(found["band"]),
        tract=tract[1] if tract else "",
        rerun=rerun[0] if rerun else "",
    )


def _by_id(images: list[_Named]) -> list[Group]:
    groups: dict[tuple[str, str, str], list[_Named]] = {}
    for one in images:
        groups.setdefault((one.front, one.rerun, one.tract), []).append(one)
    tracts: dict[tuple[str, str], set[str]] = {}
    for front, rerun, tract in groups:
        tracts.setdefault((front, rerun), set()).add(tract)
    return [
        _group(members, front if len(tracts[front, rerun]) == 1 else f"{front}-{tract}")
        for (front, rerun, tract), members in groups.items()
    ]


def _by_place(images: list[_Named]) -> list[Group]:
    groups = []
    runs: dict[tuple[str, str], list[tuple[_Named, tuple[float, float, float]]]] = {}
    for one in images:
        centre = _centre(one.file)
        if centre is None:  # reading it will say why
            groups.append(_group([one], ""))
        else:
            runs.setdefault((one.rerun, one.tract), []).append((one, centre))
    reach = np.radians(SAME_OBJECT_ARCSEC / 3600)
    for run in runs.values():
        tree = KDTree([centre for _, centre in run])
        taken: set[int] = set()
        for number, (_, centre) in enumerate(run):
            if number in taken:
                continue
            near = sorted(set(tree.query_ball_point(centre, reach)) - taken)
            taken.update(near)
            groups.append(_group([run[row][0] for row in near], ""))
    return groups


def _group(members: list[_Named], name: str) -> Group:
    """Of two files of a band the last by name is taken, which is the one fetched last."""
    latest = {one.band: one.file for one in members}
    bands = tuple(band for band in BANDS if band in latest)
    files = tuple(latest[band] for band in bands)
    return Group(
        name=name,
        rerun=members[0].rerun,
        files=files,
        bands=bands,
        repeated=tuple(one.file for one in members if one.file not in files),
    )


def _centre(file: Path) -> tuple[float, float, float] | None:
    """Unit vector to the centre of an image, None where it has no usable place."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            with fits.open(file) as hdus:
                (header, *_) = [hdu.header for hdu in hdus if _is_plane(hdu)]
                wcs = celestial_wcs(header)
                x, y = (int(header[f"NAXIS{axis}"]) for axis in (1, 2))
                ra, dec = np.radians(wcs.wcs_pix2world((x - 1) / 2, (y - 1) / 2, 0))
    except (OSError, ValueError, *BROKEN):
        return None
    vector = (float(np.cos(dec) * np.cos(ra)), float(np.cos(dec) * np.sin(ra)), float(np.sin(dec)))
    return vector if bool(np.isfinite(vector).all()) else None


def _is_table(file: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            with fits.open(file) as hdus:
                return hdus[0].header.get("NAXIS") == 0 and isinstance(hdus[1], fits.BinTableHDU)
    except (OSError, ValueError, *BROKEN):
        return False


def _is_plane(hdu: fits.hdu.base._BaseHDU) -> bool:
    return bool(hdu.is_image) and hdu.header.get("NAXIS") == 2
