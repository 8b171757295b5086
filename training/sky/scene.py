"""A simulated frame: the light of objects through the atmosphere, many frames at once.

Light is blurred by Fourier transform with a Moffat point-spread function of exponent 3.5, whose
transform is elementary. Depth and seeing follow the Legacy Surveys DR10 (Dey et al. 2019, AJ 157,
168, Table 5 and later releases). Torch and numpy alone are needed here, on any device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from training.sky.canvas import (
    GRID_SIZE,
    PIXEL_SCALE_ARCSEC,
    STEP_ARCSEC,
    axis_arcsec,
    each,
    to_camera,
    total,
)
from training.sky.glare import add_glare
from training.sky.lensing import arc_maps
from training.sky.light_maps import galaxy_layers
from training.sky.neighbour_maps import add_neighbours
from training.sky.objects import SkyObject
from training.sky.starlight import NUM_BANDS, R_BAND, Light, colours, observed_flux
from training.sky.textures import Texture, draw_texture

_DEPTH_MAG = (24.7, 23.9, 23.6, 23.0)  # 5 sigma, point source, AB
_SEEING_ARCSEC = (1.29, 1.18, 1.12, 1.10)  # full width at half maximum
MOFFAT_BETA = 3.5  # the transform below is that of this exponent
_FIBRE_RADIUS_ARCSEC = 1.5
_LANE_COLOUR = (1.35, 1.0, 0.82, 0.68)  # optical depth of a dust lane over that in r


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The night: one value a band, g r i z."""

    seeing_arcsec: tuple[float, ...]
    sky_sigma_nmgy: tuple[float, ...]  # one pixel
    psf_shear: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PopulationLight:
    """Light of one population: all of it, or what falls into a fibre."""

    light: Light
    redshift: float
    flux_r_nmgy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Frames without noise, and what the objects in them are."""

    flux: Tensor  # (object, band, y, x), nanomaggies per pixel, all four bands, on the device
    total_flux_nmgy: ndarray  # (object, band), of the object, also outside the frame
    radius_arcsec: tuple[float, ...]  # half-light; 0 = a point
    light: tuple[tuple[PopulationLight, ...], ...]  # all of it, as if there were no dust lanes
    fibre_light: tuple[tuple[PopulationLight, ...], ...]  # in a fibre on the centre


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """Seeing and depth of one frame."""
    night = float(rng.normal(0, 0.08))
    seeing, sigma = [], []
    for depth, typical in zip(_DEPTH_MAG, _SEEING_ARCSEC, strict=True):
        fwhm = typical * float(np.exp(night + rng.normal(0, 0.04)))
        seeing.append(fwhm)
        depth = depth + float(rng.normal(0, 0.12))
        point_sigma = 10 ** (0.4 * (22.5 - depth)) / 5
        # matched-filter noise of a point is that of a pixel times the root of effective pixels
        sigma.append(point_sigma / np.sqrt(_effective_pixels(typical)))
    shear = rng.normal(0, 0.015, size=2)
    return Conditions(
        seeing_arcsec=tuple(seeing),
        sky_sigma_nmgy=tuple(sigma),
        psf_shear=(float(shear[0]), float(shear[1])),
    )


def _core_arcsec(fwhm_arcsec: float) -> float:
    return fwhm_arcsec / (2 * math.sqrt(2 ** (1 / MOFFAT_BETA) - 1))


def _effective_pixels(fwhm_arcsec: float) -> float:
    """1 over the sum of squares of a Moffat profile, in pixels."""
    radius = _core_arcsec(fwhm_arcsec) / PIXEL_SCALE_ARCSEC
    return math.pi * radius**2 * (2 * MOFFAT_BETA - 1) / (MOFFAT_BETA - 1) ** 2


def _blur(conditions: Sequence[Conditions], device: torch.device) -> Tensor:
    """Fourier transform of each point-spread function, (object, band, ky, kx).

    That of (1 + (r/a)^2)^-3.5 is exp(-x) (1 + x + x^2 / 3) with x = a k.
    """
    ky = 2 * math.pi * torch.fft.fftfreq(GRID_SIZE, STEP_ARCSEC, device=device)[None, :, None]
    kx = 2 * math.pi * torch.fft.rfftfreq(GRID_SIZE, STEP_ARCSEC, device=device)[None, None, :]
    shear = torch.tensor([c.psf_shear for c in conditions], dtype=torch.float32, device=device)
    first, second = shear[:, 0, None, None], shear[:, 1, None, None]
    sheared_x = kx * (1 + first) + ky * second
    sheared_y = kx * second + ky * (1 - first)
    wave = torch.sqrt((sheared_x**2 + sheared_y**2) / (1 - first**2 - second**2))
    core = torch.tensor(
        [[_core_arcsec(fwhm) for fwhm in c.seeing_arcsec] for c in conditions],
        dtype=torch.float32,
        device=device,
    )
    x = wave[:, None] * core[:, :, None, None]
    return torch.exp(-x) * (1 + x + x * x / 3)


@dataclass(slots=True)
class _Part:
    """Light of one population, before it is blurred."""

    light: Light
    redshift: float
    flux_nmgy: ndarray  # (band,)
    map: Tensor
    lane: Tensor | None = None
    magnified: bool = False  # the map adds up to its magnification by a lens


def _parts(
    things: Sequence[SkyObject], textures: Sequence[Sequence[Texture]], device: torch.device
) -> list[list[_Part]]:
    galaxies = [galaxy for thing in things for galaxy in thing.galaxies]
    layers = iter(galaxy_layers(galaxies, [t for some in textures for t in some], device))
    lensed = [thing for thing in things if thing.source is not None]
    arcs = iter(())
    if lensed:
        arcs = iter(
            arc_maps(
                [thing.source for thing in lensed if thing.source is not None],
                [thing.galaxies[0].x_arcsec for thing in lensed],
                [thing.galaxies[0].y_arcsec for thing in lensed],
                device,
            )
        )
    parts = []
    for thing in things:
        mine: list[_Part] = []
        for galaxy in thing.galaxies:
            whole = 10 ** (0.4 * (22.5 - galaxy.mag_r))
            shape = {
                name: colours(getattr(galaxy, name), galaxy.redshift)
                for name in ("bulge", "disc", "young")
            }
            for layer in next(layers):
                light = getattr(galaxy, layer.population)
                flux = shape[layer.population] * whole * layer.share
                mine.append(_Part(light, galaxy.redshift, flux, layer.light, layer.lane))
        if thing.source is not None:
            source = thing.source
            flux = colours(source.light, source.redshift) * 10 ** (0.4 * (22.5 - source.mag_r))
            mine.append(_Part(source.light, source.redshift, flux, next(arcs), magnified=True))
        if thing.point is not None:
            flux = colours(thing.point, thing.redshift) * 10 ** (0.4 * (22.5 - thing.point_mag_r))
            mine.append(_Part(thing.point, thing.redshift, flux, _point(device)))
        parts.append(mine)
    return parts


@functools.cache
def _point(device: torch.device) -> Tensor:
    """A point on the centre of the frame, which lies between four fine pixels."""
    point = torch.zeros(GRID_SIZE, GRID_SIZE, device=device)
    half = GRID_SIZE // 2
    point[half - 1 : half + 1, half - 1 : half + 1] = 0.25
    return point


def _dimming(lane: Tensor) -> Tensor:
    """What a lane lets through in each band, (band, y, x)."""
    colour = torch.tensor(_LANE_COLOUR, device=lane.device)[:, None, None]
    # dust lies in the middle plane, so part of the stars stand before it
    return 0.35 + 0.65 * torch.exp(-colour * lane)


def draw(
    things: Sequence[SkyObject],
    conditions: Sequence[Conditions],
    rngs: Sequence[np.random.Generator],
    *,
    device: torch.device | str = "cpu",
) -> Drawn:
    """Draw frames without noise in all four bands.

    Each object comes out the same whatever stands beside it in the batch: to the bit on a CPU, to
    rounding on a GPU.
    """
    device = torch.device(device)
    textures = [
        [draw_texture(galaxy, rng) for galaxy in thing.galaxies]
        for thing, rng in zip(things, rngs, strict=True)
    ]
    scenes = torch.zeros(len(things), NUM_BANDS, GRID_SIZE, GRID_SIZE, device=device)
    add_neighbours(scenes, [thing.neighbours for thing in things])
    add_glare(scenes, [thing.saturated for thing in things])
    blur = _blur(conditions, device)
    light = _add_parts(scenes, _parts(things, textures, device), _fibre_apertures(blur[:, R_BAND]))
    blurred = each(_back, each(torch.fft.rfft2, scenes) * blur)
    return Drawn(
        flux=to_camera(blurred),
        total_flux_nmgy=light.total_flux_nmgy,
        radius_arcsec=tuple(
            thing.galaxies[0].radius_arcsec if thing.galaxies and thing.point is None else 0.0
            for thing in things
        ),
        light=light.whole,
        fibre_light=light.fibre,
    )


@dataclass(frozen=True, slots=True)
class _Budget:
    total_flux_nmgy: ndarray  # (object, band)
    whole: tuple[tuple[PopulationLight, ...], ...]
    fibre: tuple[tuple[PopulationLight, ...], ...]


def _add_parts(scenes: Tensor, parts: list[list[_Part]], aperture: Tensor) -> _Budget:
    """Add the parts to the scenes, in place, and say how much light there is of each."""
    device = scenes.device
    # one part of every object after the other, so that no sum depends on the batch
    rounds = [
        [row for row, mine in enumerate(parts) if len(mine) > k]
        for k in range(max(len(mine) for mine in parts))
    ]
    gains, inside = [], []
    for k, rows in enumerate(rounds):
        maps = torch.stack([parts[row][k].map for row in rows])[:, None]
        flux = torch.from_numpy(np.stack([parts[row][k].flux_nmgy for row in rows])).float()
        flux = flux.to(device)[:, :, None, None]
        dusty = [n for n, row in enumerate(rows) if parts[row][k].lane is not None]
        gain = torch.ones(len(rows), NUM_BANDS, device=device)
        in_r = maps[:, 0]
        if dusty:
            before = maps.sum(-1).sum(-1)
            maps = maps.expand(-1, NUM_BANDS, -1, -1).clone()
            for n in dusty:
                lane = parts[rows[n]][k].lane
                assert lane is not None
                maps[n] *= _dimming(lane)
            in_r = maps[:, R_BAND]
            # light outside the grid belongs to the total, dimmed like the rest
            gain = maps.sum(-1).sum(-1) / before
        lensed = [n for n, row in enumerate(rows) if parts[row][k].magnified]
        if lensed:
            gain[lensed] = maps[lensed].sum(-1).sum(-1).expand(-1, NUM_BANDS)
        if len(rows) == len(parts):
            scenes += maps * flux
        else:
            scenes[rows] += maps * flux
        gains.append(gain)
        inside.append(total(in_r * aperture[rows])[:, 0, 0])
    gained = iter(torch.cat(gains).double().cpu().numpy())
    caught = iter(torch.cat(inside).tolist())
    total_flux = np.zeros((len(parts), NUM_BANDS))
    whole: list[list[PopulationLight]] = [[] for _ in parts]
    fibre: list[list[PopulationLight]] = [[] for _ in parts]
    for k, rows in enumerate(rounds):
        for row in rows:
            part = parts[row][k]
            gain = next(gained)
            total_flux[row] += part.flux_nmgy * gain
            bare_r = float(part.flux_nmgy[R_BAND])
            all_r = bare_r * float(gain[R_BAND]) if part.magnified else bare_r
            whole[row].append(PopulationLight(part.light, part.redshift, all_r))
            in_fibre_r = next(caught) * bare_r
            fibre[row].append(PopulationLight(part.light, part.redshift, in_fibre_r))
    return _Budget(
        total_flux, tuple(tuple(mine) for mine in whole), tuple(tuple(mine) for mine in fibre)
    )


def _fibre_apertures(blur: Tensor) -> Tensor:
    """How much light of each fine pixel falls into a fibre at the centre, (object, y, x)."""
    return each(_back, _fibre_transform(blur.device) * blur)


def _back(waves: Tensor) -> Tensor:
    return torch.fft.irfft2(waves, s=(GRID_SIZE, GRID_SIZE))


@functools.cache
def _fibre_transform(device: torch.device) -> Tensor:
    axis = axis_arcsec(device)
    inside = axis[:, None] ** 2 + axis[None, :] ** 2 < _FIBRE_RADIUS_ARCSEC**2
    return torch.fft.rfft2(inside.float())


def spectrum_of(light: Sequence[PopulationLight], wavelength_angstrom: ndarray) -> ndarray:
    """Noiseless spectrum of the light in the fibre, (pixel,), 1e-17 erg/s/cm2/Angstrom."""
    out = np.zeros(len(wavelength_angstrom))
    for part in light:
        out += observed_flux(
            part.light,
            redshift=part.redshift,
            flux_r_nmgy=max(part.flux_r_nmgy, 0.0),
            wavelength_angstrom=wavelength_angstrom,
        )
    return out
