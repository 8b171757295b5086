"""Light in a fibre: the image and the spectrum of one object say the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray

from tests.training.small_encoder import make_parts, observe, save_encoder
from training import artifact, encoder
from training.fibre_light import (
    NUM_LIGHT,
    RADIUS_ARCSEC,
    UNIT_MAG,
    as_light,
    flux_in_image,
    flux_in_spectrum,
    light_of,
)
from training.light_waves import NUM_WAVES, WIDTH_MAG, wave_frequencies, with_waves
from training.observations import PIXEL_SCALE_ARCSEC, Image, Spectrum
from training.pooling import Pooling, PoolingConfig
from training.surveys.simulated import SkyConfig, draw

BANDS = ("DES-G", "DES-R", "DES-Z")


def image_of(flux: ndarray, mask: ndarray | None = None) -> Image:
    bad = np.zeros(flux.shape, bool) if mask is None else mask
    return Image(flux.astype(np.float32), np.ones_like(flux, np.float32) * ~bad, bad, BANDS)


def sheet(nmgy_per_pixel: tuple[float, float, float]) -> ndarray:
    return np.broadcast_to(np.array(nmgy_per_pixel)[:, None, None], (3, 96, 96)).copy()


def flat_spectrum(nmgy: float, wavelength: ndarray) -> Spectrum:
    """A source of one flux density by frequency."""
    flux = nmgy * 3.631e-29 * 2.99792458e18 / wavelength**2 / 1e-17
    bad = np.zeros(len(wavelength), bool)
    return Spectrum(flux.astype(np.float32), np.ones(len(flux), np.float32), bad, wavelength)


def test_a_sheet_of_light_gives_the_area_of_the_circle() -> None:
    area = np.pi * (RADIUS_ARCSEC / PIXEL_SCALE_ARCSEC) ** 2
    found = flux_in_image(image_of(sheet((1.0, 2.0, 3.0))))

    np.testing.assert_allclose(found, area * np.array([1, 2, 3]), rtol=2e-3)
    wider = replace(image_of(sheet((1.0, 2.0, 3.0))), pixel_scale_arcsec=2 * PIXEL_SCALE_ARCSEC)
    np.testing.assert_allclose(flux_in_image(wider), found / 4, rtol=5e-3)


def test_light_does_not_change_where_an_image_is_turned_or_mirrored() -> None:
    flux = np.random.default_rng(0).random((3, 96, 96))
    found = flux_in_image(image_of(flux))

    np.testing.assert_allclose(
        flux_in_image(image_of(np.rot90(flux, axes=(1, 2)).copy())), found, rtol=1e-6
    )
    np.testing.assert_allclose(flux_in_image(image_of(flux[:, :, ::-1].copy())), found, rtol=1e-6)


def test_a_bad_pixel_counts_as_the_one_opposite() -> None:
    y, x = np.mgrid[:96, :96] - 47.5
    flux = np.repeat(np.exp(-np.hypot(x, y) / 3)[None], 3, axis=0)
    mask = np.zeros(flux.shape, bool)
    mask[0, 45, 49] = True
    mask[1, 40:56, 40:56] = True  # nothing of the circle is left
    spoiled = np.where(mask, 99.0, flux)
    found, whole = flux_in_image(image_of(spoiled, mask)), flux_in_image(image_of(flux))

    np.testing.assert_allclose(found[[0, 2]], whole[[0, 2]], rtol=1e-6)
    assert np.isnan(found[1])


def test_a_flat_spectrum_has_its_magnitude_in_every_band_but_for_colour_terms() -> None:
    wavelength = np.arange(3600.0, 9800.0)
    found = flux_in_spectrum(flat_spectrum(20.0, wavelength))

    assert found[1] == pytest.approx(20.0, rel=1e-3)
    np.testing.assert_allclose(-2.5 * np.log10(found / 20), [0.023, 0, -0.042], atol=2e-3)
    short = flux_in_spectrum(flat_spectrum(20.0, np.arange(3600.0, 7000.0)))
    assert np.isnan(short[2])


def test_image_and_spectrum_of_simulated_objects_agree() -> None:
    sky = SkyConfig(num_objects=60, seed=5, spectrum_fraction=1.0, missing_band=0.0)
    seen = list(draw(sky))
    images, spectra = (
        np.array([light_of(each, view) for each in seen]) * UNIT_MAG
        for view in ("image", "spectrum")
    )

    apart = np.abs(images - spectra)
    assert (np.median(apart, axis=0) < np.array([0.01, 0.04, 0.05])).all()
    assert (images.std(axis=0) > 5 * np.median(apart, axis=0)).all()  # it tells objects apart


@pytest.mark.parametrize("flux", [(np.nan, 10.0, 20.0), (5.0, np.nan, 20.0), (5.0, 10.0, np.nan)])
def test_a_band_that_is_not_there_has_a_usual_colour(flux: tuple[float, ...]) -> None:
    light = as_light(np.array(flux))
    complete = as_light(np.array([10 ** (-0.4 * 0.9) * 10, 10.0, 10 ** (0.4 * 0.6) * 10]))

    assert np.isfinite(light).all()
    assert light.any()
    np.testing.assert_allclose(complete[1:], 0, atol=1e-3)


def test_a_display_image_and_coefficients_say_nothing() -> None:
    seen = observe(1, spectrum=True)
    display = replace(seen, calibrated=False)

    assert light_of(seen, "image").any()
    np.testing.assert_array_equal(light_of(seen, "joint"), light_of(seen, "image"))
    assert light_of(replace(seen, image=None), "joint").any()
    for view in ("image", "joint"):
        assert not light_of(display, view).any()
    assert not light_of(seen, "xp").any()


def test_waves_are_close_for_equal_light_alone() -> None:
    rng = np.random.default_rng(0)
    light = torch.from_numpy(rng.normal(0, 0.1, (300, NUM_LIGHT)))
    way = torch.from_numpy(rng.normal(size=(300, NUM_LIGHT)))
    step = way / way.norm(dim=1, keepdim=True) * torch.tensor(WIDTH_MAG) / UNIT_MAG
    same = torch.from_numpy(rng.normal(size=(300, 8)))
    same /= same.norm(dim=1, keepdim=True)
    frequencies = wave_frequencies().double()

    def cosines(far: float) -> ndarray:
        first, second = (
            with_waves(same, each, frequencies, share=0.4) for each in (light, light + far * step)
        )
        torch.testing.assert_close(first.norm(dim=1), torch.ones(300).double())
        assert first.shape[1] == 8 + NUM_WAVES
        found: ndarray = ((first * second).sum(dim=1).numpy() - 0.6) / 0.4
        return found

    for far in (0.0, 0.5, 1.0, 5.0):  # in units of the width
        assert cosines(far).mean() == pytest.approx(np.exp(-(far**2) / 2), abs=0.03)
    unknown = with_waves(same, torch.zeros(300, NUM_LIGHT).double(), frequencies, share=0.4)
    torch.testing.assert_close(unknown[:, :8], same)
    assert not unknown[:, 8:].any()


def test_an_encoder_that_carries_light_gives_it_behind_the_same_vectors(tmp_path: Path) -> None:
    transformer, codecs, _ = make_parts()
    plain = encoder.load(save_encoder(tmp_path / "plain"))
    pooling = Pooling(PoolingConfig(dim=plain.dim, light=True))
    artifact.save(tmp_path / "light", transformer=transformer, codecs=codecs, pooling=pooling)
    lit = encoder.load(tmp_path / "light")
    seen = [observe(1, spectrum=True), observe(2)]
    before, after = plain.embed(seen), lit.embed(seen)

    assert lit.dim == plain.dim + NUM_LIGHT
    assert lit.hash != plain.hash
    assert after.views == before.views
    np.testing.assert_array_equal(after.vectors[:, : plain.dim], before.vectors)
    expected = [
        light_of(seen[row], view) for row, view in zip(after.rows, after.views, strict=True)
    ]
    np.testing.assert_array_equal(after.vectors[:, plain.dim :], expected)
    assert lit.embed(seen[1:], ["spectrum"]).vectors.shape == (0, lit.dim)
