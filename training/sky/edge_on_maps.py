"""Discs seen from the side: their light, and the dust lane before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.sky.canvas import PIXEL_AREA, Plane, column
from training.sky.light_profiles import (
    HALF_LIGHT_SCALES,
    Layer,
    exponential,
    planes_of,
    with_light_of,
)
from training.sky.objects import Galaxy
from training.sky.textures import Texture, lane_maps, patch_maps


def k1_times(u: Tensor) -> Tensor:
    """u K1(u), the modified Bessel function (Abramowitz & Stegun 1964, 9.8.3, 9.8.7 and 9.8.8)."""
    t = (u / 3.75) ** 2
    i1 = _polynomial(
        t, (0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411)
    )
    s = u * u / 4
    small = u * u * torch.log(u / 2) * i1 + _polynomial(
        s, (1.0, 0.15443144, -0.67278579, -0.18156897, -0.01919402, -0.00110404, -0.00004686)
    )
    v = 2 / u.clamp(min=2)
    large = (
        torch.exp(-u)
        * torch.sqrt(u)
        * _polynomial(
            v,
            (1.25331414, 0.23498619, -0.03655620, 0.01504268, -0.00780353, 0.00325614, -0.00068245),
        )
    )
    return torch.where(u <= 2, small, large)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    out = torch.full_like(x, coefficients[-1])
    for lower in reversed(coefficients[:-1]):
        out = out * x + lower
    return out


def add_edge_on(
    layers: list[list[Layer]],
    galaxies: Sequence[Galaxy],
    textures: Sequence[Texture],
    chosen: list[int],
    device: torch.device,
) -> None:
    """Discs from the side (van der Kruit & Searle 1981), a flattened bulge, and a dust lane."""
    if not chosen:
        return
    discs, looks = [galaxies[k] for k in chosen], [textures[k] for k in chosen]
    seen = planes_of(discs, [1.0] * len(discs), device)
    scales = [galaxy.radius_arcsec / HALF_LIGHT_SCALES for galaxy in discs]
    scale = column(scales, device)
    along = seen.along.abs() / scale + 1e-3
    lanes = _lanes(seen, along, scales, discs, looks)
    profile = k1_times(along)
    patches = torch.exp(
        column([galaxy.patchiness for galaxy in discs], device) * patch_maps(looks, device)
    )
    maps = {}
    for name, thick in (("disc", 1.0), ("young", 0.6)):
        heights = [g.thickness * thick * s for g, s in zip(discs, scales, strict=True)]
        smooth = (
            profile / torch.cosh((seen.across.abs() / column(heights, device)).clamp(max=20)) ** 2
        )
        # integrals: K1(u) u over u is pi, sech^2 over both sides is 2
        whole = [2 * math.pi * s * h / PIXEL_AREA for s, h in zip(scales, heights, strict=True)]
        smooth = smooth / column(whole, device)
        maps[name] = with_light_of(smooth * patches, smooth) if name == "young" else smooth
    ratio = [galaxy.bulge_axis_ratio for galaxy in discs]
    around = planes_of(discs, ratio, device)
    bulges = exponential(around.radius, [max(0.5, g.bulge_radius_arcsec) for g in discs], ratio)
    for row, (k, galaxy) in enumerate(zip(chosen, discs, strict=True)):
        share = 1 - galaxy.bulge_share
        for name, part in (("disc", 1 - galaxy.young_share), ("young", galaxy.young_share)):
            if share * part > 0:
                layers[k].append(Layer(maps[name][row], share * part, name, lanes[row]))
        layers[k].append(Layer(bulges[row], galaxy.bulge_share, "bulge", lanes[row]))


def _lanes(
    seen: Plane,
    along: Tensor,
    scales: list[float],
    discs: Sequence[Galaxy],
    textures: Sequence[Texture],
) -> list[Tensor | None]:
    """Optical depth of the dust lane of each disc, None where it has none."""
    device = along.device
    dusty = [k for k, texture in enumerate(textures) if texture.lane is not None]
    lanes: list[Tensor | None] = [None] * len(discs)
    if not dusty:
        return lanes
    thicknesses = [0.35 * discs[k].thickness * scales[k] for k in dusty]
    thin = column(thicknesses, device)
    # tilted a little off the exact side
    shift = column(
        [textures[k].lane_shift * t for k, t in zip(dusty, thicknesses, strict=True)], device
    )
    depth = column([discs[k].dust_lane for k in dusty], device) * torch.exp(
        -(((seen.across[dusty] - shift) / thin) ** 2) - 0.5 * (along[dusty] / 1.6) ** 2
    )
    clouds = lane_maps([textures[k] for k in dusty], device)
    for k, lane in zip(dusty, depth * torch.exp(0.3 * clouds), strict=True):
        lanes[k] = lane
    return lanes
