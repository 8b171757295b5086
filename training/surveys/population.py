"""What there is in the simulated sky: one physical draw for each object.

A draw gives redshift, luminosity, stars, dust, size and structure; image, spectrum and catalogue
are made from the same draw. The sample is bright and nearby like Galaxy Zoo's, so that
morphology shows at 0.262 arcsec a pixel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from astropy.cosmology import FlatLambdaCDM
from jaxtyping import Float64
from numpy import ndarray

from training.surveys.simulated_spectra import Starlight, StarSurface, colours

KINDS = (
    "spiral",
    "merger",
    "lens",
    "edge_on",
    "star",
    "irregular",
    "lenticular",
    "elliptical",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """Logarithmic spiral arms of a disc seen face on."""

    num: int
    pitch_deg: float  # positive or negative: the sense of winding
    phase_rad: float
    contrast: float  # 0 to 1
    sharpness: float  # von Mises concentration across an arm
    raggedness: float  # 0 = grand design, 1 = flocculent
    start_radius: float  # where arms begin, in half-light radii of the disc


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar in the plane of the disc."""

    light: float  # of the disc's old light
    length: float  # half-length in half-light radii of the disc
    angle_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """A tidal tail that leaves a disc."""

    light: float  # of the galaxy's light in r
    start_deg: float
    swing_deg: float  # how far it turns until its end
    length_arcsec: float
    width_arcsec: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Galaxy:
    """One galaxy. Angles are measured from the x axis of the image to its y axis."""

    redshift: float
    mag_r: float  # AB, total, without tails
    radius_arcsec: float  # half-light radius of the disc, or of the whole where there is no disc
    axis_ratio: float
    angle_deg: float
    x_arcsec: float = 0.0
    y_arcsec: float = 0.0
    bulge_share: float  # of the light in r
    bulge_radius_arcsec: float
    bulge_index: float  # Sersic
    bulge_axis_ratio: float
    bulge: Starlight
    disc: Starlight
    young: Starlight
    young_share: float  # of the disc's light in r
    knot_share: float = 0.0  # of the young light, in star-forming regions
    num_knots: int = 0
    arms: Arms | None = None
    bar: Bar | None = None
    ring: float = 0.0  # share of the young light in a ring
    patchiness: float = 0.0  # 0 = smooth
    lopsidedness: float = 0.0
    thickness: float = 0.0  # > 0: seen edge on, scale height over scale length
    dust_lane: float = 0.0  # optical depth in r
    tails: tuple[Tail, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LensedSource:
    """A background galaxy and the mass that bends its light."""

    einstein_radius_arcsec: float
    mass_slope: float
    mass_axis_ratio: float
    mass_angle_deg: float
    shear: tuple[float, float]
    redshift: float
    mag_r: float  # before lensing
    radius_arcsec: float
    axis_ratio: float
    angle_deg: float
    x_arcsec: float  # in the source plane, relative to the lens
    y_arcsec: float
    light: Starlight


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Something else in the frame."""

    x_arcsec: float
    y_arcsec: float
    flux_nmgy: tuple[float, ...]  # g, r, i, z
    radius_arcsec: float  # half-light; 0 = a star
    axis_ratio: float
    angle_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyObject:
    """All that is in one frame."""

    kind: str  # one of KINDS
    redshift: float
    galaxies: tuple[Galaxy, ...] = ()
    star: StarSurface | None = None
    star_mag_r: float = 0.0
    source: LensedSource | None = None
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class _Distances:
    redshift: Float64[ndarray, " z"]
    modulus_mag: Float64[ndarray, " z"]
    kpc_per_arcsec: Float64[ndarray, " z"]


@functools.cache
def _distances() -> _Distances:
    redshift = np.geomspace(5e-4, 3.5, 600)
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    return _Distances(
        redshift,
        np.asarray(cosmology.distmod(redshift).value, dtype=np.float64),
        np.asarray(cosmology.kpc_proper_per_arcmin(redshift).value / 60, dtype=np.float64),
    )


def _redshift_at(modulus_mag: float) -> float:
    table = _distances()
    return float(np.interp(modulus_mag, table.modulus_mag, table.redshift))


def _arcsec(radius_kpc: float, redshift: float) -> float:
    table = _distances()
    return radius_kpc / float(np.interp(redshift, table.redshift, table.kpc_per_arcsec))


@dataclass(frozen=True, slots=True)
class _Size:
    mag_r: float
    absolute_r: float
    redshift: float
    radius_arcsec: float


def _nearby(
    rng: np.random.Generator, *, absolute_r: float, scatter_mag: float, early: bool
) -> _Size:
    """Magnitude, redshift and angular size from luminosity and the size-luminosity relation.

    Slopes after Shen et al. 2003, MNRAS 343, 978. Drawn again while too small or too large for
    the frame.
    """
    for _ in range(100):
        luminosity = float(rng.normal(absolute_r, scatter_mag))
        mag = float(rng.triangular(14.3, 16.7, 19.2))
        redshift = _redshift_at(mag - luminosity)
        fainter = -20.5 - luminosity
        if early:
            log_kpc = rng.normal(0.52 + 0.25 * fainter, 0.11)
        else:
            log_kpc = rng.normal(0.65 + 0.17 * fainter, 0.14)
        radius = _arcsec(10**log_kpc, redshift)
        if 1.35 < radius < 8.0:
            break
    return _Size(mag, luminosity, redshift, float(np.clip(radius, 1.35, 8.0)))


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
    size = _nearby(rng, absolute_r=-21.6, scatter_mag=0.8, early=True)
    if rng.random() < 0.3:
        size = _luminous_red(rng)
    index = float(np.clip(rng.normal(4.0 + 0.5 * (-21.6 - size.absolute_r), 0.8), 2.0, 6.0))
    return _spheroid(rng, size, index)


def _luminous_red(rng: np.random.Generator) -> _Size:
    """A massive early-type galaxy far away, as lenses are."""
    while True:
        luminosity = float(rng.normal(-23.1, 0.4))
        redshift = float(rng.uniform(0.15, 0.6))
        modulus = float(np.interp(redshift, _distances().redshift, _distances().modulus_mag))
        mag = luminosity + modulus + 1.2 * redshift  # K correction of old stars in r
        if 16.5 < mag < 20.0:
            radius = _arcsec(10 ** rng.normal(0.52 - 0.22 * (luminosity + 20.5), 0.1), redshift)
            return _Size(mag, luminosity, redshift, float(np.clip(radius, 1.0, 6.0)))


def _spheroid(rng: np.random.Generator, size: _Size, index: float) -> Galaxy:
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
    size: _Size,
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
    size = _nearby(rng, absolute_r=-21.0, scatter_mag=0.7, early=False)
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
    size = _nearby(rng, absolute_r=-20.9, scatter_mag=0.8, early=False)
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
    size = _nearby(rng, absolute_r=-19.3, scatter_mag=0.7, early=False)
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
    size = _nearby(rng, absolute_r=-20.7, scatter_mag=0.8, early=False)
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
    size = _luminous_red(rng)
    while size.redshift < 0.2:
        size = _luminous_red(rng)
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
            redshift=float(rng.normal(0, 60) / 299_792.458),
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
