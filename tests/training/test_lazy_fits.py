"""Rows and columns read on demand are what astropy reads; damage ends in a ValueError."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from training.surveys.lazy_fits import check_kinds, integer, open_lazily, real

NUM_ROWS, NUM_PIXELS = 7, 13


def images() -> dict[str, fits.ImageHDU]:
    """Images as surveys store them: every BITPIX, shifted, scaled, with BLANK, one axis."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 100, (NUM_ROWS, NUM_PIXELS))
    hdus = {
        name: fits.ImageHDU(values.astype(name), name=name)
        for name in ("u1", "i2", "i4", "i8", "f4", "f8")
    }
    hdus["uint32"] = fits.ImageHDU(values.astype(np.uint32) + 2**31, name="uint32")
    hdus["uint16"] = fits.ImageHDU(values.astype(np.uint16), name="uint16")
    scaled = fits.ImageHDU(values.astype(np.float64) / 8 - 3, name="scaled")
    scaled.scale("int16", bscale=0.125, bzero=-3)
    hdus["scaled"] = scaled
    blank = fits.ImageHDU(values.astype(np.int16), name="blank")
    blank.header["BLANK"] = int(values[2, 3])
    hdus["blank"] = blank
    hdus["line"] = fits.ImageHDU(values[0].astype(np.float64), name="line")
    return hdus


def write(file: Path) -> Path:
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("ID", "K", array=np.arange(5) - 2),
            fits.Column("Z", "E", unit="km/s", array=np.linspace(0, 1, 5)),
            fits.Column("NAME", "4A", array=np.array(["a", "bb", "", "dddd", "e"])),
        ],
        name="ROWS",
    )
    fits.HDUList([fits.PrimaryHDU(), *images().values(), table]).writeto(file)
    return file


@settings(deadline=None)  # it writes files
@given(rows=st.sets(st.integers(0, NUM_ROWS - 1), min_size=1), name=st.sampled_from(list(images())))
def test_rows_are_those_that_astropy_reads(
    rows: set[int], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("fits") / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), images()[name]]).writeto(file)
    with fits.open(file) as hdus:
        expected = np.atleast_2d(np.array(hdus[1].data, np.float64))
    wanted = [0] if name == "line" else sorted(rows)

    with open_lazily(file) as opened:
        (_, hdu) = opened.hdus()
        found = opened.image(hdu).take(wanted)

    assert found.dtype.isnative
    np.testing.assert_array_equal(found, expected[wanted])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_packed_files_are_read_alike(pack: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.fits")
    packed = tmp_path / "b.fits.gz"
    packed.write_bytes(pack(file.read_bytes()))

    with open_lazily(file) as one, open_lazily(packed) as other:
        for hdu, same in zip(one.hdus(), other.hdus(), strict=True):
            assert hdu == same
            if hdu.is_image and hdu.name != "PRIMARY":
                np.testing.assert_array_equal(one.image(hdu).take([0]), other.image(same).take([0]))


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_compressed_images_are_read_by_rows(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(-500, 500, (40, 60)).astype(np.int32)
    noise = np.random.default_rng(3).normal(size=(40, 60)).astype(np.float32)
    file = tmp_path / "a.fits.fz"
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.CompImageHDU(values, name="WHOLE", compression_type=kind),
            fits.CompImageHDU(noise, name="NOISE", compression_type=kind),
        ]
    ).writeto(file)
    with fits.open(file) as hdus:
        expected = np.array(hdus["NOISE"].data)

    with open_lazily(file) as opened:
        whole, lossy = (opened.image(hdu) for hdu in opened.hdus() if hdu.is_compressed)
        np.testing.assert_array_equal(whole.take([3, 4, 30]), values[[3, 4, 30]])
        np.testing.assert_array_equal(lossy.take([0, 39]), expected[[0, 39]])


def test_columns_come_with_their_units(tmp_path: Path) -> None:
    with open_lazily(write(tmp_path / "a.fits")) as opened:
        *_, hdu = opened.hdus()
        table = opened.table(hdu, frozenset(("id", "name", "absent")))

    assert (hdu.name, hdu.is_table, hdu.columns) == ("ROWS", True, ("id", "z", "name"))
    assert hdu.column_units == {"z": "km/s"}
    assert table["id"].tolist() == [-2, -1, 0, 1, 2]
    assert table["name"].tolist() == ["a", "bb", "", "dddd", "e"]
    assert "z" not in table


def test_a_file_cut_anywhere_is_read_as_far_as_it_is_whole_or_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "a.fits").read_bytes()
    with open_lazily(tmp_path / "a.fits") as opened:
        whole = [hdu.name for hdu in opened.hdus()]
    cut = tmp_path / "cut.fits"
    for length in range(2880, len(content), 1440):
        cut.write_bytes(content[:length])
        names = []
        try:
            with open_lazily(cut) as opened:
                for hdu in opened.hdus():
                    if hdu.is_table:
                        opened.table(hdu, frozenset(("id",)))
                    elif hdu.number:
                        opened.image(hdu)
                    names.append(hdu.name)
        except ValueError as error:
            assert "truncated" in str(error)  # noqa: PT017 -- which of the reads fails varies
        assert names == whole[: len(names)]
        assert len(names) < len(whole) or length >= len(content) - 2880


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not a FITS file"),
        (gzip.compress(b"nothing of the kind", mtime=0), "not a FITS file"),
        (
            gzip.compress(b"SIMPLE  =" + bytes(9999), mtime=0)[:-20],
            "truncated or damaged gzip file",
        ),
    ],
)
def test_what_is_no_fits_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "a.fits"
    file.write_bytes(content)

    with pytest.raises((ValueError, OSError), match=reason), open_lazily(file):
        pass


def test_what_follows_the_last_hdu_is_not_taken_for_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.fits")
    content = file.read_bytes()
    file.write_bytes(content + bytes(2880))
    with open_lazily(file) as opened:
        assert len(list(opened.hdus())) == 13
    file.write_bytes(content + b"x" * 2880)
    with (
        open_lazily(file) as opened,
        pytest.raises(ValueError, match="HDU 13: no header where HDU 12 ends"),
    ):
        list(opened.hdus())


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("-2.5", -2.5), ("1.0D-4", 1e-4), ("3E2", 300)]
)
def test_numbers_of_headers_are_read_as_fortran_writes_them(text: str, value: float) -> None:
    assert real({"KEY": text}, "KEY") == value


def test_what_is_no_number_is_refused() -> None:
    for text in ("", "abc", "NaN", "inf"):
        with pytest.raises(ValueError, match="expected a number as KEY"):
            real({"KEY": text}, "KEY")
    with pytest.raises(ValueError, match=r"expected a whole number as KEY, got '1\.5'"):
        integer({"KEY": "1.5"}, "KEY")
    assert integer({}, "KEY", 3) == 3


def test_columns_of_another_kind_are_refused() -> None:
    table: dict[str, np.ndarray] = {
        "z": np.zeros((3, 2)),
        "n": np.zeros(3),
        "m": np.zeros(3, np.int16),
    }

    check_kinds(table, whole=("m", "absent"), numbers=("n", "m"))
    with pytest.raises(ValueError, match="column Z: expected numbers, one a row"):
        check_kinds(table, numbers=("z",))
    with pytest.raises(ValueError, match="column N: expected whole numbers"):
        check_kinds(table, whole=("n",))
