"""Cutouts and spectra of objects, ready for the browser, the latest of them remembered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from discovery import Sky, SourceGone
from discovery.pictures import SpectrumCurve, png, rgb, spectrum_curve
from training.observations import Image, Observation

NUM_IMAGES = 600  # about 0.4 MB each
NUM_STAMPS = 4000  # about 20 kB each
NUM_CURVES = 2000
THUMBNAIL_POINTS = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """A colour picture of an object, or why there is none."""

    picture: bytes | None = None  # PNG, north up, east left
    missing: str = ""
    calibrated: bool = True  # False: made from a display picture, colours approximate
    width_arcsec: float | None = None  # of a side; None: the scale of the picture is unknown
    bands: tuple[str, ...] = ()
    survey: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A spectrum of an object, or why there is none."""

    curve: SpectrumCurve | None = None
    missing: str = ""
    survey: str = ""


def stamp(sky: Sky, object_id: str, *, stretch: float, q: float) -> Stamp:
    """The colour picture of an object of the open version.

    Raises:
        ValueError: stretch or q is not positive.
        UnknownObject: the id is not in this sky.
    """
    try:
        return _stamp(sky, sky.version, object_id, stretch, q)
    except SourceGone as error:  # raised, so not remembered: the file may come back
        return Stamp(missing=str(error))


def trace(sky: Sky, object_id: str) -> Trace:
    """The spectrum of an object of the open version.

    Raises:
        UnknownObject: the id is not in this sky.
    """
    try:
        return _trace(sky, sky.version, object_id)
    except SourceGone as error:
        return Trace(missing=str(error))


def thumbnail(curve: SpectrumCurve) -> tuple[tuple[float, float], ...]:
    """A few points of a spectrum: wavelength in Angstrom, mean flux in 1e-17 erg/s/cm2/Angstrom."""
    pieces = np.array_split(np.arange(len(curve.smoothed)), THUMBNAIL_POINTS)
    points = []
    for piece in pieces:
        usable = piece[np.isfinite(curve.smoothed[piece])]
        if len(usable):
            wavelength = float(curve.wavelength_angstrom[usable].mean())
            points.append((round(wavelength, 1), round(float(curve.smoothed[usable].mean()), 4)))
    return tuple(points)


@lru_cache(maxsize=NUM_STAMPS)
def _stamp(sky: Sky, version: int, object_id: str, stretch: float, q: float) -> Stamp:
    observation = _image(sky, version, object_id)
    if observation is None or observation.image is None:
        return Stamp(missing="no image of this object")
    image = observation.image
    return Stamp(
        picture=png(rgb(image, stretch=stretch, q=q)),
        calibrated=observation.calibrated,
        width_arcsec=_width_arcsec(observation, image),
        bands=image.bands,
        survey=observation.survey,
        notes=observation.notes,
    )


def _width_arcsec(observation: Observation, image: Image) -> float | None:
    # Readers of pictures without a scale give a nominal one, and say so only in a note.
    if any(note.startswith("pixel scale unknown") for note in observation.notes):
        return None
    return image.flux.shape[2] * image.pixel_scale_arcsec


@lru_cache(maxsize=NUM_IMAGES)
def _image(sky: Sky, version: int, object_id: str) -> Observation | None:
    """The first observation with an image; remembered, so that a new stretch reads no file."""
    for observation in sky.observations(object_id, view="image"):
        if observation.image is not None:
            return observation
    return None


@lru_cache(maxsize=NUM_CURVES)
def _trace(sky: Sky, version: int, object_id: str) -> Trace:
    for observation in sky.observations(object_id, view="spectrum"):
        if observation.spectrum is not None:
            return Trace(curve=spectrum_curve(observation.spectrum), survey=observation.survey)
    return Trace(missing="no spectrum of this object")
