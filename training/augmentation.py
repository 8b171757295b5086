"""Disturbed copies of an observation: what must not change how similar two objects are.

A galaxy is the same galaxy turned by any angle, mirrored, a pixel off centre, in worse seeing, in
a shallower exposure, brighter by as much as calibrations disagree, a little farther away, or
without one band. Inverse variance follows what is done to flux and noise.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn import functional as F

from training.modalities import STREAM
from training.observations import Image, Observation, Spectrum
from training.turns import turned

MIN_BANDS = 2  # a copy keeps at least so many, for colour is part of what an object is


@checked_dataclass(
    frozen=True,
    slots=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False),
)
class AugmentationConfig:
    """Largest disturbances; each copy draws its own, evenly between none and these."""

    max_shift_pixels: float = Field(default=2.0, ge=0)
    max_zoom: float = Field(default=0.1, ge=0, lt=1)  # 0.1: between 10 % smaller and larger
    max_blur_pixels: float = Field(default=1.0, ge=0)  # sigma of a round Gaussian: worse seeing
    # Added, in units of the pipeline's error: 1 is as 0.38 mag less depth.
    max_noise_sigma: float = Field(default=1.0, ge=0)
    # All bands, spectrum and fluxes together: surveys agree on the zero point to about so much.
    max_brightness_mag: float = Field(default=0.05, ge=0)
    max_colour_mag: float = Field(default=0.03, ge=0)  # each band by itself
    drop_band: float = Field(default=0.2, ge=0, le=1)  # chance to lose one band
    drop_scalars: float = Field(default=0.3, ge=0, le=1)  # chance to lose all photometry


def turn(observation: Observation, rng: np.random.Generator) -> Observation:
    """A copy turned by a multiple of 90 degrees and perhaps mirrored: no pixel is resampled."""
    image = observation.image
    if image is None:
        return observation
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    return replace(observation, image=turned(image, quarters, mirrored=mirrored))


def disturb(
    observation: Observation, rng: np.random.Generator, config: AugmentationConfig
) -> Observation:
    """A copy under all disturbances of the configuration."""
    brightness = 10 ** (-0.4 * rng.uniform(-1, 1) * config.max_brightness_mag)
    scalars = {
        key: value * brightness if STREAM[key].unit == "nmgy" else value
        for key, value in observation.scalars.items()
    }
    two_parts = observation.image is not None and observation.spectrum is not None
    if two_parts and rng.random() < config.drop_scalars:
        scalars = {}
    image, spectrum = observation.image, observation.spectrum
    if image is not None:
        image = _disturb_image(image, brightness, rng, config)
    if spectrum is not None:
        spectrum = _disturb_spectrum(spectrum, brightness, rng, config)
    return replace(observation, image=image, spectrum=spectrum, scalars=scalars)


def _disturb_image(
    image: Image, brightness: float, rng: np.random.Generator, config: AugmentationConfig
) -> Image:
    if len(image.bands) > MIN_BANDS and rng.random() < config.drop_band:
        lost = int(rng.integers(len(image.bands)))
        kept = [number for number in range(len(image.bands)) if number != lost]
        image = replace(
            image,
            flux=image.flux[kept],
            ivar=image.ivar[kept],
            mask=image.mask[kept],
            bands=tuple(image.bands[number] for number in kept),
        )
    grid = _grid(image.flux.shape[1:], rng, config)
    flux = _sample(image.flux, grid, mode="bicubic")
    ivar = _sample(image.ivar, grid, mode="nearest")
    mask = _sample(image.mask.astype(np.float32), grid, mode="nearest") > 0.5
    flux = _blur(flux, rng.uniform() * config.max_blur_pixels)
    colour = 10 ** (-0.4 * rng.uniform(-1, 1, len(image.bands)) * config.max_colour_mag)
    gain = torch.from_numpy(brightness * colour).float()[:, None, None]
    sigma = torch.where(ivar > 0, ivar.clamp_min(1e-12).rsqrt(), 0.0)
    noise = torch.from_numpy(rng.standard_normal(tuple(flux.shape), dtype=np.float32))
    depth = rng.uniform() * config.max_noise_sigma
    flux = (flux + noise * sigma * depth) * gain
    ivar = ivar / (gain**2 * (1 + depth**2))
    return replace(
        image,
        flux=torch.where(mask, 0.0, flux).numpy(),
        ivar=torch.where(mask, 0.0, ivar).numpy(),
        mask=mask.numpy(),
    )


def _disturb_spectrum(
    spectrum: Spectrum, brightness: float, rng: np.random.Generator, config: AugmentationConfig
) -> Spectrum:
    sigma = np.where(spectrum.ivar > 0, 1 / np.sqrt(np.maximum(spectrum.ivar, 1e-12)), 0)
    depth = rng.uniform() * config.max_noise_sigma
    noise = rng.standard_normal(len(sigma)) * sigma * depth
    flux = (spectrum.flux + noise) * brightness
    ivar = spectrum.ivar / (brightness**2 * (1 + depth**2))
    return replace(spectrum, flux=flux.astype(np.float32), ivar=ivar.astype(np.float32))


def _grid(
    shape: tuple[int, ...], rng: np.random.Generator, config: AugmentationConfig
) -> Float[Tensor, "1 y x 2"]:
    """Where each new pixel looks in the old image: turned, mirrored, shifted and zoomed."""
    angle = rng.uniform(0, 2 * math.pi)
    zoom = 1 + rng.uniform(-1, 1) * config.max_zoom
    mirror = rng.choice([-1.0, 1.0])
    shift_x, shift_y = rng.uniform(-1, 1, 2) * config.max_shift_pixels * 2 / np.array(shape[::-1])
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    matrix = torch.tensor([[[mirror * cos, -sin, shift_x], [mirror * sin, cos, shift_y]]])
    return F.affine_grid(matrix.float(), [1, 1, *shape], align_corners=False)


def _sample(
    planes: ndarray, grid: Float[Tensor, "1 y x 2"], *, mode: str
) -> Float[Tensor, "band y x"]:
    # Beyond the edge the image is mirrored, so that its sky noise goes on.
    tensor = torch.from_numpy(np.ascontiguousarray(planes))[None]
    return F.grid_sample(tensor, grid, mode=mode, padding_mode="reflection", align_corners=False)[0]


def _blur(flux: Float[Tensor, "band y x"], sigma: float) -> Float[Tensor, "band y x"]:
    if sigma < 0.2:  # narrower than what a pixel grid can hold
        return flux
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = F.pad(flux[:, None], (reach,) * 4, mode="reflect")
    planes = F.conv2d(planes, kernel[None, None, :, None])
    return F.conv2d(planes, kernel[None, None, None, :])[:, 0]
