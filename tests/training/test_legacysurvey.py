"""Legacy Survey cutouts: flux, bands, orientation and position as the FITS header has them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from jaxtyping import Float32
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Observation
from training.surveys import legacysurvey

GOOD = ("example_a.fits", "example_c.fits", "temp_small.fits")


def header(
    *, size: int = 120, scale_arcsec: float = 0.262, bands: str = "grz", flip_x: bool = False
) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [359.9999, 2.5]
    wcs.wcs.crpix = [(size + 1) / 2, (size + 1) / 2]
    step = scale_arcsec / 3600
    wcs.wcs.cd = [[step if flip_x else -step, 0], [0, step]]
    made: fits.Header = wcs.to_header()
    made["BANDS"] = bands
    made["SURVEY"], made["VERSION"] = "LegacySurvey", "DR10"
    return made


def noise(size: int = 120, num_bands: int = 3) -> Float32[ndarray, "band y x"]:
    rng = np.random.default_rng(size)
    return rng.normal(scale=0.01, size=(num_bands, size, size)).astype(np.float32)


def write(file: Path, planes: ndarray | None, cards: fits.Header) -> Path:
    fits.PrimaryHDU(planes, cards).writeto(file)
    return file


def only(file: Path) -> Observation:
    (batch,) = list(legacysurvey.read(file))
    assert batch.skipped == ()
    (observation,) = batch.observations
    return observation


def only_reason(file: Path) -> str:
    (batch,) = list(legacysurvey.read(file))
    assert batch.observations == ()
    return batch.skipped[0].reason


@pytest.mark.parametrize("name", GOOD)
def test_real_cutouts_are_read_with_their_bands_release_and_position(
    name: str, shared_data: Path
) -> None:
    file = shared_data / "legacysurvey_fits_cutouts" / name
    cards = fits.getheader(file)

    seen = only(file)

    assert seen.object_id == seen.source_id == name.removesuffix(".fits")
    assert (seen.survey, seen.release, seen.calibrated) == ("legacysurvey", cards["VERSION"], True)
    assert seen.ra_deg == pytest.approx(cards["CRVAL1"], abs=1e-6)
    assert seen.dec_deg == pytest.approx(cards["CRVAL2"], abs=1e-6)
    assert seen.image is not None
    assert seen.image.bands == ("DES-G", "DES-R", "DES-Z")
    assert seen.image.flux.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    brightest = np.array(np.unravel_index(seen.image.flux[1].argmax(), (IMAGE_SIZE, IMAGE_SIZE)))
    assert np.hypot(*(brightest - 47.5)) * PIXEL_SCALE_ARCSEC < 1.5  # centred on its object


def test_one_galaxy_has_one_brightness_at_two_pixel_scales(shared_data: Path) -> None:
    folder = shared_data / "legacysurvey_fits_cutouts"
    fine, native = only(folder / "example_a.fits"), only(folder / "temp_small.fits")

    assert fine.image is not None
    assert native.image is not None
    assert "resampled from 0.100 arcsec per pixel" in fine.notes
    for band in ("g", "r", "z"):
        key = f"tok_flux_{band}"
        assert fine.scalars[key] == pytest.approx(native.scalars[key], rel=0.01)
        assert fine.catalogue[f"flux_{band}_nmgy"] == fine.scalars[key]
        assert fine.catalogue[f"mag_{band}"] == pytest.approx(
            22.5 - 2.5 * np.log10(fine.scalars[key])
        )
    for plane in range(3):  # and the same picture: two reductions, half a pixel apart
        assert np.corrcoef(fine.image.flux[plane].flat, native.image.flux[plane].flat)[0, 1] > 0.98


def test_the_truncated_file_is_skipped_with_its_reason(shared_data: Path) -> None:
    reason = only_reason(shared_data / "legacysurvey_fits_cutouts" / "example_incomplete.fits")

    assert reason.startswith("HDU 0: truncated")


@pytest.mark.parametrize("name", GOOD)
def test_reading_twice_and_reading_one_give_the_same(name: str, shared_data: Path) -> None:
    file = shared_data / "legacysurvey_fits_cutouts" / name
    first, second = only(file), legacysurvey.read_one(file, "")

    assert first.fingerprint == second.fingerprint
    assert first.image is not None
    assert second.image is not None
    np.testing.assert_array_equal(first.image.flux, second.image.flux)
    np.testing.assert_array_equal(first.image.ivar, second.image.ivar)
    assert (first.catalogue, first.notes) == (second.catalogue, second.notes)


@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("scale", [0.2, 0.262, 0.4])
def test_a_star_lies_where_the_wcs_says(scale: float, flip_x: bool, tmp_path: Path) -> None:
    cards = header(size=150, scale_arcsec=scale, flip_x=flip_x)
    centre = SkyCoord(359.9999, 2.5, unit="deg")
    star = centre.spherical_offsets_by(5 * u.arcsec, 3 * u.arcsec)
    x, y = WCS(cards, naxis=2).world_to_pixel(star)
    planes = noise(150) * 0.001
    grid = np.arange(150)
    planes += np.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / 8)

    seen = only(write(tmp_path / "star.fits", planes, cards))

    assert seen.image is not None
    weight = seen.image.flux[0] / seen.image.flux[0].sum()
    offset = (np.arange(IMAGE_SIZE) - 47.5) * PIXEL_SCALE_ARCSEC
    assert (weight.sum(0) * offset).sum() == pytest.approx(-5, abs=0.15)  # 5 arcsec east: left
    assert (weight.sum(1) * offset).sum() == pytest.approx(3, abs=0.15)  # 3 arcsec north: up
    assert seen.ra_deg == pytest.approx(359.9999)


def test_right_ascension_stays_below_360(tmp_path: Path) -> None:
    cards = header()
    cards["CRVAL1"] = 360.0

    assert only(write(tmp_path / "zero.fits", noise(), cards)).ra_deg == 0


def test_bands_come_from_the_header_in_its_order(tmp_path: Path) -> None:
    planes = noise(num_bands=4)

    seen = only(write(tmp_path / "four.fits", planes, header(bands="zrig")))

    assert seen.image is not None
    assert seen.image.bands == ("DES-Z", "DES-R", "DES-I", "DES-G")
    np.testing.assert_array_equal(seen.image.flux[3], planes[3, 12:108, 12:108])


def test_an_unknown_band_is_named(tmp_path: Path) -> None:
    reason = only_reason(write(tmp_path / "y.fits", noise(), header(bands="gry")))

    assert reason == "HDU 0: unknown band 'y': expected g, r, i or z"


def test_bands_that_do_not_fit_the_planes_are_refused(tmp_path: Path) -> None:
    reason = only_reason(write(tmp_path / "two.fits", noise(), header(bands="gr")))

    assert "expected 3 bands" in reason


def test_an_image_without_wcs_is_refused(tmp_path: Path) -> None:
    reason = only_reason(write(tmp_path / "x.fits", noise(), fits.Header({"BANDS": "grz"})))

    assert "no celestial WCS" in reason


def test_a_wcs_that_wcslib_refuses_is_told_in_plain_words(tmp_path: Path) -> None:
    cards = header()
    cards["CRVAL2"] = 95.0
    file = write(tmp_path / "a.fits", noise(), cards)

    reason = only_reason(file)

    assert reason.startswith("HDU 0: unusable WCS: Ill-conditioned coordinate transformation")
    assert ".c" not in reason


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("CTYPE1", 7, "expected CTYPE1 as text, got 7"),
        ("CTYPE2", True, "expected CTYPE2 as text, got True"),
        ("CUNIT1", 1.5, "expected CUNIT1 as text, got 1.5"),
        ("CRVAL1", "x", "expected CRVAL1 as a number, got 'x'"),
        ("CRVAL2", None, "expected CRVAL2 as a number, got nothing"),
        ("CRPIX1", True, "expected CRPIX1 as a number, got True"),
        ("PC1_1", "wide", "expected PC1_1 as a number, got 'wide'"),
    ],
)
def test_cards_of_a_wcs_that_are_no_coordinates_are_named(
    key: str, value: object, expected: str, tmp_path: Path
) -> None:
    cards = header()
    cards[key] = value

    assert (
        only_reason(write(tmp_path / "a.fits", noise(), cards))
        == f"HDU 0: unusable WCS: {expected}"
    )


def test_a_wcs_without_reference_coordinates_is_not_at_zero(tmp_path: Path) -> None:
    cards = header()
    del cards["CRVAL1"]

    assert (
        only_reason(write(tmp_path / "a.fits", noise(), cards)) == "HDU 0: unusable WCS: no CRVAL1"
    )


def test_pixels_that_are_not_square_are_said(tmp_path: Path) -> None:
    cards = header()
    cards["CDELT1"] *= 2

    notes = only(write(tmp_path / "a.fits", noise(), cards)).notes

    assert "resampled from 0.262 x 0.524 arcsec per pixel" in notes


def test_a_small_image_is_padded_and_says_so(tmp_path: Path) -> None:
    seen = only(write(tmp_path / "small.fits", noise(80), header(size=80)))

    assert "padded from 80 x 80 px" in seen.notes
    assert seen.image is not None
    assert (~seen.image.mask).sum() == 3 * 80 * 80
    assert (seen.image.ivar[seen.image.mask] == 0).all()


def test_an_image_of_nan_is_refused(tmp_path: Path) -> None:
    nan = np.full((3, 120, 120), np.nan, np.float32)

    assert "no usable pixel" in only_reason(write(tmp_path / "nan.fits", nan, header()))


def test_pixels_without_data_are_masked_and_zero(tmp_path: Path) -> None:
    planes = noise()
    planes[0, 60, 60], planes[2, 61, 59] = np.nan, 0  # the viewer writes 0 where it has no data

    seen = only(write(tmp_path / "holes.fits", planes, header()))

    assert seen.image is not None
    assert seen.image.mask.sum() == 2
    assert seen.image.mask[0, 48, 48]
    assert seen.image.mask[2, 49, 47]
    assert (seen.image.flux[seen.image.mask] == 0).all()


@pytest.mark.parametrize("value", [0, -3])
def test_a_cutout_without_positive_inverse_variance_is_refused(value: int, tmp_path: Path) -> None:
    file = tmp_path / "ivar.fits"
    ivar = fits.ImageHDU(np.full((3, 120, 120), value, np.float32), header())
    ivar.header["IMAGETYP"] = "invvar"
    fits.HDUList([fits.PrimaryHDU(noise(), header()), ivar]).writeto(file)

    assert "inverse variance is not positive" in only_reason(file)


def test_inverse_variance_in_the_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "ivar.fits"
    values = np.full((3, 120, 120), 900, np.float32)
    values[1, 60, 60] = -1
    ivar = fits.ImageHDU(values, header())
    ivar.header["IMAGETYP"] = "invvar"
    fits.HDUList([fits.PrimaryHDU(noise(), header()), ivar]).writeto(file)

    seen = only(file)

    assert seen.image is not None
    assert "ivar estimated" not in seen.notes
    assert seen.image.mask.sum() == 1
    assert np.unique(seen.image.ivar).tolist() == [0, 900]


def test_the_aperture_holds_a_point_source_and_its_magnitude_is_ab(tmp_path: Path) -> None:
    grid = np.arange(120) - 59.5
    profile = np.exp(-(grid[:, None] ** 2 + grid**2) / (2 * 2.5**2)) / (2 * np.pi * 2.5**2)
    planes = noise() * 1e-4 + (100 * profile).astype(np.float32)

    seen = only(write(tmp_path / "star.fits", planes, header()))

    assert seen.catalogue["flux_r_nmgy"] == pytest.approx(100, rel=0.01)
    assert seen.catalogue["mag_r"] == pytest.approx(17.5, abs=0.01)


def test_a_negative_flux_has_no_magnitude_and_is_no_token(tmp_path: Path) -> None:
    seen = only(write(tmp_path / "dark.fits", noise() - 1, header()))

    assert isinstance(seen.catalogue["flux_g_nmgy"], float)
    assert seen.catalogue["flux_g_nmgy"] < 0
    assert "mag_g" not in seen.catalogue
    assert dict(seen.scalars) == {}


def test_another_content_has_another_fingerprint(tmp_path: Path) -> None:
    planes = noise()
    first = only(write(tmp_path / "a.fits", planes, header())).fingerprint
    planes[0, 60, 60] += 1

    assert only(write(tmp_path / "b.fits", planes, header())).fingerprint != first


def test_swapped_axes_are_refused_with_what_was_expected_and_what_came(tmp_path: Path) -> None:
    planes = np.moveaxis(noise(), 0, -1)

    reason = only_reason(write(tmp_path / "yxb.fits", planes, header()))

    assert reason == (
        "HDU 0: swapped axes: expected (band, y, x) with 3 bands first, got (120, 120, 3)"
    )


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("BUNIT", "adu", "HDU 0: BUNIT: expected nanomaggy, got 'adu'"),
        ("BUNIT", "erg/s/cm2", "HDU 0: BUNIT: expected nanomaggy, got 'erg/s/cm2'"),
        ("MAGZERO", 27.0, "HDU 0: MAGZERO: expected the zero point of nanomaggies, 22.5, got 27.0"),
        (
            "MAGZPT",
            "high",
            "HDU 0: MAGZPT: expected the zero point of nanomaggies, 22.5, got 'high'",
        ),
    ],
)
def test_another_unit_or_zero_point_is_refused(
    key: str, value: object, reason: str, tmp_path: Path
) -> None:
    cards = header()
    cards[key] = value

    assert only_reason(write(tmp_path / "unit.fits", noise(), cards)) == reason


@pytest.mark.parametrize("unit", ["nanomaggy", "nanomaggies", "nmgy", "Nanomaggies / pixel", None])
def test_nanomaggies_are_accepted_however_they_are_spelled(
    unit: str | None, tmp_path: Path
) -> None:
    cards = header()
    cards["BUNIT"], cards["MAGZERO"] = unit, 22.5

    notes = only(write(tmp_path / "unit.fits", noise(), cards)).notes

    assert ("BUNIT missing: taken as nanomaggies" in notes) == (unit is None)


def test_a_cutout_that_says_no_unit_is_in_nanomaggies_and_that_is_said(tmp_path: Path) -> None:
    stated = header()
    stated["BUNIT"] = "nanomaggy"
    assert "BUNIT" not in header()

    silent = only(write(tmp_path / "silent.fits", noise(), header()))
    spoken = only(write(tmp_path / "spoken.fits", noise(), stated))

    assert set(silent.notes) - set(spoken.notes) == {"BUNIT missing: taken as nanomaggies"}
    assert silent.image is not None
    assert spoken.image is not None
    np.testing.assert_array_equal(silent.image.flux, spoken.image.flux)


def test_inverse_variance_in_another_unit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ivar.fits"
    ivar = fits.ImageHDU(np.ones((3, 120, 120), np.float32), header())
    ivar.header["IMAGETYP"], ivar.header["BUNIT"] = "invvar", "nanomaggy"
    fits.HDUList([fits.PrimaryHDU(noise(), header()), ivar]).writeto(file)

    assert only_reason(file) == "HDU 1: BUNIT: expected 1/nanomaggy^2, got 'nanomaggy'"


def test_gzip_rice_and_scaled_integers_are_the_same_cutout(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-999, 999, (3, 120, 120)).astype(np.int16)
    cards = header()
    cards["BSCALE"], cards["BZERO"] = 1e-4, 0.0
    plain = write(tmp_path / "plain.fits", stored, cards)
    with fits.open(plain, mode="update", do_not_scale_image_data=True) as hdus:
        hdus[0].header["BSCALE"], hdus[0].header["BZERO"] = 1e-4, 0.0
    packed = tmp_path / "packed.fits.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    rice = tmp_path / "rice.fits.fz"
    compressed = fits.CompImageHDU(stored * np.float32(1e-4), header(), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(rice)

    images = [only(file).image for file in (plain, packed, rice)]

    first = images[0]
    assert first is not None
    for image, tolerance in zip(images, (1e-9, 1e-9, 0.01), strict=True):
        assert image is not None
        np.testing.assert_allclose(image.flux, first.flux, atol=tolerance)
    good = stored[:, 12:108, 12:108] * 1e-4
    np.testing.assert_allclose(first.flux, good, atol=1e-7)


def test_flipped_bits_end_in_a_cutout_or_a_reason(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.fits", noise(100), header(size=100)).read_bytes()
    rng = np.random.default_rng(9)
    file = tmp_path / "flipped.fits"
    for turn in range(60):
        damaged = bytearray(content)
        for place in rng.integers(len(content) if turn % 2 else 2880, size=2):
            damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        (batch,) = list(legacysurvey.read(file))
        assert len(batch.observations) + len(batch.skipped) == 1
