"""Colour pictures: the look is found, its stretch undone, and what is not known is said."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float64, UInt8
from numpy import ndarray
from PIL import Image as Picture

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Observation, fingerprint
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
    if look.name in ("galaxyzoo_decals", "legacysurvey_old"):
        old = look.name == "legacysurvey_old"
        divisors = (0.025, 0.01, 0.0066) if old else (0.019, 0.014, 0.008)
        scaled = np.stack([flux[k] / divisor for k, divisor in enumerate(divisors)])
        low, high = np.arcsinh([-1, 100] if old else [-0.5, 300])
        return np.moveaxis((np.arcsinh(scaled) - low) / (high - low), 0, 2)
    if look.name == "legacysurvey":
        x = flux * np.array([2.2, 3.4, 6.0])[:, None, None] + 0.03
        mean = x.mean(0)
        return np.moveaxis(x * np.arcsinh(20 * mean) / np.sqrt(20) / mean, 0, 2)
    if look.name == "legacysurvey_dr10":
        return drawn_from_four(flux, flux_i=(flux[0] + flux[1]) / 2)
    if look.name == "cfhtls":
        x = 1000 * flux * (np.array([0.4, 0.6, 1.7]) / 0.9)[:, None, None]
        total = x.sum(0)
        return np.moveaxis(x * np.arcsinh(0.09 * total) / total, 0, 2)
    x = flux * 0.4 * np.array([5, 6.5, 9])[:, None, None]
    total = x.sum(0)
    return np.moveaxis(x * np.arcsinh(2.25 * total) / 2.25 / total, 0, 2)


def drawn_from_four(
    flux: Float64[ndarray, "3 y x"], *, flux_i: Float64[ndarray, "y x"]
) -> Float64[ndarray, "y x 3"]:
    """The viewer's picture of DR10: z, r, g and i mixed, each cut at white first."""
    x = {
        band: 1.5 * scale * each + 0.03
        for band, scale, each in zip("zrgi", (2.2, 3.4, 6.0, 3.0), (*flux, flux_i), strict=True)
    }
    mean = sum(x.values()) / 4
    v = {
        band: np.clip(each * np.arcsinh(20 * mean) / np.sqrt(20) / mean, 0, 1)
        for band, each in x.items()
    }
    red, green, blue = (
        0.75 * v["z"] + 0.25 * v["i"], 0.5 * v["i"] + 0.5 * v["r"], 0.25 * v["r"] + 0.75 * v["g"]
    )  # fmt: skip
    return np.stack([red, green, blue], axis=2)


@pytest.mark.parametrize("name", LOOKS)
@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=10)
def test_undoing_a_published_stretch_gives_the_flux_back(name: str, seed: int) -> None:
    look = LOOKS[name]
    bright = {"cfhtls": 0.01, "galaxyzoo_decals": 1.0, "legacysurvey": 0.19,
              "legacysurvey_dr10": 0.13, "legacysurvey_old": 0.6}.get(name, 1.5)  # fmt: skip
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
        ("ls-dr10/a.jpg", 0, "legacysurvey_dr10"),
        ("legacysurvey_dr10_cutouts/a.jpg", 0, "legacysurvey_dr10"),
        ("legacysurvey_old/0001p000.jpg", 0, "legacysurvey_old"),
        ("sdss_dr10/a.jpg", 0, "sdss"),  # a DR10 of another survey
        ("ls-dr9/a.jpg", 32, "legacysurvey"),
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


@pytest.mark.slow
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


def test_a_picture_of_16_bits_is_reduced_to_8(tmp_path: Path) -> None:
    grey = disc()[:, :, 0].astype(np.uint16) * 257
    Picture.fromarray(grey).save(tmp_path / "deep.png")

    (deep,), (plain,) = (
        everything(tmp_path / "deep.png"), everything(save(disc(), tmp_path / "plain.png"))
    )  # fmt: skip

    assert "reduced from 16 bits" in deep.notes
    assert deep.image is not None
    assert plain.image is not None
    np.testing.assert_array_equal(deep.image.flux, plain.image.flux)


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
    np.savez(file, images=np.stack([disc(100)] * 3), ra=np.array([np.nan, 10, 359]), dec=dec)

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


@pytest.mark.parametrize("r_to_i", [0.45, 0.57])  # M star, blue galaxy
def test_four_bands_drawn_as_three_colours_come_back_to_a_tenth(r_to_i: float) -> None:
    """The flux in i lies between those in r and z; DR10 pictures do not tell where."""
    red = np.array([0.18, 0.10, 0.03])  # z, r, g of an old galaxy, nmgy per pixel
    for colours in (red, np.array([0.05, 0.04, 0.03])):
        flux = np.linspace(0.2, 1, 64).reshape(1, 8, 8) * colours[:, None, None]
        flux_i = flux[1] + r_to_i * (flux[0] - flux[1])
        picture = drawn_from_four(flux, flux_i=flux_i)

        found = undo(LOOKS["legacysurvey_dr10"], np.round(picture * 255).astype(np.uint8))

        np.testing.assert_allclose(found, flux, rtol=0.1, atol=0.004)


@pytest.mark.parametrize("name", ["legacysurvey", "legacysurvey_old", "galaxyzoo_decals"])
def test_a_picture_of_a_calibrated_cutout_gives_its_flux_back(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    """A real cutout at native pixels, drawn by the published stretch, saved in 8 bits, read."""
    file = shared_data / "legacysurvey_fits_cutouts" / "temp_small.fits"
    flux = fits.getdata(file)[::-1, 64:160, 64:160].astype(np.float64)  # z, r, g of 0.262 arcsec
    picture = drawn(LOOKS[name], flux[:, ::-1])
    save(np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), tmp_path / "a.png")
    (tmp_path / "look.toml").write_text(f'look = "{name}"\npixel_scale_arcsec = 0.262\n')

    (seen,) = everything(tmp_path / "a.png")

    assert seen.notes[0] == f"look: {name}"
    assert seen.image is not None
    clear = np.all((picture > 0.02) & (picture < 0.99), axis=2)[::-1]
    assert clear.sum() > 1000
    noise = flux[:, clear].std(axis=1)[:, None]
    off = np.abs(seen.image.flux[:, clear] - flux[:, clear])
    assert (off < 0.1 * np.abs(flux[:, clear]) + 0.15 * noise).mean() > 0.99


def test_the_legend_beside_the_pictures_or_above_says_look_and_scale(tmp_path: Path) -> None:
    file = save(disc(384), tmp_path / "sloan" / "deep" / "a.png")
    (before,) = everything(file)
    assert composite.companions(file) == ()
    legend = tmp_path / "sloan" / "look.toml"
    legend.write_text('look = "cfhtls"\npixel_scale_arcsec = 0.131\n')

    assert composite.companions(file) == (legend,)
    (seen,) = everything(file)

    assert before.notes[0] == "look: sdss"
    assert seen.notes[0] == "look: cfhtls"
    assert not [note for note in seen.notes if "scale" in note]
    assert seen.fingerprint != before.fingerprint
    assert seen.image is not None
    # A radius of 60 px of 0.131 arcsec is 30 px of 0.262 arcsec.
    share = (seen.image.flux[0] > seen.image.flux[0].max() / 20).mean()
    assert share == pytest.approx(np.pi * 30**2 / 96**2, rel=0.06)
    legend.write_text('look = "cfhtls"\npixel_scale_arcsec = 0.2\n')
    assert everything(file)[0].fingerprint != seen.fingerprint


def test_a_large_jpeg_of_known_scale_is_not_reduced_below_its_pixels(tmp_path: Path) -> None:
    rgb = disc(1600, radius=30)
    save(rgb, tmp_path / "a.png")
    Picture.fromarray(rgb).save(tmp_path / "b.jpg", quality=98, subsampling=0)
    (tmp_path / "look.toml").write_text("pixel_scale_arcsec = 0.262")

    (png,), (jpeg,) = everything(tmp_path / "a.png"), everything(tmp_path / "b.jpg")

    assert png.image is not None
    assert jpeg.image is not None
    scale = float(png.image.flux.max())
    np.testing.assert_allclose(jpeg.image.flux, png.image.flux, atol=0.1 * scale)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("look = sdss", "not TOML"),
        ('look = "hubble"', "expected look to be one of sdss, legacysurvey"),
        ("pixel_scale_arcsec = -1", "expected pixel_scale_arcsec above 0, got -1"),
        ("pixel_scale_arcsec = inf", "above 0, got inf"),
        ('scale = "0.2"', "expected look and pixel_scale_arcsec, got 'scale'"),
        ("\udcff", "not TOML"),
    ],
)
def test_a_legend_that_makes_no_sense_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = save(disc(), tmp_path / "a.png")
    (tmp_path / "look.toml").write_bytes(text.encode(errors="surrogateescape"))

    assert message in only_reason(file)
    with pytest.raises(ValueError, match=r"look\.toml"):
        composite.read_one(file, "")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (300, 40), (212, 212)])
def test_a_screenshot_of_anything_is_accepted(
    mode: str, size: tuple[int, int], tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
    grey = noise[:, :, 0]
    if mode == "I;16":
        picture = Picture.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Picture.fromarray(noise).convert(mode)
    file = tmp_path / ("shot.jpg" if mode == "CMYK" else "shot.png")
    picture.save(file)

    (batch,) = list(composite.read(file))

    if batch.skipped:
        assert size == (1, 1)
        assert batch.skipped[0].reason.startswith("an empty picture")
        return
    (seen,) = batch.observations
    assert not seen.calibrated
    assert seen.notes[0].startswith("look: ")
    assert seen.image is not None
    assert np.isfinite(seen.image.flux).all()


def test_transparent_pixels_are_bad(tmp_path: Path) -> None:
    rgba = np.dstack([disc(), np.full((424, 424), 255, np.uint8)])
    rgba[:212, :, 3] = 0
    Picture.fromarray(rgba).save(tmp_path / "half.png")

    (seen,) = everything(tmp_path / "half.png")

    assert "transparent pixels are bad" in seen.notes
    assert seen.image is not None
    assert seen.image.mask[:, 50:].all()  # the top of a picture is its last row here
    assert not seen.image.mask[:, :46].any()
    rgba[:, :, 3] = 0
    Picture.fromarray(rgba).save(tmp_path / "none.png")
    assert "no usable pixel" in only_reason(tmp_path / "none.png")


def test_the_first_frame_of_an_animation_is_shown(tmp_path: Path) -> None:
    first, second = Picture.fromarray(disc()), Picture.fromarray(disc(x=80))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])

    (seen,), (still,) = (
        everything(tmp_path / "a.png"), everything(save(disc(), tmp_path / "b.png"))
    )  # fmt: skip

    assert "several frames: the first is shown" in seen.notes
    assert seen.image is not None
    assert still.image is not None
    np.testing.assert_array_equal(seen.image.flux, still.image.flux)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_turn_that_exif_asks_for_is_made(suffix: str, tmp_path: Path) -> None:
    upright = np.ascontiguousarray(disc(x=60, y=20, radius=25)[:, 60:])  # 424 high, 364 wide
    lying = Picture.fromarray(np.ascontiguousarray(np.rot90(upright)))
    exif = Picture.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    lying.save(tmp_path / f"lying{suffix}", exif=exif, quality=95)
    Picture.fromarray(upright).save(tmp_path / f"upright{suffix}", quality=95)

    (turned,) = everything(tmp_path / f"lying{suffix}")
    (plain,) = everything(tmp_path / f"upright{suffix}")

    assert "turned as its EXIF says" in turned.notes
    assert turned.image is not None
    assert plain.image is not None
    np.testing.assert_allclose(
        turned.image.flux, plain.image.flux, atol=0.1 * float(plain.image.flux.max())
    )


@pytest.mark.parametrize("shape", [(6000, 6000), (1000, 30_000)])
def test_a_huge_png_is_read_in_little_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    y, x = (np.arange(size) - (size - 1) / 2 for size in shape)
    grey = (200 * (np.hypot(y[:, None], x) < min(shape) / 8)).astype(np.uint8)
    Picture.fromarray(grey).save(tmp_path / "huge.png", compress_level=1)
    del grey
    tracemalloc.start()

    (seen,) = everything(tmp_path / "huge.png")

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # as floating point, three planes of 36 million pixels are 432 MB
    assert "reduced from a larger picture" in seen.notes
    assert seen.image is not None
    share = (seen.image.flux[0] > seen.image.flux[0].max() / 20).mean()
    assert share == pytest.approx(np.pi / 16, rel=0.06)


def test_a_png_too_large_to_decode_is_refused_undecoded(tmp_path: Path) -> None:
    Picture.new("1", (11_000, 10_000)).save(tmp_path / "large.png")

    assert "too large a picture: expected 100,000,000 pixels at most" in only_reason(
        tmp_path / "large.png"
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("num", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_pictures_are_read_or_refused_with_a_reason(
    suffix: str, num: int, tmp_path: Path
) -> None:
    whole = save(
        np.random.default_rng(5).integers(0, 255, (60, 60, 3), dtype=np.uint8),
        tmp_path / f"whole{suffix}",
    )
    content = whole.read_bytes()
    file = tmp_path / f"bad{suffix}"
    refused = 0
    for seed in range(num):
        rng = np.random.default_rng(seed)
        spoiled = bytearray(content)
        for flip in range(1 + seed % 5):
            end = 120 if flip % 2 == 0 else len(content)  # headers are a small part
            spoiled[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
        if seed % 4 == 3:
            spoiled = spoiled[: int(rng.integers(len(content)))]
        file.write_bytes(spoiled)
        (batch,) = list(composite.read(file))
        if batch.skipped:
            refused += 1
            assert batch.skipped[0].reason
            with pytest.raises(ValueError, match=f"bad{suffix}"):
                composite.read_one(file, "")
            continue
        image = batch.observations[0].image
        assert image is not None
        assert np.isfinite(image.flux).all()
        assert not batch.observations[0].calibrated
    # A PNG has checksums; a JPEG has none, so that a flip in it is a picture like any other.
    assert refused > (0.9 if suffix == ".png" else 0.2) * num


def test_pictures_read_before_keep_their_fingerprints(tmp_path: Path) -> None:
    """What existing files give may not change: an index would embed all of them again."""
    file = save(disc(), tmp_path / "gz2" / "a.png")

    (seen,) = everything(file)

    assert seen.fingerprint == fingerprint("composite 1", "sdss", file.read_bytes())
