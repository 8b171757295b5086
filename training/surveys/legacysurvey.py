"""FITS cutouts of the Legacy Survey viewer: calibrated g, r, i, z images with a WCS.

One image HDU (band, y, x), the bands in BANDS or BAND0.., survey and release in SURVEY and
VERSION; an HDU with IMAGETYP "invvar" of the same shape is taken as inverse variance. A pixel
without data is exactly 0 or NaN.

Pixel values are nanomaggies per NATIVE pixel of 0.262 arcsec, whatever pixel scale was asked for:
the viewer interpolates, or averages, and never rescales (the same galaxy has the same peak value
in a cutout of 0.100 and one of 0.262 arcsec per pixel). So resampling to 0.262 arcsec averages.

Photometry is what the cutout gives: the sum within 5 arcsec of the centre, not a model magnitude.
A galaxy larger than that is brighter than said here, a neighbour within it is included.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, WcsError
from jaxtyping import Float32, Float64
from numpy import ndarray

from training.observations import (
    PIXEL_SCALE_ARCSEC,
    CatalogueValue,
    Image,
    Observation,
    ObservationBatch,
    fingerprint,
)
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

BANDS = {"g": "DES-G", "r": "DES-R", "i": "DES-I", "z": "DES-Z"}
APERTURE_RADIUS_ARCSEC = 5.0
RECIPE = "legacysurvey 1"  # part of the fingerprint: raise it when the same file gives other pixels
_LETTER = {name: letter for letter, name in BANDS.items()}


def list_files(source: Path) -> list[Path]:
    """FITS files under a folder, sorted; a file is itself. See `Reader`."""
    return list_by_suffix(source, FITS_SUFFIXES)


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The cutout of one file. See `Reader`."""
    yield read_single(file.absolute(), _observe)


def read_one(source: Path, source_part: str) -> Observation:
    """The cutout of one file again. See `Reader`."""
    return read_single_again(source.absolute(), source_part, _observe)


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


def photometry(flux_nmgy: dict[str, float]) -> dict[str, CatalogueValue]:
    """Columns of the object table: flux_g_nmgy.. and, where the flux is positive, mag_g.. (AB)."""
    columns: dict[str, CatalogueValue] = {}
    for letter, flux in flux_nmgy.items():
        columns[f"flux_{letter}_nmgy"] = flux
        if flux > 0:
            columns[f"mag_{letter}"] = float(22.5 - 2.5 * np.log10(flux))
    return columns


def _observe(file: Path) -> Observation:
    with open_fits(file) as opened:
        number, planes = _planes(opened.hdus)
        header = opened.hdus[number].header
        bands = _bands(header, num_planes=len(planes), where=f"HDU {number}")
        height, width = planes.shape[1:]
        try:
            ra_deg, dec_deg, degrees_per_pixel = _place(header, height=height, width=width)
        except WcsError as error:  # wcslib says in which of its lines it stopped, then why
            why = [line for line in str(error).splitlines() if not line.startswith("ERROR")]
            raise ValueError(f"HDU {number}: unusable WCS: {' '.join(why)}") from error
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
        notes=(*_resampled(turned.scale_y_arcsec), *cutout.notes, "aperture photometry, 5 arcsec"),
    )


def _place(
    header: fits.Header, *, height: int, width: int
) -> tuple[float, float, Float64[ndarray, "2 2"]]:
    """ra_deg and dec_deg of the image centre, and degrees (east, north) of a step in (x, y)."""
    wcs = WCS(header, naxis=2)
    if not wcs.has_celestial:
        raise ValueError("no celestial WCS (CTYPE1, CTYPE2)")
    ra_deg, dec_deg = wcs.wcs_pix2world((width - 1) / 2, (height - 1) / 2, 0)
    if not (np.isfinite(ra_deg) and np.isfinite(dec_deg)):
        raise ValueError("the WCS gives no position at the image centre")
    return float(ra_deg) % 360, float(dec_deg), wcs.pixel_scale_matrix


def _resampled(scale_arcsec: float) -> tuple[str, ...]:
    if abs(scale_arcsec / PIXEL_SCALE_ARCSEC - 1) < 0.005:
        return ()
    return (f"resampled from {scale_arcsec:.3f} arcsec per pixel",)


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


def _bands(header: fits.Header, *, num_planes: int, where: str) -> tuple[str, ...]:
    letters = [str(header[key]).strip() for key in header if _is_band_key(key)]
    letters = letters or list(str(header.get("BANDS", "")).replace(",", "").replace(" ", ""))
    if len(letters) != num_planes:
        raise ValueError(
            f"{where}: expected {num_planes} bands in BANDS or BAND0.., got {letters or 'none'}"
        )
    for letter in letters:
        if letter not in BANDS:
            raise ValueError(f"{where}: unknown band {letter!r}: expected g, r, i or z")
    return tuple(BANDS[letter] for letter in letters)


def _is_band_key(key: str) -> bool:
    return key.startswith("BAND") and key[4:].isdecimal()
