"""Who lives in the simulated sky: one physical draw for each object.

A draw gives redshift, luminosity, stars, dust, size and structure; image, spectrum and catalogue
are made from the same draw. The sample is bright and nearby like Galaxy Zoo's, so that
morphology shows at 0.262 arcsec a pixel.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.surveys.luminosity import Size, luminous_red, nearby
from training.surveys.simulated_spectra import (
    LIGHT_SPEED_KM_S,
    Starlight,
    StarSurface,
    colours,
)
from training.surveys.sky_objects import (
    KINDS,
    Arms,
    Bar,
    Galaxy,
    LensedSource,
    Neighbour,
    SkyObject,
    Tail,
)


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


def _elliptical(rng: np.random.Generator) -> Galaxy:
    size = nearby(rng, absolute_r=-21.6, scatter_mag=0.8, early=True)
    if rng.random() < 0.3:
        size = luminous_red(rng)
    index = float(np.clip(rng.normal(4.0 + 0.5 * (-21.6 - size.absolute_r), 0.8), 2.0, 6.0))
    return _spheroid(rng, size, index)


def _spheroid(rng: np.random.Generator, size: Size, index: float) -> Galaxy:
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


def _spiral(rng: np.random.Generator) -> Galaxy:
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


def _lenticular(rng: np.random.Generator) -> Galaxy:
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


def _irregular(rng: np.random.Generator) -> Galaxy:
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


def _edge_on(rng: np.random.Generator) -> Galaxy:
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


def _merger(rng: np.random.Generator) -> tuple[Galaxy, ...]:
    """Two galaxies in contact, drawn out by tides; sometimes both without gas."""
    dry = rng.random() < 0.22
    if dry:
        first = _elliptical(rng)
        first = replace(first, radius_arcsec=min(first.radius_arcsec, 3.5))
        second = _elliptical(rng)
    else:
        first = _spiral(rng) if rng.random() < 0.75 else _lenticular(rng)
        second = (_spiral, _irregular, _lenticular)[int(rng.integers(3))](rng)
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


def _lens(rng: np.random.Generator) -> tuple[Galaxy, LensedSource]:
    """A massive early-type galaxy and a blue galaxy behind it."""
    einstein = float(1.0 + 1.5 * rng.beta(2.0, 1.3))
    size = luminous_red(rng)
    while size.redshift < 0.2:
        size = luminous_red(rng)
    galaxy = _spheroid(rng, size, float(np.clip(rng.normal(4.2, 0.7), 2.5, 6)))
    mass_axis_ratio = float(np.clip(rng.normal(galaxy.axis_ratio, 0.08), 0.55, 0.98))
    shear, shear_angle = float(rng.rayleigh(0.04)), float(rng.uniform(0, 2 * np.pi))
    offset = einstein * float(0.32 * np.sqrt(rng.random()))
    where = float(rng.uniform(0, 2 * np.pi))
    young = float(rng.uniform(0.7, 1.0))
    source = LensedSource(
        einstein_radius_arcsec=einstein,
        mass_slope=float(np.clip(rng.normal(2.05, 0.1), 1.85, 2.25)),
        mass_axis_ratio=mass_axis_ratio,
        mass_angle_deg=galaxy.angle_deg + float(rng.normal(0, 8)),
        shear=(shear * np.cos(shear_angle), shear * np.sin(shear_angle)),
        redshift=float(np.clip(size.redshift + 0.3 + rng.gamma(2.5, 0.4), 0.6, 2.6)),
        mag_r=float(rng.uniform(21.3, 22.9)),
        radius_arcsec=float(rng.uniform(0.15, 0.42)),
        axis_ratio=float(rng.uniform(0.4, 1.0)),
        angle_deg=_angle(rng),
        x_arcsec=offset * np.cos(where),
        y_arcsec=offset * np.sin(where),
        light=Starlight(
            old=0.0,
            middle=1 - young,
            young=young,
            metal_poor=float(rng.uniform(0.3, 1)),
            dust_mag=float(rng.uniform(0, 0.25)),
        ),
    )
    return galaxy, source


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
                angle_deg=_angle(rng),
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
            star=_star_surface(rng),
            star_mag_r=mag,
            neighbours=_neighbours(rng, mag),
        )
    source = None
    if kind == "merger":
        galaxies = _merger(rng)
    elif kind == "lens":
        galaxy, source = _lens(rng)
        galaxies = (galaxy,)
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


_SINGLE = {
    "spiral": _spiral,
    "edge_on": _edge_on,
    "irregular": _irregular,
    "lenticular": _lenticular,
    "elliptical": _elliptical,
}
