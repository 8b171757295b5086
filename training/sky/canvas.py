"""The fine grid that simulated light is drawn on before it is blurred, many objects at once.

The grid is twice as fine as the camera and a little wider than the frame, so that what lies just
outside still blurs into it. Maps are float32 tensors (map, y, x); numbers that differ between maps
are columns (map, 1, 1). Everything that draws images needs torch and numpy alone, so that it runs
on a computer with nothing else installed: array shapes stand in its docstrings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FRAME_SIZE = 96  # camera pixels a side: training.observations.IMAGE_SIZE
PIXEL_SCALE_ARCSEC = 0.262  # as in training.observations
OVERSAMPLING = 2
GRID_SIZE = 256  # fine pixels a side
MARGIN = (GRID_SIZE - OVERSAMPLING * FRAME_SIZE) // 2  # fine pixels outside the frame
STEP_ARCSEC = PIXEL_SCALE_ARCSEC / OVERSAMPLING
PIXEL_AREA = STEP_ARCSEC**2


@functools.cache
def axis_arcsec(device: torch.device) -> Tensor:
    """Offsets of fine pixels from the centre of the frame, (x,)."""
    steps = torch.arange(GRID_SIZE, dtype=torch.float64) - (GRID_SIZE - 1) / 2
    return (steps * STEP_ARCSEC).float().to(device)


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """One number a map, shaped to combine with maps."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def total(maps: Tensor) -> Tensor:
    """Light on the grid, a column; each row is added up alone, so batches change no bit."""
    return maps.sum(dim=-1).sum(dim=-1)[:, None, None]


@dataclass(frozen=True, slots=True)
class Plane:
    """Coordinates in the plane of a disc: along and across its major axis, and radius."""

    along: Tensor
    across: Tensor
    radius: Tensor

    def of(self, rows: list[int]) -> Plane:
        """The planes of some of the maps."""
        if len(rows) == len(self.radius):
            return self
        return Plane(self.along[rows], self.across[rows], self.radius[rows])


def plane(
    *,
    x_arcsec: Sequence[float],
    y_arcsec: Sequence[float],
    angle_deg: Sequence[float],
    axis_ratio: Sequence[float],
    device: torch.device,
) -> Plane:
    """The plane of one disc a map; lengths are arcsec, an inclined disc is seen foreshortened."""
    axis = axis_arcsec(device)
    dx = axis[None, None, :] - column(x_arcsec, device)
    dy = axis[None, :, None] - column(y_arcsec, device)
    cosine = column([math.cos(math.radians(angle)) for angle in angle_deg], device)
    sine = column([math.sin(math.radians(angle)) for angle in angle_deg], device)
    squeeze = 1 / column(axis_ratio, device)
    along = dx * cosine + dy * sine
    across = (dy * cosine) * squeeze - (dx * sine) * squeeze
    return Plane(along, across, torch.sqrt(along * along + across * across))


def each(transform: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """A Fourier transform of each map, or each object's bands.

    On a CPU they go one by one: its library rounds single and batched transforms differently, and
    an object must not depend on the batch it is drawn in.
    """
    if maps.device.type != "cpu":
        return transform(maps)
    return torch.stack([transform(one) for one in maps])


def to_camera(fine: Tensor) -> Tensor:
    """Add up fine pixels and cut the frame out: (..., y, x) to (..., row, column)."""
    frame = fine[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    frame = frame[..., 0::2, :] + frame[..., 1::2, :]
    return frame[..., 0::2] + frame[..., 1::2]
