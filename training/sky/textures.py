"""What is random in the look of one galaxy: patches, bent arms, star-forming regions.

The numbers are drawn by numpy for each object alone, so that an object is the same in whatever
batch it is drawn; maps are made from them for many galaxies at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from training.sky.canvas import GRID_SIZE, STEP_ARCSEC, column, each, total
from training.sky.objects import Galaxy

_BEND_ARCSEC, _PATCH_ARCSEC, _LANE_ARCSEC = 2.5, 1.0, 1.2  # finest structure


@dataclass(frozen=True, slots=True, kw_only=True)
class Texture:
    """Random numbers of one galaxy; None where its look needs none.

    Modes are standard normal, (real or imaginary, ky, kx).
    """

    bend: ndarray | None = None
    patches: ndarray | None = None
    lane: ndarray | None = None
    lane_shift: float = 0.0  # in units of the lane's thickness
    tilt_rad: float = 0.0
    knot_places: ndarray | None = None  # 0 to 1 along the young light, one a region
    knot_light: ndarray | None = None  # adds up to 1


def draw_texture(galaxy: Galaxy, rng: np.random.Generator) -> Texture:
    """Draw what that galaxy's look needs."""
    if galaxy.thickness > 0:
        lane, shift = None, 0.0
        if galaxy.dust_lane:
            shift = float(rng.uniform(-0.5, 0.5))
            lane = _modes(rng, _LANE_ARCSEC)
        return Texture(lane=lane, lane_shift=shift, patches=_modes(rng, _PATCH_ARCSEC))
    if 1 - galaxy.bulge_share < 0.005:
        return Texture()
    bend = patches = places = light = None
    tilt = 0.0
    if galaxy.patchiness or galaxy.arms:
        bend, patches = _modes(rng, _BEND_ARCSEC), _modes(rng, _PATCH_ARCSEC)
    if galaxy.lopsidedness:
        tilt = float(rng.uniform(0, 2 * np.pi))
    if galaxy.num_knots and galaxy.knot_share:
        places = rng.random(galaxy.num_knots)
        bright = rng.pareto(1.6, size=galaxy.num_knots) + 0.3
        light = bright / bright.sum()
    return Texture(bend=bend, patches=patches, tilt_rad=tilt, knot_places=places, knot_light=light)


def _num_modes(correlation_arcsec: float) -> int:
    return max(3, int(GRID_SIZE * STEP_ARCSEC / correlation_arcsec))


def _modes(rng: np.random.Generator, correlation_arcsec: float) -> ndarray:
    num = _num_modes(correlation_arcsec)
    return rng.standard_normal((2, 2 * num + 1, num + 1), dtype=np.float32)


def noise_maps(modes: Sequence[ndarray], device: torch.device) -> Tensor:
    """Smooth Gaussian noise of unit variance, (map, y, x); the modes are of one shape."""
    drawn = torch.from_numpy(np.stack(modes)).to(device)  # (map, part, ky, kx)
    num = drawn.shape[-1] - 1
    ky = torch.arange(-num, num + 1, device=device)
    kx = torch.arange(num + 1, device=device)
    damping = (1 + (kx[None, :] ** 2 + ky[:, None] ** 2) / (0.3 * num) ** 2) ** -0.75
    waves = torch.zeros(len(modes), GRID_SIZE, num + 1, dtype=torch.complex64, device=device)
    waves[:, ky % GRID_SIZE] = torch.complex(drawn[:, 0], drawn[:, 1]) * damping
    field = each(lambda w: torch.fft.irfft(torch.fft.ifft(w, dim=-2), n=GRID_SIZE), waves)
    apart = field - total(field) / GRID_SIZE**2
    return field / torch.sqrt(total(apart * apart) / GRID_SIZE**2)


def bend_maps(textures: Sequence[Texture], device: torch.device) -> Tensor:
    """How arms are bent; every texture has bends."""
    return noise_maps([t.bend for t in textures if t.bend is not None], device)


def patch_maps(textures: Sequence[Texture], device: torch.device) -> Tensor:
    """Patches of young stars; every texture has them."""
    return noise_maps([t.patches for t in textures if t.patches is not None], device)


def lane_maps(textures: Sequence[Texture], device: torch.device) -> Tensor:
    """Clouds in a dust lane; every texture has them."""
    return noise_maps([t.lane for t in textures if t.lane is not None], device)


def knot_maps(light: Tensor, textures: Sequence[Texture]) -> Tensor:
    """Star-forming regions, placed where the light of each map is; each map adds up to 1."""
    device = light.device
    most = max(len(t.knot_places) for t in textures if t.knot_places is not None)
    places = np.zeros((len(textures), most))
    share = np.zeros((len(textures), most), dtype=np.float32)
    for row, texture in enumerate(textures):
        assert texture.knot_places is not None
        assert texture.knot_light is not None
        places[row, : len(texture.knot_places)] = texture.knot_places
        share[row, : len(texture.knot_light)] = texture.knot_light
    cumulative = torch.cumsum(light.flatten(1).double(), dim=1)
    wanted = torch.from_numpy(places).to(device) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, wanted).clamp(max=GRID_SIZE**2 - 1)
    points = torch.zeros_like(light).flatten(1)
    points.scatter_add_(1, found, torch.from_numpy(share).to(device))
    points = points.reshape(light.shape)
    for axis in (1, 2):  # a region is about a fine pixel or two wide
        points = 0.5 * points + 0.25 * (points.roll(1, axis) + points.roll(-1, axis))
    return points


def tilt_maps(
    along: Tensor,
    across: Tensor,
    radius: Tensor,
    galaxies: Sequence[Galaxy],
    textures: Sequence[Texture],
) -> Tensor:
    """Light of lopsided discs relative to even ones, (map, y, x)."""
    device = along.device
    tilts = [
        (min(1.2, galaxy.lopsidedness), texture.tilt_rad)
        for galaxy, texture in zip(galaxies, textures, strict=True)
    ]
    east = column([strength * math.cos(angle) for strength, angle in tilts], device)
    north = column([strength * math.sin(angle) for strength, angle in tilts], device)
    size = column([galaxy.radius_arcsec for galaxy in galaxies], device)
    return (1 + (along * east + across * north) / (radius + size)).clamp(min=0.05)
