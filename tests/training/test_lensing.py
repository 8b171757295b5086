"""Deflection and arcs, against lenstronomy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import phi_q2_ellipticity

from training.sky import lensing
from training.sky.canvas import PIXEL_AREA, axis_arcsec
from training.sky.lens_population import with_clumps
from training.sky.objects import Clump, LensedSource, Mass
from training.sky.population import draw_object
from training.sky.starlight import Starlight

CPU = torch.device("cpu")
SOURCE = LensedSource(
    masses=(Mass(einstein_radius_arcsec=1.8, slope=2.0, axis_ratio=0.8, angle_deg=40.0),),
    shear=(0.03, -0.02),
    redshift=1.5,
    mag_r=22.0,
    radius_arcsec=0.15,
    axis_ratio=1.0,
    angle_deg=0.0,
    x_arcsec=0.25,
    y_arcsec=-0.1,
    light=Starlight(old=0.0, middle=0.2, young=0.8),
)


def oracle(source: LensedSource) -> tuple[LensModel, list[dict[str, float]]]:
    parameters = []
    for mass in source.masses:
        e1, e2 = phi_q2_ellipticity(np.deg2rad(mass.angle_deg), mass.axis_ratio)
        parameters.append(
            {
                "theta_E": mass.einstein_radius_arcsec,
                "gamma": mass.slope,
                "e1": float(e1),
                "e2": float(e2),
                "center_x": mass.x_arcsec,
                "center_y": mass.y_arcsec,
            }
        )
    parameters.append({"gamma1": source.shear[0], "gamma2": source.shear[1]})
    return LensModel(["EPL"] * len(source.masses) + ["SHEAR"]), parameters


@pytest.mark.parametrize("kind", ["lens", "group_lens"])
@pytest.mark.parametrize("seed", range(5))
def test_deflection_agrees_with_lenstronomy(kind: str, seed: int) -> None:
    source = draw_object(kind, np.random.default_rng(seed)).source
    assert source is not None
    places = np.random.default_rng(seed).uniform(-8, 8, size=(2, 200))
    model, parameters = oracle(source)

    x, y = (torch.from_numpy(axis)[None] for axis in places)
    bent = lensing.deflection([source], x, y)

    beta_x, beta_y = model.ray_shooting(*places, parameters)
    np.testing.assert_allclose(places[0] - bent.x[0].numpy(), beta_x, atol=1e-5)
    np.testing.assert_allclose(places[1] - bent.y[0].numpy(), beta_y, atol=1e-5)


def test_steep_shallow_and_flat_masses_agree_with_lenstronomy() -> None:
    for slope, ratio in ((1.6, 0.55), (2.4, 0.7), (2.0, 0.999)):
        mass = Mass(einstein_radius_arcsec=1.3, slope=slope, axis_ratio=ratio, angle_deg=110.0)
        source = replace(SOURCE, masses=(mass,))
        places = np.random.default_rng(1).uniform(-5, 5, size=(2, 100))
        model, parameters = oracle(source)
        bent = lensing.deflection([source], *(torch.from_numpy(p)[None] for p in places))
        beta_x, _ = model.ray_shooting(*places, parameters)
        np.testing.assert_allclose(places[0] - bent.x[0].numpy(), beta_x, atol=1e-5)


def lens_images(source: LensedSource) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and magnifications of the images of the source's centre, by lenstronomy."""
    model, parameters = oracle(source)
    x, y = LensEquationSolver(model).image_position_from_source(
        source.x_arcsec, source.y_arcsec, parameters, search_window=8, min_distance=0.05
    )
    return x, y, np.abs(model.magnification(x, y, parameters))


def arcs_of(source: LensedSource, x_arcsec: float = 0.0, y_arcsec: float = 0.0) -> np.ndarray:
    return lensing.arc_maps([source], [x_arcsec], [y_arcsec], CPU)[0].numpy()


def test_arcs_lie_where_the_lens_equation_puts_them() -> None:
    arcs = arcs_of(SOURCE, 0.5, -0.3)
    axis = axis_arcsec(CPU).numpy()
    x, y, _ = lens_images(SOURCE)

    assert len(x) >= 2
    radius = np.hypot(axis[None, :] - 0.5, axis[:, None] + 0.3)
    assert (arcs * radius).sum() / arcs.sum() == pytest.approx(1.8, abs=0.25)
    for image_x, image_y in zip(x, y, strict=True):
        near = np.hypot(axis[None, :] - 0.5 - image_x, axis[:, None] + 0.3 - image_y) < 0.15
        assert arcs[near].max() > 0.8 * arcs.max()  # lensing keeps surface brightness


def test_a_small_source_is_magnified_as_a_point_is() -> None:
    # away from the caustic, where magnification hardly changes across the source
    source = replace(SOURCE, radius_arcsec=0.15, x_arcsec=0.9, y_arcsec=-0.5)
    _, _, magnification = lens_images(source)

    assert len(magnification) == 2
    assert arcs_of(source).sum() == pytest.approx(magnification.sum(), rel=0.05)


def test_clumps_share_the_light_and_are_lensed_from_where_they_are() -> None:
    clump = Clump(
        light=0.999, radius_arcsec=0.15, axis_ratio=1.0, angle_deg=0.0, x_arcsec=0.65, y_arcsec=-0.4
    )
    moved = replace(SOURCE, x_arcsec=0.9, y_arcsec=-0.5)

    np.testing.assert_allclose(
        arcs_of(replace(SOURCE, clumps=(clump,))), arcs_of(moved), atol=0.004 * arcs_of(moved).max()
    )


@pytest.mark.parametrize("kind", ["lens", "group_lens"])
def test_arcs_of_drawn_lenses_are_those_of_lenstronomy(kind: str) -> None:
    source = draw_object(kind, np.random.default_rng(7)).source
    assert source is not None
    source = with_clumps(source, np.random.default_rng(8))
    axis = axis_arcsec(CPU).numpy().astype(np.float64)[64:192]
    x, y = (grid.ravel() for grid in np.meshgrid(axis, axis))
    model, parameters = oracle(source)
    beta_x, beta_y = model.ray_shooting(x, y, parameters)
    smooth = Clump(
        light=1 - sum(clump.light for clump in source.clumps), x_arcsec=0.0, y_arcsec=0.0,
        radius_arcsec=source.radius_arcsec, axis_ratio=source.axis_ratio,
        angle_deg=source.angle_deg,
    )  # fmt: skip
    expected = np.zeros(len(x))
    for clump in (smooth, *source.clumps):
        e1, e2 = phi_q2_ellipticity(np.deg2rad(clump.angle_deg), clump.axis_ratio)
        disc = {
            # lenstronomy's radius is the geometric mean of the axes
            "R_sersic": clump.radius_arcsec * np.sqrt(clump.axis_ratio), "n_sersic": 1.0,
            "e1": float(e1), "e2": float(e2), "center_x": source.x_arcsec + clump.x_arcsec,
            "center_y": source.y_arcsec + clump.y_arcsec,
        }  # fmt: skip
        profile = LightModel(["SERSIC_ELLIPSE"])
        whole = profile.total_flux([{**disc, "amp": 1.0}])[0]
        light = profile.surface_brightness(beta_x, beta_y, [{**disc, "amp": clump.light / whole}])
        expected += light * PIXEL_AREA

    found = arcs_of(source)[64:192, 64:192].ravel()

    # sharp cores differ most: exponentials end in a cusp
    assert np.abs(found - expected).sum() < 0.01 * expected.sum()


def images_of(kind: str, num: int) -> list[LensedSource]:
    things = [draw_object(kind, np.random.default_rng([5, seed])) for seed in range(num)]
    return [thing.source for thing in things if thing.source is not None]


def test_arcs_doubles_quads_and_rings_come_in_a_sensible_mixture() -> None:
    sources = images_of("lens", 60)
    maps = lensing.arc_maps(sources, [0.0] * 60, [0.0] * 60, CPU).numpy()
    axis = axis_arcsec(CPU).numpy()
    around = np.degrees(np.arctan2(axis[:, None], axis[None, :])) % 360
    covered = np.array(
        [len(np.unique(around[light > 0.15 * light.max()] // 5)) * 5 for light in maps]
    )
    num_images = np.array([len(lens_images(source)[0]) for source in sources[:40]])

    assert 0.02 < (covered > 270).mean() < 0.3  # rings are a minority
    assert (covered < 180).mean() > 0.45  # arcs and doubles
    assert (num_images >= 4).mean() > 0.1
    assert ((num_images == 2) | (num_images == 3)).mean() > 0.4
    radii = [source.masses[0].einstein_radius_arcsec for source in sources]
    assert np.ptp(radii) > 1.2


def test_groups_make_wider_arcs_than_galaxies() -> None:
    galaxy, group = (
        np.median([source.masses[0].einstein_radius_arcsec for source in images_of(kind, 60)])
        for kind in ("lens", "group_lens")
    )

    assert group > 2 * galaxy


def test_without_mass_a_source_keeps_its_light() -> None:
    flat = Mass(einstein_radius_arcsec=0.0, slope=2.0, axis_ratio=0.9, angle_deg=0.0)
    source = replace(SOURCE, masses=(flat,), shear=(0.0, 0.0), radius_arcsec=0.6)

    assert arcs_of(source).sum() == pytest.approx(1, abs=0.01)
