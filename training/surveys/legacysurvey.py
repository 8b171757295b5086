"""Legacy Survey files: cutouts of the viewer, and Tractor or sweep tables with brick coadds.

A folder may hold both kinds; what a file is, its name or its header says. Tables are read by
`tractor`, which finds the coadds of their bricks; a coadd alone yields nothing, since nothing says
what in it is an object.

A cutout has one image HDU (band, y, x), the bands in BANDS or BAND0.., survey and release in SURVEY
and VERSION; an HDU with IMAGETYP "invvar" of the same shape is taken as inverse variance. A pixel
without data is exactly 0 or NaN.

Pixel values are nanomaggies per NATIVE pixel of 0.262 arcsec, whatever pixel scale was asked for:
the viewer interpolates, or averages, and never rescales (the same galaxy has the same peak value
in a cutout of 0.100 and one of 0.262 arcsec per pixel). So resampling to 0.262 arcsec averages.

Photometry is what the cutout gives: the sum within 5 arcsec of the centre, not a model magnitude.
A galaxy larger than that is brighter than said here, a neighbour within it is included.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from astropy.io import fits
from astropy.wcs import WcsError
from jaxtyping import Float32, Float64
from numpy import ndarray

from training.observations import (
    PIXEL_SCALE_ARCSEC,
    Image,
    Observation,
    ObservationBatch,
    fingerprint,
    sky_position,
)
from training.surveys import bricks, tractor
from training.surveys.bintable import column_names
from training.surveys.bricks import BANDS
from training.surveys.celestial import celestial_wcs, why_unusable
from training.surveys.cutout import cut_out, upright
from training.surveys.files import (
    FITS_SUFFIXES,
    list_by_suffix,
    open_fits,
    pixels,
    read_single,
    read_single_again,
    stem,
)
from training.surveys.nanomaggies import check_flux_header, check_ivar_header, photometry
from training.surveys.tractor_table import headers, looks_like_one

APERTURE_RADIUS_ARCSEC = 5.0
RECIPE = "legacysurvey 1"  # part of the fingerprint: raise it when the same file gives other pixels
_TABLE_NAME = re.compile(  # light curves (-lc), photometric redshifts (-pz), extras (-ex) are none
    r"(tractor-\d{4}[pm]\d{3}|sweep-\d{3}[pm]\d{3}-\d{3}[pm]\d{3})\.fits(\.gz)?", re.IGNORECASE
)
Kind = Literal["cutout", "table", "coadd", "other"]
_FEW_BYTES, _MANY_BYTES = 4 * 2880, 1 << 18  # of a file, to see what it is
_LETTER = {name: letter for letter, name in BANDS.items()}


def list_files(source: Path) -> list[Path]:
    """Cutouts and tables of sources under a folder, sorted; a file is itself. See `Reader`."""
    files = list_by_suffix(source, FITS_SUFFIXES)
    if not source.is_dir():
        return files
    found = [file for file in files if _kind(file) in ("cutout", "table")]
    if not found:
        raise ValueError(
            f"{source.absolute()}: no cutout and no Tractor or sweep table among {len(files)} FITS "
            "files (a coadd is read with the table of its brick)"
        )
    return found


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The cutout, or the sources, of one file. See `Reader`."""
    file = file.absolute()
    kind = _kind(file)
    if kind in ("table", "other"):  # of another table it says what is amiss
        yield from tractor.read(file, batch_size=batch_size)
    else:
        yield read_single(file, _refuse_coadd if kind == "coadd" else _observe)


def read_one(source: Path, source_part: str) -> Observation:
    """The cutout of one file, or the source of one id in a table, again. See `Reader`."""
    source = source.absolute()
    kind = _kind(source)
    if kind in ("table", "other"):
        return tractor.read_one(source, source_part)
    return read_single_again(source, source_part, _refuse_coadd if kind == "coadd" else _observe)


def companions(file: Path) -> tuple[Path, ...]:
    """The coadds that are read with a table; none of a cutout."""
    file = file.absolute()
    return tractor.companions(file) if _kind(file) == "table" else ()


def aperture_flux_nmgy(image: Image) -> dict[str, float]:
    """Flux within 5 arcsec of the centre by band letter; bad pixels count as 0.

    The edge of the aperture is soft by one pixel. A band with more than a tenth of the aperture
    bad is left out.
    """
    size = image.flux.shape[1]
    offset = np.arange(size) - (size - 1) / 2
    radius = np.hypot(offset[:, None], offset[None, :])
    share = np.clip(APERTURE_RADIUS_ARCSEC / image.pixel_scale_arcsec + 0.5 - radius, 0, 1)
    lost = (share * image.mask).sum(axis=(1, 2)) / share.sum()
    flux = (share * image.flux).sum(axis=(1, 2), dtype=np.float64)
    return {
        _LETTER[band]: float(flux[plane])
        for plane, band in enumerate(image.bands)
        if band in _LETTER and lost[plane] <= 0.1
    }


def _kind(file: Path) -> Kind:
    """What a file is, by its name or else its first headers; "cutout" also where it is broken."""
    try:
        status = file.stat()
    except OSError:
        return "cutout"
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return "cutout"
    return _known_kind(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 16)
def _known_kind(file: Path, modified_ns: int, num_bytes: int) -> Kind:
    if bricks.COADD_NAME.fullmatch(file.name):
        return "coadd"
    if _TABLE_NAME.fullmatch(file.name):
        return "table"
    for part in (_FEW_BYTES, _MANY_BYTES):  # a cutout shows what it is at once
        try:
            for header, _ in headers(io.BytesIO(_beginning(file, part))):
                if header.get("XTENSION") == "BINTABLE" and header.get("ZIMAGE") != "T":
                    return "table" if looks_like_one(column_names(header)) else "other"
                if header.get("NAXIS") != "0":
                    of_a_brick = "BRICKNAM" in header or "BRICK" in header
                    return "coadd" if "IMTYPE" in header and of_a_brick else "cutout"
        except (OSError, ValueError, EOFError, zlib.error):
            continue  # a longer header, or damage, of which reading says more
    return "cutout"


def _beginning(file: Path, num_bytes: int) -> bytes:
    with file.open("rb") as opened:
        content = opened.read(num_bytes)
        if not content.startswith(b"\x1f\x8b"):
            return content
        opened.seek(0)
        with gzip.open(opened) as unpacked:
            return unpacked.read(num_bytes)


def _refuse_coadd(file: Path) -> Observation:
    raise ValueError("a brick coadd: it is read with the Tractor or sweep table of its brick")


def _observe(file: Path) -> Observation:
    with open_fits(file) as opened:
        number, planes = _planes(opened.hdus)
        header = opened.hdus[number].header
        bands = _bands(header, shape=planes.shape, where=f"HDU {number}")
        try:
            unit = check_flux_header(header)
        except ValueError as error:
            raise ValueError(f"HDU {number}: {error}") from error
        height, width = planes.shape[1:]
        try:
            ra_deg, dec_deg, degrees_per_pixel = _place(header, height=height, width=width)
        except WcsError as error:
            raise ValueError(f"HDU {number}: {why_unusable(error)}") from error
        except ValueError as error:
            raise ValueError(f"HDU {number}: {error}") from error
        ivar = _inverse_variance(opened.hdus, image_number=number, shape=planes.shape)
        content = fingerprint(RECIPE, opened.content)
    planes[planes == 0] = np.nan
    turned = upright(planes if ivar is None else np.concatenate([planes, ivar]), degrees_per_pixel)
    cutout = cut_out(
        turned.planes[: len(bands)],
        bands=bands,
        scale_y_arcsec=turned.scale_y_arcsec,
        scale_x_arcsec=turned.scale_x_arcsec,
        ivar=None if ivar is None else turned.planes[len(bands) :],
    )
    flux_nmgy = aperture_flux_nmgy(cutout.image)
    name = stem(file)
    return Observation(
        survey="legacysurvey",
        release=str(header.get("VERSION", "")).strip(),
        source_id=name,
        object_id=name,
        fingerprint=content,
        source=str(file),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        image=cutout.image,
        scalars={f"tok_flux_{band}": flux for band, flux in flux_nmgy.items() if flux > 0},
        catalogue=photometry(flux_nmgy),
        notes=(
            *(() if unit else ("BUNIT missing: taken as nanomaggies",)),
            *_resampled(turned.scale_y_arcsec, turned.scale_x_arcsec),
            *cutout.notes,
            "aperture photometry, 5 arcsec",
        ),
    )


def _place(
    header: fits.Header, *, height: int, width: int
) -> tuple[float, float, Float64[ndarray, "2 2"]]:
    """ra_deg and dec_deg of the image centre, and degrees (east, north) of a step in (x, y)."""
    wcs = celestial_wcs(header)
    ra_deg, dec_deg = wcs.wcs_pix2world((width - 1) / 2, (height - 1) / 2, 0)
    place = sky_position(float(ra_deg), float(dec_deg))
    if place is None:
        raise ValueError("the WCS gives no position at the image centre")
    return *place, wcs.pixel_scale_matrix


def _resampled(scale_y_arcsec: float, scale_x_arcsec: float) -> tuple[str, ...]:
    both = (scale_y_arcsec, scale_x_arcsec)
    if all(abs(scale / PIXEL_SCALE_ARCSEC - 1) < 0.005 for scale in both):
        return ()
    shown = " x ".join(dict.fromkeys(f"{scale:.3f}" for scale in both))
    return (f"resampled from {shown} arcsec per pixel",)


def _planes(hdus: fits.HDUList) -> tuple[int, Float32[ndarray, "band y x"]]:
    for number, hdu in enumerate(hdus):
        if not hdu.is_image or hdu.header.get("NAXIS") not in (2, 3) or _is_ivar(hdu):
            continue
        planes = pixels(hdu)
        if planes is not None:
            return number, planes if planes.ndim == 3 else planes[None]
    shapes = ", ".join(f"{number} {type(hdu).__name__}" for number, hdu in enumerate(hdus))
    raise ValueError(f"no usable HDU: expected an image (band, y, x), got {shapes}")


def _inverse_variance(
    hdus: fits.HDUList, *, image_number: int, shape: tuple[int, ...]
) -> Float32[ndarray, "band y x"] | None:
    for number, hdu in enumerate(hdus):
        if number == image_number or not hdu.is_image or not _is_ivar(hdu):
            continue
        ivar = pixels(hdu)
        if ivar is None:
            continue
        try:
            check_ivar_header(hdu.header)
        except ValueError as error:
            raise ValueError(f"HDU {number}: {error}") from error
        ivar = ivar if ivar.ndim == 3 else ivar[None]
        if ivar.shape != shape:
            raise ValueError(
                f"HDU {number}: expected inverse variance of shape {shape}, got {ivar.shape}"
            )
        return ivar
    return None


def _is_ivar(hdu: fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) -> bool:
    names = (str(hdu.header.get("IMAGETYP", "")), hdu.name)
    return any(name.strip().lower() in ("invvar", "ivar") for name in names)


def _bands(header: fits.Header, *, shape: tuple[int, ...], where: str) -> tuple[str, ...]:
    letters = [str(header[key]).strip() for key in header if _is_band_key(key)]
    letters = letters or list(str(header.get("BANDS", "")).replace(",", "").replace(" ", ""))
    if len(letters) != shape[0]:
        if letters and len(letters) == shape[2]:
            raise ValueError(
                f"{where}: swapped axes: expected (band, y, x) with {len(letters)} bands first, "
                f"got {shape}"
            )
        raise ValueError(
            f"{where}: expected {shape[0]} bands in BANDS or BAND0.., got {letters or 'none'}"
        )
    for letter in letters:
        if letter not in BANDS:
            raise ValueError(f"{where}: unknown band {letter!r}: expected g, r, i or z")
    return tuple(BANDS[letter] for letter in letters)


def _is_band_key(key: str) -> bool:
    return key.startswith("BAND") and key[4:].isdecimal()
