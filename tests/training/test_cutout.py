"""Resampling to 96 x 96 pixels of 0.262 arcsec: what it keeps, and what it says it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC
from training.surveys.cutout import Cutout, cut_out, sky_noise, upright

BANDS = ("DES-G", "DES-R", "DES-Z")


def source(
    size: int, scale_arcsec: float, *, x_arcsec: float = 0.0, y_arcsec: float = 0.0
) -> Float32[ndarray, "3 y x"]:
    """A Gaussian of sigma 1 arcsec in nmgy per 0.262 arcsec pixel area: 1, 2 and 3 nmgy."""
    offset = (np.arange(size) - (size - 1) / 2) * scale_arcsec
    profile = np.exp(-((offset[:, None] - y_arcsec) ** 2 + (offset - x_arcsec) ** 2) / 2)
    profile *= PIXEL_SCALE_ARCSEC**2 / (2 * np.pi)
    return np.stack([profile, 2 * profile, 3 * profile]).astype(np.float32)


def cut(planes: Float32[ndarray, "band y x"], scale_arcsec: float) -> Cutout:
    return cut_out(
        planes,
        bands=BANDS[: len(planes)],
        scale_y_arcsec=scale_arcsec,
        scale_x_arcsec=scale_arcsec,
    )


@settings(deadline=None)
@given(
    scale=st.floats(0.08, 0.6),
    x=st.floats(-3, 3),
    y=st.floats(-3, 3),
    odd=st.integers(0, 1),
)
def test_resampling_keeps_the_flux_and_the_place_of_a_compact_source(
    scale: float, x: float, y: float, odd: int
) -> None:
    size = 2 * int(15 / scale) + odd
    native = abs(PIXEL_SCALE_ARCSEC / scale - 1) < 0.005  # cropped: shifts by half a pixel if odd

    image = cut(source(size, scale, x_arcsec=x, y_arcsec=y), scale).image

    offset = (np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2) * PIXEL_SCALE_ARCSEC
    flux = image.flux.sum(axis=(1, 2))
    # cropping takes a pixel for one of 0.262 arcsec, which it is to half a per cent
    np.testing.assert_allclose(flux, [1, 2, 3], rtol=0.011 if native else 2e-3)
    tolerance = 0.15 if native else 0.01
    assert abs(float((image.flux[0].sum(0) * offset).sum()) / flux[0] - x) < tolerance
    assert abs(float((image.flux[0].sum(1) * offset).sum()) / flux[0] - y) < tolerance


def test_at_the_native_scale_pixels_are_copied() -> None:
    planes = np.random.default_rng(1).normal(size=(3, 225, 225)).astype(np.float32)

    image = cut(planes, PIXEL_SCALE_ARCSEC).image

    np.testing.assert_array_equal(image.flux, planes[:, 64:160, 64:160])


@given(size=st.integers(8, 130), scale=st.floats(0.1, 0.5))
@settings(deadline=None)
def test_every_image_leaves_with_96_pixels_and_says_when_it_was_padded(
    size: int, scale: float
) -> None:
    cutout = cut(np.random.default_rng(size).normal(size=(2, size, size)).astype(np.float32), scale)

    assert cutout.image.flux.shape == (2, IMAGE_SIZE, IMAGE_SIZE)
    assert (cutout.image.flux[cutout.image.mask] == 0).all()
    assert (cutout.image.ivar[cutout.image.mask] == 0).all()
    padded = f"padded from {size} x {size} px" in cutout.notes
    assert padded == bool(cutout.image.mask.any())


def test_nan_pixels_are_zero_and_masked_and_leave_their_neighbours_alone() -> None:
    planes = np.ones((3, 96, 96), np.float32)
    planes[1, 40:44, 50] = np.nan

    image = cut(planes, PIXEL_SCALE_ARCSEC).image

    assert image.mask.sum() == 4
    assert image.mask[1, 40:44, 50].all()
    assert (image.flux[~image.mask] == 1).all()


def test_a_band_without_data_is_left_out_and_named() -> None:
    planes = source(96, PIXEL_SCALE_ARCSEC)
    planes[1] = np.nan

    cutout = cut(planes, PIXEL_SCALE_ARCSEC)

    assert cutout.image.bands == ("DES-G", "DES-Z")
    assert "no usable pixel in DES-R: left out" in cutout.notes


def test_an_image_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="no usable pixel"):
        cut(np.full((3, 96, 96), np.nan, np.float32), PIXEL_SCALE_ARCSEC)


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan")])
def test_a_pixel_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="pixel scale must be positive"):
        cut(source(96, 0.262), scale)


def test_given_inverse_variance_is_kept_and_pixels_without_it_are_bad() -> None:
    planes, ivar = source(96, PIXEL_SCALE_ARCSEC), np.full((3, 96, 96), 400, np.float32)
    ivar[0, 3, 4], ivar[1, 5, 6], ivar[2, 7, 8] = 0, -1, np.nan

    cutout = cut_out(
        planes, bands=BANDS, scale_y_arcsec=0.262, scale_x_arcsec=0.262, ivar=ivar
    )  # fmt: skip

    assert cutout.notes == ()
    assert cutout.image.mask.sum() == 3
    np.testing.assert_allclose(cutout.image.ivar[~cutout.image.mask], 400, rtol=1e-6)


def test_the_noise_estimate_finds_white_noise_under_a_bright_galaxy() -> None:
    sigma = np.array([0.002, 0.005, 0.01])
    noise = np.random.default_rng(2).normal(size=(3, 96, 96)) * sigma[:, None, None]
    galaxy = 40 * source(96, PIXEL_SCALE_ARCSEC)

    found = sky_noise((galaxy + noise).astype(np.float32), np.zeros((3, 96, 96), bool))

    np.testing.assert_allclose(found, sigma, rtol=0.1)


def test_the_noise_estimate_agrees_with_the_survey_s_own_inverse_variance(
    shared_data: Path,
) -> None:
    folder = shared_data / "legacysurvey_catalogues_bricks"
    stem = "legacysurvey-0959p805"
    with fits.open(folder / f"{stem}-image-g.fits.fz") as hdus:
        flux = hdus[1].data.astype(np.float32)
    with fits.open(folder / f"{stem}-invvar-g.fits.fz") as hdus:
        ivar = hdus[1].data
    ratios = []
    for y in range(0, 3504, 96):
        for x in range(0, 3504, 96):
            here = slice(y, y + 96), slice(x, x + 96)
            if (ivar[here] > 0).all():
                found = sky_noise(flux[here][None], np.zeros((1, 96, 96), bool))[0]
                ratios.append(found * np.sqrt(np.median(ivar[here])))

    # The coadd's noise is correlated between neighbours, which hides about a sixth of it.
    assert len(ratios) > 100
    assert 0.7 < min(ratios) <= max(ratios) < 1.0


@pytest.mark.parametrize("east_left", [True, False])
@pytest.mark.parametrize("north_up", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_any_right_angle_is_turned_to_north_up_east_left(
    east_left: bool, north_up: bool, swapped: bool
) -> None:
    north_west = np.zeros((1, 20, 30), np.float32)  # as wanted: north at high y, west at high x
    north_west[0, 17, 25] = 1
    matrix = np.diag([-0.262, 0.262]) / 3600
    planes = north_west
    if not east_left:
        planes, matrix = planes[:, :, ::-1], matrix * [-1, 1]
    if not north_up:
        planes, matrix = planes[:, ::-1], matrix * [1, -1]
    if swapped:
        planes, matrix = planes.transpose(0, 2, 1), matrix[:, ::-1]

    turned = upright(np.ascontiguousarray(planes), matrix)

    np.testing.assert_array_equal(turned.planes, north_west)
    assert turned.scale_y_arcsec == pytest.approx(0.262)


@given(degrees=st.floats(2, 88))
@settings(deadline=None, max_examples=20)
def test_a_rotated_image_is_turned_back(degrees: float) -> None:
    scale, angle = 0.2, np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([-scale, scale]) / 3600
    x_east, y_north = np.linalg.inv(matrix * 3600) @ [2.0, 3.0] * scale  # 2 arcsec E, 3 arcsec N
    planes = source(161, scale, x_arcsec=x_east, y_arcsec=y_north)

    turned = upright(planes, matrix)
    image = cut_out(
        turned.planes,
        bands=BANDS,
        scale_y_arcsec=turned.scale_y_arcsec,
        scale_x_arcsec=turned.scale_x_arcsec,
    ).image

    offset = (np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2) * PIXEL_SCALE_ARCSEC
    flux = float(image.flux[0].sum())
    assert flux == pytest.approx(1, rel=0.01)
    assert float((image.flux[0].sum(0) * offset).sum()) / flux == pytest.approx(-2, abs=0.02)
    assert float((image.flux[0].sum(1) * offset).sum()) / flux == pytest.approx(3, abs=0.02)


def test_a_pixel_larger_than_the_cutout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below the 25 arcsec .* got 30 x 30"):
        cut(np.ones((1, 96, 96), np.float32), 30.0)


def test_fluxes_near_the_limit_of_float32_are_refused_without_a_warning() -> None:
    flux = np.random.default_rng(0).choice([-3e38, 3e38], (1, 96, 96)).astype(np.float32)

    with pytest.raises(ValueError, match="no usable pixel"):
        cut(flux, PIXEL_SCALE_ARCSEC)


def test_a_matrix_without_inverse_is_refused() -> None:
    with pytest.raises(ValueError, match="inverse"):
        upright(source(10, 0.262), np.zeros((2, 2)))


@pytest.mark.parametrize("scale", [0.1, 0.168, 0.1682, 0.3])
def test_new_pixels_may_be_smaller_and_flux_is_kept(scale: float) -> None:
    """0.168 arcsec is the pixel of HSC; planes are in nmgy per area of a new pixel."""
    planes = source(200, scale) * (0.168 / PIXEL_SCALE_ARCSEC) ** 2

    image = cut_out(
        planes, bands=BANDS, scale_y_arcsec=scale, scale_x_arcsec=scale, pixel_scale_arcsec=0.168
    ).image

    assert image.pixel_scale_arcsec == 0.168
    np.testing.assert_allclose(image.flux.sum(axis=(1, 2)), [1, 2, 3], rtol=0.01)
    if scale == 0.168:
        np.testing.assert_array_equal(image.flux, planes[:, 52:148, 52:148])


def test_a_pixel_larger_than_a_smaller_cutout_is_refused() -> None:
    with pytest.raises(ValueError, match="below the 16 arcsec that are cut out, got 17 x 17"):
        cut_out(
            source(9, 17.0), bands=BANDS, scale_y_arcsec=17.0, scale_x_arcsec=17.0,
            pixel_scale_arcsec=0.168,
        )  # fmt: skip
