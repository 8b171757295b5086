"""Stars too bright for the camera: halo and diffraction spikes, on the fine grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.sky.canvas import GRID_SIZE, PIXEL_AREA, STEP_ARCSEC, axis_arcsec

_HALO_SHARE, _SPIKE_SHARE = 0.05, 0.015
_HALO_ARCSEC, _SPIKE_WIDTH_ARCSEC = 3.5, 0.22


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturatedStar:
    """A bright star in the frame or just outside."""

    x_arcsec: float
    y_arcsec: float
    flux_nmgy: tuple[float, ...]  # g, r, i, z
    spike_deg: float  # of one spike; the others stand at right angles
    spike_arcsec: float  # over which they fade
    bleed_pixels: tuple[int, ...]  # to either side along its row, in each band


def add_glare(scenes: Tensor, stars: Sequence[SaturatedStar | None]) -> None:
    """Add saturated stars to the unblurred scenes (object, band, y, x), in place."""
    for scene, star in zip(scenes, stars, strict=True):
        if star is not None:
            flux = torch.tensor(star.flux_nmgy, dtype=torch.float32, device=scene.device)
            scene += flux[:, None, None] * _star_map(star, scene.device)


def _star_map(star: SaturatedStar, device: torch.device) -> Tensor:
    axis = axis_arcsec(device)
    dx, dy = (axis - star.x_arcsec)[None, :], (axis - star.y_arcsec)[:, None]
    squared = dx * dx + dy * dy
    # (1 + (r/a)^2)^-1.5 has the integral 2 pi a^2
    light = (_HALO_SHARE * PIXEL_AREA / (2 * math.pi * _HALO_ARCSEC**2)) * (
        1 + squared / _HALO_ARCSEC**2
    ) ** -1.5
    angle = math.radians(star.spike_deg)
    along = dx * math.cos(angle) + dy * math.sin(angle)
    across = dy * math.cos(angle) - dx * math.sin(angle)
    whole = 4 * star.spike_arcsec * math.sqrt(2 * math.pi) * _SPIKE_WIDTH_ARCSEC
    for run, side in ((along, across), (across, along)):
        narrow = torch.exp(-0.5 * (side / _SPIKE_WIDTH_ARCSEC) ** 2)
        light = light + (_SPIKE_SHARE * PIXEL_AREA / whole) * narrow * torch.exp(
            -run.abs() / star.spike_arcsec
        )
    middle = (GRID_SIZE - 1) / 2
    column, row = star.x_arcsec / STEP_ARCSEC + middle, star.y_arcsec / STEP_ARCSEC + middle
    if 0 <= column < GRID_SIZE - 1 and 0 <= row < GRID_SIZE - 1:
        light[round(row), round(column)] += 1 - _HALO_SHARE - _SPIKE_SHARE
    return light
