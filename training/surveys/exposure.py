"""What a camera makes of a drawn frame: noise of sky and photons, cosmic rays, bad columns."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from training.observations import PIXEL_SCALE_ARCSEC, Image
from training.sky.scene import Conditions
from training.sky.starlight import BANDS, NUM_BANDS

_SKY_MAG_ARCSEC2 = (22.0, 21.1, 20.2, 19.0)


def observe(
    clean: Float32[ndarray, "band y x"],
    conditions: Conditions,
    *,
    with_i: bool,
    rng: np.random.Generator,
) -> Image:
    """Add the noise of sky and photons, and now and then a defect of the camera.

    Args:
        clean: Frame without noise in all four bands, nanomaggies per pixel.
        conditions: The night.
        with_i: Whether the i band is kept.
        rng: Source of randomness.
    """
    bands = [band for band in range(NUM_BANDS) if with_i or BANDS[band] != "DES-I"]
    clean = clean[bands]
    sigma = np.array(conditions.sky_sigma_nmgy, dtype=np.float32)[bands][:, None, None]
    sky = np.array([10 ** (0.4 * (22.5 - m)) for m in _SKY_MAG_ARCSEC2], dtype=np.float32)
    sky_nmgy = (sky * PIXEL_SCALE_ARCSEC**2)[bands][:, None, None]
    # photon counting: variance grows with the light as it does with the sky's own
    variance = sigma**2 * (1 + np.maximum(clean, 0) / sky_nmgy)
    ivar = _rounded_down(1 / variance, bits=9)
    noise = rng.standard_normal(clean.shape, dtype=np.float32) / np.sqrt(ivar)
    step = np.exp2(np.floor(np.log2(sigma / 16)))  # as survey files are compressed
    flux = np.round((clean + noise) / step) * step
    mask = _defects(flux.shape, rng)
    flux[mask] = 0
    ivar[mask] = 0
    return Image(
        flux=flux.astype(np.float32),
        ivar=ivar,
        mask=mask,
        bands=tuple(BANDS[band] for band in bands),
    )


def _rounded_down(values: Float32[ndarray, "*shape"], *, bits: int) -> Float32[ndarray, "*shape"]:
    """Keep so many bits of the mantissa: files compress better and noise is drawn to match."""
    keep = np.uint32(0xFFFFFFFF << (23 - bits) & 0xFFFFFFFF)
    return (values.astype(np.float32).view(np.uint32) & keep).view(np.float32)


def _defects(shape: tuple[int, ...], rng: np.random.Generator) -> Bool[ndarray, "band y x"]:
    """Bad pixels in every tenth frame or so: cosmic rays, bad columns, a missing corner."""
    mask = np.zeros(shape, dtype=bool)
    size = shape[-1]
    if rng.random() < 0.10:
        for _ in range(int(rng.integers(1, 5))):
            band, row, column = rng.integers(shape[0]), rng.integers(size), rng.integers(size)
            slope = float(rng.uniform(-1, 1))
            for step in range(int(rng.integers(2, 9))):
                y, x = int(row + slope * step), int(column + step)
                if 0 <= y < size and x < size:
                    mask[band, y, x] = True
    if rng.random() < 0.04:
        first = int(rng.integers(size))
        mask[rng.integers(shape[0]), :, first : first + int(rng.integers(1, 3))] = True
    if rng.random() < 0.01:
        mask[rng.integers(shape[0]), : int(rng.integers(4, 24)), :] = True
    return mask
