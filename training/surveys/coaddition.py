"""Spectra of several arms or exposures of one object as one spectrum, weighted by ivar.

Pixels of one wavelength are averaged with their inverse variances as weights and their inverse
variances add up, which conserves flux; nothing is resampled, so the grids must be aligned. It is
what desispec.coaddition.coadd_cameras does, except that masked pixels have no weight here.

Source: desispec (github.com/desihub/desispec), Guy et al. 2023, AJ 165, 144, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from training.observations import Spectrum

TOLERANCE_ANGSTROM = 1e-4  # of two pixels of one wavelength
DESI_GRID_ANGSTROM = 3600.0 + 0.8 * np.arange(7781)  # vacuum, 3600 to 9824


def common_grid(arms: Sequence[Float64[ndarray, " _"]]) -> Float64[ndarray, " wavelength"]:
    """One ascending grid that holds every pixel of all arms: DESI's where they lie on it.

    On DESI's grid an arm that is missing leaves its pixels there, without information.

    Raises:
        ValueError: there is no arm, the arms are not aligned, or they leave a gap.
    """
    if not arms:
        raise ValueError("no arm")
    if all(_lies_on(DESI_GRID_ANGSTROM, arm) for arm in arms):
        return DESI_GRID_ANGSTROM
    ordered = sorted(arms, key=lambda arm: float(arm[0]))
    grid = ordered[0]
    for arm in ordered[1:]:
        grid = np.append(grid, arm[arm > grid[-1] + TOLERANCE_ANGSTROM])
    for arm in arms:
        if not _lies_on(grid, arm):
            raise ValueError("the wavelengths of the arms are not aligned where they overlap")
    steps = np.diff(grid)
    if len(steps) and steps.max() > 2 * np.median(steps) and len(arms) > 1:
        gap = int(steps.argmax())
        raise ValueError(f"a gap from {grid[gap]:.1f} to {grid[gap + 1]:.1f} Angstrom")
    return grid


def first_pixel(grid: Float64[ndarray, " wavelength"], arm: Float64[ndarray, " pixel"]) -> int:
    """Index on the grid of the first pixel of an arm."""
    return int(np.abs(grid - arm[0]).argmin())


def coadd(
    parts: Iterable[tuple[int, ndarray, ndarray]], grid: Float64[ndarray, " wavelength"]
) -> Spectrum:
    """The weighted mean of parts, each its first pixel on the grid, flux and ivar.

    Values that are not finite and inverse variances that are not positive have no weight.

    Raises:
        ValueError: no pixel is usable.
    """
    total = np.zeros(len(grid))
    weight = np.zeros(len(grid))
    with np.errstate(over="ignore", invalid="ignore"):
        for first, flux, ivar in parts:
            good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
            part = slice(first, first + len(flux))
            used = np.where(good, ivar, 0).astype(np.float64)
            weight[part] += used
            total[part] += used * np.where(good, flux, 0)
        flux = (total / np.where(weight > 0, weight, 1)).astype(np.float32)
        ivar = weight.astype(np.float32)
    mask = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0))
    if mask.all():
        raise ValueError("no usable pixel: ivar is 0 everywhere, or all are masked")
    return Spectrum(
        flux=np.where(mask, np.float32(0), flux),
        ivar=np.where(mask, np.float32(0), ivar),
        mask=mask,
        wavelength_angstrom=grid,
    )


def _lies_on(grid: ndarray, arm: ndarray) -> bool:
    first = first_pixel(grid, arm)
    where = grid[first : first + len(arm)]
    return len(where) == len(arm) and bool(np.abs(where - arm).max() <= TOLERANCE_ANGSTROM)
