"""Drawing a frame: flux, seeing, noise, lensing, against GalSim, lenstronomy and arithmetic."""

from __future__ import annotations

from dataclasses import replace

import galsim
import numpy as np
import pytest
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

from training.observations import PIXEL_SCALE_ARCSEC
from training.surveys import light_maps, scene
from training.surveys.population import draw_object
from training.surveys.simulated_spectra import Starlight, StarSurface, colours, observed_flux
from training.surveys.sky_objects import KINDS, Galaxy, LensedSource, SkyObject

OLD = Starlight(old=1.0, middle=0.0, young=0.0)
BLUE = Starlight(old=0.0, middle=0.2, young=0.8)
NIGHT = scene.Conditions(
    seeing_arcsec=(1.3, 1.2, 1.1, 1.1), sky_sigma_nmgy=(0.004,) * 4, psf_shear=(0.01, -0.01)
)
GALAXY = Galaxy(
    redshift=0.08,
    mag_r=17.0,
    radius_arcsec=1.2,
    axis_ratio=0.7,
    angle_deg=30.0,
    bulge_share=0.4,
    bulge_radius_arcsec=0.5,
    bulge_index=1.5,
    bulge_axis_ratio=0.8,
    bulge=OLD,
    disc=OLD,
    young=BLUE,
    young_share=0.4,
)
SOURCE = LensedSource(
    einstein_radius_arcsec=1.8,
    mass_slope=2.0,
    mass_axis_ratio=0.8,
    mass_angle_deg=40.0,
    shear=(0.03, -0.02),
    redshift=1.5,
    mag_r=22.0,
    radius_arcsec=0.15,
    axis_ratio=1.0,
    angle_deg=0.0,
    x_arcsec=0.25,
    y_arcsec=-0.1,
    light=BLUE,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def small_spiral() -> Galaxy:
    spiral = next(
        g
        for seed in range(50)
        for g in draw_object("spiral", rng(seed)).galaxies
        if g.bar is not None and g.bulge_index < 2
    )
    return replace(spiral, radius_arcsec=1.3, bulge_radius_arcsec=0.4, mag_r=17.0)


@pytest.mark.parametrize(
    "galaxy",
    [
        GALAXY,
        replace(GALAXY, ring=0.5, patchiness=0.5, knot_share=0.3, num_knots=20),
        replace(GALAXY, lopsidedness=0.8, bulge_share=0.0),
        replace(GALAXY, thickness=0.2),
        small_spiral(),
    ],
    ids=["disc and bulge", "ring and knots", "lopsided", "edge on", "barred spiral"],
)
def test_total_flux_of_a_drawn_galaxy_is_its_magnitude(galaxy: Galaxy) -> None:
    thing = SkyObject(kind="spiral", redshift=galaxy.redshift, galaxies=(galaxy,))

    drawn = scene.draw(thing, NIGHT, rng())

    expected = 10 ** (0.4 * (22.5 - 17.0))
    assert drawn.flux[1].sum() == pytest.approx(expected, rel=0.01)
    assert drawn.total_flux_nmgy[1] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(drawn.flux.sum(axis=(1, 2)), drawn.total_flux_nmgy, rtol=0.01)


def test_a_dust_lane_dims_blue_light_most_and_the_catalogue_knows() -> None:
    clear = replace(GALAXY, thickness=0.2)
    dusty = replace(clear, dust_lane=2.0)
    frames = [
        scene.draw(SkyObject(kind="edge_on", redshift=0.08, galaxies=(g,)), NIGHT, rng())
        for g in (clear, dusty)
    ]

    left = frames[1].flux.sum(axis=(1, 2)) / frames[0].flux.sum(axis=(1, 2))

    assert 0.3 < left[0] < left[1] < left[2] < left[3] < 0.95
    ratio = frames[1].total_flux_nmgy / frames[0].total_flux_nmgy
    np.testing.assert_allclose(ratio, left, rtol=0.01)


@pytest.mark.parametrize(
    ("index", "radius_arcsec", "axis_ratio", "x_arcsec"),
    [(1.0, 2.0, 0.5, 0.0), (2.5, 0.3, 0.8, 0.0), (4.0, 3.0, 0.6, 0.0), (3.5, 0.4, 0.7, -2.2)],
)
def test_sersic_profiles_agree_with_galsim(
    index: float, radius_arcsec: float, axis_ratio: float, x_arcsec: float
) -> None:
    galaxy = replace(
        GALAXY,
        bulge_share=1.0,
        bulge_index=index,
        bulge_radius_arcsec=radius_arcsec,
        bulge_axis_ratio=axis_ratio,
        x_arcsec=x_arcsec,
        y_arcsec=1.0,
    )
    drawn = scene.draw(
        SkyObject(kind="elliptical", redshift=0.08, galaxies=(galaxy,)), NIGHT, rng()
    )
    flux = 10 ** (0.4 * (22.5 - galaxy.mag_r))
    profile = galsim.Sersic(n=index, half_light_radius=radius_arcsec, flux=flux)
    profile = profile.shear(q=axis_ratio, beta=galaxy.angle_deg * galsim.degrees)
    psf = galsim.Moffat(beta=3.5, fwhm=NIGHT.seeing_arcsec[1])
    psf = psf.shear(g1=NIGHT.psf_shear[0], g2=NIGHT.psf_shear[1])
    expected = (
        galsim.Convolve(profile, psf)
        .drawImage(
            nx=96,
            ny=96,
            scale=PIXEL_SCALE_ARCSEC,
            offset=(x_arcsec / PIXEL_SCALE_ARCSEC, 1.0 / PIXEL_SCALE_ARCSEC),
        )
        .array
    )

    np.testing.assert_allclose(drawn.flux[1], expected, atol=0.005 * expected.max())
    assert drawn.flux[1].sum() == pytest.approx(expected.sum(), rel=2e-3)


def test_a_star_has_the_seeing_and_its_magnitude() -> None:
    star = SkyObject(
        kind="star", redshift=0.0, star=StarSurface(temperature_k=5800.0), star_mag_r=16.0
    )

    drawn = scene.draw(star, NIGHT, rng())

    assert drawn.flux[1].sum() == pytest.approx(10 ** (0.4 * 6.5), rel=0.01)
    assert drawn.radius_arcsec == 0
    for frame, seeing in zip(drawn.flux, NIGHT.seeing_arcsec, strict=True):
        psf = galsim.Moffat(beta=3.5, fwhm=seeing, flux=float(frame.sum()))
        psf = psf.shear(g1=NIGHT.psf_shear[0], g2=NIGHT.psf_shear[1])
        expected = psf.drawImage(nx=96, ny=96, scale=PIXEL_SCALE_ARCSEC).array
        np.testing.assert_allclose(frame, expected, atol=0.02 * expected.max())


def lens_images(source: LensedSource) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and magnifications of the images of the source's centre, by lenstronomy."""
    model = LensModel(["EPL", "SHEAR"])
    parameters = light_maps.lens_parameters(source)
    x, y = LensEquationSolver(model).image_position_from_source(
        source.x_arcsec, source.y_arcsec, parameters, search_window=8, min_distance=0.05
    )
    return x, y, np.abs(model.magnification(x, y, parameters))


def test_arcs_lie_where_the_lens_equation_puts_them() -> None:
    arcs = light_maps.lensed_map(SOURCE, 0.5, -0.3)
    axis = light_maps.axis_arcsec()
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

    arcs = light_maps.lensed_map(source, 0.0, 0.0)

    assert len(magnification) == 2
    assert arcs.sum() == pytest.approx(magnification.sum(), rel=0.05)


def test_a_lens_adds_blue_light_to_an_old_galaxy() -> None:
    host = replace(GALAXY, bulge_share=1.0, redshift=0.4, mag_r=18.5)
    alone, lens = (
        scene.draw(
            SkyObject(kind="lens", redshift=0.4, galaxies=(host,), source=source), NIGHT, rng()
        )
        for source in (None, SOURCE)
    )
    arcs = lens.flux - alone.flux

    np.testing.assert_allclose(
        arcs.sum(axis=(1, 2)), lens.total_flux_nmgy - alone.total_flux_nmgy, rtol=0.02
    )
    assert arcs[0].sum() / arcs[1].sum() > 2 * alone.flux[0].sum() / alone.flux[1].sum()
    assert {light for light, _, _ in lens.fibre_light} >= {OLD, BLUE}


def empty_frame() -> scene.Drawn:
    return scene.Drawn(
        flux=np.zeros((4, 96, 96), dtype=np.float32),
        total_flux_nmgy=np.zeros(4),
        radius_arcsec=0.0,
        fibre_light=(),
    )


def test_sky_noise_is_what_ivar_says_and_depth_is_that_of_the_legacy_surveys() -> None:
    depths = []
    for seed in range(40):
        conditions = scene.draw_conditions(rng(seed))
        image = scene.observe(empty_frame(), conditions, with_i=True, rng=rng(seed + 100))
        good = ~image.mask
        scaled = image.flux[good] * np.sqrt(image.ivar[good])
        assert scaled.std() == pytest.approx(1, abs=0.02)
        assert abs(scaled.mean()) < 0.03
        star = SkyObject(
            kind="star", redshift=0.0, star=StarSurface(temperature_k=6000.0), star_mag_r=22.5
        )
        points = scene.draw(star, conditions, rng()).flux
        points /= points.sum(axis=(1, 2), keepdims=True)
        sigma = np.array(conditions.sky_sigma_nmgy)
        point_sigma = sigma / np.sqrt((points**2).sum(axis=(1, 2)))  # matched filter
        depths.append(22.5 - 2.5 * np.log10(5 * point_sigma))

    np.testing.assert_allclose(np.mean(depths, axis=0), [24.7, 23.9, 23.6, 23.0], atol=0.12)


def test_bright_light_brings_photon_noise() -> None:
    bright = replace(empty_frame(), flux=np.full((4, 96, 96), 0.5, dtype=np.float32))

    image = scene.observe(bright, NIGHT, with_i=True, rng=rng(1))

    good = ~image.mask
    noise = (image.flux - 0.5)[good] * np.sqrt(image.ivar[good])
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (image.ivar[0][good[0]] < 0.5 / 0.004**2).all()


def test_bad_pixels_carry_nothing_and_are_few() -> None:
    share = []
    for seed in range(200):
        image = scene.observe(empty_frame(), NIGHT, with_i=True, rng=rng(seed))
        share.append(image.mask.mean())
        assert (image.ivar[image.mask] == 0).all()
        assert (image.flux[image.mask] == 0).all()
        assert (image.ivar[~image.mask] > 0).all()

    assert 0.03 < np.mean(np.array(share) > 0) < 0.3
    assert np.mean(share) < 0.005


def test_a_frame_without_i_keeps_the_other_bands() -> None:
    image = scene.observe(empty_frame(), NIGHT, with_i=False, rng=rng())

    assert image.bands == ("DES-G", "DES-R", "DES-Z")
    assert image.flux.shape == (3, 96, 96)


def test_the_fibre_takes_the_light_that_falls_into_it() -> None:
    star = SkyObject(
        kind="star", redshift=0.0, star=StarSurface(temperature_k=5800.0), star_mag_r=16.0
    )
    thing = SkyObject(kind="spiral", redshift=0.08, galaxies=(GALAXY,))
    axis = (np.arange(96 * 8) - (96 * 8 - 1) / 2) * PIXEL_SCALE_ARCSEC / 8
    inside_fibre = np.hypot(axis[:, None], axis[None, :]) < 1.5
    fibre = inside_fibre.reshape(96, 8, 96, 8).mean(axis=(1, 3))  # share of each pixel
    for drawn in (scene.draw(thing, NIGHT, rng()), scene.draw(star, NIGHT, rng())):
        inside = sum(flux for _, _, flux in drawn.fibre_light)
        assert inside == pytest.approx((drawn.flux[1] * fibre).sum(), rel=0.02)


def test_the_spectrum_is_the_light_in_the_fibre() -> None:
    drawn = replace(empty_frame(), fibre_light=((OLD, 0.1, 3.0), (BLUE, 0.1, 2.0)))

    np.testing.assert_allclose(
        scene.spectrum_of(drawn),
        observed_flux(OLD, redshift=0.1, flux_r_nmgy=3.0)
        + observed_flux(BLUE, redshift=0.1, flux_r_nmgy=2.0),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_bright_enough_to_be_seen(kind: str) -> None:
    for seed in range(4):
        thing = draw_object(kind, rng(seed))
        conditions = scene.draw_conditions(rng(seed))
        drawn = scene.draw(replace(thing, neighbours=()), conditions, rng(seed))
        assert np.isfinite(drawn.flux).all()
        assert drawn.flux.min() > -1e-3 * drawn.flux.max()
        middle = drawn.flux[1, 24:72, 24:72].sum()
        noise = conditions.sky_sigma_nmgy[1] * 48
        assert middle > 20 * noise


def test_light_outside_the_frame_counts_in_the_total() -> None:
    large = replace(GALAXY, radius_arcsec=8.0, bulge_share=0.0)

    drawn = scene.draw(SkyObject(kind="spiral", redshift=0.08, galaxies=(large,)), NIGHT, rng())

    assert drawn.flux[1].sum() < 0.95 * drawn.total_flux_nmgy[1]


def test_colours_of_the_frame_are_those_of_the_stars() -> None:
    old = replace(GALAXY, young_share=0.0)

    drawn = scene.draw(SkyObject(kind="spiral", redshift=0.08, galaxies=(old,)), NIGHT, rng())

    sums = drawn.flux.sum(axis=(1, 2))
    np.testing.assert_allclose(sums / sums[1], colours(OLD, 0.08), rtol=0.005)
