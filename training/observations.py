"""What a survey saw of one object: images, spectra, scalars, and where they came from.

Conventions, stated here once:

* Sky positions are ICRS degrees, ra_deg in [0, 360), dec_deg in [-90, 90]; None = unknown.
* mask is True where a pixel is BAD. A bad pixel has ivar 0.
* Image rows run from south to north and columns from east to west (FITS with north up).
* Image flux is in nanomaggies per pixel (AB zero point 22.5), ivar in 1 / nanomaggies^2.
* Spectrum flux is in 1e-17 erg / s / cm^2 / Angstrom, wavelength in Angstrom, vacuum, ascending.
* Missing is None or an absent key, never NaN. NaN never leaves a reader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

IMAGE_SIZE = 96  # pixels a side that the encoder sees
PIXEL_SCALE_ARCSEC = 0.262  # Legacy Survey native pixel

# The channels of AION-1's image tokenizer, in its order (aion.codecs.preprocessing.band_to_index).
BANDS = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y", "DES-G", "DES-R", "DES-I", "DES-Z")

CatalogueValue = float | int | str | bool | None


@dataclass(frozen=True, slots=True)
class Image:
    """A calibrated or approximately calibrated cutout, centred on its object, north up, east left.

    Raises:
        ValueError: shapes differ, a band is unknown or repeated, a value is NaN, ivar is negative,
            or no pixel is usable.
    """

    flux: Float32[ndarray, "band y x"]  # nanomaggies per pixel
    ivar: Float32[ndarray, "band y x"]  # 1 / nanomaggies^2, 0 = no information
    mask: Bool[ndarray, "band y x"]  # True = bad
    bands: tuple[str, ...]  # names from BANDS, one per plane
    pixel_scale_arcsec: float = PIXEL_SCALE_ARCSEC

    def __post_init__(self) -> None:
        unknown = sorted(set(self.bands) - set(BANDS))
        if unknown:
            raise ValueError(f"unknown band {unknown[0]!r}: expected one of {', '.join(BANDS)}")
        if len(set(self.bands)) != len(self.bands):
            raise ValueError(f"a band is given twice: {', '.join(self.bands)}")
        if not self.flux.shape == self.ivar.shape == self.mask.shape:
            raise ValueError(
                f"flux, ivar and mask must have one shape, got {self.flux.shape}, "
                f"{self.ivar.shape} and {self.mask.shape}"
            )
        if self.flux.shape[0] != len(self.bands):
            raise ValueError(
                f"expected {len(self.bands)} planes, one a band, got {self.flux.shape}"
            )
        if not self.pixel_scale_arcsec > 0:
            raise ValueError(f"pixel scale must be positive, got {self.pixel_scale_arcsec} arcsec")
        _check_pixels(self.flux, self.ivar, self.mask, what="image")


@dataclass(frozen=True, slots=True)
class Spectrum:
    """One calibrated spectrum on its own wavelength grid.

    Raises:
        ValueError: shapes differ, wavelengths are not ascending and positive, a value is NaN,
            ivar is negative, or no pixel is usable.
    """

    flux: Float32[ndarray, " wavelength"]  # 1e-17 erg / s / cm^2 / Angstrom
    ivar: Float32[ndarray, " wavelength"]
    mask: Bool[ndarray, " wavelength"]  # True = bad
    wavelength_angstrom: Float64[ndarray, " wavelength"]  # vacuum

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.flux, self.ivar, self.mask, self.wavelength_angstrom)}
        if len(shapes) != 1:
            raise ValueError(f"flux, ivar, mask and wavelength differ in length: {sorted(shapes)}")
        if not (np.diff(self.wavelength_angstrom) > 0).all():
            raise ValueError("wavelengths must be strictly ascending")
        if len(self.wavelength_angstrom) and not self.wavelength_angstrom[0] > 0:
            raise ValueError(
                f"wavelengths must be positive, the first is {self.wavelength_angstrom[0]} Angstrom"
            )
        _check_pixels(self.flux, self.ivar, self.mask, what="spectrum")


def _check_pixels(flux: ndarray, ivar: ndarray, mask: ndarray, *, what: str) -> None:
    if not (np.isfinite(flux).all() and np.isfinite(ivar).all()):
        raise ValueError(
            f"{what} holds NaN or infinity: readers set such pixels to 0 and mask them"
        )
    if (ivar < 0).any():
        raise ValueError(f"{what} ivar must be 0 or more, the lowest is {ivar.min()}")
    if mask.all():
        raise ValueError(f"{what} has no usable pixel: all {mask.size:,} are masked")
    if not (ivar[~mask] > 0).any():
        raise ValueError(f"{what} has no usable pixel: ivar is 0 everywhere")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One row that a reader gives: an object as one survey saw it.

    Raises:
        ValueError: a position is off the sky or half given, or nothing was observed.
    """

    survey: str
    release: str  # "" where the survey has none
    source_id: str  # as the survey writes it
    object_id: str  # the same in every survey that saw the object
    fingerprint: str  # sha256 of what was read; changes when the content changes
    source: str  # absolute path of the file
    source_part: str = ""  # which of the objects in that file; "" where it holds one
    ra_deg: float | None = None
    dec_deg: float | None = None
    image: Image | None = None
    spectrum: Spectrum | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)  # token key -> value (modalities)
    catalogue: Mapping[str, CatalogueValue] = field(default_factory=dict)  # object-table columns
    calibrated: bool = True  # False: display image, fluxes approximate
    notes: tuple[str, ...] = ()  # what a user should know, e.g. "padded from 80 x 80 px"

    def __post_init__(self) -> None:
        if (self.ra_deg is None) != (self.dec_deg is None):
            raise ValueError("ra_deg and dec_deg are given together or not at all")
        if self.ra_deg is not None and self.dec_deg is not None:
            check_position(self.ra_deg, self.dec_deg)
        if self.image is None and self.spectrum is None:
            raise ValueError("an observation needs an image or a spectrum")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or a part of one, that could not be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class ObservationBatch:
    """Some observations in the order of their source, and what had to be left out."""

    observations: tuple[Observation, ...]
    skipped: tuple[Skipped, ...] = ()


def check_position(ra_deg: float, dec_deg: float) -> None:
    """Raise ValueError unless the position lies in [0, 360) x [-90, 90] degrees."""
    if not (0 <= ra_deg < 360 and -90 <= dec_deg <= 90):
        raise ValueError(
            f"expected ra_deg in [0, 360) and dec_deg in [-90, 90], got {ra_deg}, {dec_deg}"
        )


def fingerprint(*parts: bytes | str | ndarray | None) -> str:
    """sha256 over the given content, hexadecimal; parts are delimited, None counts."""
    digest = hashlib.sha256()
    for part in parts:
        if part is None:
            digest.update(b"\x00none")
            continue
        content = part.encode() if isinstance(part, str) else part
        if isinstance(content, ndarray):
            digest.update(f"{content.dtype.str}{content.shape}".encode())
            content = np.ascontiguousarray(content).tobytes()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
