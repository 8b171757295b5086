"""Maps of galaxy light, against scipy, astropy and arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from astropy.cosmology import FlatLambdaCDM

from training.sky import canvas, luminosity
from training.sky.edge_on_maps import k1_times
from training.sky.light_maps import disc_maps, galaxy_layers
from training.sky.light_profiles import sersic_steepness
from training.sky.objects import Galaxy, Shell
from training.sky.population import draw_object
from training.sky.textures import draw_texture, noise_maps

CPU = torch.device("cpu")


def galaxy_of(kind: str, seed: int = 0) -> Galaxy:
    return draw_object(kind, np.random.default_rng(seed)).galaxies[0]


@pytest.mark.parametrize("index", [0.5, 1.0, 2.5, 4.0, 6.0])
def test_half_the_light_of_a_sersic_profile_lies_within_its_radius(index: float) -> None:
    exact = float(scipy.special.gammaincinv(2 * index, 0.5))

    assert sersic_steepness(index) == pytest.approx(exact, rel=1e-3 if index < 1 else 3e-5)


def test_the_bessel_function_agrees_with_scipy() -> None:
    u = np.concatenate([np.geomspace(1e-3, 40, 500), [2.0]])

    found = k1_times(torch.from_numpy(u)).numpy()

    np.testing.assert_allclose(found, u * scipy.special.k1(u), rtol=1e-6, atol=1e-30)


def test_distances_agree_with_astropy() -> None:
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    table = luminosity.distances()

    np.testing.assert_allclose(
        table.modulus_mag, cosmology.distmod(table.redshift).value, atol=1e-6
    )
    np.testing.assert_allclose(
        table.kpc_per_arcsec,
        cosmology.kpc_proper_per_arcmin(table.redshift).value / 60,
        rtol=1e-6,
    )


def test_noise_has_unit_variance_and_no_fine_structure() -> None:
    modes = np.random.default_rng(0).standard_normal((2, 27, 14), dtype=np.float32)

    field = noise_maps([modes], CPU)[0]

    assert float(field.std(correction=0)) == pytest.approx(1, abs=1e-4)
    waves = torch.fft.rfft2(field).abs()
    assert waves[100:156, 60:].max() < 1e-3 * waves.max()


def test_a_ring_is_bright_where_it_is_said_to_be() -> None:
    face_on = replace(
        galaxy_of("ring", 3), axis_ratio=1.0, x_arcsec=0.0, y_arcsec=0.0, radius_arcsec=4.0,
        lopsidedness=0.0, ring_radius=1.3, ring=0.95, num_knots=0, bar=None,
    )  # fmt: skip
    texture = draw_texture(face_on, np.random.default_rng(0))

    _, young = disc_maps([face_on], [texture], CPU)

    axis = canvas.axis_arcsec(CPU).numpy()
    radius = np.hypot(axis[:, None], axis[None, :])
    profile = [
        float(young[0].numpy()[np.abs(radius - r) < 0.3].mean()) for r in np.arange(1, 8, 0.4)
    ]
    assert np.arange(1, 8, 0.4)[np.argmax(profile)] == pytest.approx(1.3 * 4.0, abs=0.5)


def test_shells_end_sharply_at_their_edge_on_their_side() -> None:
    shell = Shell(
        light=0.05, radius_arcsec=6.0, direction_deg=0.0, half_width_deg=40.0, thickness_arcsec=1.0
    )
    galaxy = replace(
        galaxy_of("elliptical"), shells=(shell,), angle_deg=70.0, x_arcsec=0.0, y_arcsec=0.0
    )

    layers = galaxy_layers([galaxy], [draw_texture(galaxy, np.random.default_rng(0))], CPU)[0]

    (light,) = [layer.light for layer in layers if layer.share == 0.05]
    assert float(light.sum()) == pytest.approx(1, rel=1e-4)
    axis = canvas.axis_arcsec(CPU).numpy()
    row = light.numpy()[128]  # through the centre, along the shell's axis
    assert axis[row.argmax()] == pytest.approx(6.0, abs=0.4)
    assert row[axis > 7.0].max() < 0.01 * row.max()
    assert row[axis < 0].max() < 0.01 * row.max()


@pytest.mark.parametrize("kind", ["spiral", "edge_on", "irregular", "ring", "barred", "lenticular"])
def test_shares_of_a_galaxy_add_up(kind: str) -> None:
    galaxy = galaxy_of(kind, 2)
    layers = galaxy_layers([galaxy], [draw_texture(galaxy, np.random.default_rng(0))], CPU)[0]

    assert sum(layer.share for layer in layers) == pytest.approx(1)
    for layer in layers:
        assert float(layer.light.min()) >= 0
        assert float(layer.light.sum()) < 1.02


def test_a_strong_bar_reaches_the_arms() -> None:
    for seed in range(20):
        galaxy = galaxy_of("barred", seed)
        assert galaxy.bar is not None
        assert galaxy.arms is not None
        assert galaxy.arms.start_radius == pytest.approx(0.9 * galaxy.bar.length)
        # where an arm leaves, it lies along the bar
        tightness = 1 / np.tan(np.deg2rad(galaxy.arms.pitch_deg))
        winding = np.log(galaxy.bar.length + 0.05) * tightness
        phase = 2 * (np.deg2rad(galaxy.bar.angle_deg) - winding) + galaxy.arms.phase_rad
        assert np.cos(phase) == pytest.approx(1)
