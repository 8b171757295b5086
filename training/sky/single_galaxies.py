"""Galaxies on their own: one physical draw each of stars, dust, size and structure.

The sample is bright and nearby like Galaxy Zoo's, so that morphology shows at 0.262 arcsec a
pixel.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from training.sky.luminosity import Size, luminous_red, nearby
from training.sky.objects import Arms, Bar, Galaxy
from training.sky.starlight import Starlight


def _old_stars(rng: np.random.Generator, dust_mag: float = 0.0) -> Starlight:
    middle = float(rng.uniform(0.0, 0.22))
    return Starlight(old=1 - middle, middle=middle, young=0.0, dust_mag=dust_mag)


def _young_stars(rng: np.random.Generator, *, metal_poor: float, dust_mag: float) -> Starlight:
    middle = float(rng.uniform(0.05, 0.3))
    return Starlight(
        old=0.0,
        middle=middle,
        young=1 - middle,
        metal_poor=metal_poor,
        gas=float(rng.uniform(0.5, 1.4)),
        dust_mag=dust_mag,
    )


def _angle(rng: np.random.Generator) -> float:
    return float(rng.uniform(0, 180))


def elliptical(rng: np.random.Generator) -> Galaxy:
    size = nearby(rng, absolute_r=-21.6, scatter_mag=0.8, early=True)
    if rng.random() < 0.3:
        size = luminous_red(rng)
    index = float(np.clip(rng.normal(4.0 + 0.5 * (-21.6 - size.absolute_r), 0.8), 2.0, 6.0))
    return spheroid(rng, size, index)


def spheroid(rng: np.random.Generator, size: Size, index: float) -> Galaxy:
    stars = _old_stars(rng, float(rng.exponential(0.05)))
    if rng.random() < 0.08:  # rejuvenated
        stars = Starlight(old=0.5, middle=0.4, young=0.1, gas=0.4)
    axis_ratio = float(np.clip(1 - abs(rng.normal(0.0, 0.26)), 0.45, 1.0))
    return Galaxy(
        redshift=size.redshift,
        mag_r=size.mag_r,
        radius_arcsec=size.radius_arcsec,
        axis_ratio=axis_ratio,
        angle_deg=_angle(rng),
        bulge_share=1.0,
        bulge_radius_arcsec=size.radius_arcsec,
        bulge_index=index,
        bulge_axis_ratio=axis_ratio,
        bulge=stars,
        disc=stars,
        young=stars,
        young_share=0.0,
    )


def _disc(
    rng: np.random.Generator,
    size: Size,
    *,
    bulge_share: float,
    young_share: float,
    dust_mag: float,
    axis_ratio: float,
) -> Galaxy:
    """A disc with a bulge, smooth so far."""
    metal_poor = float(np.clip(0.5 + 0.25 * (size.absolute_r + 20.0) + rng.normal(0, 0.15), 0, 1))
    old = float(rng.uniform(0.35, 0.75))
    return Galaxy(
        redshift=size.redshift,
        mag_r=size.mag_r,
        radius_arcsec=size.radius_arcsec,
        axis_ratio=axis_ratio,
        angle_deg=_angle(rng),
        bulge_share=bulge_share,
        bulge_radius_arcsec=size.radius_arcsec * float(rng.uniform(0.14, 0.34)),
        bulge_index=float(rng.uniform(1.0, 3.5)),
        bulge_axis_ratio=max(axis_ratio, float(rng.uniform(0.6, 1.0))),
        bulge=_old_stars(rng, 0.5 * dust_mag),
        disc=Starlight(old=old, middle=1 - old, young=0.0, dust_mag=dust_mag),
        young=_young_stars(rng, metal_poor=metal_poor, dust_mag=0.7 * dust_mag),
        young_share=young_share,
    )


def _inclined(rng: np.random.Generator, lowest: float) -> float:
    """Apparent axis ratio of a disc of thickness 0.15 at a random orientation."""
    cosine = float(rng.uniform(lowest, 1.0))
    return float(np.sqrt(cosine**2 * (1 - 0.15**2) + 0.15**2))


def spiral(rng: np.random.Generator) -> Galaxy:
    size = nearby(rng, absolute_r=-21.0, scatter_mag=0.7, early=False)
    earliness = float(rng.beta(1.6, 2.0))  # 0 = Sd, 1 = Sa
    axis_ratio = _inclined(rng, 0.38)
    galaxy = _disc(
        rng,
        size,
        bulge_share=float(np.clip(0.03 + 0.38 * earliness**1.3 + rng.normal(0, 0.03), 0.01, 0.5)),
        young_share=float(np.clip(0.46 - 0.3 * earliness + rng.normal(0, 0.08), 0.06, 0.65)),
        dust_mag=float(rng.uniform(0.1, 0.6) * (1.4 - 0.6 * axis_ratio)),
        axis_ratio=axis_ratio,
    )
    bar = _bar(rng) if rng.random() < 0.38 else None
    ragged = float(rng.beta(1.2, 2.2))
    if ragged > 0.5:
        num_arms = int(rng.integers(3, 6))
    else:
        num_arms = int(rng.choice([1, 2, 3, 4], p=[0.04, 0.7, 0.16, 0.1]))
    arms = Arms(
        num=num_arms,
        pitch_deg=float(rng.choice([-1, 1]) * np.clip(rng.normal(25 - 11 * earliness, 5), 8, 38)),
        phase_rad=float(rng.uniform(0, 2 * np.pi)),
        contrast=float(np.clip(rng.beta(3.2, 1.3), 0.35, 1)),
        sharpness=float(rng.uniform(1.0, 4.5)),
        raggedness=ragged,
        start_radius=bar.length if bar else float(rng.uniform(0.15, 0.45)),
    )
    return replace(
        galaxy,
        arms=arms,
        bar=bar,
        knot_share=float(rng.uniform(0.05, 0.32) * (1.2 - 0.7 * earliness)),
        num_knots=int(rng.integers(15, 90)),
        patchiness=float(rng.uniform(0.15, 0.7)),
        lopsidedness=float(rng.exponential(0.12)),
        ring=0.25 if rng.random() < 0.08 else 0.0,
    )


def _bar(rng: np.random.Generator) -> Bar:
    return Bar(
        light=float(rng.uniform(0.12, 0.32)),
        length=float(rng.uniform(0.45, 0.9)),
        angle_deg=float(rng.uniform(0, 180)),
    )


def lenticular(rng: np.random.Generator) -> Galaxy:
    """A disc without arms: the smooth neighbour of ellipticals and of faint spirals."""
    size = nearby(rng, absolute_r=-20.9, scatter_mag=0.8, early=False)
    bluish = rng.random() < 0.35
    galaxy = _disc(
        rng,
        size,
        bulge_share=float(rng.uniform(0.05, 0.6)),
        young_share=float(rng.uniform(0.05, 0.4)) if bluish else float(rng.uniform(0, 0.05)),
        dust_mag=float(rng.exponential(0.15)),
        axis_ratio=_inclined(rng, 0.3),
    )
    return replace(
        galaxy,
        bar=_bar(rng) if rng.random() < 0.2 else None,
        ring=float(rng.uniform(0.3, 0.9)) if bluish and rng.random() < 0.4 else 0.0,
        patchiness=float(rng.uniform(0.0, 0.3)) if bluish else 0.0,
    )


def irregular(rng: np.random.Generator) -> Galaxy:
    size = nearby(rng, absolute_r=-19.3, scatter_mag=0.7, early=False)
    galaxy = _disc(
        rng,
        size,
        bulge_share=float(rng.uniform(0, 0.06)),
        young_share=float(rng.uniform(0.25, 0.75)),
        dust_mag=float(rng.uniform(0, 0.3)),
        axis_ratio=_inclined(rng, 0.3),
    )
    return replace(
        galaxy,
        patchiness=float(rng.uniform(0.6, 1.3)),
        lopsidedness=float(rng.uniform(0.2, 0.8)),
        knot_share=float(rng.uniform(0.05, 0.3)),
        num_knots=int(rng.integers(3, 40)),
    )


def edge_on(rng: np.random.Generator) -> Galaxy:
    size = nearby(rng, absolute_r=-20.7, scatter_mag=0.8, early=False)
    bulge_share = float(np.clip(rng.exponential(0.18), 0.01, 0.6))
    galaxy = _disc(
        rng,
        size,
        bulge_share=bulge_share,
        young_share=float(np.clip(rng.normal(0.25 - 0.3 * bulge_share, 0.1), 0, 0.6)),
        dust_mag=float(rng.uniform(0.1, 0.9)),
        axis_ratio=1.0,
    )
    return replace(
        galaxy,
        # discs look longer from the side, where light adds up along the disc
        radius_arcsec=float(np.clip(size.radius_arcsec, 1.5, 4.6)),
        thickness=float(rng.uniform(0.12, 0.3)),
        dust_lane=float(rng.uniform(0.4, 2.5)) if rng.random() < 0.55 else 0.0,
        patchiness=float(rng.uniform(0.0, 0.6)),
        bulge_axis_ratio=float(rng.uniform(0.5, 0.9)),
    )


def barred(rng: np.random.Generator) -> Galaxy:
    """A spiral whose arms leave from the ends of a strong bar."""
    galaxy = spiral(rng)
    bar = Bar(
        light=float(rng.uniform(0.34, 0.55)),
        length=float(rng.uniform(0.75, 1.15)),
        angle_deg=_angle(rng),
    )
    assert galaxy.arms is not None
    pitch_deg = float(np.sign(galaxy.arms.pitch_deg)) * float(rng.uniform(14, 30))
    winding = math.log(bar.length + 0.05) / math.tan(math.radians(pitch_deg))
    arms = replace(
        galaxy.arms,
        num=2,
        pitch_deg=pitch_deg,
        phase_rad=-2 * (math.radians(bar.angle_deg) - winding),
        raggedness=0.5 * galaxy.arms.raggedness,
        start_radius=0.9 * bar.length,
    )
    # shorter than the frame and not too thin, so that the bar can be seen
    return replace(
        galaxy,
        bar=bar,
        arms=arms,
        radius_arcsec=max(2.0, galaxy.radius_arcsec),
        bulge_share=min(galaxy.bulge_share, 0.25),
        axis_ratio=max(0.55, galaxy.axis_ratio),
        bulge_axis_ratio=max(0.55, galaxy.bulge_axis_ratio),
    )


def ring(rng: np.random.Generator) -> Galaxy:
    """A disc whose young stars stand in a ring, with a gap inside it; some with a bar across."""
    size = nearby(rng, absolute_r=-21.0, scatter_mag=0.7, early=False)
    size = replace(size, radius_arcsec=max(size.radius_arcsec, 2.1))  # else seeing fills the gap
    bar = None
    if rng.random() < 0.35:
        bar = Bar(
            light=float(rng.uniform(0.2, 0.45)),
            length=float(rng.uniform(0.7, 1.1)),
            angle_deg=_angle(rng),
        )
    galaxy = _disc(
        rng,
        size,
        bulge_share=float(rng.uniform(0.12, 0.5)),
        young_share=float(rng.uniform(0.4, 0.75)),
        dust_mag=float(rng.uniform(0.05, 0.4)),
        axis_ratio=_inclined(rng, 0.45),
    )
    young = galaxy.young
    if rng.random() < 0.5:  # the ring has stopped to form stars
        middle = float(rng.uniform(0.5, 0.8))
        young = replace(young, old=0.15, middle=middle, young=0.85 - middle)
    return replace(
        galaxy,
        bar=bar,
        young=young,
        ring=float(rng.uniform(0.75, 0.97)),
        ring_radius=1.1 * bar.length if bar else float(rng.uniform(0.9, 1.6)),
        ring_width=float(rng.uniform(0.1, 0.22)),
        patchiness=float(rng.uniform(0.1, 0.5)),
        lopsidedness=float(rng.exponential(0.12)),
        knot_share=float(rng.uniform(0.0, 0.25)),
        num_knots=int(rng.integers(5, 50)),
    )
