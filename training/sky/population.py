"""Who lives in the simulated sky: one physical draw for each object, and what lies around it.

A draw gives redshift, luminosity, stars, dust, size and structure; image, spectrum and catalogue
are made from the same draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.sky.interacting_galaxies import merger, shell_galaxy
from training.sky.lens_population import group_lens, lens
from training.sky.luminosity import luminous_red
from training.sky.objects import KINDS, Galaxy, Neighbour, SkyObject
from training.sky.single_galaxies import (
    barred,
    edge_on,
    elliptical,
    irregular,
    lenticular,
    ring,
    spheroid,
    spiral,
)
from training.sky.starlight import (
    LIGHT_SPEED_KM_S,
    QuasarGlow,
    Starlight,
    StarSurface,
    colours,
)

_SINGLE: dict[str, Callable[[np.random.Generator], Galaxy]] = {
    "spiral": spiral,
    "edge_on": edge_on,
    "irregular": irregular,
    "lenticular": lenticular,
    "elliptical": elliptical,
    "barred": barred,
    "ring": ring,
}


def _neighbours(rng: np.random.Generator, mag_r: float) -> tuple[Neighbour, ...]:
    """Field galaxies and stars in the frame, and now and then something bright in the way."""
    mags = list(24.5 + np.log10(rng.random(rng.poisson(6))) / 0.36)
    is_star = [False] * len(mags)
    stars = rng.poisson(0.9)
    mags += list(rng.triangular(16.5, 22.5, 23.0, size=stars))
    is_star += [True] * stars
    near = rng.random() < 0.16  # chance projections, which are not mergers
    if near:
        mags.append(mag_r + float(rng.uniform(0.0, 3.0)))
        is_star.append(bool(rng.random() < 0.4))
    neighbours = []
    for number, (mag, star) in enumerate(zip(mags, is_star, strict=True)):
        if near and number == len(mags) - 1:
            distance, direction = float(rng.uniform(4.5, 11)), float(rng.uniform(0, 2 * np.pi))
            x, y = distance * np.cos(direction), distance * np.sin(direction)
        else:
            x, y = (float(v) for v in rng.uniform(-14.5, 14.5, size=2))
            if np.hypot(x, y) < 2.5:
                continue
        mag = max(float(mag), 15.5)
        if star:
            shape = colours(_star_surface(rng), 0.0)
            radius = 0.0
        else:
            young = float(rng.beta(1.2, 1.6))
            light = Starlight(old=0.7 * (1 - young), middle=0.3 * (1 - young), young=young)
            shape = colours(
                light, float(np.clip(rng.normal(0.1 + 0.08 * (mag - 17), 0.1), 0.03, 1.2))
            )
            radius = float(np.clip(10 ** rng.normal(0.35 - 0.13 * (mag - 17), 0.15), 0.2, 4.0))
        flux = shape * 10 ** (0.4 * (22.5 - mag))
        neighbours.append(
            Neighbour(
                x_arcsec=float(x),
                y_arcsec=float(y),
                flux_nmgy=tuple(float(f) for f in flux),
                radius_arcsec=radius,
                axis_ratio=float(rng.uniform(0.3, 1.0)),
                angle_deg=float(rng.uniform(0, 180)),
            )
        )
    return tuple(neighbours)


def _star_surface(rng: np.random.Generator) -> StarSurface:
    """Mostly K and M dwarfs and sun-like stars, as at high galactic latitude; some hot ones."""
    log_kelvin = float(rng.choice([3.53, 3.66, 3.76, 3.90], p=[0.35, 0.25, 0.3, 0.1]))
    kelvin = 10 ** float(rng.normal(log_kelvin, 0.04))
    if rng.random() < 0.05:
        kelvin = float(rng.uniform(9_000, 25_000))
    return StarSurface(
        temperature_k=float(np.clip(kelvin, 2_900, 25_000)), metals=float(rng.uniform(0.4, 1.1))
    )


def _quasar(rng: np.random.Generator) -> SkyObject:
    """A point with the light of an active nucleus; nearby ones show their galaxy."""
    redshift = float(np.clip(0.15 + rng.gamma(2.4, 0.55), 0.15, 2.5))
    mag = float(rng.triangular(16.5, 19.3, 20.6))
    glow = QuasarGlow(
        slope=float(rng.normal(-1.55, 0.3)),
        broad=float(np.exp(rng.normal(0, 0.35))),
        narrow=float(np.exp(rng.normal(0, 0.6))),
        broad_km_s=float(np.clip(np.exp(rng.normal(np.log(2000), 0.35)), 800, 5000)),
        dust_mag=float(rng.exponential(0.08)),
    )
    galaxies: tuple[Galaxy, ...] = ()
    if redshift < 0.6 and rng.random() < 0.7:
        size = luminous_red(rng)
        host = replace(size, redshift=redshift, mag_r=mag + float(rng.uniform(0.3, 2.0)))
        galaxies = (spheroid(rng, replace(host, radius_arcsec=float(rng.uniform(0.6, 2.0))), 3.5),)
    return SkyObject(
        kind="quasar",
        redshift=redshift,
        galaxies=galaxies,
        point=glow,
        point_mag_r=mag,
        neighbours=_neighbours(rng, mag),
    )


def draw_object(kind: str, rng: np.random.Generator) -> SkyObject:
    """Draw one object of that kind with what lies around it.

    Raises:
        ValueError: the kind is not one of KINDS.
    """
    if kind == "star":
        mag = float(rng.triangular(14.8, 18.5, 20.0))
        return SkyObject(
            kind=kind,
            redshift=float(rng.normal(0, 60) / LIGHT_SPEED_KM_S),
            point=_star_surface(rng),
            point_mag_r=mag,
            neighbours=_neighbours(rng, mag),
        )
    if kind == "quasar":
        return _quasar(rng)
    source = None
    galaxies: tuple[Galaxy, ...]
    if kind == "merger":
        galaxies = merger(rng)
    elif kind == "shell":
        galaxies = shell_galaxy(rng)
    elif kind == "lens":
        galaxy, source = lens(rng)
        galaxies = (galaxy,)
    elif kind == "group_lens":
        galaxies, source = group_lens(rng)
    elif kind in _SINGLE:
        galaxies = (_SINGLE[kind](rng),)
    else:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    return SkyObject(
        kind=kind,
        redshift=galaxies[0].redshift,
        galaxies=galaxies,
        source=source,
        neighbours=_neighbours(rng, galaxies[0].mag_r),
    )
