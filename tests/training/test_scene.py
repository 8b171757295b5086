"""Drawing a frame: flux, seeing, profiles and noise, against GalSim and arithmetic."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import galsim
import numpy as np
import pytest
import torch

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC
from training.sky import canvas, scene
from training.sky.glare import SaturatedStar
from training.sky.objects import KINDS, Galaxy, LensedSource, Mass, SkyObject
from training.sky.population import draw_object
from training.sky.starlight import Starlight, StarSurface, colours, observed_flux
from training.surveys import exposure
from training.surveys.simulated_spectra import SDSS, wavelength_angstrom

ROOT = Path(__file__).parents[2]
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
    masses=(Mass(einstein_radius_arcsec=1.8, slope=2.0, axis_ratio=0.8, angle_deg=40.0),),
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


@dataclass(frozen=True)
class Frame:
    """One object of a drawn batch."""

    flux: np.ndarray
    total_flux_nmgy: np.ndarray
    radius_arcsec: float
    fibre_light: tuple[scene.PopulationLight, ...]


def draw_alone(
    thing: SkyObject, conditions: scene.Conditions, source: np.random.Generator
) -> Frame:
    drawn = scene.draw([thing], [conditions], [source])
    return Frame(
        drawn.flux[0].numpy(),
        drawn.total_flux_nmgy[0],
        drawn.radius_arcsec[0],
        drawn.fibre_light[0],
    )


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

    drawn = draw_alone(thing, NIGHT, rng())

    expected = 10 ** (0.4 * (22.5 - 17.0))
    assert drawn.flux[1].sum() == pytest.approx(expected, rel=0.01)
    assert drawn.total_flux_nmgy[1] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(drawn.flux.sum(axis=(1, 2)), drawn.total_flux_nmgy, rtol=0.01)


def test_a_dust_lane_dims_blue_light_most_and_the_catalogue_knows() -> None:
    clear = replace(GALAXY, thickness=0.2)
    dusty = replace(clear, dust_lane=2.0)
    frames = [
        draw_alone(SkyObject(kind="edge_on", redshift=0.08, galaxies=(g,)), NIGHT, rng())
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
    drawn = draw_alone(
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
        kind="star", redshift=0.0, point=StarSurface(temperature_k=5800.0), point_mag_r=16.0
    )

    drawn = draw_alone(star, NIGHT, rng())

    assert drawn.flux[1].sum() == pytest.approx(10 ** (0.4 * 6.5), rel=0.01)
    assert drawn.radius_arcsec == 0
    for frame, seeing in zip(drawn.flux, NIGHT.seeing_arcsec, strict=True):
        psf = galsim.Moffat(beta=3.5, fwhm=seeing, flux=float(frame.sum()))
        psf = psf.shear(g1=NIGHT.psf_shear[0], g2=NIGHT.psf_shear[1])
        expected = psf.drawImage(nx=96, ny=96, scale=PIXEL_SCALE_ARCSEC).array
        np.testing.assert_allclose(frame, expected, atol=0.02 * expected.max())


def test_a_lens_adds_blue_light_to_an_old_galaxy() -> None:
    host = replace(GALAXY, bulge_share=1.0, redshift=0.4, mag_r=18.5)
    alone, lens = (
        draw_alone(
            SkyObject(kind="lens", redshift=0.4, galaxies=(host,), source=source), NIGHT, rng()
        )
        for source in (None, SOURCE)
    )
    arcs = lens.flux - alone.flux

    np.testing.assert_allclose(
        arcs.sum(axis=(1, 2)), lens.total_flux_nmgy - alone.total_flux_nmgy, rtol=0.02
    )
    assert arcs[0].sum() / arcs[1].sum() > 2 * alone.flux[0].sum() / alone.flux[1].sum()
    assert {part.light for part in lens.fibre_light} >= {OLD, BLUE}


EMPTY = np.zeros((4, 96, 96), dtype=np.float32)


def test_sky_noise_is_what_ivar_says_and_depth_is_that_of_the_legacy_surveys() -> None:
    depths = []
    for seed in range(40):
        conditions = scene.draw_conditions(rng(seed))
        image = exposure.observe(EMPTY, conditions, with_i=True, rng=rng(seed + 100))
        good = ~image.mask
        scaled = image.flux[good] * np.sqrt(image.ivar[good])
        assert scaled.std() == pytest.approx(1, abs=0.02)
        assert abs(scaled.mean()) < 0.03
        star = SkyObject(
            kind="star", redshift=0.0, point=StarSurface(temperature_k=6000.0), point_mag_r=22.5
        )
        points = draw_alone(star, conditions, rng()).flux
        points /= points.sum(axis=(1, 2), keepdims=True)
        sigma = np.array(conditions.sky_sigma_nmgy)
        point_sigma = sigma / np.sqrt((points**2).sum(axis=(1, 2)))  # matched filter
        depths.append(22.5 - 2.5 * np.log10(5 * point_sigma))

    np.testing.assert_allclose(np.mean(depths, axis=0), [24.7, 23.9, 23.6, 23.0], atol=0.12)


def test_bright_light_brings_photon_noise() -> None:
    bright = EMPTY + np.float32(0.5)

    image = exposure.observe(bright, NIGHT, with_i=True, rng=rng(1))

    good = ~image.mask
    noise = (image.flux - 0.5)[good] * np.sqrt(image.ivar[good])
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (image.ivar[0][good[0]] < 0.5 / 0.004**2).all()


def test_bad_pixels_carry_nothing_and_are_few() -> None:
    share = []
    for seed in range(200):
        image = exposure.observe(EMPTY, NIGHT, with_i=True, rng=rng(seed))
        share.append(image.mask.mean())
        assert (image.ivar[image.mask] == 0).all()
        assert (image.flux[image.mask] == 0).all()
        assert (image.ivar[~image.mask] > 0).all()

    assert 0.03 < np.mean(np.array(share) > 0) < 0.3
    assert np.mean(share) < 0.005


def test_a_frame_without_i_keeps_the_other_bands() -> None:
    image = exposure.observe(EMPTY, NIGHT, with_i=False, rng=rng())

    assert image.bands == ("DES-G", "DES-R", "DES-Z")
    assert image.flux.shape == (3, 96, 96)


def test_the_fibre_takes_the_light_that_falls_into_it() -> None:
    star = SkyObject(
        kind="star", redshift=0.0, point=StarSurface(temperature_k=5800.0), point_mag_r=16.0
    )
    thing = SkyObject(kind="spiral", redshift=0.08, galaxies=(GALAXY,))
    axis = (np.arange(96 * 8) - (96 * 8 - 1) / 2) * PIXEL_SCALE_ARCSEC / 8
    inside_fibre = np.hypot(axis[:, None], axis[None, :]) < 1.5
    fibre = inside_fibre.reshape(96, 8, 96, 8).mean(axis=(1, 3))  # share of each pixel
    for drawn in (draw_alone(thing, NIGHT, rng()), draw_alone(star, NIGHT, rng())):
        inside = sum(part.flux_r_nmgy for part in drawn.fibre_light)
        assert inside == pytest.approx((drawn.flux[1] * fibre).sum(), rel=0.02)


def test_the_spectrum_is_the_light_in_the_fibre() -> None:
    light = (scene.PopulationLight(OLD, 0.1, 3.0), scene.PopulationLight(BLUE, 0.1, 2.0))
    wave = wavelength_angstrom(SDSS)

    np.testing.assert_allclose(
        scene.spectrum_of(light, wave),
        observed_flux(OLD, redshift=0.1, flux_r_nmgy=3.0, wavelength_angstrom=wave)
        + observed_flux(BLUE, redshift=0.1, flux_r_nmgy=2.0, wavelength_angstrom=wave),
    )


# Frames of seed [5, 3] as GalSim drew them: total flux in griz, then the light of
# rows 40 to 47 in columns 50 and 55 of r; nanomaggies.
DRAWN_BY_GALSIM = {
    "spiral": (511.4453, 846.2512, 1011.5457, 1179.8123, 6.5376, 2.9699),
    "merger": (272.8508, 416.0385, 508.0310, 585.2750, 14.7421, 8.8528),
    "edge_on": (573.8526, 1035.5308, 1294.1758, 1535.2144, 13.0809, 8.4267),
    "star": (45.4287, 42.3877, 37.5095, 32.4688, 1.7040, 0.0947),
    "irregular": (1015.6731, 1455.7633, 1636.9556, 1863.1719, 4.6541, 4.3103),
    "lenticular": (462.4396, 930.1041, 1260.3623, 1547.1180, 5.6627, 3.3999),
    "elliptical": (272.6201, 630.5708, 864.5143, 1066.0531, 8.0746, 3.2179),
}


@pytest.mark.parametrize("kind", DRAWN_BY_GALSIM)
def test_frames_are_those_that_galsim_drew(kind: str) -> None:
    source = np.random.default_rng([5, 3])
    thing = draw_object(kind, source)

    flux = draw_alone(thing, scene.draw_conditions(source), source).flux

    columns = flux[1, 40:48].sum(axis=0)[[50, 55]]
    found = np.concatenate([flux.sum(axis=(1, 2)), columns])
    np.testing.assert_allclose(found, DRAWN_BY_GALSIM[kind], rtol=1e-3)


def test_drawing_and_observations_agree_on_the_frame() -> None:
    assert canvas.FRAME_SIZE == IMAGE_SIZE
    assert canvas.PIXEL_SCALE_ARCSEC == PIXEL_SCALE_ARCSEC


def test_an_object_is_the_same_to_the_bit_in_any_batch() -> None:
    kinds = ("spiral", "merger", "lens", "edge_on", "star", "ring", "shell", "group_lens")
    things = [draw_object(kind, rng(40 + k)) for k, kind in enumerate(kinds)]
    nights = [scene.draw_conditions(rng(k)) for k in range(len(things))]

    together = scene.draw(things, nights, [rng(k) for k in range(len(things))])

    for row, (thing, night) in enumerate(zip(things, nights, strict=True)):
        alone = draw_alone(thing, night, rng(row))
        np.testing.assert_array_equal(together.flux[row].numpy(), alone.flux)
        np.testing.assert_array_equal(together.total_flux_nmgy[row], alone.total_flux_nmgy)
        assert together.fibre_light[row] == alone.fibre_light


def all_kinds() -> tuple[list[SkyObject], list[scene.Conditions], list[np.random.Generator]]:
    """Two of each kind, with what may lie around them."""
    sources = [rng(k) for k in range(2 * len(KINDS))]
    glare = SaturatedStar(
        x_arcsec=6.0, y_arcsec=4.0, flux_nmgy=(90.0, 100.0, 110.0, 120.0), spike_deg=45.0,
        spike_arcsec=2.0, bleed_pixels=(3, 3, 3, 3),
    )  # fmt: skip
    things = [
        replace(draw_object(kind, source), saturated=glare)
        for kind, source in zip(2 * KINDS, sources, strict=True)
    ]
    return things, [scene.draw_conditions(source) for source in sources], sources


def test_all_tensors_are_made_on_the_device_asked_for() -> None:
    # the meta device computes nothing but refuses tensors of another; the first thing that needs
    # a value is the light in the fibre, once all is drawn
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        scene.draw(*all_kinds(), device="meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_draws_the_same_frames() -> None:
    here, there = (scene.draw(*all_kinds(), device=device) for device in ("cpu", "cuda"))

    peak = here.flux.amax(dim=(2, 3), keepdim=True)
    assert float(((there.flux.cpu() - here.flux) / peak).abs().max()) < 1e-3
    np.testing.assert_allclose(there.total_flux_nmgy, here.total_flux_nmgy, rtol=1e-4)


def test_drawing_images_needs_torch_and_numpy_alone() -> None:
    code = """
import sys
from importlib.abc import MetaPathFinder

import numpy as np
import torch  # with what it needs itself

class Only(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in sys.stdlib_module_names or root in ("torch", "numpy", "training"):
            return None
        raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Only())
from training.sky import scene
from training.sky.population import draw_object
rngs = [np.random.default_rng(k) for k in range(3)]
things = [draw_object(k, r) for k, r in zip(("spiral", "group_lens", "star"), rngs)]
drawn = scene.draw(things, [scene.draw_conditions(r) for r in rngs], rngs)
print(drawn.flux.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )

    assert "torch.Size([3, 4, 96, 96])" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_bright_enough_to_be_seen(kind: str) -> None:
    for seed in range(4):
        thing = draw_object(kind, rng(seed))
        conditions = scene.draw_conditions(rng(seed))
        drawn = draw_alone(replace(thing, neighbours=()), conditions, rng(seed))
        assert np.isfinite(drawn.flux).all()
        assert drawn.flux.min() > -1e-3 * drawn.flux.max()
        middle = drawn.flux[1, 24:72, 24:72].sum()
        noise = conditions.sky_sigma_nmgy[1] * 48
        assert middle > 20 * noise


def test_light_outside_the_frame_counts_in_the_total() -> None:
    large = replace(GALAXY, radius_arcsec=8.0, bulge_share=0.0)

    drawn = draw_alone(SkyObject(kind="spiral", redshift=0.08, galaxies=(large,)), NIGHT, rng())

    assert drawn.flux[1].sum() < 0.95 * drawn.total_flux_nmgy[1]


def test_colours_of_the_frame_are_those_of_the_stars() -> None:
    old = replace(GALAXY, young_share=0.0)

    drawn = draw_alone(SkyObject(kind="spiral", redshift=0.08, galaxies=(old,)), NIGHT, rng())

    sums = drawn.flux.sum(axis=(1, 2))
    np.testing.assert_allclose(sums / sums[1], colours(OLD, 0.08), rtol=0.005)
