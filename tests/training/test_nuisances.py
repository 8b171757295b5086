"""What spoils frames comes as often as asked for, spoils what it should, and moves no object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.observations import Image
from training.sky.scene import Conditions
from training.sky.starlight import BANDS
from training.surveys import nuisances, simulated
from training.surveys.nuisances import Nuisances, Trail, draw_nuisances
from training.surveys.simulated import SkyConfig, clear_sky

SKY = clear_sky(num_objects=4, seed=3, spectrum_fraction=1.0, i_band_fraction=1.0)
ALL = replace(SKY, saturated_star=0.4, satellite_trail=0.3, bad_columns=0.2, missing_band=0.1)


def images(config: SkyConfig) -> list[Image]:
    found = [observed.image for observed in simulated.draw(config)]
    return [image for image in found if image is not None]


def some(config: SkyConfig, num: int = 600) -> list[Nuisances]:
    return [draw_nuisances(config, np.random.default_rng([2, seed])) for seed in range(num)]


def test_each_comes_as_often_as_asked_for() -> None:
    found = some(ALL)

    for name, wanted in (("star", 0.4), ("trail", 0.3), ("missing_band", 0.1)):
        share = np.mean([getattr(one, name) is not None for one in found])
        assert share == pytest.approx(wanted, abs=0.06)
    assert np.mean([bool(one.columns) for one in found]) == pytest.approx(0.2, abs=0.06)
    assert all(one == Nuisances() for one in some(SKY, 20))


def test_asking_for_one_does_not_move_another() -> None:
    without = some(replace(ALL, satellite_trail=0.0))

    for one, other in zip(some(ALL), without, strict=True):
        assert (one.star, one.columns, one.missing_band) == (
            other.star,
            other.columns,
            other.missing_band,
        )


def test_the_object_behind_is_the_same() -> None:
    spoiled = list(simulated.draw(replace(SKY, bad_columns=1.0)))
    clean = list(simulated.draw(SKY))

    for one, other in zip(spoiled, clean, strict=True):
        assert one.spectrum is not None
        assert other.spectrum is not None
        assert one.image is not None
        assert other.image is not None
        np.testing.assert_array_equal(one.spectrum.flux, other.spectrum.flux)
        assert one.scalars == other.scalars
        good = ~one.image.mask
        np.testing.assert_array_equal(one.image.flux[good], other.image.flux[good])
        assert good.sum() < (~other.image.mask).sum()


def test_a_saturated_star_fills_pixels_that_then_say_nothing() -> None:
    stars = [one.star for one in some(replace(SKY, saturated_star=1.0), 40)]
    star = next(s for s in stars if s and max(abs(s.x_arcsec), abs(s.y_arcsec)) < 10)
    dark = np.zeros((4, 96, 96), np.float32)
    dark[:, 40:43, 40:43] = 100.0
    image = Image(dark, np.ones_like(dark), np.zeros(dark.shape, bool), BANDS)

    spoiled = nuisances.spoiled(image, Nuisances(star=star))

    assert spoiled.mask[:, 40:43, 40:43].all()
    assert (spoiled.flux[spoiled.mask] == 0).all()
    assert (spoiled.ivar[spoiled.mask] == 0).all()
    column = round(star.x_arcsec / 0.262 + 47.5)
    row = round(star.y_arcsec / 0.262 + 47.5)
    for band, length in enumerate(star.bleed_pixels):
        if length > 2:
            assert spoiled.mask[band, row, column - 1 : column + 1].all()  # along the row
    assert spoiled.mask.mean() < 0.1


@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 90.0, 150.0])
def test_a_trail_is_a_straight_line_in_one_band(angle_deg: float) -> None:
    trail = Trail(
        band=2, angle_deg=angle_deg, offset_pixels=5.0, brightness=20.0, width_pixels=2.0,
        rejected=False,
    )  # fmt: skip
    night = Conditions(seeing_arcsec=(1.2,) * 4, sky_sigma_nmgy=(0.01,) * 4, psf_shear=(0.0, 0.0))

    lit = nuisances.with_trail(np.zeros((4, 96, 96), np.float32), night, trail)

    assert not lit[[0, 1, 3]].any()
    rows, columns = np.nonzero(lit[2] > 0.15)
    places = np.stack([columns, rows]) - 47.5
    direction = np.array([np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))])
    away = direction[1] * places[0] - direction[0] * places[1]
    np.testing.assert_allclose(away, 5.0, atol=2.5)
    assert np.ptp(direction @ places) > 80
    assert lit[2].max() == pytest.approx(0.2, rel=0.1)


def test_a_missing_band_leaves_the_others() -> None:
    lost = [image.bands for image in images(replace(SKY, num_objects=4, missing_band=1.0))]

    assert all(len(bands) == 3 for bands in lost)


def test_nights_differ_in_depth_and_seeing() -> None:
    night = Conditions(seeing_arcsec=(1.2,) * 4, sky_sigma_nmgy=(0.01,) * 4, psf_shear=(0.0, 0.0))
    found = some(replace(SKY, depth_scatter_mag=0.5, seeing_scatter=0.2))

    nights = [nuisances.on_that_night(night, one) for one in found]

    depth = -2.5 * np.log10([each.sky_sigma_nmgy[0] / 0.01 for each in nights])
    seeing = np.log([each.seeing_arcsec[0] / 1.2 for each in nights])
    assert np.std(depth) == pytest.approx(0.5, rel=0.15)
    assert np.std(seeing) == pytest.approx(0.2, rel=0.15)
