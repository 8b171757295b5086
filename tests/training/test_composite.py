"""Colour pictures: the look is found, its stretch undone, and what is not known is said."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float64, UInt8
from numpy import ndarray
from PIL import Image as Picture

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Observation
from training.surveys import composite
from training.surveys.stretch import LOOKS, Look, look_of, undo

GREY = np.full((60, 60, 3), 128, np.uint8)


def everything(file: Path) -> list[Observation]:
    seen: list[Observation] = []
    for batch in composite.read(file):
        assert batch.skipped == ()
        seen.extend(batch.observations)
    return seen


def only_reason(file: Path) -> str:
    (batch,) = list(composite.read(file))
    assert batch.observations == ()
    return batch.skipped[0].reason


def disc(
    size: int = 424, *, radius: float = 60, x: float = 0, y: float = 0
) -> UInt8[ndarray, "y x 3"]:
    """A white disc on black, off the centre by x to the right and y upwards."""
    offset = np.arange(size) - (size - 1) / 2
    inside = np.hypot(offset[:, None] + y, offset - x) < radius
    return np.repeat((inside * 200).astype(np.uint8)[:, :, None], 3, axis=2)


def save(rgb: UInt8[ndarray, "y x 3"], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(rgb).save(file)
    return file


def drawn(look: Look, flux: Float64[ndarray, "3 y x"]) -> Float64[ndarray, "y x 3"]:
    """The published stretch, 0 to 1: flux in nmgy per native pixel, red first."""
    if look.name == "galaxyzoo_decals":
        scaled = np.stack([flux[k] / divisor for k, divisor in enumerate((0.019, 0.014, 0.008))])
        low, high = np.arcsinh([-0.5, 300])
        return np.moveaxis((np.arcsinh(scaled) - low) / (high - low), 0, 2)
    if look.name == "legacysurvey":
        x = flux * np.array([2.2, 3.4, 6.0])[:, None, None] + 0.03
        mean = x.mean(0)
        return np.moveaxis(x * np.arcsinh(20 * mean) / np.sqrt(20) / mean, 0, 2)
    if look.name == "cfhtls":
        x = 1000 * flux * (np.array([0.4, 0.6, 1.7]) / 0.9)[:, None, None]
        total = x.sum(0)
        return np.moveaxis(x * np.arcsinh(0.09 * total) / total, 0, 2)
    x = flux * 0.4 * np.array([5, 6.5, 9])[:, None, None]
    total = x.sum(0)
    return np.moveaxis(x * np.arcsinh(2.25 * total) / 2.25 / total, 0, 2)


@pytest.mark.parametrize("name", LOOKS)
@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=10)
def test_undoing_a_published_stretch_gives_the_flux_back(name: str, seed: int) -> None:
    look = LOOKS[name]
    bright = {"cfhtls": 0.01, "galaxyzoo_decals": 1.0, "legacysurvey": 0.2}.get(name, 1.5)
    rng = np.random.default_rng(seed)
    flux = bright * rng.uniform(0.2, 1, (3, 8, 8)) * np.array([1.0, 0.6, 0.3])[:, None, None]
    picture = drawn(look, flux)
    assert picture.max() < 1
    area = (PIXEL_SCALE_ARCSEC / look.native_pixel_arcsec) ** 2

    found = undo(look, np.round(picture * 255).astype(np.uint8))

    np.testing.assert_allclose(found, flux * area, rtol=0.08, atol=0.01 * bright * area)


@pytest.mark.parametrize(
    ("path", "sky", "expected"),
    [
        ("gz2_spiral/train/101.jpg", 0, "sdss"),
        ("pictures/sloan-4_a-3_3.jpg", 40, "sdss"),
        ("pictures/decals-4_a-3_3.jpg", 0, "galaxyzoo_decals"),
        ("sloan/decals-1.jpg", 0, "galaxyzoo_decals"),  # the file name comes first
        ("spacewarps_cfhtls/crops.npz", 40, "cfhtls"),
        ("legacysurvey/a/b.jpg", 0, "legacysurvey"),
        ("sdss_multimodal/1237.jpg", 0, "sdss"),
        ("sdss_multimodal/1237.jpg", 32, "legacysurvey"),
        ("mine/a.jpg", 0, "unknown"),
        ("mine/a.jpg", 32, "legacysurvey"),
        ("decalsx/a.jpg", 0, "unknown"),  # words, not parts of words
        ("decals/a/b/c/d.jpg", 0, "unknown"),  # three folders up, no further
    ],
)
def test_the_look_is_told_by_the_name_and_else_by_the_sky(
    path: str, sky: int, expected: str
) -> None:
    rgb = GREY.copy()
    rgb[:10] = rgb[-10:] = sky

    assert look_of(Path("/") / path, rgb).name == expected


def test_cfhtls_crops_agree_with_the_calibrated_image_of_the_same_lens(shared_data: Path) -> None:
    crops = shared_data / "spacewarps_cfhtls" / "center_crops_128.npz"
    (seen,) = [one for one in everything(crops) if one.object_id.startswith("CFHTLSJ021411.2")]
    image = seen.image
    assert image is not None
    assert image.bands == ("DES-I", "DES-R", "DES-G")
    for plane, band in enumerate("irg"):
        name = f"SL2SJ021411-040502_{band}_sci.fits"
        truth = fits.getdata(shared_data / "sl2s_lens_ugriz_fits" / name)  # 41 px, zero point 30
        half = 41 * 0.186 / PIXEL_SCALE_ARCSEC / 2
        inside = slice(round(47.5 - half), round(47.5 + half) + 1)

        flux = float(image.flux[plane, inside, inside].sum())

        # HumVI clips the brightest pixels; faint sky was cut at black.
        assert 0.5 < flux / (float(truth.sum()) / 1000) < 1.1


@pytest.mark.parametrize("stride", [14, pytest.param(1, marks=pytest.mark.slow)])
def test_galaxy_zoo_2_pictures_are_read_as_sdss(stride: int, shared_data: Path) -> None:
    files = composite.list_files(shared_data / "gz2_spiral_nonspiral" / "train")
    assert len(files) == 1400
    for file in files[::stride]:
        (seen,) = everything(file)
        assert seen.object_id == seen.source_id == file.stem
        assert (seen.survey, seen.calibrated, seen.ra_deg) == ("composite", False, None)
        assert seen.notes[:2] == (
            "look: sdss", "pixel scale unknown: the central half is shown"
        )  # fmt: skip
        assert dict(seen.scalars) == dict(seen.catalogue) == {}
        assert seen.image is not None
        assert seen.image.bands == ("DES-I", "DES-R", "DES-G")
        assert seen.image.flux.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
        assert not seen.image.mask.any()
        centre = seen.image.flux[:, 32:64, 32:64].mean()
        assert centre > 1.2 * seen.image.flux.mean()  # the galaxy is in the middle


def test_galaxy_zoo_examples_have_two_looks(shared_data: Path) -> None:
    looks: dict[str, int] = {}
    for file in composite.list_files(shared_data / "galaxyzoo_examples"):
        (seen,) = everything(file)
        assert seen.image is not None
        word = "sdss" if file.name.startswith("sloan") else "galaxyzoo_decals"
        assert seen.notes[0] == f"look: {word}"
        assert seen.image.bands[0] == ("DES-I" if word == "sdss" else "DES-Z")
        looks[word] = looks.get(word, 0) + 1
    assert looks == {"sdss": 86, "galaxyzoo_decals": 185}


def test_pictures_named_after_sdss_objects_but_drawn_by_the_viewer_are_grz(
    shared_data: Path,
) -> None:
    files = composite.list_files(shared_data / "sdss_multimodal_10")
    assert len(files) == 10
    for file in files:
        (seen,) = everything(file)
        assert seen.object_id == file.stem
        assert seen.notes[0] == "look: legacysurvey"


def test_space_warps_crops_are_named_placed_and_padded(shared_data: Path) -> None:
    file = shared_data / "spacewarps_cfhtls" / "center_crops_128.npz"
    with np.load(file, allow_pickle=False) as archive:
        names, ra_deg = archive["name"], archive["ra"]

    batches = list(composite.read(file, batch_size=100))

    assert [len(batch.observations) for batch in batches] == [100, 100, 100, 100, 29]
    seen = [one for batch in batches for one in batch.observations]
    assert [one.object_id for one in seen] == [Path(str(name)).stem for name in names]
    assert [one.source_part for one in seen] == [str(row) for row in range(429)]
    assert [one.ra_deg for one in seen] == pytest.approx(ra_deg.tolist())
    assert all("padded from 128 x 128 px" in one.notes for one in seen)
    assert len({one.fingerprint for one in seen}) == 429
    again = composite.read_one(file, "91")
    assert again.fingerprint == seen[91].fingerprint
    assert again.image is not None
    assert seen[91].image is not None
    np.testing.assert_array_equal(again.image.flux, seen[91].image.flux)


def test_reading_twice_and_reading_one_give_the_same(shared_data: Path) -> None:
    for file in composite.list_files(shared_data / "galaxyzoo_examples")[::90]:
        (first,), second = everything(file), composite.read_one(file, "")
        assert first.fingerprint == second.fingerprint
        assert first.image is not None
        assert second.image is not None
        np.testing.assert_array_equal(first.image.flux, second.image.flux)
        np.testing.assert_array_equal(first.image.ivar, second.image.ivar)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".JPG"])
def test_the_top_of_a_picture_is_north_the_last_row(suffix: str, tmp_path: Path) -> None:
    (seen,) = everything(save(disc(x=30, y=50, radius=20), tmp_path / f"disc{suffix}"))

    assert seen.image is not None
    weight = seen.image.flux[0] / seen.image.flux[0].sum()
    pixels = np.arange(IMAGE_SIZE) - 47.5
    # 212 px become 96: a picture of unknown scale shows its central half.
    assert (weight.sum(0) * pixels).sum() == pytest.approx(30 * 96 / 212, abs=0.3)
    assert (weight.sum(1) * pixels).sum() == pytest.approx(50 * 96 / 212, abs=0.3)


@pytest.mark.parametrize("size", [192, 256, 424, 901])
def test_the_central_half_becomes_the_image_whatever_the_size(size: int, tmp_path: Path) -> None:
    (seen,) = everything(save(disc(size, radius=size / 8), tmp_path / "disc.jpg"))

    assert seen.image is not None
    share = (seen.image.flux[0] > seen.image.flux[0].max() / 20).mean()
    assert share == pytest.approx(np.pi / 16, rel=0.06)
    assert not seen.image.mask.any()


def test_a_small_picture_is_padded_and_says_so(tmp_path: Path) -> None:
    (seen,) = everything(save(disc(60, radius=10), tmp_path / "small.png"))

    assert "padded from 60 x 60 px" in seen.notes
    assert "pixel scale unknown: every pixel is shown as 0.262 arcsec" in seen.notes
    assert seen.image is not None
    assert (~seen.image.mask).sum() == 3 * 60 * 60


def test_the_look_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    (sdss,) = everything(save(disc(), tmp_path / "sloan-1.png"))
    (decals,) = everything(save(disc(), tmp_path / "decals-1.png"))

    assert sdss.fingerprint != decals.fingerprint


@pytest.mark.parametrize("value", [0, 255])
def test_an_empty_picture_is_refused(value: int, tmp_path: Path) -> None:
    rgb = np.full((120, 120, 3), value, np.uint8)

    assert only_reason(save(rgb, tmp_path / "empty.png")) == (
        f"an empty picture: every pixel is {value}"
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_picture_is_skipped(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    file = save(noise, tmp_path / f"cut{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])

    assert only_reason(file).startswith("broken picture")


def test_a_picture_of_16_bits_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.png"
    Picture.fromarray(np.arange(14400, dtype=np.uint16).reshape(120, 120)).save(file)

    assert "expected 8-bit RGB" in only_reason(file)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 20, 20), np.uint8)}, "expected one uint8 array"),
        ({"a": np.zeros((2, 9, 9, 3), np.uint8), "b": np.zeros((2, 9, 9, 3), np.uint8)}, "one"),
        ({"images": np.zeros((2, 9, 9, 3), np.uint8), "name": np.array(["x"])}, "expected 2 names"),
    ],
)
def test_a_npz_without_one_stack_of_pictures_is_skipped(
    arrays: dict[str, ndarray], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "crops.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]

    assert message in only_reason(file)
    with pytest.raises(ValueError, match=message):
        composite.read_one(file, "0")


def test_a_npz_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "crops.npz"
    np.savez(file, images=np.array([{"a": 1}], dtype=object))

    assert "allow_pickle" in only_reason(file)


@pytest.mark.parametrize(
    ("ra", "message"),
    [
        (np.array(["10", "11"]), "expected 2 numbers in degrees in 'ra', got <U2"),
        (np.array([10.0]), r"expected 2 numbers in degrees in 'ra', got float64 of shape \(1,\)"),
    ],
)
def test_a_npz_whose_positions_are_no_numbers_one_a_picture_is_skipped(
    ra: ndarray, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "crops.npz"
    np.savez(file, images=np.stack([disc(100)] * 2), ra=ra, dec=np.zeros(2))

    assert re.search(message, only_reason(file))
    with pytest.raises(ValueError, match=message):
        composite.read_one(file, "0")


def test_an_unknown_position_is_none_and_one_off_the_sky_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "crops.npz"
    dec = np.array([np.nan, 95.0, -5.0])
    np.savez(file, images=np.stack([disc(100)] * 3), ra=np.array([10.0, 10, -1]), dec=dec)

    (batch,) = list(composite.read(file))

    places = {seen.object_id: (seen.ra_deg, seen.dec_deg) for seen in batch.observations}
    assert places == {"crops-0": (None, None), "crops-2": (359.0, -5.0)}
    assert ["dec_deg in [-90, 90]" in bad.reason for bad in batch.skipped] == [True]


def test_a_picture_without_a_name_is_skipped_alone(tmp_path: Path) -> None:
    file = tmp_path / "crops.npz"
    np.savez(file, images=np.stack([disc(100)] * 3), id=np.array(["a", "", "  "]))

    (batch,) = list(composite.read(file))

    assert [seen.object_id for seen in batch.observations] == ["a"]
    assert {bad.reason for bad in batch.skipped} == {"it has no name"}


@pytest.mark.parametrize("shape", [(0, 9, 9, 3), (2, 0, 9, 3)])
def test_a_npz_of_no_pixels_is_skipped(shape: tuple[int, ...], tmp_path: Path) -> None:
    file = tmp_path / "crops.npz"
    np.savez(file, images=np.zeros(shape, np.uint8))

    assert "expected one uint8 array" in only_reason(file)


def test_a_npz_that_unpacks_to_more_than_memory_is_skipped_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "crops.npz"
    np.savez_compressed(file, images=disc(500)[None])
    monkeypatch.setattr(composite, "MAX_NPZ_BYTES", 700_000)

    assert "expected a npz of 700,000 bytes unpacked at most, got 750," in only_reason(file)


def test_a_picture_of_too_many_pixels_is_skipped_undecoded(tmp_path: Path) -> None:
    Picture.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")

    assert "too large a picture" in only_reason(tmp_path / "bomb.png")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 but no more"])
def test_a_broken_npz_is_skipped(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "crops.npz"
    file.write_bytes(content)

    assert only_reason(file)


def test_a_bad_row_of_a_npz_is_skipped_alone_and_rows_without_names_are_numbered(
    tmp_path: Path,
) -> None:
    images = np.stack([disc(100), np.zeros((100, 100, 3), np.uint8), disc(100, x=9)])
    file = tmp_path / "crops.npz"
    np.savez(file, images=images)

    (batch,) = list(composite.read(file))

    assert [one.object_id for one in batch.observations] == ["crops-0", "crops-2"]
    assert [(bad.file, bad.reason) for bad in batch.skipped] == [
        (f"{file}[1]", "an empty picture: every pixel is 0")
    ]
    assert composite.read_one(file, "2").object_id == "crops-2"


@pytest.mark.parametrize("part", ["", "3", "-1", "one"])
def test_a_part_that_is_not_in_the_npz_is_refused(part: str, tmp_path: Path) -> None:
    file = tmp_path / "crops.npz"
    np.savez(file, images=np.stack([disc(100)] * 3))

    with pytest.raises(ValueError, match="rows 0 to 2, no part"):
        composite.read_one(file, part)


def test_a_changed_npz_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "crops.npz"
    np.savez(file, images=disc(100)[None])
    first = composite.read_one(file, "0").fingerprint
    np.savez(file, images=np.stack([disc(100, x=20), disc(100)]))

    assert composite.read_one(file, "0").fingerprint != first
    assert composite.read_one(file, "1").fingerprint == first


def test_grey_and_transparent_pictures_are_read_as_colour(tmp_path: Path) -> None:
    plain = save(disc(), tmp_path / "rgb.png")
    for mode in ("RGBA", "L"):
        Picture.open(plain).convert(mode).save(tmp_path / f"{mode}.png")
        (first,), (second,) = everything(plain), everything(tmp_path / f"{mode}.png")
        assert first.image is not None
        assert second.image is not None
        np.testing.assert_array_equal(first.image.flux, second.image.flux)


def test_a_jpeg_is_reduced_while_it_is_decoded_without_changing_the_flux(tmp_path: Path) -> None:
    offset = np.arange(848) - 423.5
    profile = 180 * np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 90**2))
    rgb = np.repeat(profile.astype(np.uint8)[:, :, None], 3, axis=2)
    buffer = io.BytesIO()
    Picture.fromarray(rgb).save(buffer, "JPEG", quality=98)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())

    (jpeg,), (png,) = everything(tmp_path / "a.jpg"), everything(save(rgb, tmp_path / "a.png"))

    assert jpeg.image is not None
    assert png.image is not None
    np.testing.assert_allclose(
        jpeg.image.flux, png.image.flux, atol=0.02 * float(png.image.flux.max())
    )
