"""Field galaxies and stars in a frame, drawn in small windows, those of many frames at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.sky.canvas import GRID_SIZE, PIXEL_AREA, STEP_ARCSEC
from training.sky.light_profiles import HALF_LIGHT_SCALES
from training.sky.objects import Neighbour

_REACH_RADII = 5  # half-light radii that a window holds to either side
_CENTRE = (GRID_SIZE - 1) / 2


def add_neighbours(scenes: Tensor, neighbours: Sequence[Sequence[Neighbour]]) -> None:
    """Add what else is in each frame to the unblurred scenes (object, band, y, x), in place."""
    sizes: dict[int, list[tuple[int, Neighbour]]] = {}
    for row, some in enumerate(neighbours):
        for neighbour in some:
            sizes.setdefault(_window(neighbour), []).append((row, neighbour))
    for size in sorted(sizes):  # one order for all batches, so that sums are the same
        rows = [row for row, _ in sizes[size]]
        some = [neighbour for _, neighbour in sizes[size]]
        if size == 0:
            _add_points(scenes, rows, some)
        else:
            _add_discs(scenes, rows, some, size)


def _reach(neighbour: Neighbour) -> int:
    """Fine pixels to either side."""
    return min(max(int(_REACH_RADII * neighbour.radius_arcsec / STEP_ARCSEC), 6), GRID_SIZE)


def _window(neighbour: Neighbour) -> int:
    """Side of its window in fine pixels: a power of two, or 0 for a star."""
    if neighbour.radius_arcsec == 0:
        return 0
    return int(min(2 ** math.ceil(math.log2(2 * _reach(neighbour) + 1)), GRID_SIZE))


def _numbers(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def _flux(neighbours: list[Neighbour], like: Tensor) -> Tensor:
    flux = torch.tensor([n.flux_nmgy for n in neighbours], dtype=torch.float32, device=like.device)
    return flux[:, :, None, None]


def _add_points(scenes: Tensor, rows: list[int], stars: list[Neighbour]) -> None:
    places = [
        (star.y_arcsec / STEP_ARCSEC + _CENTRE, star.x_arcsec / STEP_ARCSEC + _CENTRE)
        for star in stars
    ]
    weights = []
    for y, x in places:
        dy, dx = y - int(y), x - int(x)
        weights.append([[(1 - dy) * (1 - dx), (1 - dy) * dx], [dy * (1 - dx), dy * dx]])
    light = torch.tensor(weights, dtype=torch.float32, device=scenes.device)[:, None]
    corners = [(int(y), int(x)) for y, x in places]
    _add_windows(scenes, rows, corners, light * _flux(stars, scenes))


def _add_discs(scenes: Tensor, rows: list[int], discs: list[Neighbour], size: int) -> None:
    corners, reaches = [], []
    for disc in discs:
        centre = (
            int(disc.y_arcsec / STEP_ARCSEC + _CENTRE),
            int(disc.x_arcsec / STEP_ARCSEC + _CENTRE),
        )
        limit = GRID_SIZE - size
        corners.append(
            (min(max(centre[0] - size // 2, 0), limit), min(max(centre[1] - size // 2, 0), limit))
        )
        reaches.append((_reach(disc) + 0.5) * STEP_ARCSEC)
    pixel = torch.arange(size, device=scenes.device)
    low = torch.tensor(corners, device=scenes.device)

    def offset(corner: Tensor, centre_arcsec: list[float]) -> Tensor:
        steps = corner[:, None] + pixel - _CENTRE
        return steps * STEP_ARCSEC - _numbers(centre_arcsec, scenes)[:, None]

    up = offset(low[:, 0], [disc.y_arcsec for disc in discs])[:, :, None]
    right = offset(low[:, 1], [disc.x_arcsec for disc in discs])[:, None, :]
    angles = [math.radians(disc.angle_deg) for disc in discs]
    cosine = _numbers([math.cos(angle) for angle in angles], scenes)[:, None, None]
    sine = _numbers([math.sin(angle) for angle in angles], scenes)[:, None, None]
    ratio = _numbers([disc.axis_ratio for disc in discs], scenes)[:, None, None]
    along = right * cosine + up * sine
    across = (up * cosine - right * sine) / ratio
    scale = [disc.radius_arcsec / HALF_LIGHT_SCALES for disc in discs]
    height = [
        PIXEL_AREA / (2 * math.pi * s**2 * disc.axis_ratio)
        for s, disc in zip(scale, discs, strict=True)
    ]
    falling = _numbers([-1 / s for s in scale], scenes)[:, None, None]
    light = torch.exp(torch.sqrt(along * along + across * across) * falling)
    light = light * _numbers(height, scenes)[:, None, None]
    reach = _numbers(reaches, scenes)[:, None, None]
    light = light * ((up.abs() < reach) & (right.abs() < reach))
    _add_windows(scenes, rows, corners, light[:, None] * _flux(discs, scenes))


def _add_windows(
    scenes: Tensor, rows: list[int], corners: list[tuple[int, int]], light: Tensor
) -> None:
    """Add windows (window, band, y, x) to the scenes of those rows, low corner at those pixels."""
    device = scenes.device
    num_bands, size = scenes.shape[1], light.shape[-1]
    pixel = torch.arange(size, device=device)
    low = torch.tensor(corners, device=device)
    band = torch.arange(num_bands, device=device)[None, :] * GRID_SIZE
    band = band + torch.tensor(rows, device=device)[:, None] * num_bands * GRID_SIZE
    line = (band[:, :, None] + (low[:, 0, None] + pixel)[:, None, :]) * GRID_SIZE
    place = line[:, :, :, None] + (low[:, 1, None] + pixel)[:, None, None, :]
    scenes.view(-1).index_add_(0, place.flatten(), light.flatten())
