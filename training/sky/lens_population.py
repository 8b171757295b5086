"""Strong lenses: massive galaxies and groups of them before a blue galaxy far behind.

How far light is bent follows from luminosity, by the velocity dispersion (Faber & Jackson 1976,
ApJ 204, 668), and from the distances of lens and source; what is left is what ground-based surveys
find: Einstein radii of 0.6 to 2.5 arcsec (Collett 2015, ApJ 811, 20), groups wider.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.sky.luminosity import Size, angular_radius_arcsec, distances, lensing_efficiency
from training.sky.objects import Clump, Galaxy, LensedSource, Mass
from training.sky.single_galaxies import spheroid
from training.sky.starlight import Starlight

_DISPERSION_KM_S = 265.0  # of a galaxy of absolute magnitude -23 in r
_ARCSEC_AT_200_KM_S = 1.15  # Einstein radius before a source at infinite distance


def _host(rng: np.random.Generator, absolute_r: float) -> Size:
    """A massive early-type galaxy at a redshift of 0.3 to 0.8."""
    while True:
        luminosity = float(rng.normal(absolute_r, 0.35))
        redshift = 0.3 + 0.5 * float(rng.beta(1.6, 2.2))
        modulus = float(np.interp(redshift, distances().redshift, distances().modulus_mag))
        mag = luminosity + modulus + 1.2 * redshift  # K correction and evolution of old stars in r
        if mag < 20.6:
            radius = angular_radius_arcsec(
                10 ** rng.normal(0.42 - 0.2 * (luminosity + 20.5), 0.1), redshift
            )
            return Size(mag, luminosity, redshift, float(np.clip(radius, 0.6, 3.0)))


def _einstein_radius_arcsec(
    rng: np.random.Generator, absolute_r: float, redshift: float, source_redshift: float
) -> float:
    """Of an isothermal sphere."""
    dispersion = _DISPERSION_KM_S * 10 ** (-0.1 * (absolute_r + 23) + rng.normal(0, 0.05))
    bent = _ARCSEC_AT_200_KM_S * (dispersion / 200) ** 2
    return float(bent * lensing_efficiency(redshift, source_redshift))


def lens(rng: np.random.Generator) -> tuple[Galaxy, LensedSource]:
    """A massive early-type galaxy and a blue galaxy behind it."""
    while True:
        size = _host(rng, -23.3)
        source_redshift = _source_redshift(rng, size.redshift)
        einstein = _einstein_radius_arcsec(rng, size.absolute_r, size.redshift, source_redshift)
        # small ones hide in the light of their lens, and are seldom found
        if 0.6 < einstein < 2.5 and rng.random() < (einstein / 2.2) ** 2.5:
            break
    galaxy = spheroid(rng, size, float(np.clip(rng.normal(4.0, 0.7), 2.5, 6)))
    mass = Mass(
        einstein_radius_arcsec=einstein,
        slope=float(np.clip(rng.normal(2.05, 0.1), 1.85, 2.25)),
        axis_ratio=float(np.clip(rng.normal(galaxy.axis_ratio, 0.08), 0.55, 0.98)),
        angle_deg=galaxy.angle_deg + float(rng.normal(0, 8)),
    )
    source = _source(rng, (mass,), source_redshift, reach_arcsec=0.75 * einstein)
    return galaxy, source


def _source_redshift(rng: np.random.Generator, redshift: float) -> float:
    return max(redshift + 0.4, 1.0 + 2.0 * float(rng.beta(1.5, 3.0)))


def _source(
    rng: np.random.Generator, masses: tuple[Mass, ...], redshift: float, *, reach_arcsec: float
) -> LensedSource:
    """A young galaxy that is multiply imaged.

    Places crowd towards the axis, where a source is magnified more and found although fainter.
    """
    shear, shear_angle = float(rng.rayleigh(0.045)), float(rng.uniform(0, 2 * np.pi))
    offset = reach_arcsec * (0.04 + 0.96 * float(rng.random()) ** 1.6)
    where = float(rng.uniform(0, 2 * np.pi))
    young = float(rng.uniform(0.94, 1.0))
    return LensedSource(
        masses=masses,
        shear=(shear * np.cos(shear_angle), shear * np.sin(shear_angle)),
        redshift=redshift,
        mag_r=float(rng.triangular(21.0, 22.2, 23.4)),
        radius_arcsec=float(np.exp(rng.normal(np.log(0.22), 0.3))),
        axis_ratio=float(rng.uniform(0.35, 1.0)),
        angle_deg=float(rng.uniform(0, 180)),
        x_arcsec=offset * np.cos(where),
        y_arcsec=offset * np.sin(where),
        light=Starlight(
            old=0.0,
            middle=1 - young,
            young=young,
            metal_poor=float(rng.uniform(0.5, 1)),
            dust_mag=float(rng.exponential(0.04)),
        ),
    )


def with_clumps(source: LensedSource, rng: np.random.Generator) -> LensedSource:
    """The source as star-forming galaxies at high redshift are: larger, with bright clumps."""
    radius = source.radius_arcsec * float(rng.uniform(1.0, 1.6))
    clumps = []
    for share in rng.dirichlet(np.full(int(rng.integers(2, 6)), 1.5)):
        away = radius * float(rng.uniform(0.3, 1.6))
        where = float(rng.uniform(0, 2 * np.pi))
        clumps.append(
            Clump(
                light=0.6 * float(share),
                radius_arcsec=float(rng.uniform(0.05, 0.12)),
                axis_ratio=float(rng.uniform(0.6, 1.0)),
                angle_deg=float(rng.uniform(0, 180)),
                x_arcsec=away * np.cos(where),
                y_arcsec=away * np.sin(where),
            )
        )
    return replace(source, radius_arcsec=radius, clumps=tuple(clumps))


def group_lens(rng: np.random.Generator) -> tuple[tuple[Galaxy, ...], LensedSource]:
    """A group whose dark matter and members all bend the light: wide, irregular arcs."""
    size = _host(rng, -23.6)
    first = spheroid(rng, size, float(np.clip(rng.normal(4.2, 0.7), 2.5, 6)))
    source_redshift = _source_redshift(rng, size.redshift)
    halo = Mass(
        einstein_radius_arcsec=float(rng.triangular(2.2, 3.4, 7.0)),
        slope=float(np.clip(rng.normal(1.95, 0.08), 1.8, 2.1)),
        axis_ratio=float(rng.uniform(0.6, 0.92)),
        angle_deg=first.angle_deg + float(rng.normal(0, 15)),
    )
    members, masses = [first], [halo]
    for _ in range(int(rng.integers(3, 10))):
        member = _member(rng, first)
        members.append(member)
        fainter = member.mag_r - first.mag_r
        masses.append(
            Mass(
                einstein_radius_arcsec=_einstein_radius_arcsec(
                    rng, size.absolute_r + fainter, size.redshift, source_redshift
                ),
                slope=2.0,
                axis_ratio=max(0.6, member.axis_ratio),
                angle_deg=member.angle_deg,
                x_arcsec=member.x_arcsec,
                y_arcsec=member.y_arcsec,
            )
        )
    source = _source(
        rng, tuple(masses), source_redshift, reach_arcsec=0.9 * halo.einstein_radius_arcsec
    )
    return tuple(members), with_clumps(source, rng)


def _member(rng: np.random.Generator, first: Galaxy) -> Galaxy:
    """A fainter galaxy of the group, of the same old stars and seldom right beside the first."""
    fainter = float(np.clip(0.3 + rng.gamma(2.5, 0.6), 0.3, 4.0))
    away, where = 1.5 + 9.0 * float(np.sqrt(rng.random())), float(rng.uniform(0, 2 * np.pi))
    radius = max(0.3, first.radius_arcsec * 10 ** (-0.25 * fainter + rng.normal(0, 0.08)))
    ratio = float(np.clip(1 - abs(rng.normal(0.0, 0.3)), 0.4, 1.0))
    return replace(
        first,
        mag_r=first.mag_r + fainter,
        radius_arcsec=radius,
        bulge_radius_arcsec=radius,
        bulge_index=float(rng.uniform(2.0, 4.5)),
        axis_ratio=ratio,
        bulge_axis_ratio=ratio,
        angle_deg=float(rng.uniform(0, 180)),
        x_arcsec=away * np.cos(where),
        y_arcsec=away * np.sin(where),
    )
