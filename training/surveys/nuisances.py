"""What spoils frames on a real sky: bright stars, satellites, bad columns, missing bands, nights.

All of it is drawn from a stream of its own, so that the object behind is the same with and without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Image
from training.sky.glare import SaturatedStar
from training.sky.scene import Conditions
from training.sky.starlight import BANDS, NUM_BANDS, StarSurface, colours
from training.surveys.simulated_sky import SkyConfig

_SATURATION_NMGY = (16.0, 20.0, 26.0, 36.0)  # a pixel of the Dark Energy Camera, g r i z


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """The track of a satellite through one band."""

    band: int
    angle_deg: float
    offset_pixels: float  # of the line from the centre of the frame
    brightness: float  # of its ridge, in sky sigmas
    width_pixels: float  # sigma
    rejected: bool  # found by the pipeline, and masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuisances:
    """What befell one frame."""

    star: SaturatedStar | None = None
    trail: Trail | None = None
    columns: tuple[tuple[int, int, int], ...] = ()  # band, first, width
    missing_band: int | None = None
    deeper_mag: float = 0.0
    wider: float = 1.0  # seeing


def draw_nuisances(config: SkyConfig, rng: np.random.Generator) -> Nuisances:
    """Draw what befalls a frame of that sky."""
    # every question is asked of the same numbers, so that one fraction does not move another
    asked = rng.random(5)
    star_rng, trail_rng, column_rng = rng.spawn(3)
    missing = None
    if asked[3] < config.missing_band:
        missing = int(rng.integers(NUM_BANDS))
    return Nuisances(
        star=_star(star_rng) if asked[0] < config.saturated_star else None,
        trail=_trail(trail_rng) if asked[1] < config.satellite_trail else None,
        columns=_columns(column_rng) if asked[2] < config.bad_columns else (),
        missing_band=missing,
        deeper_mag=config.depth_scatter_mag * float(rng.normal()),
        wider=float(np.exp(config.seeing_scatter * rng.normal())),
    )


def _star(rng: np.random.Generator) -> SaturatedStar:
    mag = float(rng.triangular(10.5, 13.5, 14.2))
    while True:  # in the frame or just outside, and not on the object
        x, y = (float(v) for v in rng.uniform(-15.5, 15.5, size=2))
        if np.hypot(x, y) > 5.5:
            break
    surface = StarSurface(temperature_k=float(rng.uniform(3500, 8500)))
    flux = colours(surface, 0.0) * 10 ** (0.4 * (22.5 - mag))
    return SaturatedStar(
        x_arcsec=x,
        y_arcsec=y,
        flux_nmgy=tuple(float(f) for f in flux),
        spike_deg=float(rng.normal(45, 4)),
        spike_arcsec=float(rng.uniform(1.5, 3.0)) * 10 ** (0.1 * (13 - mag)),
        bleed_pixels=tuple(
            int(length) for length in rng.gamma(3, 3.5 * 10 ** (0.15 * (13 - mag)), NUM_BANDS)
        ),
    )


def _trail(rng: np.random.Generator) -> Trail:
    return Trail(
        band=int(rng.integers(NUM_BANDS)),
        angle_deg=float(rng.uniform(0, 180)),
        offset_pixels=float(rng.uniform(-0.45, 0.45)) * IMAGE_SIZE,
        brightness=float(np.exp(rng.uniform(np.log(2), np.log(25)))),
        width_pixels=float(rng.uniform(1.6, 3.0)),
        rejected=bool(rng.random() < 0.4),
    )


def _columns(rng: np.random.Generator) -> tuple[tuple[int, int, int], ...]:
    return tuple(
        (int(rng.integers(NUM_BANDS)), int(rng.integers(IMAGE_SIZE)), int(rng.integers(1, 4)))
        for _ in range(int(rng.integers(1, 4)))
    )


def on_that_night(conditions: Conditions, nuisances: Nuisances) -> Conditions:
    """The conditions, with seeing and depth of the night."""
    dimmer = 10 ** (-0.4 * nuisances.deeper_mag)
    return replace(
        conditions,
        seeing_arcsec=tuple(fwhm * nuisances.wider for fwhm in conditions.seeing_arcsec),
        sky_sigma_nmgy=tuple(sigma * dimmer for sigma in conditions.sky_sigma_nmgy),
    )


def with_trail(
    clean: Float32[ndarray, "band y x"], conditions: Conditions, trail: Trail | None
) -> Float32[ndarray, "band y x"]:
    """The frame with the light of a satellite."""
    if trail is None:
        return clean
    ridge = trail.brightness * conditions.sky_sigma_nmgy[trail.band]
    lit = clean.copy()
    away = _distance_pixels(trail) / trail.width_pixels
    lit[trail.band] += (ridge * np.exp(-0.5 * away**2)).astype(np.float32)
    return lit


def _distance_pixels(trail: Trail) -> Float32[ndarray, "y x"]:
    """From the middle of the track."""
    steps = np.arange(IMAGE_SIZE, dtype=np.float32) - (IMAGE_SIZE - 1) / 2
    angle = np.deg2rad(trail.angle_deg)
    across = steps[None, :] * np.sin(angle) - steps[:, None] * np.cos(angle)
    return (across - trail.offset_pixels).astype(np.float32)


def spoiled(image: Image, nuisances: Nuisances) -> Image:
    """The image with pixels masked and bands lost as the nuisances want it."""
    flux, ivar, mask = image.flux.copy(), image.ivar.copy(), image.mask.copy()
    for plane, name in enumerate(image.bands):
        band = BANDS.index(name)
        bad = np.zeros(mask.shape[1:], dtype=bool)
        for column_band, first, width in nuisances.columns:
            if column_band == band:
                bad[:, first : first + width] = True
        trail = nuisances.trail
        if trail is not None and trail.rejected and trail.band == band:
            bad |= np.abs(_distance_pixels(trail)) < 2.5 * trail.width_pixels
        flux[plane][bad] = 0
        if nuisances.star is not None:
            full = (flux[plane] > _SATURATION_NMGY[band]) & ~mask[plane]
            full |= _bleeding(nuisances.star, band)
            flux[plane][full] = 0
            bad |= full
        ivar[plane][bad] = 0
        mask[plane] |= bad
    keep = [
        plane
        for plane, name in enumerate(image.bands)
        if BANDS.index(name) != nuisances.missing_band and not mask[plane].all()
    ]
    if not keep:
        return image
    return Image(
        flux=flux[keep], ivar=ivar[keep], mask=mask[keep], bands=tuple(image.bands[k] for k in keep)
    )


def _bleeding(star: SaturatedStar, band: int) -> ndarray:
    """Pixels that charge of the star has run into, (y, x): a spindle from east to west."""
    steps = np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2
    right = np.abs(steps - star.x_arcsec / PIXEL_SCALE_ARCSEC)[None, :]
    up = np.abs(steps - star.y_arcsec / PIXEL_SCALE_ARCSEC)[:, None]
    length = star.bleed_pixels[band]
    return (right < length) & (up <= 0.5 + 0.25 * np.maximum(0.5 * length - right, 0))
