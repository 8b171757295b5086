"""Strong gravitational lenses: elliptical power laws with shear, and the arcs that they make.

Deflection by an elliptical power law follows Tessore & Metcalf 2015, A&A 580, A79. Like all that
draws images it needs torch and numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from training.sky.canvas import GRID_SIZE, PIXEL_AREA, axis_arcsec, column
from training.sky.light_profiles import HALF_LIGHT_SCALES
from training.sky.objects import Clump, LensedSource, Mass

_TERMS = 16  # of the series, which falls as ((1 - q) / (1 + q))^n: 1e-8 at an axis ratio of 0.5
_NO_MASS = Mass(
    einstein_radius_arcsec=0.0, slope=2.0, axis_ratio=1.0, angle_deg=0.0, x_arcsec=0.0, y_arcsec=0.0
)
_NO_CLUMP = Clump(
    light=0.0, radius_arcsec=1.0, axis_ratio=1.0, angle_deg=0.0, x_arcsec=0.0, y_arcsec=0.0
)


@dataclass(frozen=True, slots=True)
class Deflection:
    """By how much light is bent on its way here, arcsec: image minus source position."""

    x: Tensor
    y: Tensor


def power_law_deflection(masses: Sequence[Mass], x: Tensor, y: Tensor) -> Deflection:
    """Deflection by one mass a row at places relative to its centre, arcsec, (mass, ...)."""
    device = x.device

    def number(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=device).reshape(-1, *[1] * (x.ndim - 1))

    cosine = number([math.cos(math.radians(mass.angle_deg)) for mass in masses])
    sine = number([math.sin(math.radians(mass.angle_deg)) for mass in masses])
    ratio = number([mass.axis_ratio for mass in masses])
    steepness = number([mass.slope - 1 for mass in masses])
    scale = number([m.einstein_radius_arcsec * math.sqrt(m.axis_ratio) for m in masses])
    along = (x * cosine + y * sine) * ratio
    across = y * cosine - x * sine
    radius = torch.sqrt(along * along + across * across).clamp(min=1e-6)
    # Omega as a sum of rotating terms, each made from the last one
    real, imaginary = along / radius, across / radius
    turn_real, turn_imaginary = real**2 - imaginary**2, 2 * real * imaginary
    sum_real, sum_imaginary = real, imaginary
    flattening = (1 - ratio) / (1 + ratio)
    for n in range(1, _TERMS):
        factor = -flattening * (2 * n - (2 - steepness)) / (2 * n + (2 - steepness))
        real, imaginary = (
            factor * (real * turn_real - imaginary * turn_imaginary),
            factor * (real * turn_imaginary + imaginary * turn_real),
        )
        sum_real, sum_imaginary = sum_real + real, sum_imaginary + imaginary
    strength = 2 / (1 + ratio) * scale**steepness * radius ** (1 - steepness)
    major, minor = strength * sum_real, strength * sum_imaginary
    return Deflection(major * cosine - minor * sine, major * sine + minor * cosine)


def deflection(sources: Sequence[LensedSource], x: Tensor, y: Tensor) -> Deflection:
    """Deflection by all masses before each source and by its shear, (source, ...)."""
    shape = [-1, *[1] * (x.ndim - 1)]

    def number(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(shape)

    first, second = (number([source.shear[k] for source in sources]) for k in (0, 1))
    bent_x, bent_y = first * x + second * y, second * x - first * y
    for masses in zip_longest(*(source.masses for source in sources), fillvalue=_NO_MASS):
        dx = x - number([mass.x_arcsec for mass in masses])
        dy = y - number([mass.y_arcsec for mass in masses])
        bent = power_law_deflection(masses, dx, dy)
        bent_x, bent_y = bent_x + bent.x, bent_y + bent.y
    return Deflection(bent_x, bent_y)


def arc_maps(
    sources: Sequence[LensedSource],
    x_arcsec: Sequence[float],
    y_arcsec: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Arcs around lenses at those places: light relative to the unlensed source's total.

    Rays are shot back from each fine pixel; surface brightness is kept, so the sum of a map is
    the magnification.
    """
    axis = axis_arcsec(device)
    shape = (len(sources), GRID_SIZE, GRID_SIZE)
    x = (axis[None, None, :] - column(x_arcsec, device)).expand(shape)
    y = (axis[None, :, None] - column(y_arcsec, device)).expand(shape)
    bent = deflection(sources, x, y)
    dx = x - bent.x - column([source.x_arcsec for source in sources], device)
    dy = y - bent.y - column([source.y_arcsec for source in sources], device)
    light = torch.zeros(shape, device=device)
    for clumps in zip_longest(*(_clumps(source) for source in sources), fillvalue=_NO_CLUMP):
        light = light + _clump_light(clumps, dx, dy, device)
    return light


def _clumps(source: LensedSource) -> tuple[Clump, ...]:
    smooth = Clump(
        light=1.0 - sum(clump.light for clump in source.clumps),
        radius_arcsec=source.radius_arcsec,
        axis_ratio=source.axis_ratio,
        angle_deg=source.angle_deg,
        x_arcsec=0.0,
        y_arcsec=0.0,
    )
    return (smooth, *source.clumps)


def _clump_light(clumps: Sequence[Clump], x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    """Exponential discs in the source plane."""
    scales = [clump.radius_arcsec / HALF_LIGHT_SCALES for clump in clumps]
    angles = [math.radians(clump.angle_deg) for clump in clumps]
    cosine = column([math.cos(a) / s for a, s in zip(angles, scales, strict=True)], device)
    sine = column([math.sin(a) / s for a, s in zip(angles, scales, strict=True)], device)
    dx = x - column([clump.x_arcsec for clump in clumps], device)
    dy = y - column([clump.y_arcsec for clump in clumps], device)
    along = dx * cosine + dy * sine
    across = (dy * cosine - dx * sine) / column([clump.axis_ratio for clump in clumps], device)
    height = [
        clump.light * PIXEL_AREA / (2 * math.pi * scale**2 * clump.axis_ratio)
        for clump, scale in zip(clumps, scales, strict=True)
    ]
    return torch.exp(-torch.sqrt(along * along + across * across)) * column(height, device)
