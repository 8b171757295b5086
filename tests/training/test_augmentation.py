"""Disturbed copies: what may change does, by as much as it may, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small_encoder import observe
from training.augmentation import AugmentationConfig, disturb, turn
from training.observations import Image

STILL = AugmentationConfig(
    max_shift_pixels=0, max_zoom=0, max_blur_pixels=0, max_noise_sigma=0, max_brightness_mag=0,
    max_colour_mag=0, drop_band=0, drop_scalars=0,
)  # fmt: skip
FLUXES = {"tok_flux_r": 8.0, "tok_shape_r": 2.0}


def smooth_image() -> Image:
    y, x = np.mgrid[:96, :96] - 47.5
    plane = np.exp(-((x - 6) ** 2 / 60 + (y + 4) ** 2 / 25))
    flux = np.stack([plane, 2 * plane, 3 * plane]).astype(np.float32)
    return Image(flux, np.ones_like(flux), np.zeros(flux.shape, bool), ("DES-G", "DES-R", "DES-Z"))


def seen(image: Image | None) -> Image:
    assert image is not None
    return image


def moments(plane: np.ndarray) -> tuple[float, float]:
    """Area and the invariant of rotation of the second moments about the image's centre."""
    y, x = np.mgrid[:96, :96] - 47.5
    total = plane.sum()
    return float(total), float((plane * (x**2 + y**2)).sum() / total)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_turning_moves_pixels_and_changes_none(seed: int) -> None:
    image = seen(observe(3).image)
    turned = seen(turn(observe(3), np.random.default_rng(seed)).image)

    for before, after in zip(image.flux, turned.flux, strict=True):
        np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))


def test_all_eight_orientations_come_up() -> None:
    rng = np.random.default_rng(0)
    corners = {seen(turn(observe(3), rng).image).flux[0, :2, :2].tobytes() for _ in range(100)}

    assert len(corners) == 8


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_rotation_by_any_angle_keeps_flux_and_size(seed: int) -> None:
    image = smooth_image()
    copy = disturb(replace(observe(1), image=image), np.random.default_rng(seed), STILL)

    for before, after in zip(image.flux, seen(copy.image).flux, strict=True):
        assert moments(after) == pytest.approx(moments(before), rel=0.02)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 20))
def test_a_disturbed_copy_is_a_valid_observation_of_the_same_object(seed: int, number: int) -> None:
    before = observe(number, spectrum=True, scalars=FLUXES)
    after = disturb(before, np.random.default_rng(seed), AugmentationConfig())

    assert after.object_id == before.object_id
    image = seen(after.image)
    assert image.flux.shape[1:] == (96, 96)
    assert set(image.bands) < {"DES-G", "DES-R", "DES-Z", ""}
    assert len(image.bands) >= 2
    assert after.spectrum is not None
    assert before.spectrum is not None
    np.testing.assert_array_equal(
        after.spectrum.wavelength_angstrom, before.spectrum.wavelength_angstrom
    )


def test_brightness_scales_image_spectrum_and_fluxes_together() -> None:
    config = replace(STILL, max_brightness_mag=1.0)
    before = replace(observe(1, spectrum=True, scalars=FLUXES), image=smooth_image())
    after = disturb(before, np.random.default_rng(4), config)
    assert before.spectrum is not None
    assert after.spectrum is not None

    factor = after.scalars["tok_flux_r"] / 8.0
    assert 10**-0.4 < factor < 10**0.4
    assert factor != pytest.approx(1, abs=0.01)
    assert after.scalars["tok_shape_r"] == 2.0
    np.testing.assert_allclose(after.spectrum.flux, before.spectrum.flux * factor, rtol=1e-5)
    assert seen(after.image).flux.sum() == pytest.approx(
        seen(before.image).flux.sum() * factor, rel=0.02
    )


def test_noise_is_in_units_of_the_error() -> None:
    config = replace(STILL, max_noise_sigma=1.0)
    flat = Image(
        np.zeros((2, 96, 96), np.float32), np.full((2, 96, 96), 25, np.float32),
        np.zeros((2, 96, 96), bool), ("DES-G", "DES-R"),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    spreads = [
        seen(disturb(replace(observe(1), image=flat), rng, config).image).flux.std()
        for _ in range(200)
    ]

    assert max(spreads) == pytest.approx(0.2, rel=0.05)  # one sigma is 1 / sqrt(25)
    assert np.mean(spreads) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("magnitudes", [0.0, 1.0])
def test_inverse_variance_follows_depth_and_brightness(magnitudes: float) -> None:
    config = replace(STILL, max_noise_sigma=2.0, max_brightness_mag=magnitudes)
    flat = Image(
        np.zeros((2, 96, 96), np.float32), np.full((2, 96, 96), 25, np.float32),
        np.zeros((2, 96, 96), bool), ("DES-G", "DES-R"),
    )  # fmt: skip
    before = replace(observe(1, spectrum=True, scalars=FLUXES), image=flat)
    assert before.spectrum is not None
    quiet = replace(before.spectrum, flux=np.zeros_like(before.spectrum.flux))
    after = disturb(replace(before, spectrum=quiet), np.random.default_rng(3), config)
    assert after.spectrum is not None
    gain = after.scalars["tok_flux_r"] / 8.0
    image = seen(after.image)

    assert (gain == 1) == (magnitudes == 0)
    for flux, ivar, old in (
        (image.flux, image.ivar, 1 / 25),
        (after.spectrum.flux, after.spectrum.ivar, 1.0),
    ):
        # all that is seen on an empty sky was added to the noise that the pipeline tells of
        assert 1 / np.median(ivar) == pytest.approx(flux.var() + gain**2 * old, rel=0.05)


def test_default_brightness_is_within_calibration() -> None:
    fluxes = [
        disturb(observe(1, scalars=FLUXES), np.random.default_rng(seed), AugmentationConfig())
        for seed in range(60)
    ]
    magnitudes = [-2.5 * np.log10(each.scalars["tok_flux_r"] / 8.0) for each in fluxes]

    assert 0.035 < np.abs(magnitudes).max() <= 0.05


def test_bad_pixels_stay_bad_and_empty() -> None:
    image = smooth_image()
    mask = image.mask.copy()
    mask[:, 30:40, 30:40] = True
    holed = replace(
        image, mask=mask, flux=np.where(mask, 0, image.flux), ivar=np.where(mask, 0, image.ivar)
    )
    copy = seen(
        disturb(
            replace(observe(1), image=holed), np.random.default_rng(1),
            replace(STILL, max_noise_sigma=1.0),
        ).image
    )  # fmt: skip

    assert copy.mask.sum() == pytest.approx(mask.sum(), rel=0.1)
    assert (copy.flux[copy.mask] == 0).all()
    assert (copy.ivar[copy.mask] == 0).all()


def test_photometry_is_lost_only_where_two_other_parts_remain() -> None:
    config = replace(STILL, drop_scalars=1.0)
    rng = np.random.default_rng(0)

    assert disturb(observe(1, spectrum=True, scalars=FLUXES), rng, config).scalars == {}
    assert disturb(observe(1, scalars=FLUXES), rng, config).scalars == FLUXES
