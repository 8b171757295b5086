"""What a survey saw of one object: images, spectra, maps, scalars, and where they came from.

Conventions, stated here once:

* Sky positions are ICRS degrees, ra_deg in [0, 360), dec_deg in [-90, 90]; None = unknown.
  What files say becomes such a position by `sky_position`, the one rule of all readers.
* mask is True where a pixel is BAD. A bad pixel has ivar 0.
* Image rows run from south to north and columns from east to west (FITS with north up).
* Image flux is in nanomaggies per pixel (AB zero point 22.5), ivar in 1 / nanomaggies^2.
* Spectrum flux is in 1e-17 erg / s / cm^2 / Angstrom, wavelength in Angstrom, vacuum, ascending.
* Fields and ellipses lie on the pixels of the object's image.
* Gaia XP coefficients are those of the archive (xp_continuous_mean_spectrum), 55 an arm.
* Missing is None or an absent key, never NaN. NaN never leaves a reader.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

IMAGE_SIZE = 96  # pixels a side that the encoder sees
PIXEL_SCALE_ARCSEC = 0.262  # Legacy Survey native pixel
ROUNDING_DEG = 1e-6  # 4 mas: how far past 0 or 360 a right ascension is rounding, not a mistake
HSC_PIXEL_SCALE_ARCSEC = 0.168
NUM_XP_COEFFICIENTS = 55  # an arm

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
    survey: str = ""  # like whose spectra it is, where the observation is of another survey

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


@dataclass(frozen=True, slots=True)
class Field:
    """A map over the pixels of an image, such as which of them belong to which kind of source.

    Raises:
        ValueError: the map is not two-dimensional, or a value is NaN or outside 0 to 1.
    """

    value: Float32[ndarray, "y x"]  # 0 to 1

    def __post_init__(self) -> None:
        if self.value.ndim != 2:
            raise ValueError(f"expected a field (y, x), got shape {self.value.shape}")
        if not ((self.value >= 0) & (self.value <= 1)).all():
            raise ValueError("expected a field of values from 0 to 1, without NaN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipses:
    """Sources in an image, nearest to its centre first: the ellipse stream of AION-1.

    Raises:
        ValueError: lengths differ, a value is NaN, or they are not ordered from the centre out.
    """

    x: Float32[ndarray, " source"]  # pixel centres are whole numbers, 0 to IMAGE_SIZE - 1
    y: Float32[ndarray, " source"]
    shape_e1: Float32[ndarray, " source"]  # Tractor SHAPE_E1: ellipticity component
    shape_e2: Float32[ndarray, " source"]
    shape_r_arcsec: Float32[ndarray, " source"]  # Tractor SHAPE_R: half-light radius, 0 = point

    def __post_init__(self) -> None:
        columns = (self.x, self.y, self.shape_e1, self.shape_e2, self.shape_r_arcsec)
        if len({column.shape for column in columns}) != 1 or self.x.ndim != 1:
            raise ValueError(
                f"ellipse columns differ in length: {[column.shape for column in columns]}"
            )
        if not all(np.isfinite(column).all() for column in columns):
            raise ValueError("an ellipse holds NaN or infinity")
        centre = (IMAGE_SIZE - 1) / 2
        if (np.diff(np.hypot(self.x - centre, self.y - centre)) < -1e-3).any():
            raise ValueError("ellipses must be ordered by distance from the image centre")


@dataclass(frozen=True, slots=True)
class XpCoefficients:
    """Gaia BP and RP spectra as coefficients of Hermite functions, as the archive gives them.

    Raises:
        ValueError: no arm, not 55 coefficients an arm, NaN or infinity, or an error not positive.
    """

    bp: Float32[ndarray, " 55"] | None = None
    rp: Float32[ndarray, " 55"] | None = None
    bp_error: Float32[ndarray, " 55"] | None = None  # standard errors; None = not given
    rp_error: Float32[ndarray, " 55"] | None = None

    def __post_init__(self) -> None:
        if self.bp is None and self.rp is None:
            raise ValueError("expected XP coefficients of BP or RP, got neither")
        for arm, values, errors in (
            ("BP", self.bp, self.bp_error),
            ("RP", self.rp, self.rp_error),
        ):
            for column in (values, errors):
                if column is not None and column.shape != (NUM_XP_COEFFICIENTS,):
                    raise ValueError(
                        f"{arm}: expected {NUM_XP_COEFFICIENTS} coefficients, got {column.shape}"
                    )
            if values is not None and not np.isfinite(values).all():
                raise ValueError(f"{arm} coefficients hold NaN or infinity")
            if errors is not None and (values is None or not (errors > 0).all()):
                raise ValueError(f"{arm} errors must be positive and belong to coefficients")


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
    xp: XpCoefficients | None = None
    object_mask: Field | None = None  # on the image's pixels
    ellipses: Ellipses | None = None  # sources in the image
    scalars: Mapping[str, float] = field(default_factory=dict)  # token key -> value (modalities)
    catalogue: Mapping[str, CatalogueValue] = field(default_factory=dict)  # object-table columns
    calibrated: bool = True  # False: display image, fluxes approximate
    notes: tuple[str, ...] = ()  # what a user should know, e.g. "padded from 80 x 80 px"

    def __post_init__(self) -> None:
        if (self.ra_deg is None) != (self.dec_deg is None):
            raise ValueError("ra_deg and dec_deg are given together or not at all")
        if self.ra_deg is not None and self.dec_deg is not None:
            check_position(self.ra_deg, self.dec_deg)
        if self.image is None and (self.object_mask is not None or self.ellipses is not None):
            raise ValueError("an object mask and ellipses need the image that they lie on")
        seen = (self.image, self.spectrum, self.xp)
        if all(each is None for each in seen) and not self.scalars:
            raise ValueError(
                "an observation needs an image, a spectrum, XP coefficients or scalars"
            )


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


def sky_position(ra_deg: float | None, dec_deg: float | None) -> tuple[float, float] | None:
    """The position that a file states in degrees, None where it states none (both missing or NaN).

    A right ascension of 360, or within ROUNDING_DEG below 0 or above 360, is brought into [0, 360).

    Raises:
        ValueError: one coordinate is missing, or the position is outside [0, 360] x [-90, 90].
    """
    missing = [value is None or math.isnan(value) for value in (ra_deg, dec_deg)]
    if all(missing):
        return None
    if ra_deg is None or dec_deg is None or any(missing):
        raise ValueError(
            f"expected both coordinates of the position or none, got ra_deg {ra_deg}, "
            f"dec_deg {dec_deg}"
        )
    if -ROUNDING_DEG <= ra_deg < 0 or 360 <= ra_deg <= 360 + ROUNDING_DEG:
        ra_deg = ra_deg % 360 % 360  # twice: -1e-18 % 360 is 360
    check_position(ra_deg, dec_deg)
    return float(ra_deg), float(dec_deg)


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


def merge(observations: Sequence[Observation]) -> Observation:
    """What several surveys saw of one object, as one observation to embed.

    The first image, spectrum and XP coefficients and the first value of each scalar count.

    Raises:
        ValueError: no observation, or they are of different objects.
    """
    ids = {observation.object_id for observation in observations}
    if len(ids) != 1:
        raise ValueError(f"expected observations of one object, got {sorted(ids) or 'none'}")
    scalars: dict[str, float] = {}
    for observation in observations:
        scalars = {**observation.scalars, **scalars}
    seen_in = [seen for seen in observations if seen.image is not None]
    spectral = [seen for seen in observations if seen.spectrum is not None]
    coefficients = [seen.xp for seen in observations if seen.xp is not None]
    # an encoder may read spectra of two surveys by two streams: the survey is the spectrum's
    return replace(
        spectral[0] if spectral else observations[0],
        image=seen_in[0].image if seen_in else None,
        object_mask=seen_in[0].object_mask if seen_in else None,  # they lie on that image
        ellipses=seen_in[0].ellipses if seen_in else None,
        xp=coefficients[0] if coefficients else None,
        scalars=scalars,
    )
