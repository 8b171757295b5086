"""How the light of galaxies is spread over the sky: arms, bars, rings, tails, for many at once.

A map is light per fine pixel, adding up to 1 over all the sky (what falls outside the grid is
not there).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.sky.canvas import (
    PIXEL_AREA,
    Plane,
    column,
    plane,
    total,
)
from training.sky.edge_on_maps import add_edge_on
from training.sky.light_profiles import (
    Layer,
    Sersic,
    exponential,
    planes_of,
    sersic_maps,
    with_light_of,
)
from training.sky.objects import Galaxy, Tail
from training.sky.textures import (
    Texture,
    bend_maps,
    knot_maps,
    patch_maps,
    tilt_maps,
)


def galaxy_layers(
    galaxies: Sequence[Galaxy], textures: Sequence[Texture], device: torch.device
) -> list[list[Layer]]:
    """All light of each galaxy."""
    layers: list[list[Layer]] = [[] for _ in galaxies]
    flat = [k for k, galaxy in enumerate(galaxies) if galaxy.thickness <= 0]
    _add_tails(layers, galaxies, flat, device)
    _add_shells(layers, galaxies, flat, device)
    _add_bulges(layers, galaxies, flat, device)
    _add_discs(
        layers,
        galaxies,
        textures,
        [k for k in flat if 1 - galaxies[k].bulge_share >= 0.005],
        device,
    )
    side_on = [k for k, galaxy in enumerate(galaxies) if galaxy.thickness > 0]
    add_edge_on(layers, galaxies, textures, side_on, device)
    return layers


def _add_bulges(
    layers: list[list[Layer]], galaxies: Sequence[Galaxy], flat: list[int], device: torch.device
) -> None:
    chosen = [k for k in flat if galaxies[k].bulge_share > 0]
    if not chosen:
        return
    profiles = [
        Sersic(
            x_arcsec=galaxy.x_arcsec,
            y_arcsec=galaxy.y_arcsec,
            radius_arcsec=galaxy.bulge_radius_arcsec,
            index=galaxy.bulge_index,
            axis_ratio=galaxy.bulge_axis_ratio,
            angle_deg=galaxy.angle_deg,
        )
        for galaxy in (galaxies[k] for k in chosen)
    ]
    for k, light in zip(chosen, sersic_maps(profiles, device), strict=True):
        layers[k].append(Layer(light, galaxies[k].bulge_share, "bulge"))


def _add_discs(
    layers: list[list[Layer]],
    galaxies: Sequence[Galaxy],
    textures: Sequence[Texture],
    chosen: list[int],
    device: torch.device,
) -> None:
    if not chosen:
        return
    discs = [galaxies[k] for k in chosen]
    old, young = disc_maps(discs, [textures[k] for k in chosen], device)
    for row, (k, galaxy) in enumerate(zip(chosen, discs, strict=True)):
        share = 1 - galaxy.bulge_share
        layers[k].append(Layer(old[row], share * (1 - galaxy.young_share), "disc"))
        if galaxy.young_share > 0:
            layers[k].append(Layer(young[row], share * galaxy.young_share, "young"))


def disc_maps(
    discs: Sequence[Galaxy], textures: Sequence[Texture], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Old and young light of discs seen from above or inclined, each (disc, y, x)."""
    ratio = [galaxy.axis_ratio for galaxy in discs]
    seen = planes_of(discs, ratio, device)
    size = column([galaxy.radius_arcsec for galaxy in discs], device)

    def those(wanted: list[bool]) -> list[int]:
        return [row for row, yes in enumerate(wanted) if yes]

    smooth = exponential(seen.radius, [galaxy.radius_arcsec for galaxy in discs], ratio)
    # young stars are spread wider than old ones and avoid the centre
    wide = exponential(seen.radius, [1.15 * galaxy.radius_arcsec for galaxy in discs], ratio)
    old_change, young_change = torch.ones_like(smooth), torch.ones_like(smooth)
    patchy = those([texture.patches is not None for texture in textures])
    if patchy:
        strength = column([discs[k].patchiness for k in patchy], device)
        patches = patch_maps([textures[k] for k in patchy], device)
        young_change[patchy] = torch.exp(strength * patches)
    lopsided = those([galaxy.lopsidedness != 0 for galaxy in discs])
    if lopsided:
        some = seen.of(lopsided)
        tilt = tilt_maps(
            some.along,
            some.across,
            some.radius,
            [discs[k] for k in lopsided],
            [textures[k] for k in lopsided],
        )
        old_change[lopsided] *= tilt
        young_change[lopsided] *= tilt
    armed = those([galaxy.arms is not None for galaxy in discs])
    if armed:
        spirals = [discs[k] for k in armed]
        ridges = _arm_ridges(seen.of(armed), spirals, [textures[k] for k in armed])
        contrast = column([g.arms.contrast for g in spirals if g.arms is not None], device)
        old_change[armed] *= (1 + 0.5 * contrast * ridges).clamp(min=0.15)
        young_change[armed] *= (1 + 1.15 * contrast * ridges).clamp(min=0.02)
    old = with_light_of(smooth * old_change, smooth)
    hole = (seen.radius / (0.35 * size)) ** 2
    young = with_light_of(wide * young_change * ((0.25 + hole) / (1 + hole)), wide)
    ringed = those([galaxy.ring != 0 for galaxy in discs])
    if ringed:
        share = column([discs[k].ring for k in ringed], device)
        radius = column([discs[k].ring_radius for k in ringed], device)
        width = column([discs[k].ring_width for k in ringed], device)
        away = (seen.radius[ringed] / size[ringed] - radius) / width
        ring = torch.exp(-0.5 * away**2) * young_change[ringed]
        ring = with_light_of(ring, wide[ringed])
        young[ringed] = young[ringed] * (1 - share) + ring * share
    knotted = those([texture.knot_places is not None for texture in textures])
    if knotted:
        share = column([discs[k].knot_share for k in knotted], device)
        knots = knot_maps(young[knotted], [textures[k] for k in knotted])
        young[knotted] = young[knotted] * (1 - share) + knots * share
    barred = those([galaxy.bar is not None for galaxy in discs])
    if barred:
        old[barred] = _with_bars(old[barred], seen.of(barred), [discs[k] for k in barred])
    return old, young


def _arm_ridges(seen: Plane, discs: Sequence[Galaxy], textures: Sequence[Texture]) -> Tensor:
    """Light across arms relative to its mean at that radius, minus 1; fades towards the centre."""
    device = seen.radius.device
    arms = [galaxy.arms for galaxy in discs if galaxy.arms is not None]
    reduced = seen.radius / column([galaxy.radius_arcsec for galaxy in discs], device)
    tightness = column([1 / math.tan(math.radians(a.pitch_deg)) for a in arms], device)
    azimuth = torch.atan2(seen.across, seen.along)
    phase = column([float(a.num) for a in arms], device) * (
        azimuth - torch.log(reduced + 0.05) * tightness
    ) + column([a.phase_rad for a in arms], device)
    phase = phase + column([1.8 * a.raggedness for a in arms], device) * bend_maps(textures, device)
    sharpness = column([a.sharpness for a in arms], device)
    mean = column([float(np.i0(a.sharpness)) * math.exp(-a.sharpness) for a in arms], device)
    ridge = torch.exp(sharpness * (torch.cos(phase) - 1)) / mean - 1
    inner = (reduced / column([a.start_radius for a in arms], device)) ** 3
    return ridge * (inner / (1 + inner))


def _with_bars(old: Tensor, seen: Plane, discs: Sequence[Galaxy]) -> Tensor:
    device = old.device
    bars = [galaxy.bar for galaxy in discs if galaxy.bar is not None]
    cosine = column([math.cos(math.radians(bar.angle_deg)) for bar in bars], device)
    sine = column([math.sin(math.radians(bar.angle_deg)) for bar in bars], device)
    lengths = [bar.length * g.radius_arcsec for bar, g in zip(bars, discs, strict=True)]
    length = column(lengths, device)
    along = (seen.along * cosine + seen.across * sine) / length
    across = (seen.across * cosine - seen.along * sine) / (0.3 * length)
    squared = along * along
    light = torch.exp(-1.5 * (squared * squared + across * across))
    # the integral of exp(-1.5 (u^4 + v^2)) over the plane
    whole = [
        1.6382 * 1.4472 * 0.3 * size**2 * g.axis_ratio / PIXEL_AREA
        for size, g in zip(lengths, discs, strict=True)
    ]
    share = column([bar.light for bar in bars], device)
    return old * (1 - share) + light * (share / column(whole, device))


def _add_tails(
    layers: list[list[Layer]], galaxies: Sequence[Galaxy], flat: list[int], device: torch.device
) -> None:
    owners = [k for k in flat for _ in galaxies[k].tails]
    if not owners:
        return
    tails = [tail for k in flat for tail in galaxies[k].tails]
    maps = _tail_maps([galaxies[k] for k in owners], tails, device)
    for k, tail, light in zip(owners, tails, maps, strict=True):
        young = min(0.6, galaxies[k].young_share)  # stars torn out of the disc, and some new ones
        layers[k].append(Layer(light, tail.light * (1 - young), "disc"))
        layers[k].append(Layer(light, tail.light * young, "young"))


def _tail_maps(galaxies: Sequence[Galaxy], tails: Sequence[Tail], device: torch.device) -> Tensor:
    """Curved strips that start in the disc, fade outwards and widen."""
    sky = plane(
        x_arcsec=[galaxy.x_arcsec for galaxy in galaxies],
        y_arcsec=[galaxy.y_arcsec for galaxy in galaxies],
        angle_deg=[0.0] * len(tails),
        axis_ratio=[1.0] * len(tails),
        device=device,
    )
    start = column([0.7 * galaxy.radius_arcsec for galaxy in galaxies], device)
    # 0 at the root, 1 at the tip
    run = (sky.radius - start) / column([tail.length_arcsec for tail in tails], device)
    inside = run.clamp(min=0)
    centre = column([math.radians(tail.start_deg) for tail in tails], device) + column(
        [math.radians(tail.swing_deg) for tail in tails], device
    ) * torch.sqrt(inside)
    turn = (
        torch.remainder(torch.atan2(sky.across, sky.along) - centre + math.pi, 2 * math.pi)
        - math.pi
    )
    width = column([tail.width_arcsec for tail in tails], device) * (0.8 + inside)
    strip = torch.exp(-0.5 * (turn * sky.radius / width) ** 2) / width
    window = torch.sigmoid(run / 0.06) * torch.sigmoid((1 - run) / 0.1)
    light = strip * window * torch.exp(-inside)
    return light / total(light).clamp(min=1e-12)


def _add_shells(
    layers: list[list[Layer]], galaxies: Sequence[Galaxy], flat: list[int], device: torch.device
) -> None:
    owners = [k for k in flat for _ in galaxies[k].shells]
    if not owners:
        return
    shells = [shell for k in flat for shell in galaxies[k].shells]
    sky = planes_of(
        [replace(galaxies[k], angle_deg=0.0) for k in owners], [1.0] * len(owners), device
    )
    edge = column([shell.radius_arcsec for shell in shells], device)
    inwards = (edge - sky.radius) / column([shell.thickness_arcsec for shell in shells], device)
    middle = column([math.radians(shell.direction_deg) for shell in shells], device)
    # cosine of the angle from the middle of the shell, 1 on its axis
    facing = sky.along * torch.cos(middle) + sky.across * torch.sin(middle)
    facing = facing / sky.radius.clamp(min=1e-3)
    narrow = column([1 / (1 - math.cos(math.radians(s.half_width_deg))) for s in shells], device)
    light = torch.exp(-inwards.clamp(min=0)) * torch.sigmoid((edge - sky.radius) / 0.12)
    light = light * torch.exp(-(((1 - facing) * narrow) ** 2))
    light = light / total(light).clamp(min=1e-12)
    for k, shell, one in zip(owners, shells, light, strict=True):
        layers[k].append(Layer(one, shell.light, "bulge"))
