"""Strong lenses: massive galaxies and groups of them before a blue galaxy far behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.sky.luminosity import luminous_red
from training.sky.objects import Clump, Galaxy, LensedSource, Mass
from training.sky.single_galaxies import spheroid
from training.sky.starlight import Starlight


def lens(rng: np.random.Generator) -> tuple[Galaxy, LensedSource]:
    """A massive early-type galaxy and a blue galaxy behind it."""
    einstein = float(1.0 + 1.5 * rng.beta(2.0, 1.3))
    size = luminous_red(rng)
    while size.redshift < 0.2:
        size = luminous_red(rng)
    galaxy = spheroid(rng, size, float(np.clip(rng.normal(4.2, 0.7), 2.5, 6)))
    mass_axis_ratio = float(np.clip(rng.normal(galaxy.axis_ratio, 0.08), 0.55, 0.98))
    shear, shear_angle = float(rng.rayleigh(0.04)), float(rng.uniform(0, 2 * np.pi))
    offset = einstein * float(0.32 * np.sqrt(rng.random()))
    where = float(rng.uniform(0, 2 * np.pi))
    young = float(rng.uniform(0.7, 1.0))
    source = LensedSource(
        masses=(
            Mass(
                einstein_radius_arcsec=einstein,
                slope=float(np.clip(rng.normal(2.05, 0.1), 1.85, 2.25)),
                axis_ratio=mass_axis_ratio,
                angle_deg=galaxy.angle_deg + float(rng.normal(0, 8)),
            ),
        ),
        shear=(shear * np.cos(shear_angle), shear * np.sin(shear_angle)),
        redshift=float(np.clip(size.redshift + 0.3 + rng.gamma(2.5, 0.4), 0.6, 2.6)),
        mag_r=float(rng.uniform(21.3, 22.9)),
        radius_arcsec=float(rng.uniform(0.15, 0.42)),
        axis_ratio=float(rng.uniform(0.4, 1.0)),
        angle_deg=float(rng.uniform(0, 180)),
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


def with_clumps(source: LensedSource, rng: np.random.Generator) -> LensedSource:
    """The source as star-forming galaxies at high redshift are: larger, with bright clumps."""
    radius = source.radius_arcsec * float(rng.uniform(1.2, 1.9))
    clumps = []
    for share in rng.dirichlet(np.full(int(rng.integers(2, 6)), 2.0)):
        away = radius * float(rng.uniform(0.4, 1.6))
        where = float(rng.uniform(0, 2 * np.pi))
        clumps.append(
            Clump(
                light=0.55 * float(share),
                radius_arcsec=float(rng.uniform(0.07, 0.15)),
                axis_ratio=float(rng.uniform(0.6, 1.0)),
                angle_deg=float(rng.uniform(0, 180)),
                x_arcsec=away * np.cos(where),
                y_arcsec=away * np.sin(where),
            )
        )
    return replace(source, radius_arcsec=radius, clumps=tuple(clumps))


def group_lens(rng: np.random.Generator) -> tuple[tuple[Galaxy, ...], LensedSource]:
    """A group whose members all bend the light: wide, irregular arcs."""
    first, source = lens(rng)
    wide = float(rng.uniform(1.3, 1.9))
    members, masses = [first], [replace(source.masses[0])]
    main = masses[0]
    masses[0] = replace(main, einstein_radius_arcsec=wide * main.einstein_radius_arcsec)
    for _ in range(int(rng.integers(2, 5))):
        fainter = float(rng.uniform(0.4, 2.2))
        away, where = float(rng.uniform(1.8, 8.0)), float(rng.uniform(0, 2 * np.pi))
        radius = max(0.5, first.radius_arcsec * 10 ** (-0.2 * fainter))
        ratio = float(rng.uniform(0.55, 1.0))
        member = replace(
            first,
            mag_r=first.mag_r + fainter,
            radius_arcsec=radius,
            bulge_radius_arcsec=radius,
            axis_ratio=ratio,
            bulge_axis_ratio=ratio,
            angle_deg=float(rng.uniform(0, 180)),
            x_arcsec=away * np.cos(where),
            y_arcsec=away * np.sin(where),
        )
        members.append(member)
        masses.append(
            Mass(
                # velocity dispersion goes with the fourth root of light (Faber & Jackson 1976)
                einstein_radius_arcsec=main.einstein_radius_arcsec * 10 ** (-0.2 * fainter),
                slope=2.0,
                axis_ratio=max(0.6, ratio),
                angle_deg=member.angle_deg,
                x_arcsec=member.x_arcsec,
                y_arcsec=member.y_arcsec,
            )
        )
    # all masses together make a caustic as much wider, which a source seldom hits in its middle
    off = wide * float(rng.uniform(1.0, 2.6))
    source = replace(
        with_clumps(source, rng),
        masses=tuple(masses),
        mag_r=float(rng.uniform(21.2, 22.9)),
        x_arcsec=off * source.x_arcsec,
        y_arcsec=off * source.y_arcsec,
    )
    return tuple(members), source
