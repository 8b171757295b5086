"""One file of an HSC cutout: calibrated pixels of one band, with what is bad about them.

Layout (an afw Exposure of the LSST pipelines): an empty primary HDU with FILTER and FLUXMAG0, then
HDUs with EXTTYPE (or EXTNAME) IMAGE, MASK and VARIANCE on one grid with a WCS, and tables that are
not read. Pixels are counts of AB zero point 27.0 in every band (FLUXMAG0 = 63095734448.0194) and
become nanomaggies; the native 0.168 arcsec pixel is kept. Galactic extinction is not corrected.

Masks: bits are found by the name of their plane (cards MP_*), as their numbers differ between
releases. Bad are NO_DATA (nothing was observed), UNMASKEDNAN (not a number), BAD (defects of the
detector), SAT (saturated: cores and bleeds hold no flux) and SUSPECT (beyond linearity, or stray
light not removed; the pipeline itself keeps such pixels out of coadds). Not bad: CR and INTRP were
repaired in the single exposures and cover much of a deep coadd; CLIPPED, REJECTED, SENSOR_EDGE and
INEXACT_PSF tell that fewer exposures went in, so that the PSF is not exact, but the flux is right
and the variance says how good; EDGE is a border where nothing is detected, with good pixels;
BRIGHT_OBJECT, DETECTED and the like say what is seen, not how well.

A cube (band, y, x) of five planes, as people cut them for themselves, is read as g, r, i, z, y; if
it states no zero point it is not `calibrated`.

Sources: Aihara et al. 2022, PASJ 74, 247 (PDR3); Bosch et al. 2018, PASJ 70, S5 (the pipeline and
its mask planes); hsc-release.mtk.nao.ac.jp/doc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, WcsError
from jaxtyping import Bool, Float32
from numpy import ndarray

from training.observations import sky_position
from training.surveys.celestial import celestial_wcs, why_unusable
from training.surveys.files import open_fits, pixels, plainly, stored_pixels
from training.surveys.hsc_groups import BANDS, BROKEN, band_of

ImageHdu: TypeAlias = fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU
ZERO_POINT_MAG = 27.0  # AB, of every band and release
BAD_PLANES = ("NO_DATA", "UNMASKEDNAN", "BAD", "SAT", "SUSPECT")
# No pixel of a sky survey is as bright as AB 10, nor 10,000 times better known than its neighbours:
# such values are flipped bits.
MAX_FLUX_NMGY = 1e5
MIN_VARIANCE = 1e-4  # of the median
_ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "MAGZP", "ZEROPNT")
_UNIT_ZERO_POINTS = {"njy": 31.4, "nanomaggy": 22.5, "nmgy": 22.5}
_COUNTS = ("", "adu", "dn", "count", "counts", "ct")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What one file holds: planes of one grid, bad pixels NaN."""

    bands: tuple[str, ...]
    flux: Float32[ndarray, "band y x"]  # nanomaggies per pixel
    ivar: Float32[ndarray, "band y x"] | None  # 1 / nanomaggies^2
    wcs: WCS
    calibrated: bool
    notes: tuple[str, ...]
    content: bytes  # of the file

    @property
    def centre_deg(self) -> tuple[float, float]:
        """ra_deg and dec_deg of the middle of the image; ValueError where the WCS gives none."""
        height, width = self.flux.shape[1:]
        ra_deg, dec_deg = self.wcs.wcs_pix2world((width - 1) / 2, (height - 1) / 2, 0)
        place = sky_position(float(ra_deg), float(dec_deg))
        if place is None:
            raise ValueError("the WCS gives no position at the image centre")
        return place


def open_frame(file: Path, band: str) -> Frame:
    """One file; `band` is that of its name, "" where it has none.

    Raises:
        OSError: the file cannot be read or is not FITS.
        ValueError: it is damaged, of another layout, or its header contradicts itself.
    """
    try:
        with open_fits(file) as opened, np.errstate(all="ignore"):
            return _parse(opened.hdus, band, opened.content)
    except BROKEN as error:
        raise ValueError(plainly(error)) from error
    except WcsError as error:
        raise ValueError(why_unusable(error)) from error


def _parse(hdus: fits.HDUList, band: str, content: bytes) -> Frame:
    kinds = _kinds(hdus)
    image = kinds["IMAGE"]
    headers = [hdus[0].header, image.header]
    flux = _plane(image, "IMAGE")
    bands = _bands(headers, flux, band)
    factor, stated, notes = _nanomaggies(headers)
    try:
        wcs = celestial_wcs(image.header)
    except ValueError as error:
        raise ValueError(f"IMAGE: {error}") from error
    bad = ~(np.abs(flux) < MAX_FLUX_NMGY / factor)
    ivar = None
    if "VARIANCE" in kinds:
        variance = _plane(kinds["VARIANCE"], "VARIANCE")
        _check_shape(variance, flux, "VARIANCE")
        good = np.isfinite(variance) & (variance > 0)
        if not good.any():
            raise ValueError("VARIANCE: not positive anywhere")
        bad |= ~(good & (variance > MIN_VARIANCE * np.median(variance[good])))
        ivar = (1 / (np.float64(factor) ** 2 * variance)).astype(np.float32)
    else:
        notes.append("no variance")
    if "MASK" in kinds:
        bits = _bad_bits(kinds["MASK"])
        _check_shape(bits, flux, "MASK")
        bad |= bits
    else:
        notes.append("no mask")
    if len(bands) > 1:
        notes.append(f"{len(bands)} planes taken as {', '.join(bands)}")
    flux = flux * np.float32(factor)
    flux[bad] = np.nan
    return Frame(
        bands=bands, flux=flux, ivar=ivar, wcs=wcs, calibrated=stated or len(bands) == 1,
        notes=tuple(notes),
        content=content,
    )  # fmt: skip


def _kinds(hdus: fits.HDUList) -> Mapping[str, ImageHdu]:
    """The image HDUs by what they hold."""
    found: dict[str, ImageHdu] = {}
    nameless = []
    for hdu in hdus:
        if len(found) == 3:  # what follows are tables of the archive
            break
        if not hdu.is_image or hdu.header.get("NAXIS", 0) == 0:
            continue
        names = [str(hdu.header.get(key, "")).strip().upper() for key in ("EXTTYPE", "EXTNAME")]
        kind = next((name for name in names if name in ("IMAGE", "MASK", "VARIANCE")), "")
        if not kind:
            nameless.append(hdu)
        elif kind in found:
            raise ValueError(f"two HDUs are of EXTTYPE {kind}")
        else:
            found[kind] = hdu
    if "IMAGE" not in found and len(nameless) == 1:
        found["IMAGE"] = nameless[0]
    if "IMAGE" not in found:
        shapes = ", ".join(f"{number} {type(hdu).__name__}" for number, hdu in enumerate(hdus))
        raise ValueError(f"expected an HDU of EXTTYPE IMAGE, got {shapes}")
    return found


def _plane(hdu: ImageHdu, kind: str) -> Float32[ndarray, "band y x"]:
    planes = pixels(hdu)
    if planes is None or planes.ndim not in (2, 3) or 0 in planes.shape:
        shape = None if planes is None else planes.shape
        raise ValueError(f"{kind}: expected pixels (y, x), got shape {shape}")
    return planes if planes.ndim == 3 else planes[None]


def _check_shape(planes: ndarray, flux: ndarray, kind: str) -> None:
    if planes.shape != flux.shape:
        raise ValueError(
            f"{kind}: expected the shape of IMAGE, {flux.shape[1:]}, got {planes.shape[1:]}"
        )


_ORIGIN = ("TELESCOP", "INSTRUME", "SURVEY")  # where an image comes from, as far as it is said


def _bands(
    headers: list[fits.Header], flux: Float32[ndarray, "band y x"], band: str
) -> tuple[str, ...]:
    said = [str(header[key]) for header in headers for key in _ORIGIN if key in header]
    if said and not any(name in one.upper() for one in said for name in ("HSC", "SUBARU")):
        raise ValueError(f"expected an image of HSC, the header says {', '.join(said)}")
    stated = [band_of(str(header["FILTER"])) for header in headers if "FILTER" in header]
    if len(flux) == len(BANDS) and not band:
        return BANDS
    if len(flux) != 1:
        raise ValueError(f"expected one plane, or five for g, r, i, z, y, got {len(flux)}")
    found = {one for one in (band, *stated) if one}
    if len(found) > 1:
        raise ValueError(f"the band is {band} by the name, {', '.join(found - {band})} by FILTER")
    if not found:
        raise ValueError("no band: expected HSC-G, R, I, Z or Y in the file name or in FILTER")
    return (found.pop(),)


def _nanomaggies(headers: list[fits.Header]) -> tuple[float, bool, list[str]]:
    """Nanomaggies of one unit of the pixels, whether the header states it, and notes.

    Raises:
        ValueError: two statements differ, or one is no number or no known unit.
    """
    stated: dict[str, float] = {}
    for header in headers:
        for key in ("FLUXMAG0", *_ZERO_POINT_KEYS):
            if header.get(key) in (None, ""):
                continue
            try:
                value = float(header[key])
            except (TypeError, ValueError):
                value = np.nan
            if key == "FLUXMAG0":
                value = 2.5 * np.log10(value) if value > 0 else np.nan
            if not 0 < value < 50:
                raise ValueError(f"{key}: expected a zero point, got {header[key]!r}")
            _agree(stated, key, value)
        unit = "".join(str(header.get("BUNIT", "")).lower().split())
        if unit in _UNIT_ZERO_POINTS:
            _agree(stated, "BUNIT", _UNIT_ZERO_POINTS[unit])
        elif unit not in _COUNTS:
            raise ValueError(f"BUNIT: expected counts of zero point 27, got {header['BUNIT']!r}")
    zero_point = next(iter(stated.values()), ZERO_POINT_MAG)
    notes = []
    if not stated:
        notes.append("zero point 27 assumed: the header states none")
    elif abs(zero_point - ZERO_POINT_MAG) > 0.005:
        notes.append(f"converted from zero point {zero_point:.2f}")
    return float(10 ** (0.4 * (22.5 - zero_point))), bool(stated), notes


def _agree(stated: dict[str, float], key: str, value: float) -> None:
    for other, zero_point in stated.items():
        if abs(zero_point - value) > 0.005:
            raise ValueError(
                f"contradicting zero points: {zero_point:.2f} by {other}, {value:.2f} by {key}"
            )
    stated[key] = value


def _bad_bits(hdu: ImageHdu) -> Bool[ndarray, "band y x"]:
    bits = np.asarray(stored_pixels(hdu))
    if bits.dtype.kind not in "iu":
        raise ValueError(f"MASK: expected whole numbers, got {bits.dtype}")
    planes = {
        str(key).upper().removeprefix("MP_"): hdu.header[key]
        for key in hdu.header
        if str(key).upper().startswith("MP_")
    }
    if not planes and bits.any():
        raise ValueError("MASK: expected cards MP_* that name its planes, got none")
    wanted = 0
    for name in BAD_PLANES:
        bit = planes.get(name)
        if bit is None:
            continue
        if not isinstance(bit, int) or isinstance(bit, bool) or not 0 <= bit < 32:
            raise ValueError(f"MASK: MP_{name}: expected the number of a bit, got {bit!r}")
        wanted |= 1 << bit
    bad = (bits.astype(np.int64) & wanted) != 0
    return bad if bad.ndim == 3 else bad[None]
