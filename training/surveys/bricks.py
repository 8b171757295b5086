"""Brick coadds of the Legacy Survey, and cutouts of them at given positions.

A brick is 0.25 degrees of sky on 3600 x 3600 pixels of 0.262 arcsec, north up, east left. Its
coadds are one file a band (image, invvar) and one with MASKBITS (DR8 and later), compressed by
tiles (.fits.fz) or not. They lie beside the table, or in the archive's tree: coadd/AAA/BRICK/ below
a folder that the table is in, or below its south/ or north/.

A cutout is 96 x 96 whole pixels of the coadd, as MMU cut them: interpolation would smooth the noise
and correlate it. So an object lies within half a pixel, 0.13 arcsec, of the centre on each axis.
Near the pole the cutout has the orientation of the brick's middle, not north up at the object.

Bad pixels: inverse variance not positive, and, of MASKBITS,
  BRIGHT (bit 1): in the core of a star brighter than G = 13; sky and pixels are the star's
  SATUR_x, ALLMASK_x: in their own band; the pipeline fills saturated pixels with a made-up value
Good are pixels that are merely outside the brick's own area (NPRIMARY), in the glow of a fainter
star (MEDIUM: real light, and masking it would blank whole objects), in a large galaxy (GALAXY) or
globular cluster (CLUSTER), masked in WISE, or where no model was fitted (BAILOUT, SUB_BLOB). The
Multimodal Universe also masks NPRIMARY and MEDIUM, and masks SATUR and ALLMASK in all bands at
once.

Source: legacysurvey.org, files and bitmasks pages of DR6 to DR10; legacypipe coadds.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, WcsError
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Image
from training.surveys.celestial import celestial_wcs, why_unusable
from training.surveys.cutout import MIN_SIGMA_NMGY, NATIVE_TOLERANCE, Cutout, sky_noise
from training.surveys.files import open_fits, reason
from training.surveys.nanomaggies import check_flux_header, check_ivar_header

BANDS = {"g": "DES-G", "r": "DES-R", "i": "DES-I", "z": "DES-Z"}
BRICK_NAME = re.compile(r"\d{4}[pm]\d{3}")
COADD_NAME = re.compile(r"legacysurvey-\d{4}[pm]\d{3}-.+", re.IGNORECASE)
BAD_BITS = {  # by band: BRIGHT, SATUR, ALLMASK
    "g": (1, 2, 5),
    "r": (1, 3, 6),
    "i": (1, 14, 15),
    "z": (1, 4, 7),
}
_ImageHdu: TypeAlias = fits.ImageHDU | fits.PrimaryHDU | fits.CompImageHDU
_SUFFIXES = (".fits.fz", ".fits", ".fits.gz")
_ANCESTORS = 4  # TOP/sweep/10.1/extra/: how far above the table TOP may be
_NORTH = (8001, 9011)  # BASS and MzLS; every other RELEASE since DR8 is DECam, south
_BLOCK = 200  # pixels: what is decompressed at a time, two tiles wide
_MAX_SIDE = 20_000  # pixels; a larger brick is a damaged header


@dataclass(frozen=True, slots=True, kw_only=True)
class Coadds:
    """The coadd files of one brick that are there."""

    brick: str
    image: Mapping[str, Path]  # by band letter; never empty
    invvar: Mapping[str, Path]
    maskbits: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, sorted."""
        mask = () if self.maskbits is None else (self.maskbits,)
        return tuple(sorted((*self.image.values(), *self.invvar.values(), *mask)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Brick:
    """Pixels of a brick around the positions it was read for; elsewhere they are 0."""

    wcs: WCS
    bands: tuple[str, ...]  # letters
    flux: Float32[ndarray, "band y x"]  # nanomaggies
    ivar: Float32[ndarray, "band y x"] | None  # None: no invvar file is there
    maskbits: Int32[ndarray, "y x"] | None
    notes: tuple[str, ...]

    def pixel(
        self, ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"]
    ) -> Float64[ndarray, "n 2"]:
        """Coordinates (x, y) of positions; pixel centres are whole numbers from 0; NaN: no such."""
        return _pixel(self.wcs, ra_deg, dec_deg)

    def cut(self, first_x: int, first_y: int) -> Cutout:
        """The 96 x 96 pixels whose lower left is (first_x, first_y), which may be off the brick.

        Raises:
            ValueError: no pixel of it is usable.
        """
        height, width = self.flux.shape[1:]
        y, x = slice(first_y, first_y + IMAGE_SIZE), slice(first_x, first_x + IMAGE_SIZE)
        rows = slice(max(y.start, 0), min(y.stop, height))
        columns = slice(max(x.start, 0), min(x.stop, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            raise ValueError(f"the position lies off the brick, {width} x {height} px")
        here = slice(rows.start - y.start, rows.stop - y.start)
        there = slice(columns.start - x.start, columns.stop - x.start)
        flux = np.full((len(self.bands), IMAGE_SIZE, IMAGE_SIZE), np.nan, np.float32)
        flux[:, here, there] = self.flux[:, rows, columns]
        ivar = None
        if self.ivar is None:
            flux[flux == 0] = np.nan  # the coadd has no data there
        else:
            ivar = np.zeros_like(flux)
            ivar[:, here, there] = self.ivar[:, rows, columns]
        if self.maskbits is not None:
            bits = self.maskbits[rows, columns]
            for plane, band in enumerate(self.bands):
                flux[plane, here, there][(bits & sum(1 << bit for bit in BAD_BITS[band])) != 0] = (
                    np.nan
                )
        image, notes = _as_image(flux, ivar, self.bands)
        notes = [*self.notes, *notes]
        seen = (columns.stop - columns.start, rows.stop - rows.start)
        if seen != (IMAGE_SIZE, IMAGE_SIZE):
            notes.append(f"padded from {seen[1]} x {seen[0]} px: at the edge of the brick")
        return Cutout(image=image, notes=tuple(notes))


def corner(pixel: Float64[ndarray, "n 2"]) -> Int64[ndarray, "n 2"]:
    """Lower left pixel (x, y) of the cutout of each object: it lies at 47 < x <= 48 there."""
    known = np.where(np.isfinite(pixel), pixel, -_MAX_SIDE)  # where nothing is cut
    near = np.clip(known, -_MAX_SIDE, 2 * _MAX_SIDE)
    # The last digits of a position on the border of two pixels are noise.
    return np.ceil(near - IMAGE_SIZE / 2 - 1e-6).astype(np.int64)


def region(release: int) -> str:
    """Which half of the survey a RELEASE is of, north or south, as its folders are called."""
    return "north" if release in _NORTH else "south"


def find(table: Path, *, brick: str, release: int) -> Coadds | None:
    """The coadds of a brick that belong to a table, None where no image is there.

    Args:
        table: The Tractor or sweep table.
        brick: Its name, such as 0959p805; anything else has no coadds.
        release: RELEASE of the object, which says whether it is in south/ or north/.
    """
    if not BRICK_NAME.fullmatch(brick):
        return None
    below = Path("coadd") / brick[:3] / brick
    tops = [table.parent, *table.parents[1:_ANCESTORS]]
    folders = [top / tree / below for top in tops for tree in ("", region(release))]
    for folder in (table.parent, *folders):
        if not folder.is_dir():
            continue
        image = {band: each for band in BANDS if (each := _there(folder, brick, f"image-{band}"))}
        if image:
            return Coadds(
                brick=brick,
                image=image,
                invvar={
                    band: each
                    for band in image
                    if (each := _there(folder, brick, f"invvar-{band}"))
                },
                maskbits=_there(folder, brick, "maskbits"),
            )
    return None


def may_have_coadds(table: Path) -> bool:
    """Whether a tree of coadds, or a coadd itself, lies where those of a table would be."""
    tops = [table.parent, *table.parents[1:_ANCESTORS]]
    if any((top / tree / "coadd").is_dir() for top in tops for tree in ("", "south", "north")):
        return True
    return next(table.parent.glob("legacysurvey-*-image-*"), None) is not None


def read_brick(
    coadds: Coadds, *, ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"]
) -> Brick:
    """The pixels of a brick around positions (ICRS degrees); other pixels are not decompressed.

    Memory: 4 bytes a pixel, band and kind where something is cut, 470 MiB for a whole griz brick.

    Raises:
        ValueError: a file is damaged, is not what its name says, has other units than nanomaggies
            or another pixel scale or orientation, or the files are not on one grid. The message
            begins with the name of the file.
    """
    bands, notes = tuple(coadds.image), []
    if coadds.invvar and len(coadds.invvar) < len(bands):
        lost = [band for band in bands if band not in coadds.invvar]
        bands = tuple(coadds.invvar)
        notes.append(f"no invvar coadd in {', '.join(lost)}: left out")
    if coadds.maskbits is None:
        notes.append("no maskbits coadd: saturated pixels and bright stars are not masked")
    with _plane(coadds, coadds.image[bands[0]]) as hdu:
        wcs = _grid(hdu.header)
        height, width = hdu.shape
    touched = _touched(corner(_pixel(wcs, ra_deg, dec_deg)), height=height, width=width)
    flux = np.zeros((len(bands), height, width), np.float32)
    ivar = np.zeros_like(flux) if coadds.invvar else None
    for plane, band in enumerate(bands):
        with _plane(coadds, coadds.image[band], like=(wcs, flux[plane])) as hdu:
            _check_kind(hdu.header, kind="image", band=band)
            if not check_flux_header(hdu.header):
                notes.append(f"BUNIT of image-{band} missing: taken as nanomaggies")
            _fill(flux[plane], hdu, touched)
        if ivar is not None:
            with _plane(coadds, coadds.invvar[band], like=(wcs, flux[plane])) as hdu:
                _check_kind(hdu.header, kind="invvar", band=band)
                if not check_ivar_header(hdu.header):
                    notes.append(f"BUNIT of invvar-{band} missing: taken as 1/nanomaggy^2")
                _fill(ivar[plane], hdu, touched)
    maskbits = None
    if coadds.maskbits is not None:
        maskbits = np.zeros((height, width), np.int32)
        with _plane(coadds, coadds.maskbits, like=(wcs, maskbits)) as hdu:
            if hdu.header["BITPIX"] not in (8, 16, 32):
                raise ValueError(
                    f"expected bits in whole numbers, BITPIX is {hdu.header['BITPIX']}"
                )
            _fill(maskbits, hdu, touched)
    return Brick(wcs=wcs, bands=bands, flux=flux, ivar=ivar, maskbits=maskbits, notes=tuple(notes))


def _as_image(
    flux: Float32[ndarray, "band y x"],
    ivar: Float32[ndarray, "band y x"] | None,
    bands: tuple[str, ...],
) -> tuple[Image, list[str]]:
    """The bands that have a usable pixel, and what was done; NaN flux is bad."""
    good = np.isfinite(flux)
    if ivar is not None:
        good &= np.isfinite(ivar) & (ivar > 0)
    usable = good.any(axis=(1, 2))
    if not usable.any():
        raise ValueError(
            "no usable pixel in the central 25 arcsec: every one is without data, masked, "
            "or its inverse variance is not positive"
        )
    names = [BANDS[band] for band in bands]
    lost = [name for name, kept in zip(names, usable, strict=True) if not kept]
    notes = [f"no usable pixel in {', '.join(lost)}: left out"] if lost else []
    mask = ~good[usable]
    flux = np.where(mask, 0, flux[usable]).astype(np.float32)
    if ivar is None:
        sigma = np.maximum(sky_noise(flux, mask), MIN_SIGMA_NMGY)
        ivar = np.where(mask, 0, 1 / sigma[:, None, None] ** 2).astype(np.float32)
        notes.append("ivar estimated")
    else:
        ivar = np.where(mask, 0, ivar[usable]).astype(np.float32)
    kept_names = tuple(name for name in names if name not in lost)
    return Image(flux, ivar, mask, kept_names), notes


def _there(folder: Path, brick: str, kind: str) -> Path | None:
    for suffix in _SUFFIXES:
        file = folder / f"legacysurvey-{brick}-{kind}{suffix}"
        if file.is_file():
            return file
    return None


@contextmanager
def _plane(
    coadds: Coadds, file: Path, *, like: tuple[WCS, ndarray] | None = None
) -> Iterator[_ImageHdu]:
    """The image HDU of a coadd file, of the brick and on the grid that are expected."""
    try:
        with open_fits(file) as opened:
            hdu = next((h for h in opened.hdus if h.is_image and h.header.get("NAXIS") == 2), None)
            if hdu is None:
                raise ValueError("no image of two axes in it")
            if not all(0 < side <= _MAX_SIDE for side in hdu.shape):
                raise ValueError(f"expected at most {_MAX_SIDE} x {_MAX_SIDE} px, got {hdu.shape}")
            said = str(hdu.header.get("BRICKNAM", hdu.header.get("BRICK", ""))).strip()
            if said not in ("", coadds.brick):
                raise ValueError(f"expected brick {coadds.brick}, its header says {said!r}")
            if like is not None:
                _check_grid(hdu, *like)
            yield hdu
    except (OSError, ValueError) as error:
        text = why_unusable(error) if isinstance(error, WcsError) else reason(error)
        raise ValueError(f"{file.name}: {text}") from error


def _grid(header: fits.Header) -> WCS:
    wcs = celestial_wcs(header)
    (xx, xy), (yx, yy) = wcs.pixel_scale_matrix * 3600 / PIXEL_SCALE_ARCSEC
    straight = abs(xy) < NATIVE_TOLERANCE and abs(yx) < NATIVE_TOLERANCE
    if not (straight and abs(xx + 1) < NATIVE_TOLERANCE and abs(yy - 1) < NATIVE_TOLERANCE):
        arcsec = np.round(wcs.pixel_scale_matrix * 3600, 4).tolist()
        raise ValueError(
            f"expected pixels of {PIXEL_SCALE_ARCSEC} arcsec, north up and east left, "
            f"the WCS says {arcsec}"
        )
    return wcs


def _check_grid(hdu: _ImageHdu, wcs: WCS, plane: ndarray) -> None:
    if hdu.shape != plane.shape[-2:]:
        raise ValueError(f"expected {plane.shape[-2:]} px as the first band, got {hdu.shape}")
    if "CTYPE1" in hdu.header:  # the WCS of maskbits may be absent
        here = celestial_wcs(hdu.header)
        corners = np.array([[0, 0], [hdu.shape[1] - 1, hdu.shape[0] - 1]], np.float64)
        apart = wcs.wcs_world2pix(here.wcs_pix2world(corners, 0), 0) - corners
        if not (np.abs(apart) < 0.05).all():
            raise ValueError("its WCS is not that of the first band")


def _check_kind(header: fits.Header, *, kind: str, band: str) -> None:
    said = str(header.get("IMTYPE", header.get("IMAGETYP", ""))).strip().lower()
    if said not in ("", kind):
        raise ValueError(f"expected a coadd of kind {kind}, its header says {said!r}")
    said = str(header.get("FILTER", "")).strip().lower()
    if said and not said.startswith(band):
        raise ValueError(f"expected the {band} band, FILTER says {said!r}")
    if header["BITPIX"] > 0 and header.get("BSCALE", 1) == 1:
        raise ValueError("expected flux in floating point or scaled, got whole numbers")


def _pixel(
    wcs: WCS, ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"]
) -> Float64[ndarray, "n 2"]:
    # Of a position on the other side of the sky a tangent plane knows nothing: NaN.
    with np.errstate(invalid="ignore"):
        return np.asarray(wcs.wcs_world2pix(np.stack([ra_deg, dec_deg], axis=1), 0), np.float64)


def _touched(
    corners: Int64[ndarray, "n 2"], *, height: int, width: int
) -> Bool[ndarray, "row column"]:
    """Which blocks of pixels some cutout needs."""
    touched = np.zeros((-(-height // _BLOCK), -(-width // _BLOCK)), bool)
    for x, y in corners:
        if -IMAGE_SIZE < x < width and -IMAGE_SIZE < y < height:
            last_x, last_y = (x + IMAGE_SIZE - 1) // _BLOCK, (y + IMAGE_SIZE - 1) // _BLOCK
            touched[max(y, 0) // _BLOCK : last_y + 1, max(x, 0) // _BLOCK : last_x + 1] = True
    return touched


def _fill(
    plane: Float32[ndarray, "y x"] | Int32[ndarray, "y x"],
    hdu: _ImageHdu,
    touched: Bool[ndarray, "row column"],
) -> None:
    """Copy the blocks that are touched, and those between two in a row of them."""
    for row in np.flatnonzero(touched.any(axis=1)):
        columns = np.flatnonzero(touched[row])
        rows = slice(row * _BLOCK, min((row + 1) * _BLOCK, plane.shape[0]))
        part = rows, slice(columns[0] * _BLOCK, min((columns[-1] + 1) * _BLOCK, plane.shape[1]))
        try:
            plane[part] = hdu.section[part]
        except Exception as error:  # astropy's own for tiles has no public name
            raise ValueError("damaged: its pixels cannot be unpacked") from error
