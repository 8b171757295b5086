"""What can be in the simulated sky: galaxies with their structure, lenses, stars, neighbours.

Lengths are arcsec on the sky; positions are relative to the centre of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.sky.glare import SaturatedStar
from training.sky.starlight import Light, Starlight

KINDS = (
    "spiral",
    "merger",
    "lens",
    "edge_on",
    "star",
    "irregular",
    "lenticular",
    "barred",  # a spiral with a strong bar
    "ring",
    "shell",  # a merger that is nearly over
    "group_lens",
    "quasar",
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
class Shell:
    """A sharp-edged arc of stars that a small galaxy left as it fell in."""

    light: float  # of the galaxy's light in r
    radius_arcsec: float  # of the edge
    direction_deg: float  # where its middle lies, seen from the galaxy
    half_width_deg: float
    thickness_arcsec: float  # over which it fades inwards


@dataclass(frozen=True, slots=True, kw_only=True)
class Galaxy:
    """One galaxy. Angles are measured from the x axis of the image to its y axis."""

    redshift: float
    mag_r: float  # AB, total, without tails and shells
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
    ring_radius: float = 1.25  # in half-light radii of the disc
    ring_width: float = 0.24  # sigma, likewise
    patchiness: float = 0.0  # 0 = smooth
    lopsidedness: float = 0.0
    thickness: float = 0.0  # > 0: seen edge on, scale height over scale length
    dust_lane: float = 0.0  # optical depth in r
    tails: tuple[Tail, ...] = ()
    shells: tuple[Shell, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mass:
    """An elliptical power law that bends light; places are relative to the main lens.

    Convergence is (3 - slope) / 2 (einstein_radius / r)^(slope - 1), r^2 = q x^2 + y^2 / q.
    """

    einstein_radius_arcsec: float
    slope: float  # of the density in three dimensions; 2 = isothermal
    axis_ratio: float
    angle_deg: float
    x_arcsec: float = 0.0
    y_arcsec: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clump:
    """Part of a lensed source: an exponential disc in the source plane."""

    light: float  # of the source's
    radius_arcsec: float  # half-light
    axis_ratio: float
    angle_deg: float
    x_arcsec: float  # from the centre of the source
    y_arcsec: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LensedSource:
    """A background galaxy and the masses that bend its light, the main one first."""

    masses: tuple[Mass, ...]
    shear: tuple[float, float]
    redshift: float
    mag_r: float  # before lensing
    radius_arcsec: float
    axis_ratio: float
    angle_deg: float
    x_arcsec: float  # in the source plane, relative to the lens
    y_arcsec: float
    light: Starlight
    clumps: tuple[Clump, ...] = ()  # the rest of the light is smooth


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
    point: Light | None = None  # a star or the nucleus of a quasar, at the centre
    point_mag_r: float = 0.0
    source: LensedSource | None = None
    neighbours: tuple[Neighbour, ...] = ()
    saturated: SaturatedStar | None = None
