"""Colour pictures of observations: as services draw them, and as the reader of pictures reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.training.small_encoder import observe
from tests.training.test_composite import drawn as published
from training.pictures import as_picture
from training.surveys.stretch import LOOKS, drawn


@pytest.mark.parametrize("name", sorted(set(LOOKS) - {"legacysurvey_dr10"}))
def test_a_drawn_picture_follows_the_published_stretch(name: str) -> None:
    look = LOOKS[name]
    flux = (
        np.random.default_rng(0).uniform(0.001, 3, (3, 9, 9))
        * np.array([1, 0.6, 0.3])[:, None, None]
    )
    native = (look.native_pixel_arcsec / 0.262) ** 2  # of what `drawn` is given, in a native pixel

    found = drawn(look, flux.astype(np.float32))

    expected = np.rint(published(look, flux * native).clip(0, 1) * 255)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert found.dtype == np.uint8


def test_a_picture_keeps_the_galaxy_and_nothing_that_was_measured() -> None:
    rng = np.random.default_rng(3)
    seen = observe(4, spectrum=True, scalars={"tok_flux_r": 10.0})
    assert seen.image is not None
    bright = replace(seen, image=replace(seen.image, flux=seen.image.flux * 3))
    made = [as_picture(bright, rng) for _ in range(20)]

    for each in made:
        assert each is not None
        assert each.image is not None
        assert (each.survey, each.calibrated, each.spectrum) == ("composite", False, None)
        assert not each.scalars
        assert each.image.flux.shape == (3, 96, 96)
        assert each.image.bands == ("DES-Z", "DES-R", "DES-G")
        middle = each.image.flux[1, 40:56, 40:56].mean()
        assert middle > 3 * np.abs(each.image.flux[1, :12, 30:60].mean())
    fluxes = [each.image.flux.sum() for each in made if each is not None and each.image is not None]
    assert max(fluxes) / min(fluxes) > 1.5  # brightness is drawn anew


def test_what_has_no_three_bands_is_not_drawn() -> None:
    rng = np.random.default_rng(0)
    seen = observe(1)
    assert seen.image is not None
    two = replace(
        seen.image, flux=seen.image.flux[:2], ivar=seen.image.ivar[:2], mask=seen.image.mask[:2],
        bands=seen.image.bands[:2],
    )  # fmt: skip

    assert as_picture(replace(seen, image=two), rng) is None
    assert as_picture(observe(1, image=False, spectrum=True), rng) is None
