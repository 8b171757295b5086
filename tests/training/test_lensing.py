"""Deflection and arcs, against lenstronomy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from lenstronomy.Util.param_util import phi_q2_ellipticity

from training.sky import lensing
from training.sky.canvas import axis_arcsec
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


def test_without_mass_a_source_keeps_its_light() -> None:
    flat = Mass(einstein_radius_arcsec=0.0, slope=2.0, axis_ratio=0.9, angle_deg=0.0)
    source = replace(SOURCE, masses=(flat,), shear=(0.0, 0.0), radius_arcsec=0.6)

    assert arcs_of(source).sum() == pytest.approx(1, abs=0.01)
