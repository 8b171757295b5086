"""Galaxies that meet: pairs drawn out by tides, and shells that a small one left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.sky.objects import Galaxy, Shell, Tail
from training.sky.single_galaxies import elliptical, irregular, lenticular, spiral


def merger(rng: np.random.Generator) -> tuple[Galaxy, ...]:
    """Two galaxies in contact, drawn out by tides; sometimes both without gas."""
    dry = rng.random() < 0.22
    if dry:
        first = elliptical(rng)
        first = replace(first, radius_arcsec=min(first.radius_arcsec, 3.5))
        second = elliptical(rng)
    else:
        first = spiral(rng) if rng.random() < 0.75 else lenticular(rng)
        second = (spiral, irregular, lenticular)[int(rng.integers(3))](rng)
    first = _shrunk(first, float(rng.uniform(1.4, 3.2)))
    ratio_mag = float(abs(rng.normal(0, 0.8)))
    radius = first.radius_arcsec * 10 ** (-0.13 * ratio_mag) * float(rng.uniform(0.7, 1.2))
    second = _shrunk(second, max(radius, 0.8))
    separation = float(rng.uniform(0.7, 2.4)) * (first.radius_arcsec + second.radius_arcsec)
    direction = float(rng.uniform(0, 2 * np.pi))
    # the centre of light stays near the centre of the frame, or the first galaxy does
    first_share = 0.0 if rng.random() < 0.5 else 1 / (1 + 10 ** (0.4 * ratio_mag))
    x, y = separation * np.cos(direction), separation * np.sin(direction)
    heading = np.rad2deg(direction)
    first = replace(
        _disturbed(rng, first, dry=dry, away_deg=heading + 180, reach=separation),
        x_arcsec=-first_share * x,
        y_arcsec=-first_share * y,
    )
    second = replace(
        _disturbed(rng, second, dry=dry, away_deg=heading, reach=separation),
        redshift=first.redshift,
        mag_r=first.mag_r + ratio_mag,
        x_arcsec=(1 - first_share) * x,
        y_arcsec=(1 - first_share) * y,
    )
    return first, second


def _shrunk(galaxy: Galaxy, radius_arcsec: float) -> Galaxy:
    factor = radius_arcsec / galaxy.radius_arcsec
    return replace(
        galaxy,
        radius_arcsec=radius_arcsec,
        bulge_radius_arcsec=max(0.25, galaxy.bulge_radius_arcsec * factor),
    )


def _disturbed(
    rng: np.random.Generator, galaxy: Galaxy, *, dry: bool, away_deg: float, reach: float
) -> Galaxy:
    sense = float(rng.choice([-1, 1]))
    tails = []
    for number in range(2):
        # one tail leaves on the far side, a second one bridges to the companion
        if rng.random() < (0.85 if number == 0 else 0.6):
            tails.append(
                Tail(
                    light=float(rng.uniform(0.03, 0.14)) * (0.6 if dry else 1.0),
                    start_deg=away_deg + 180 * number - sense * rng.uniform(0, 80),
                    swing_deg=sense * float(rng.uniform(40, 190)),
                    length_arcsec=float(rng.uniform(1.2, 2.4) * (galaxy.radius_arcsec * 2 + 2)),
                    width_arcsec=float(rng.uniform(0.5, 1.2)) * (2.0 if dry else 1.0),
                )
            )
    burst = 0.0 if dry else float(rng.uniform(0, 0.35))
    return replace(
        galaxy,
        tails=tuple(tails),
        lopsidedness=float(rng.uniform(0.3, 0.9)),
        patchiness=galaxy.patchiness + (0.0 if dry else 0.4),
        young_share=min(0.8, galaxy.young_share + burst),
        knot_share=0.0 if dry else float(rng.uniform(0.1, 0.4)),
        num_knots=0 if dry else int(rng.integers(4, 25)),
    )


def shell_galaxy(rng: np.random.Generator) -> tuple[Galaxy, ...]:
    """An elliptical that swallowed a small galaxy: sharp arcs of stars on either side."""
    galaxy = elliptical(rng)
    galaxy = replace(
        galaxy, radius_arcsec=float(rng.uniform(1.4, 2.8)), mag_r=min(galaxy.mag_r, 17.8)
    )
    galaxy = replace(galaxy, bulge_radius_arcsec=galaxy.radius_arcsec)
    fell_in_deg = galaxy.angle_deg + float(rng.normal(0, 12))
    edge = galaxy.radius_arcsec * float(rng.uniform(1.3, 1.9))
    shells = []
    for number in range(int(rng.integers(3, 7))):
        shells.append(
            Shell(
                light=float(rng.uniform(0.012, 0.04)),
                radius_arcsec=edge,
                direction_deg=fell_in_deg + 180 * (number % 2) + float(rng.normal(0, 10)),
                half_width_deg=float(rng.uniform(28, 62)),
                thickness_arcsec=float(rng.uniform(0.1, 0.22)) * edge,
            )
        )
        edge *= float(rng.uniform(1.15, 1.45))
        if edge > 11:
            break
    stream: tuple[Tail, ...] = ()
    if rng.random() < 0.4:
        stream = (
            Tail(
                light=float(rng.uniform(0.01, 0.04)),
                start_deg=fell_in_deg + float(rng.normal(0, 20)),
                swing_deg=float(rng.choice([-1, 1])) * float(rng.uniform(20, 90)),
                length_arcsec=float(rng.uniform(3, 5) * galaxy.radius_arcsec),
                width_arcsec=float(rng.uniform(0.5, 1.0)),
            ),
        )
    return (replace(galaxy, shells=tuple(shells), tails=stream),)
