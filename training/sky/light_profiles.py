"""Smooth profiles of galaxy light: exponential and Sersic, and the planes that they lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.sky.canvas import (
    GRID_SIZE,
    PIXEL_AREA,
    STEP_ARCSEC,
    Plane,
    axis_arcsec,
    column,
    plane,
    total,
)
from training.sky.objects import Galaxy

HALF_LIGHT_SCALES = 1.678  # half-light radius of an exponential disc over its scale length


@dataclass(frozen=True, slots=True)
class Layer:
    """Part of a galaxy with one map; lane is the optical depth before it, where there is one."""

    light: Tensor  # (y, x)
    share: float  # of the galaxy's light in r
    population: str  # "bulge", "disc" or "young"
    lane: Tensor | None = None


def exponential(
    radius: Tensor, half_light_arcsec: Sequence[float], axis_ratio: Sequence[float]
) -> Tensor:
    """Exponential discs; radius is measured in the plane of the disc, arcsec."""
    device = radius.device
    scale = [half / HALF_LIGHT_SCALES for half in half_light_arcsec]
    height = [
        PIXEL_AREA / (2 * math.pi * s**2 * ratio)
        for s, ratio in zip(scale, axis_ratio, strict=True)
    ]
    return torch.exp(radius * column([-1 / s for s in scale], device)) * column(height, device)


def with_light_of(changed: Tensor, smooth: Tensor) -> Tensor:
    """The changed maps with as much light on the grid as the smooth ones."""
    return changed * (total(smooth) / total(changed))


def sersic_steepness(index: float) -> float:
    """b of exp(-b r^(1/n)) with half the light inside r = 1 (Ciotti & Bertin 1999, A&A 352, 447).

    Better than 3e-5 for indices of 1 and more.
    """
    terms = (4 / 405, 46 / 25515, 131 / 1148175, -2194697 / 30690717750)
    return 2 * index - 1 / 3 + sum(t / index ** (k + 1) for k, t in enumerate(terms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sersic:
    """A Sersic (1963) profile; radius is that of half the light along the major axis times the
    root of the axis ratio, as GalSim's shear keeps it."""

    x_arcsec: float
    y_arcsec: float
    radius_arcsec: float
    index: float
    axis_ratio: float
    angle_deg: float


def sersic_maps(profiles: Sequence[Sersic], device: torch.device) -> Tensor:
    """One map a profile, (profile, y, x)."""
    major = [p.radius_arcsec / math.sqrt(p.axis_ratio) for p in profiles]
    steepness = [sersic_steepness(p.index) for p in profiles]
    whole = [
        2 * math.pi * p.index * b ** (-2 * p.index) * math.gamma(2 * p.index)
        for p, b in zip(profiles, steepness, strict=True)
    ]
    centre_value = column(
        [
            PIXEL_AREA / (w * m**2 * p.axis_ratio)
            for w, m, p in zip(whole, major, profiles, strict=True)
        ],
        device,
    )
    angles = [math.radians(p.angle_deg) for p in profiles]
    cosine = column([math.cos(angle) for angle in angles], device)
    sine = column([math.sin(angle) for angle in angles], device)
    along_scale = 1 / column(major, device)
    across_scale = 1 / column(
        [m * p.axis_ratio for m, p in zip(major, profiles, strict=True)], device
    )
    half_power = column([0.5 / p.index for p in profiles], device)
    falling = column([-b for b in steepness], device)
    x0 = column([p.x_arcsec for p in profiles], device)
    y0 = column([p.y_arcsec for p in profiles], device)

    def profile(x: Tensor, y: Tensor) -> Tensor:
        dx, dy = x - x0, y - y0
        along = dx * (cosine * along_scale) + dy * (sine * along_scale)
        across = dy * (cosine * across_scale) - dx * (sine * across_scale)
        squared = along * along + across * across + 1e-10
        return torch.exp(falling * torch.exp(half_power * torch.log(squared))) * centre_value

    axis = axis_arcsec(device)
    light = profile(axis[None, None, :], axis[None, :, None])
    # the cusp is steeper than a fine pixel: average over finer and finer points towards it
    which = torch.arange(len(profiles), device=device)[:, None, None]
    for half_width, points in ((8, 9), (1, 101)):
        side = 2 * half_width
        columns = _pixels_around([p.x_arcsec for p in profiles], half_width, device)
        rows = _pixels_around([p.y_arcsec for p in profiles], half_width, device)
        inner = (torch.arange(points, device=device) - points // 2) / points * STEP_ARCSEC
        x = (axis[columns][:, :, None] + inner).flatten(1)  # (profile, side * points)
        y = (axis[rows][:, :, None] + inner).flatten(1)
        fine = profile(x[:, None, :], y[:, :, None])
        averaged = fine.reshape(len(profiles), side, points, side, points).mean(dim=4).mean(dim=2)
        light[which, rows[:, :, None], columns[:, None, :]] = averaged
    return light


def _pixels_around(places: Sequence[float], half_width: int, device: torch.device) -> Tensor:
    """Fine pixels beside places in arcsec on one axis, (place, 2 * half_width)."""
    edge = -(GRID_SIZE - 1) / 2 * STEP_ARCSEC
    middle = [min(max(int((place - edge) / STEP_ARCSEC + 1), 8), GRID_SIZE - 8) for place in places]
    offsets = torch.arange(-half_width, half_width, device=device)
    return torch.tensor(middle, device=device)[:, None] + offsets


def planes_of(galaxies: Sequence[Galaxy], axis_ratio: list[float], device: torch.device) -> Plane:
    return plane(
        x_arcsec=[galaxy.x_arcsec for galaxy in galaxies],
        y_arcsec=[galaxy.y_arcsec for galaxy in galaxies],
        angle_deg=[galaxy.angle_deg for galaxy in galaxies],
        axis_ratio=axis_ratio,
        device=device,
    )
