"""Any image -> the 96 x 96 pixels, of 0.262 arcsec where not said otherwise, the encoder sees.

All arithmetic is on surface brightness (flux per pixel of a FIXED area), averaged over each new
pixel: that conserves the flux of a source whatever the old and the new pixel are. Rows run south
to north and columns east to west, as in a FITS image with north up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Image

# Closer to the native pixel than this, an image is cropped, not resampled: averaging over shifted
# pixels would smooth it and correlate its noise. Flux is then off by 1 % at most.
NATIVE_TOLERANCE = 0.005
MIN_COVERED = 0.5  # a new pixel less covered than this by good old ones is bad
MIN_SIGMA_NMGY = 1e-5  # noise of a noiseless (simulated) image, so that ivar stays finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutout:
    """An image of the size the encoder sees, and what was done to get there."""

    image: Image
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upright:
    """Planes with north up and east left, and the size of their pixels."""

    planes: Float32[ndarray, "plane y x"]
    scale_y_arcsec: float
    scale_x_arcsec: float


def cut_out(
    planes: Float32[ndarray, "band y x"],
    *,
    bands: tuple[str, ...],
    scale_y_arcsec: float,
    scale_x_arcsec: float,
    ivar: Float32[ndarray, "band y x"] | None = None,
    min_sigma_nmgy: Float64[ndarray, " band"] | None = None,
    pixel_scale_arcsec: float = PIXEL_SCALE_ARCSEC,
) -> Cutout:
    """Cut the central 96 new pixels out of an image: 25 arcsec at 0.262 arcsec a pixel.

    Args:
        planes: Nanomaggies per AREA of a new pixel, whatever the pixels are. NaN is bad.
        bands: Names from BANDS. A band without any good pixel is left out, with a note.
        scale_y_arcsec: Height of a pixel.
        scale_x_arcsec: Width of a pixel.
        ivar: Inverse variance of `planes`, 0 or less and NaN are bad; estimated from the noise
            of the sky where absent.
        min_sigma_nmgy: Lower limit of an estimated noise, one a band.
        pixel_scale_arcsec: Height and width of a new pixel.

    Raises:
        ValueError: the pixel scale is not positive or one pixel is larger than the cutout, or no
            pixel is usable.
    """
    if not (scale_y_arcsec > 0 and scale_x_arcsec > 0):
        raise ValueError(
            f"pixel scale must be positive, got {scale_y_arcsec} x {scale_x_arcsec} arcsec"
        )
    extent_arcsec = IMAGE_SIZE * pixel_scale_arcsec
    if max(scale_y_arcsec, scale_x_arcsec) > extent_arcsec:
        raise ValueError(
            f"pixel scale must be below the {extent_arcsec:.0f} arcsec that are cut out, got "
            f"{scale_y_arcsec:g} x {scale_x_arcsec:g} arcsec"
        )
    height, width = planes.shape[1:]
    rows = _weights(height, scale_y_arcsec, pixel_scale_arcsec)
    columns = _weights(width, scale_x_arcsec, pixel_scale_arcsec)
    padded = bool(rows.sum(1).min() * columns.sum(1).min() < MIN_COVERED)
    # What lies beyond takes no part.
    y, x = _reach(rows), _reach(columns)
    rows, columns, planes = rows[:, y], columns[:, x], planes[:, y, x]
    good = np.isfinite(planes)
    if ivar is not None:
        ivar = ivar[:, y, x]
        good &= np.isfinite(ivar) & (ivar > 0)
    usable = good.any(axis=(1, 2))
    if not usable.any():
        raise ValueError(
            f"no usable pixel in the central {extent_arcsec:.0f} arcsec: every one is NaN, "
            "without data, or its inverse variance is not positive"
        )
    notes = []
    if not usable.all():
        lost = [band for band, kept in zip(bands, usable, strict=True) if not kept]
        notes.append(f"no usable pixel in {', '.join(lost)}: left out")
    planes, good = planes[usable], good[usable]
    bands = tuple(band for band, kept in zip(bands, usable, strict=True) if kept)
    flux, covered = _average(planes, good, rows, columns)
    mask = covered < MIN_COVERED
    if mask.all():
        raise ValueError("no usable pixel: fewer than half of those under any new pixel are good")
    flux[mask] = 0
    if ivar is None:
        floor = np.full(len(usable), MIN_SIGMA_NMGY) if min_sigma_nmgy is None else min_sigma_nmgy
        sigma = np.maximum(sky_noise(flux, mask), floor[usable])
        new_ivar = np.where(mask, 0, 1 / sigma[:, None, None] ** 2).astype(np.float32)
        notes.append("ivar estimated")
    else:
        new_ivar, _ = _average(ivar[usable], good, rows, columns)
        new_ivar[mask] = 0
    if padded:
        notes.append(f"padded from {height} x {width} px")
    return Cutout(image=Image(flux, new_ivar, mask, bands, pixel_scale_arcsec), notes=tuple(notes))


def sky_noise(
    flux: Float32[ndarray, "band y x"], mask: Bool[ndarray, "band y x"]
) -> Float64[ndarray, " band"]:
    """Standard deviation of the sky in each band, from second differences two pixels apart.

    A smooth galaxy has next to none of those, and their median ignores stars, so an object that
    fills the image does not raise the noise. Two pixels, since neighbours are correlated by
    resampling. 0 where fewer than 16 pixels can be compared.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # near the limit of float32
        differences = flux[:, :, :-4] - 2 * flux[:, :, 2:-2] + flux[:, :, 4:]
    bad = mask[:, :, :-4] | mask[:, :, 2:-2] | mask[:, :, 4:]
    sigma = np.zeros(len(flux))
    for band in range(len(flux)):
        kept = np.abs(differences[band][~bad[band]])
        if len(kept) >= 16:
            sigma[band] = 1.4826 * np.median(kept) / np.sqrt(6)
    return sigma


def upright(
    planes: Float32[ndarray, "plane y x"], degrees_per_pixel: Float64[ndarray, "2 2"]
) -> Upright:
    """Turn planes so that rows run to the north and columns to the west.

    Args:
        planes: Any planes on one grid.
        degrees_per_pixel: What one step in (x, y) is in (east, north): the CD matrix of a WCS.

    Returns:
        The planes flipped or transposed where that does it, else rotated about their centre
        (bilinear) onto square pixels of the same area, NaN beyond the old edge.

    Raises:
        ValueError: the matrix has no inverse.
    """
    (east_x, east_y), (north_x, north_y) = degrees_per_pixel * 3600
    area = abs(east_x * north_y - east_y * north_x)
    if not (np.isfinite(area) and area > 0):
        raise ValueError(f"WCS: expected a CD matrix with an inverse, got {degrees_per_pixel}")
    if abs(east_y) + abs(north_x) < 0.01 * (abs(east_x) + abs(north_y)):
        return Upright(
            planes=planes[:, :: 1 if north_y > 0 else -1, :: 1 if east_x < 0 else -1],
            scale_y_arcsec=abs(north_y),
            scale_x_arcsec=abs(east_x),
        )
    if abs(east_x) + abs(north_y) < 0.01 * (abs(east_y) + abs(north_x)):
        return upright(planes.transpose(0, 2, 1), degrees_per_pixel[:, ::-1])
    scale = float(np.sqrt(area))
    height, width = planes.shape[1:]
    size = max(height, width)
    offsets = (np.arange(size) - (size - 1) / 2) * scale
    north, east = np.meshgrid(offsets, -offsets, indexing="ij")
    inverse = np.linalg.inv(degrees_per_pixel * 3600)
    x = inverse[0, 0] * east + inverse[0, 1] * north + (width - 1) / 2
    y = inverse[1, 0] * east + inverse[1, 1] * north + (height - 1) / 2
    outside = (x < 0) | (y < 0) | (x > width - 1) | (y > height - 1)
    x0 = np.clip(x.astype(int), 0, width - 2)
    y0 = np.clip(y.astype(int), 0, height - 2)
    fx, fy = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    turned = (planes[:, y0, x0] * (1 - fx) + planes[:, y0, x0 + 1] * fx) * (1 - fy)
    turned += (planes[:, y0 + 1, x0] * (1 - fx) + planes[:, y0 + 1, x0 + 1] * fx) * fy
    turned[:, outside] = np.nan
    return Upright(planes=turned, scale_y_arcsec=scale, scale_x_arcsec=scale)


def _average(
    planes: Float32[ndarray, "band y x"],
    good: Bool[ndarray, "band y x"],
    rows: Float32[ndarray, "new y"],
    columns: Float32[ndarray, "new x"],
) -> tuple[Float32[ndarray, "band new new"], Float32[ndarray, "band new new"]]:
    """Mean of the good old pixels under each new one, and the share of it they cover."""
    if good.all():
        covered = np.broadcast_to(
            rows.sum(1)[:, None] * columns.sum(1)[None, :], (len(planes), len(rows), len(columns))
        ).astype(np.float32)
        total = rows @ planes @ columns.T
    else:
        covered = rows @ good.astype(np.float32) @ columns.T
        total = rows @ np.where(good, planes, 0).astype(np.float32) @ columns.T
    return total / np.maximum(covered, 1e-6), covered


def _reach(weights: Float32[ndarray, "new old"]) -> slice:
    """The old pixels that take part."""
    used = np.flatnonzero(weights.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1)


@lru_cache(maxsize=64)
def _weights(
    num_old: int, scale_arcsec: float, new_scale_arcsec: float
) -> Float32[ndarray, "new old"]:
    """Share of each new pixel that each old pixel covers, along one axis with common centres.

    Shrinking: overlap of old and new pixels. Growing: the old pixels are joined by straight lines
    first, so that no blocks appear. Both conserve flux exactly: away from the edges the shares of
    one old pixel add up to its size in new pixels.
    """
    step = new_scale_arcsec / scale_arcsec  # size of a new pixel in old ones
    if abs(step - 1) < NATIVE_TOLERANCE:
        first = num_old // 2 - IMAGE_SIZE // 2  # an odd centre goes to pixel 48
        weights = np.zeros((IMAGE_SIZE, num_old), np.float32)
        new = np.arange(IMAGE_SIZE)
        inside = (new + first >= 0) & (new + first < num_old)
        weights[new[inside], new[inside] + first] = 1
        return weights
    edges = num_old / 2 + (np.arange(IMAGE_SIZE + 1) - IMAGE_SIZE / 2) * step
    old = np.arange(num_old)
    reach = np.clip(edges[:, None] - old - 0.5, -1, 1)  # from the centre of the old pixel
    if step >= 1:
        below = np.clip(edges[:, None] - old, 0, 1)
    else:
        below = 0.5 + reach - np.sign(reach) * reach**2 / 2  # integral of a tent of width 2
    return (np.diff(below, axis=0) / step).astype(np.float32)
