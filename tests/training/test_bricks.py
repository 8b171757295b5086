"""Brick coadds: what is cut is what the coadd holds, by astropy's own reading of it."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS
from numpy import ndarray

from tests.training.legacy_files import (
    BRICK,
    SIZE,
    brick_wcs,
    positions,
    sky_pixels,
    write_coadd,
    write_coadds,
    write_table,
)
from training.observations import IMAGE_SIZE, Observation, Skipped
from training.surveys import bricks, legacysurvey

REAL_BRICK = "0959p805"  # DR6; data in the lower left eighth, none in z


def read(file: Path) -> tuple[list[Observation], list[Skipped]]:
    batches = list(legacysurvey.read(file))
    return [o for b in batches for o in b.observations], [s for b in batches for s in b.skipped]


def image_of(file: Path) -> Observation:
    """The only source of a table."""
    (seen,), skipped = read(file)
    assert skipped == []
    assert seen.image is not None
    return seen


def lost_image(file: Path) -> str:
    """Why the sources of a table have no image."""
    seen, skipped = read(file)
    assert seen
    for source in seen:
        assert source.image is None
        assert source.object_mask is None
        assert source.scalars["tok_flux_g"] == 10
        assert any(note.startswith("no image: ") for note in source.notes)
    assert [each.file for each in skipped] == [str(file)]
    return skipped[0].reason


def cut_by_astropy(pixels: ndarray, header: fits.Header, ra_deg: float, dec_deg: float) -> ndarray:
    position = WCS(header).all_world2pix(ra_deg, dec_deg, 0)
    return np.asarray(Cutout2D(pixels, position, IMAGE_SIZE, mode="partial", fill_value=0).data)


@pytest.fixture
def real_table(shared_data: Path, tmp_path: Path) -> Path:
    """A table of positions in the real brick, beside its coadds: within, at and past its data."""
    folder = shared_data / "legacysurvey_catalogues_bricks"
    for file in folder.glob(f"legacysurvey-{REAL_BRICK}-*"):
        shutil.copy(file, tmp_path)
    header = fits.getheader(folder / f"legacysurvey-{REAL_BRICK}-image-g.fits.fz", 1)
    rng = np.random.default_rng(3)
    pixels = np.concatenate(
        [
            rng.uniform((50, 50), (800, 1000), (6, 2)),
            [
                [500.1, 700.1],
                [500.5, 700.5],
                [499.9, 700.9],
                [2.4, 3.3],
                [700.2, 1.5],
                [860.3, 1000.7],
            ],
        ]
    )
    rows = [
        row | {"RELEASE": 6000, "BRICKID": 657438, "BRICKNAME": REAL_BRICK}
        for row in positions(pixels, wcs=WCS(header))
    ]
    return write_table(tmp_path / f"tractor-{REAL_BRICK}.fits", rows)


def test_cutouts_of_the_real_brick_are_those_of_astropy(real_table: Path) -> None:
    seen, skipped = read(real_table)
    planes = {}
    for kind in ("image-g", "image-z", "invvar-g", "invvar-z"):
        with fits.open(real_table.with_name(f"legacysurvey-{REAL_BRICK}-{kind}.fits.fz")) as hdus:
            planes[kind], header = hdus[1].data, hdus[1].header

    assert len(seen) == 12
    assert skipped == []
    with_z = 0
    for source in seen:
        assert source.ra_deg is not None
        assert source.dec_deg is not None
        assert source.image is not None
        for band in "gz":
            place = header, source.ra_deg, source.dec_deg
            flux = cut_by_astropy(planes[f"image-{band}"], *place)
            ivar = cut_by_astropy(planes[f"invvar-{band}"], *place)
            good = ivar > 0
            name = f"DES-{band.upper()}"
            if not good.any():
                assert name not in source.image.bands
                assert f"no usable pixel in {name}: left out" in source.notes
                continue
            plane = source.image.bands.index(name)
            with_z += band == "z"
            np.testing.assert_array_equal(source.image.mask[plane], ~good)
            np.testing.assert_array_equal(source.image.flux[plane], np.where(good, flux, 0))
            np.testing.assert_array_equal(source.image.ivar[plane], np.where(good, ivar, 0))
    assert 0 < with_z < 12
    assert "padded from 52 x 51 px: at the edge of the brick" in seen[9].notes
    assert (seen[9].release, seen[9].source_id) == ("dr6", "6000-657438-9")


def test_an_object_lies_within_half_a_pixel_of_the_centre() -> None:
    pixel = np.random.default_rng(0).uniform(-100, 5000, (1000, 2))

    place = pixel - bricks.corner(pixel)

    assert ((place > 47) & (place <= 48.000001)).all()
    assert np.abs(place - (IMAGE_SIZE - 1) / 2).max() <= 0.5


@pytest.mark.parametrize("suffix", [".fits.fz", ".fits", ".fits.gz"])
def test_every_packing_of_a_coadd_gives_what_astropy_reads(suffix: str, tmp_path: Path) -> None:
    files = write_coadds(tmp_path, suffix=suffix)
    rows = positions(np.array([[199.3, 203.8], [100.2, 310.5]]))

    seen, skipped = read(write_table(tmp_path / f"tractor-{BRICK}.fits", rows))

    assert skipped == []
    for source in seen:
        assert source.image is not None
        assert source.ra_deg is not None
        assert source.dec_deg is not None
        assert source.image.bands == ("DES-G", "DES-R", "DES-Z")
        for plane, band in enumerate("grz"):
            for kind, got in (("image", source.image.flux), ("invvar", source.image.ivar)):
                file = files[f"{kind}-{band}"]
                number = 1 if suffix == ".fits.fz" else 0
                pixels, header = fits.getdata(file, number), fits.getheader(file, number)
                expected = cut_by_astropy(pixels, header, source.ra_deg, source.dec_deg)
                np.testing.assert_array_equal(got[plane], expected)


def test_scaled_integers_are_fluxes(tmp_path: Path) -> None:
    write_coadds(tmp_path, bands="g", suffix=".fits")
    stored = np.random.default_rng(1).integers(-900, 900, (SIZE, SIZE)).astype(np.int16)
    file = tmp_path / f"legacysurvey-{BRICK}-image-g.fits"
    with fits.open(file, mode="update") as hdus:
        cards = hdus[0].header
    hdu = fits.PrimaryHDU(stored, cards)
    hdu.header["BSCALE"], hdu.header["BZERO"] = 1e-4, 0.5
    hdu.writeto(file, overwrite=True)
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    seen = image_of(table)

    assert seen.image is not None
    np.testing.assert_allclose(seen.image.flux[0], stored[152:248, 152:248] * 1e-4 + 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "place",
    [
        "tractor/123/tractor-1234p056.fits coadd/123/1234p056",
        "south/tractor/123/tractor-1234p056.fits south/coadd/123/1234p056",
        "sweep/10.1/sweep-120p005-130p010.fits coadd/123/1234p056",
        "south/sweep/10.1/sweep-120p005-130p010.fits south/coadd/123/1234p056",
        "sweep-120p005-130p010.fits south/coadd/123/1234p056",
        "sweep-120p005-130p010.fits coadd/123/1234p056",
        "tractor-1234p056.fits .",
    ],
)
def test_coadds_are_found_beside_the_table_and_in_the_archive_s_tree(
    place: str, tmp_path: Path
) -> None:
    table, folder = (tmp_path / part for part in place.split())
    files = write_coadds(folder, bands="gr")
    write_table(table, positions(np.array([[200, 200]])))

    assert image_of(table).notes[0].startswith("magnitudes")
    assert legacysurvey.companions(table) == tuple(sorted(files.values()))
    assert legacysurvey.list_files(tmp_path) == [table]


def test_north_and_south_are_told_apart_by_release(tmp_path: Path) -> None:
    south = write_coadds(tmp_path / "south/coadd/123/1234p056", bands="g")
    north = write_coadds(tmp_path / "north/coadd/123/1234p056", bands="g")
    for name, release, files in (("a", 9010, south), ("b", 9011, north), ("c", 9012, south)):
        rows = [row | {"RELEASE": release} for row in positions(np.array([[200, 200]]))]
        table = write_table(tmp_path / f"{name}.fits", rows)
        assert legacysurvey.companions(table) == tuple(sorted(files.values()))


def test_maskbits_that_spoil_a_pixel_spoil_it_in_their_bands(tmp_path: Path) -> None:
    bits = np.zeros((SIZE, SIZE), np.int32)
    bits[200, 200:218] = 1 << np.arange(18)
    bits[100, 100] = 0x7FFFFFFF  # beyond the cutout
    write_coadds(tmp_path, bands="griz", maskbits=bits)
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    seen = image_of(table)

    # legacysurvey.org/dr10/bitmasks: 1 BRIGHT; 2, 3, 4, 14 SATUR_grzi; 5, 6, 7, 15 ALLMASK_grzi
    spoilt = {1: "griz", 2: "g", 3: "r", 4: "z", 5: "g", 6: "r", 7: "z", 14: "i", 15: "i"}
    assert seen.image is not None
    for bit in range(18):
        expected = [band in spoilt.get(bit, "") for band in "griz"]
        assert seen.image.mask[:, 48, 48 + bit].tolist() == expected, bit
        assert (seen.image.ivar[:, 48, 48 + bit] == 0).tolist() == expected
    assert seen.image.mask.sum() == sum(map(len, spoilt.values()))


def test_sixteen_bits_of_an_older_release_are_read_too(tmp_path: Path) -> None:
    bits = np.zeros((SIZE, SIZE), np.int16)
    bits[200, 200] = -32768 + 1  # NPRIMARY, and the sign
    write_coadds(tmp_path, bands="gr", maskbits=bits)
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    seen = image_of(table)

    assert seen.image is not None
    assert not seen.image.mask.any()


def test_an_object_in_a_bright_star_keeps_its_scalars(tmp_path: Path) -> None:
    write_coadds(tmp_path, maskbits=np.full((SIZE, SIZE), 2, np.int32))
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    (seen,), skipped = read(table)

    assert skipped == []
    assert seen.image is None
    assert "no image: no usable pixel in the central 25 arcsec" in seen.notes[0]
    assert seen.scalars["tok_flux_r"] == 10


def test_positions_at_the_edge_are_padded_and_past_it_have_no_image(tmp_path: Path) -> None:
    files = write_coadds(tmp_path, bands="g")
    pixels = np.array([[0, 0], [SIZE - 1, 200], [200, -47.6], [200, -60], [-400, 200]])

    seen, skipped = read(write_table(tmp_path / f"tractor-{BRICK}.fits", positions(pixels)))

    assert skipped == []
    whole = fits.getdata(files["image-g"], 1)
    corner, right, below, off, far = seen
    assert corner.image is not None
    np.testing.assert_array_equal(corner.image.flux[0, 48:, 48:], whole[:48, :48])
    assert corner.image.mask[0].sum() == 96 * 96 - 48 * 48
    assert "padded from 48 x 48 px: at the edge of the brick" in corner.notes
    assert right.image is not None
    np.testing.assert_array_equal(right.image.flux[0, :, :49], whole[152:248, SIZE - 49 :])
    assert below.image is not None
    np.testing.assert_array_equal(below.image.flux[0, 95:], whole[:1, 152:248])
    for lost in (off, far):
        assert lost.image is None
        assert lost.notes[0] == "no image: the position lies off the brick, 420 x 420 px"


def test_one_object_again_is_what_reading_all_gave(tmp_path: Path) -> None:
    write_coadds(tmp_path)
    pixels = np.random.default_rng(5).uniform(-30, SIZE + 30, (12, 2))
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(pixels))

    for source in read(table)[0]:
        again = legacysurvey.read_one(table, source.source_part)
        assert again.fingerprint == source.fingerprint
        assert (again.notes, again.catalogue) == (source.notes, source.catalogue)
        assert again.image is not None
        assert source.image is not None
        np.testing.assert_array_equal(again.image.flux, source.image.flux)
        np.testing.assert_array_equal(again.image.mask, source.image.mask)


def test_without_inverse_variance_it_is_estimated_and_no_data_is_bad(tmp_path: Path) -> None:
    flux = sky_pixels(0)
    flux[190:192] = 0
    write_coadd(tmp_path, "image-r", flux, suffix=".fits")
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    seen = image_of(table)

    assert seen.image is not None
    assert "ivar estimated" in seen.notes
    assert "no maskbits coadd: saturated pixels and bright stars are not masked" in seen.notes
    assert seen.image.mask.sum() == 2 * 96
    assert np.sqrt(1 / seen.image.ivar.max()) == pytest.approx(0.01, rel=0.1)


def test_a_band_that_lacks_its_inverse_variance_is_left_out(tmp_path: Path) -> None:
    write_coadds(tmp_path)["invvar-r"].unlink()
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    seen = image_of(table)

    assert seen.image is not None
    assert seen.image.bands == ("DES-G", "DES-Z")
    assert "no invvar coadd in r: left out" in seen.notes


@pytest.mark.parametrize(
    ("kind", "cards", "reason"),
    [
        ("image-g", {"BUNIT": "count/s"}, "BUNIT: expected nanomaggy, got 'count/s'"),
        ("image-g", {"BUNIT": "Jy"}, "BUNIT: expected nanomaggy, got 'Jy'"),
        ("image-r", {"MAGZERO": 25.0}, "MAGZERO: expected the zero point of nanomaggies, 22.5"),
        ("image-z", {"MAGZPT": 30}, "MAGZPT: expected the zero point of nanomaggies, 22.5, got 30"),
        ("invvar-g", {"BUNIT": "nanomaggy"}, "BUNIT: expected 1/nanomaggy^2, got 'nanomaggy'"),
        ("image-g", {"FILTER": "r"}, "expected the g band, FILTER says 'r'"),
        ("image-g", {"IMTYPE": "model"}, "expected a coadd of kind image, its header says 'model'"),
        (
            "image-g",
            {"BRICKNAM": "1234p059"},
            "expected brick 1234p056, its header says '1234p059'",
        ),
        ("image-r", {"CRVAL1": 123.41}, "its WCS is not that of the first band"),
        ("image-g", {"CTYPE1": "FREQ", "CTYPE2": "TIME"}, "unusable WCS"),
        ("maskbits", {"CTYPE1": 7}, "unusable WCS: expected CTYPE1 as text, got 7"),
        ("maskbits", {"BRICKNAM": "9999p059"}, "expected brick 1234p056"),
    ],
)
def test_a_header_that_says_something_else_costs_the_image(
    kind: str, cards: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_coadds(tmp_path, suffix=".fits")
    file = tmp_path / f"legacysurvey-{BRICK}-{kind}.fits"
    pixels, header = fits.getdata(file), fits.getheader(file)
    header.update(cards)
    fits.PrimaryHDU(pixels, header).writeto(file, overwrite=True)

    told = lost_image(
        write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))
    )

    assert told.startswith(f"brick {BRICK}: its objects have no image: {file.name}: {reason}")


@pytest.mark.parametrize("kind", ["image-g", "invvar-g"])
def test_a_missing_unit_is_taken_as_nanomaggies_and_said(kind: str, tmp_path: Path) -> None:
    files = write_coadds(tmp_path, suffix=".fits")
    fits.delval(files[kind], "BUNIT")
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    assert f"BUNIT of {kind} missing: taken as " in " ".join(image_of(table).notes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda wcs: wcs.wcs.cd[0, 0], None),
        (lambda wcs: wcs.wcs.cd * 1.02, "expected pixels of 0.262 arcsec, north up and east left"),
        (lambda wcs: wcs.wcs.cd * [[-1], [1]], "north up and east left"),
        (lambda wcs: wcs.wcs.cd[::-1], "north up and east left"),
    ],
)
def test_another_scale_or_orientation_costs_the_image(
    change: Any, reason: str | None, tmp_path: Path
) -> None:
    wcs = brick_wcs()
    if reason is not None:
        wcs.wcs.cd = change(wcs)
    write_coadd(tmp_path, "image-g", sky_pixels(0), wcs=wcs, suffix=".fits")
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    if reason is None:
        assert image_of(table).image is not None
    else:
        assert reason in lost_image(table)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((3, SIZE, SIZE), np.float32), "no image of two axes in it"),
        (np.zeros((SIZE, SIZE - 1), np.float32), "px as the first band, got (420, 419)"),
    ],
)
def test_a_coadd_of_another_shape_costs_the_image(
    pixels: ndarray, reason: str, tmp_path: Path
) -> None:
    write_coadds(tmp_path, bands="gr", suffix=".fits")
    write_coadd(tmp_path, "image-r", pixels, wcs=brick_wcs(), suffix=".fits")
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    assert reason in lost_image(table)


def test_nan_and_infinite_pixels_are_bad(tmp_path: Path) -> None:
    flux, ivar = sky_pixels(0), np.full((SIZE, SIZE), 1e4, np.float32)
    flux[200, 200], flux[201, 201], ivar[202, 202], ivar[203, 203] = np.nan, np.inf, np.nan, -1
    write_coadd(tmp_path, "image-g", flux, suffix=".fits")
    write_coadd(tmp_path, "invvar-g", ivar, suffix=".fits")
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    seen = image_of(table)

    assert seen.image is not None
    assert np.argwhere(seen.image.mask[0]).tolist() == [[48 + i, 48 + i] for i in range(4)]


@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_a_brick_without_any_inverse_variance_costs_the_image(value: float, tmp_path: Path) -> None:
    write_coadd(tmp_path, "image-g", sky_pixels(0), suffix=".fits")
    ivar = np.full((SIZE, SIZE), value, np.float32)
    write_coadd(tmp_path, "invvar-g", ivar, suffix=".fits")
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))

    seen, skipped = read(table)

    assert [(source.image, source.scalars["tok_flux_g"]) for source in seen] == [(None, 10)]
    assert seen[0].notes[0].startswith("no image: no usable pixel")
    assert seen[0].notes[0].endswith("or its inverse variance is not positive")
    assert skipped == []


@pytest.mark.parametrize("kind", ["image-r", "invvar-r", "maskbits"])
@pytest.mark.parametrize("suffix", [".fits.fz", ".fits", ".fits.gz"])
def test_a_truncated_coadd_costs_the_image_and_says_so(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    file = write_coadds(tmp_path, bands="r", suffix=suffix)[kind]
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 250]])))
    content = file.read_bytes()
    for share in (0.0, 0.1, 0.5):
        file.write_bytes(content[: int(share * len(content))])
        assert file.name in lost_image(table)


@pytest.mark.parametrize("kind", ["image-r", "invvar-r", "maskbits"])
@pytest.mark.parametrize("suffix", [".fits.fz", ".fits", ".fits.gz"])
def test_flipped_bits_of_a_coadd_end_in_an_image_or_a_reason(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    file = write_coadds(tmp_path, bands="r", suffix=suffix)[kind]
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 250]])))
    content = file.read_bytes()
    rng = np.random.default_rng(11)
    for turn in range(12):
        damaged = bytearray(content)
        # Headers are where most can go wrong.
        for place in rng.integers(len(content) if turn % 2 else 8640, size=3):
            damaged[place % len(content)] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        seen, skipped = read(table)
        assert len(seen) == 1
        assert seen[0].image is not None or file.name in skipped[0].reason or seen[0].notes[0]
        assert seen[0].scalars["tok_flux_r"] == 10


@pytest.mark.parametrize(
    ("card", "value", "expected"),
    [
        (b"TFIELDS =", 2**63 - 1, "expected TFIELDS from 0 to 999, got '9223372036854775807'"),
        (b"ZNAME2  =", -5, "broken FITS file: what a header says"),
    ],
)
def test_a_spoilt_header_of_a_packed_coadd_costs_the_image(
    card: bytes, value: int, expected: str, tmp_path: Path
) -> None:
    file = write_coadd(tmp_path, "image-g", sky_pixels(0))
    table = write_table(tmp_path / f"tractor-{BRICK}.fits", positions(np.array([[200, 200]])))
    content = file.read_bytes()
    at = content.index(card)
    file.write_bytes(content[:at] + card.ljust(10) + b"%20d" % value + content[at + 30 :])

    assert expected in lost_image(table)  # astropy would look for columns for ever


def test_a_brick_name_that_is_a_path_finds_nothing(tmp_path: Path) -> None:
    write_coadds(tmp_path / "coadd/123/1234p056", bands="g")
    rows = [row | {"BRICKNAME": "../../.."} for row in positions(np.array([[200, 200]]))]

    (seen,), _ = read(write_table(tmp_path / "t.fits", rows))

    assert seen.notes[0] == "no coadd of brick ../../..: no image"


@pytest.mark.parametrize("zipped", [False, True])
def test_a_coadd_handed_over_alone_is_refused(zipped: bool, tmp_path: Path) -> None:
    file = write_coadds(tmp_path, bands="g", suffix=".fits")["image-g"]
    other = tmp_path / ("renamed.fits.gz" if zipped else "renamed.fits")
    other.write_bytes(gzip.compress(file.read_bytes()) if zipped else file.read_bytes())

    for each in (file, other):
        seen, (skipped,) = read(each)
        assert seen == []
        assert skipped.reason == (
            "a brick coadd: it is read with the Tractor or sweep table of its brick"
        )
    with pytest.raises(ValueError, match="no cutout and no Tractor or sweep table among"):
        legacysurvey.list_files(tmp_path)
