"""Pictures, spectra to draw, links."""

from __future__ import annotations

import io
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from astropy.visualization import make_lupton_rgb
from PIL import Image as Picture

from discovery.pictures import legacy_viewer_url, png, rgb, simbad_url, spectrum_curve
from training.observations import Image, Spectrum


def cutout(*bands: str, size: int = 24) -> Image:
    """A round blob on faint noise, brighter towards the red."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    blob = np.exp(-(x**2 + y**2) / 20)
    planes = [(n + 1) * blob + 0.001 * rng.standard_normal((size, size)) for n in range(len(bands))]
    flux = np.stack(planes).astype(np.float32)
    return Image(flux, np.ones_like(flux), np.zeros(flux.shape, bool), bands)


@pytest.mark.parametrize(
    "bands",
    [
        ("DES-G", "DES-R", "DES-I", "DES-Z"),
        ("DES-G", "DES-R", "DES-Z"),
        ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y"),
        ("DES-G", "DES-Z"),
        ("DES-R",),
    ],
)
def test_any_bands_make_a_picture_whatever_their_order(bands: tuple[str, ...]) -> None:
    image = cutout(*bands)
    backwards = Image(image.flux[::-1].copy(), image.ivar, image.mask, bands[::-1])
    picture = rgb(image)
    assert picture.shape == (24, 24, 3)
    assert picture[12, 12].min() > 100 > picture[0].max()
    np.testing.assert_array_equal(picture, rgb(backwards))


def test_one_band_is_grey_and_more_are_not() -> None:
    grey = rgb(cutout("DES-R"))
    assert (grey == grey[..., :1]).all()
    coloured = rgb(cutout("DES-G", "DES-R", "DES-Z"), stretch=1.0)
    assert (coloured[12, 12, 0] > coloured[12, 12, 2]).all()  # red flux is three times the blue


def test_three_bands_are_lupton_of_astropy() -> None:
    image = cutout("DES-G", "DES-R", "DES-Z")
    blue, green, red = (image.flux.T * np.array([1.8, 1.0, 0.65])).T.astype(np.float64)
    oracle = make_lupton_rgb(red, green, blue, minimum=-0.08 * 0.2, stretch=0.2, Q=6.0)
    np.testing.assert_array_equal(rgb(image, stretch=0.2, q=6.0), oracle[::-1])


def test_north_is_up() -> None:
    flux = np.full((1, 8, 8), 0.001, dtype=np.float32)
    flux[0, 7, 2] = 5.0  # FITS rows run northwards
    picture = rgb(Image(flux, np.ones_like(flux), np.zeros(flux.shape, bool), ("DES-R",)))
    assert picture[..., 0].argmax() == 2  # first row, third column


def test_masked_pixels_are_black() -> None:
    image = cutout("DES-G", "DES-R", "DES-Z")
    mask = image.mask.copy()
    mask[1, 10:14, 10:14] = True  # bad in one band is bad in the picture
    picture = rgb(Image(image.flux, image.ivar, mask, image.bands))
    assert (picture[::-1][10:14, 10:14] == 0).all()
    assert picture[::-1][14, 14].min() > 0


def test_a_smaller_stretch_shows_fainter_light() -> None:
    image = cutout("DES-G", "DES-R", "DES-Z")
    assert rgb(image, stretch=0.01).mean() > rgb(image, stretch=1.0).mean()


@pytest.mark.parametrize(("stretch", "q"), [(0.0, 8.0), (-1.0, 8.0), (0.1, 0.0)])
def test_stretch_and_q_must_be_positive(stretch: float, q: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        rgb(cutout("DES-R"), stretch=stretch, q=q)


def test_png_holds_the_same_pixels() -> None:
    picture = rgb(cutout("DES-G", "DES-R", "DES-Z"))
    with Picture.open(io.BytesIO(png(picture))) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), picture)


def spectrum(flux: np.ndarray, *, bad: slice = slice(0, 0)) -> Spectrum:
    """A spectrum of those fluxes with some pixels masked."""
    mask = np.zeros(len(flux), bool)
    mask[bad] = True
    ivar = np.where(mask, 0, 4).astype(np.float32)
    return Spectrum(flux.astype(np.float32), ivar, mask, 4000.0 + np.arange(len(flux)))


def test_smoothing_is_a_running_mean_that_skips_bad_pixels() -> None:
    flux = np.random.default_rng(0).normal(5, 1, 50)
    flux[20:23] = 1e6
    curve = spectrum_curve(spectrum(flux, bad=slice(20, 23)), width_pixels=5)
    assert np.isnan(curve.smoothed[20:23]).all()
    assert np.isnan(curve.flux[20:23]).all()
    assert curve.smoothed[40] == pytest.approx(flux[38:43].mean(), rel=1e-5)
    assert curve.smoothed[19] == pytest.approx(flux[17:20].mean(), rel=1e-5)
    assert curve.smoothed[0] == pytest.approx(flux[:3].mean(), rel=1e-5)


def test_smoothing_weights_by_inverse_variance() -> None:
    ivar = np.array([1, 3, 1], dtype=np.float32)
    flux = np.array([1, 2, 6], dtype=np.float32)
    noisy = Spectrum(flux, ivar, np.zeros(3, bool), np.array([1.0, 2.0, 3.0]))
    assert spectrum_curve(noisy, width_pixels=3).smoothed[1] == pytest.approx(13 / 5)


def test_a_spectrum_shorter_than_the_width_is_smoothed_whole() -> None:
    curve = spectrum_curve(spectrum(np.array([1.0, 2.0, 3.0])), width_pixels=9)
    np.testing.assert_allclose(curve.smoothed, 2.0)


@pytest.mark.parametrize("width", [0, 4, -3])
def test_the_width_must_be_odd(width: int) -> None:
    with pytest.raises(ValueError, match="odd and positive"):
        spectrum_curve(spectrum(np.ones(5)), width_pixels=width)


@pytest.mark.parametrize("dec", [-0.2083333, 2.2, -89.5])
def test_links_carry_the_position_and_its_sign(dec: float) -> None:
    viewer = parse_qs(urlsplit(legacy_viewer_url(150.1, dec)).query)
    assert [float(viewer["ra"][0]), float(viewer["dec"][0])] == pytest.approx(
        [150.1, dec], abs=1e-6
    )
    simbad_fields = urlsplit(simbad_url(150.1, dec)).query
    assert "+" not in simbad_fields  # a plain plus would be read as a blank
    ra_text, dec_text = parse_qs(simbad_fields)["Coord"][0].split()
    assert dec_text[0] in "+-"
    assert [float(ra_text), float(dec_text)] == pytest.approx([150.1, dec], abs=1e-6)


def test_links_need_a_position_on_the_sky() -> None:
    with pytest.raises(ValueError, match="dec_deg in"):
        simbad_url(10.0, 100.0)
