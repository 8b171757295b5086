"""How the light of one galaxy is spread over the sky: arms, bars, rings, tails, lensed arcs.

A map is light per fine pixel, adding up to 1 over all the sky (what falls outside the grid is
not there). The grid is twice as fine as the camera and a little wider than the frame, so that
what lies just outside still blurs into it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.special
from jaxtyping import Float32
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC
from training.surveys.sky_objects import Arms, Galaxy, LensedSource, Neighbour, Tail

OVERSAMPLING = 2
GRID_SIZE = 256  # fine pixels a side
MARGIN = (GRID_SIZE - OVERSAMPLING * IMAGE_SIZE) // 2  # fine pixels outside the frame
STEP_ARCSEC = PIXEL_SCALE_ARCSEC / OVERSAMPLING
PIXEL_AREA = STEP_ARCSEC**2
HALF_LIGHT_SCALES = 1.678  # half-light radius of an exponential disc over its scale length

Map = Float32[ndarray, "y x"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Part of a galaxy with one map; lane is the optical depth before it, where there is one."""

    light: Map
    share: float  # of the galaxy's light in r
    population: str  # "bulge", "disc" or "young"
    lane: Map | None = None


@functools.cache
def axis_arcsec() -> Float32[ndarray, " x"]:
    """Offsets of fine pixels from the centre of the frame."""
    return ((np.arange(GRID_SIZE) - (GRID_SIZE - 1) / 2) * STEP_ARCSEC).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Plane:
    """Coordinates in the plane of a disc: along and across its major axis, radius, azimuth."""

    along: Map
    across: Map
    radius: Map
    azimuth: Map


def _plane(x_arcsec: float, y_arcsec: float, angle_deg: float, axis_ratio: float) -> _Plane:
    axis = axis_arcsec()
    dx = (axis - np.float32(x_arcsec))[None, :]
    dy = (axis - np.float32(y_arcsec))[:, None]
    cosine, sine = (
        np.float32(np.cos(np.deg2rad(angle_deg))),
        np.float32(np.sin(np.deg2rad(angle_deg))),
    )
    along = dx * cosine + dy * sine
    across = (dy * cosine - dx * sine) / np.float32(axis_ratio)
    return _Plane(along, across, np.hypot(along, across), np.arctan2(across, along))


def _noise_map(rng: np.random.Generator, correlation_arcsec: float) -> Map:
    """Smooth Gaussian noise of unit variance with structure down to that scale."""
    num = max(3, int(GRID_SIZE * STEP_ARCSEC / correlation_arcsec))
    modes = np.zeros((GRID_SIZE, GRID_SIZE // 2 + 1), dtype=np.complex64)
    size = (2 * num + 1, num + 1)
    draw = rng.standard_normal((2, *size), dtype=np.float32)
    ky, kx = np.arange(-num, num + 1)[:, None], np.arange(num + 1)[None, :]
    damping = (1 + (kx**2 + ky**2) / (0.3 * num) ** 2) ** -0.75
    modes[np.arange(-num, num + 1)[:, None], kx] = (draw[0] + 1j * draw[1]) * damping
    field = scipy.fft.irfft2(modes, s=(GRID_SIZE, GRID_SIZE), overwrite_x=True)
    return (field / field.std()).astype(np.float32)


def _exponential(radius: Map, half_light_arcsec: float, axis_ratio: float) -> Map:
    scale = half_light_arcsec / HALF_LIGHT_SCALES
    return np.exp(radius * np.float32(-1 / scale)) * np.float32(
        PIXEL_AREA / (2 * np.pi * scale**2 * axis_ratio)
    )


def _with_light_of(changed: Map, smooth: Map) -> Map:
    """The changed map with as much light on the grid as the smooth one."""
    return changed * np.float32(smooth.sum() / changed.sum())


def _arm_ridges(plane: _Plane, arms: Arms, radius_arcsec: float, bend: Map | None) -> Map:
    """Light across arms relative to its mean at that radius, minus 1; fades towards the centre."""
    reduced = plane.radius * np.float32(1 / radius_arcsec)
    winding = np.log(reduced + np.float32(0.05)) / np.float32(np.tan(np.deg2rad(arms.pitch_deg)))
    phase = np.float32(arms.num) * (plane.azimuth - winding) + np.float32(arms.phase_rad)
    if bend is not None:
        phase += np.float32(1.8 * arms.raggedness) * bend
    mean = scipy.special.i0e(arms.sharpness)
    ridge = np.exp(np.float32(arms.sharpness) * (np.cos(phase) - 1)) / np.float32(mean) - 1
    inner = (reduced / np.float32(arms.start_radius)) ** 3
    return ridge * (inner / (1 + inner))


def _knots(light: Map, num: int, rng: np.random.Generator) -> Map:
    """Star-forming regions: points placed where the young light is, adding up to 1."""
    cumulative = np.cumsum(light.ravel(), dtype=np.float64)
    places = np.searchsorted(cumulative, rng.random(num) * cumulative[-1])
    bright = rng.pareto(1.6, size=num) + 0.3
    points = np.bincount(places, weights=bright / bright.sum(), minlength=light.size)
    points = points.reshape(light.shape).astype(np.float32)
    spread = points.copy()  # a region is about a fine pixel or two wide
    for axis in (0, 1):
        spread = 0.5 * spread + 0.25 * (np.roll(spread, 1, axis) + np.roll(spread, -1, axis))
    return spread


def sersic_map(
    *,
    x_arcsec: float,
    y_arcsec: float,
    radius_arcsec: float,
    index: float,
    axis_ratio: float,
    angle_deg: float,
) -> Map:
    """A Sersic (1963) profile; radius is that of half the light along the major axis times the
    root of the axis ratio, as GalSim's shear keeps it."""
    major = radius_arcsec / np.sqrt(axis_ratio)
    steepness = float(scipy.special.gammaincinv(2 * index, 0.5))
    total = 2 * np.pi * index * steepness ** (-2 * index) * scipy.special.gamma(2 * index)
    centre_value = PIXEL_AREA / (total * major**2 * axis_ratio)
    cosine, sine = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))

    def profile(x: ndarray, y: ndarray) -> ndarray:
        dx, dy = x - np.float32(x_arcsec), y - np.float32(y_arcsec)
        along = dx * np.float32(cosine / major) + dy * np.float32(sine / major)
        across = (dy * np.float32(cosine) - dx * np.float32(sine)) / np.float32(axis_ratio * major)
        squared = along * along + across * across + np.float32(1e-10)
        power = np.exp(np.float32(0.5 / index) * np.log(squared))
        return np.exp(np.float32(-steepness) * power) * np.float32(centre_value)

    axis = axis_arcsec()
    light = profile(axis[None, :], axis[:, None])
    # the cusp is steeper than a fine pixel: average over finer and finer points towards it
    for half_width, points in ((8, 9), (1, 101)):
        first_x = int(np.clip((x_arcsec - axis[0]) / STEP_ARCSEC + 1, 8, GRID_SIZE - 8))
        first_y = int(np.clip((y_arcsec - axis[0]) / STEP_ARCSEC + 1, 8, GRID_SIZE - 8))
        columns = slice(first_x - half_width, first_x + half_width)
        rows = slice(first_y - half_width, first_y + half_width)
        inner = ((np.arange(points) - points // 2) / points * STEP_ARCSEC).astype(np.float32)
        x = (axis[columns, None] + inner).ravel()
        y = (axis[rows, None] + inner).ravel()
        side = 2 * half_width
        averaged = profile(x[None, :], y[:, None]).reshape(side, points, side, points)
        light[rows, columns] = averaged.mean(axis=(1, 3))
    return light


def galaxy_layers(galaxy: Galaxy, rng: np.random.Generator) -> list[Layer]:
    """All light of a galaxy."""
    if galaxy.thickness > 0:
        return _edge_on_layers(galaxy, rng)
    layers = _tail_layers(galaxy)
    if galaxy.bulge_share > 0:
        bulge = sersic_map(
            x_arcsec=galaxy.x_arcsec,
            y_arcsec=galaxy.y_arcsec,
            radius_arcsec=galaxy.bulge_radius_arcsec,
            index=galaxy.bulge_index,
            axis_ratio=galaxy.bulge_axis_ratio,
            angle_deg=galaxy.angle_deg,
        )
        layers.append(Layer(bulge, galaxy.bulge_share, "bulge"))
    disc_share = 1 - galaxy.bulge_share
    if disc_share < 0.005:
        return layers
    plane = _plane(galaxy.x_arcsec, galaxy.y_arcsec, galaxy.angle_deg, galaxy.axis_ratio)
    smooth = _exponential(plane.radius, galaxy.radius_arcsec, galaxy.axis_ratio)
    old_change = np.ones_like(smooth)
    patches = bend = None
    if galaxy.patchiness or galaxy.arms:
        bend = _noise_map(rng, 2.5)
        patches = np.exp(np.float32(galaxy.patchiness) * _noise_map(rng, 1.0))
    young_change = np.ones_like(smooth) if patches is None else patches
    if galaxy.lopsidedness:
        angle = np.float32(rng.uniform(0, 2 * np.pi))
        reach = plane.radius / (plane.radius + np.float32(galaxy.radius_arcsec))
        tilt = 1 + np.float32(min(1.2, galaxy.lopsidedness)) * reach * np.cos(plane.azimuth - angle)
        tilt = np.maximum(tilt, np.float32(0.05))
        old_change, young_change = old_change * tilt, young_change * tilt
    if galaxy.arms:
        ridges = _arm_ridges(plane, galaxy.arms, galaxy.radius_arcsec, bend)
        contrast = np.float32(galaxy.arms.contrast)
        old_change = old_change * np.maximum(1 + 0.5 * contrast * ridges, np.float32(0.15))
        young_change = young_change * np.maximum(1 + 1.15 * contrast * ridges, np.float32(0.02))
    old = _with_light_of(smooth * old_change, smooth)
    # young stars are spread wider than old ones and avoid the centre
    wide = _exponential(plane.radius, 1.15 * galaxy.radius_arcsec, galaxy.axis_ratio)
    hole = (plane.radius / np.float32(0.35 * galaxy.radius_arcsec)) ** 2
    young = _with_light_of(wide * young_change * ((0.25 + hole) / (1 + hole)), wide)
    if galaxy.ring:
        width = np.float32(0.24 * galaxy.radius_arcsec)
        ring = np.exp(
            -0.5 * ((plane.radius - np.float32(1.25 * galaxy.radius_arcsec)) / width) ** 2
        )
        ring = _with_light_of(ring * young_change, wide)
        young = young * np.float32(1 - galaxy.ring) + ring * np.float32(galaxy.ring)
    if galaxy.num_knots and galaxy.knot_share:
        share = np.float32(galaxy.knot_share)
        young = young * (1 - share) + _knots(young, galaxy.num_knots, rng) * share
    if galaxy.bar:
        old = _add_bar(old, plane, galaxy)
    old_share = disc_share * (1 - galaxy.young_share)
    layers.append(Layer(old, old_share, "disc"))
    if galaxy.young_share > 0:
        layers.append(Layer(young, disc_share * galaxy.young_share, "young"))
    return layers


def _add_bar(old: Map, plane: _Plane, galaxy: Galaxy) -> Map:
    assert galaxy.bar is not None
    angle = np.deg2rad(galaxy.bar.angle_deg)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    length = np.float32(galaxy.bar.length * galaxy.radius_arcsec)
    along = (plane.along * cosine + plane.across * sine) / length
    across = (plane.across * cosine - plane.along * sine) / (np.float32(0.3) * length)
    bar = np.exp(-1.5 * (along**4 + across**2))
    # total of exp(-1.5 (u^4 + v^2)) over the plane
    total = 1.6382 * 1.4472 * 0.3 * float(length) ** 2 * galaxy.axis_ratio / PIXEL_AREA
    share = np.float32(galaxy.bar.light)
    return old * (1 - share) + bar * (share / np.float32(total))


def _tail_layers(galaxy: Galaxy) -> list[Layer]:
    return [layer for tail in galaxy.tails for layer in _tail(galaxy, tail)]


def _tail(galaxy: Galaxy, tail: Tail) -> list[Layer]:
    light = _tail_map(galaxy, tail)
    young = min(0.6, galaxy.young_share)  # stars torn out of the disc, and some new ones
    return [
        Layer(light, tail.light * (1 - young), "disc"),
        Layer(light, tail.light * young, "young"),
    ]


def _tail_map(galaxy: Galaxy, tail: Tail) -> Map:
    """A curved strip that starts in the disc, fades outwards and widens."""
    sky = _plane(galaxy.x_arcsec, galaxy.y_arcsec, 0.0, 1.0)
    start = np.float32(0.7 * galaxy.radius_arcsec)
    length = np.float32(tail.length_arcsec)
    run = (sky.radius - start) / length  # 0 at the root, 1 at the tip
    inside = np.clip(run, 0, None)
    centre = np.float32(np.deg2rad(tail.start_deg)) + np.float32(
        np.deg2rad(tail.swing_deg)
    ) * np.sqrt(inside)
    turn = (sky.azimuth - centre + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)
    width = np.float32(tail.width_arcsec) * (0.8 + inside)
    strip = np.exp(-0.5 * (turn * sky.radius / width) ** 2) / width
    window = 1 / ((1 + np.exp(-run / np.float32(0.06))) * (1 + np.exp((run - 1) / np.float32(0.1))))
    light = strip * window * np.exp(-inside)
    return light / max(float(light.sum()), 1e-12)


def _edge_on_layers(galaxy: Galaxy, rng: np.random.Generator) -> list[Layer]:
    """A disc from the side (van der Kruit & Searle 1981), a flattened bulge, and a dust lane."""
    plane = _plane(galaxy.x_arcsec, galaxy.y_arcsec, galaxy.angle_deg, 1.0)
    scale = np.float32(galaxy.radius_arcsec / HALF_LIGHT_SCALES)
    along = np.abs(plane.along) / scale + np.float32(1e-3)
    profile = along * scipy.special.k1(along)
    layers = []
    lane: Map | None = None
    if galaxy.dust_lane:
        thin = np.float32(0.35 * galaxy.thickness) * scale
        shift = np.float32(rng.uniform(-0.5, 0.5)) * thin  # tilted a little off the exact side
        lane = np.float32(galaxy.dust_lane) * np.exp(
            -(((plane.across - shift) / thin) ** 2) - 0.5 * (along / 1.6) ** 2
        )
        lane *= np.exp(np.float32(0.3) * _noise_map(rng, 1.2))
    disc_share = 1 - galaxy.bulge_share
    patches = np.exp(np.float32(galaxy.patchiness) * _noise_map(rng, 1.0))
    for name, share, thick in (
        ("disc", disc_share * (1 - galaxy.young_share), 1.0),
        ("young", disc_share * galaxy.young_share, 0.6),
    ):
        if share <= 0:
            continue
        height = np.float32(galaxy.thickness * thick) * scale
        smooth = profile / np.cosh(np.minimum(np.abs(plane.across) / height, 20)) ** 2
        # integrals: K1(u) u over u is pi, sech^2 over both sides is 2
        smooth *= np.float32(PIXEL_AREA / (2 * np.pi * float(scale) * float(height)))
        light = _with_light_of(smooth * patches, smooth) if name == "young" else smooth
        layers.append(Layer(light.astype(np.float32), share, name, lane))
    bulge_plane = _plane(
        galaxy.x_arcsec, galaxy.y_arcsec, galaxy.angle_deg, galaxy.bulge_axis_ratio
    )
    bulge = _exponential(
        bulge_plane.radius, max(0.5, galaxy.bulge_radius_arcsec), galaxy.bulge_axis_ratio
    )
    layers.append(Layer(bulge, galaxy.bulge_share, "bulge", lane))
    return layers


def add_neighbour(scenes: Float32[ndarray, "band y x"], neighbour: Neighbour) -> None:
    """Add a field galaxy or star to the unblurred scene of each band, in place."""
    flux = np.asarray(neighbour.flux_nmgy, dtype=np.float32)[:, None, None]
    centre = (GRID_SIZE - 1) / 2
    column = neighbour.x_arcsec / STEP_ARCSEC + centre
    row = neighbour.y_arcsec / STEP_ARCSEC + centre
    if neighbour.radius_arcsec == 0:
        left, low = int(column), int(row)
        dx, dy = column - left, row - low
        weights = np.outer([1 - dy, dy], [1 - dx, dx]).astype(np.float32)
        scenes[:, low : low + 2, left : left + 2] += flux * weights
        return
    reach = int(np.clip(5 * neighbour.radius_arcsec / STEP_ARCSEC, 6, GRID_SIZE))
    rows = slice(max(0, int(row) - reach), int(row) + reach + 1)
    columns = slice(max(0, int(column) - reach), int(column) + reach + 1)
    axis = axis_arcsec()
    up = (axis[rows] - np.float32(neighbour.y_arcsec))[:, None]
    right = (axis[columns] - np.float32(neighbour.x_arcsec))[None, :]
    angle = np.deg2rad(neighbour.angle_deg)
    along = right * np.float32(np.cos(angle)) + up * np.float32(np.sin(angle))
    across = (up * np.float32(np.cos(angle)) - right * np.float32(np.sin(angle))) / np.float32(
        neighbour.axis_ratio
    )
    light = _exponential(np.hypot(along, across), neighbour.radius_arcsec, neighbour.axis_ratio)
    scenes[:, rows, columns] += flux * light


@functools.cache
def _lens_model() -> LensModel:
    return LensModel(["EPL", "SHEAR"])


def lens_parameters(source: LensedSource) -> list[dict[str, float]]:
    """The mass as lenstronomy wants it: an elliptical power law and an external shear."""
    e1, e2 = phi_q2_ellipticity(np.deg2rad(source.mass_angle_deg), source.mass_axis_ratio)
    return [
        {
            "theta_E": source.einstein_radius_arcsec,
            "gamma": source.mass_slope,
            "e1": float(e1),
            "e2": float(e2),
            "center_x": 0.0,
            "center_y": 0.0,
        },
        {"gamma1": source.shear[0], "gamma2": source.shear[1]},
    ]


def lensed_map(source: LensedSource, x_arcsec: float, y_arcsec: float) -> Map:
    """Arcs around a lens at that place: light relative to the unlensed source's total.

    Rays are shot back from each fine pixel; surface brightness is kept, so the sum of the map is
    the magnification.
    """
    axis = axis_arcsec().astype(np.float64)
    reach = 3.2 * source.einstein_radius_arcsec + 1.0
    columns = np.flatnonzero(np.abs(axis - x_arcsec) < reach)
    rows = np.flatnonzero(np.abs(axis - y_arcsec) < reach)
    x, y = np.meshgrid(axis[columns] - x_arcsec, axis[rows] - y_arcsec)
    beta_x, beta_y = _lens_model().ray_shooting(x.ravel(), y.ravel(), lens_parameters(source))
    dx, dy = beta_x - source.x_arcsec, beta_y - source.y_arcsec
    angle = np.deg2rad(source.angle_deg)
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / source.axis_ratio
    scale = source.radius_arcsec / HALF_LIGHT_SCALES
    light = np.exp(-np.hypot(along, across) / scale)
    light *= PIXEL_AREA / (2 * np.pi * scale**2 * source.axis_ratio)
    out = np.zeros((GRID_SIZE, GRID_SIZE), dtype=np.float32)
    out[np.ix_(rows, columns)] = light.reshape(x.shape).astype(np.float32)
    return out
