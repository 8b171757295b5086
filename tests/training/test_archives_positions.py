"""Tables of positions, and what the files of their rows are called."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table
from hypothesis import given
from hypothesis import strategies as st

from training.archives.positions import (
    Target,
    read_positions,
    safe_name,
    separation_arcsec,
)

ROWS = Table({"id": ["a", "b"], "ra": [150.25, 0.0], "dec": [-2.5, 90.0]})


def csv(folder: Path, *lines: str) -> Path:
    file = folder / "table.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("t.csv", "ascii.csv"),
        ("t.ecsv", "ascii.ecsv"),
        ("t.fits", "fits"),
        ("t.FITS", "fits"),
        ("t.vot", "votable"),
        ("t.xml", "votable"),
    ],
)
def test_every_format_gives_the_same_targets(tmp_path: Path, name: str, form: str) -> None:
    ROWS.write(tmp_path / name, format=form)
    positions = read_positions(tmp_path / name)
    assert [(each.name, each.ra_deg, each.dec_deg) for each in positions.targets] == [
        ("a", 150.25, -2.5),
        ("b", 0.0, 90.0),
    ]
    assert [each.row for each in positions.targets] == [1, 2]
    assert not positions.refused


@pytest.mark.parametrize(
    "names",
    [
        ("ra_deg", "dec_deg"),
        ("RA", "DEC"),
        ("RAJ2000", "DEJ2000"),
        ("RA_ICRS", "DE_ICRS"),
        ("TARGET_RA", "TARGET_DEC"),
        ("Ra", "Dec"),
    ],
)
def test_usual_names_of_the_columns(tmp_path: Path, names: tuple[str, str]) -> None:
    file = csv(tmp_path, ",".join(names), "10.5,20.25")
    (target,) = read_positions(file).targets
    assert (target.ra_deg, target.dec_deg) == (10.5, 20.25)


def test_units_of_angle_are_converted_and_others_refused(tmp_path: Path) -> None:
    table = Table({"ra": [1.0] * u.rad, "dec": [30.0] * u.arcmin})
    table.write(tmp_path / "t.fits")
    (target,) = read_positions(tmp_path / "t.fits").targets
    assert target.ra_deg == pytest.approx(math.degrees(1))
    assert target.dec_deg == pytest.approx(0.5)
    Table({"ra": [1.0] * u.m, "dec": [3.0] * u.deg}).write(tmp_path / "bad.fits")
    with pytest.raises(ValueError, match="column ra: expected degrees, got m"):
        read_positions(tmp_path / "bad.fits")


@pytest.mark.parametrize(
    ("ra", "dec"),
    [("10:20:30.5", "-05:06:07"), ("10h20m30.5s", "-5d06m07s"), ("10 20 30.5", "-05 06 07")],
)
def test_sexagesimal_text_is_hours_and_degrees(tmp_path: Path, ra: str, dec: str) -> None:
    (target,) = read_positions(csv(tmp_path, "ra,dec", f"{ra},{dec}")).targets
    expected = SkyCoord("10h20m30.5s -5d06m07s")
    assert target.ra_deg == pytest.approx(expected.ra.deg, abs=1e-9)
    assert target.dec_deg == pytest.approx(expected.dec.deg, abs=1e-9)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("360.001,0", r"expected ra_deg in \[0, 360\).*got 360.001, 0"),
        ("-0.001,0", r"expected ra_deg in \[0, 360\)"),
        ("10,90.01", r"dec_deg in \[-90, 90\]"),
        ("10,-91", r"dec_deg in \[-90, 90\]"),
        ("nan,0", "both coordinates of the position or none, got ra_deg nan, dec_deg 0"),
        ("inf,0", r"expected ra_deg in \[0, 360\)"),
        (",5", "both coordinates"),
        ("5,", "both coordinates"),
        (",", "no position"),
        ("here,there", "'here': expected degrees or sexagesimal"),
        ("25:61:61,0", "25:61:61"),
    ],
)
def test_a_bad_position_is_refused_with_its_row(tmp_path: Path, line: str, reason: str) -> None:
    positions = read_positions(csv(tmp_path, "ra,dec", "1,1", line, "359.999999,-90"))
    assert [each.row for each in positions.targets] == [1, 3]
    (refused,) = positions.refused
    assert refused.row == 2
    import re

    assert re.search(reason, refused.reason)


def test_masked_cells_are_refused(tmp_path: Path) -> None:
    table = Table(
        {
            "ra": MaskedColumn([1.0, 2.0], mask=[False, True]),
            "dec": MaskedColumn([1.0, 2.0], mask=[False, False]),
        }
    )
    table.write(tmp_path / "t.vot", format="votable")
    positions = read_positions(tmp_path / "t.vot")
    assert [each.row for each in positions.targets] == [1]
    assert "both coordinates" in positions.refused[0].reason


def test_a_repeated_position_is_fetched_once(tmp_path: Path) -> None:
    file = csv(tmp_path, "id,ra,dec", "a,10,20", "b,11,20", "c,10.0000000001,20", "a,10,20")
    positions = read_positions(file)
    assert [each.row for each in positions.targets] == [1, 2]
    assert positions.repeats == {3: 1, 4: 1}


def test_an_id_keeps_its_digits(tmp_path: Path) -> None:
    file = csv(tmp_path, "objid,ra,dec", "0001237648721217716541,10,20", "1e5,11,20")
    names = [each.name for each in read_positions(file).targets]
    assert names == ["0001237648721217716541", "1e5"]


def test_without_an_id_the_position_is_the_name(tmp_path: Path) -> None:
    (target,) = read_positions(csv(tmp_path, "ra,dec", "1.5,-2.25")).targets
    assert target.name == "J001.500000-02.250000"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/b",
        "..",
        ".hidden",
        "a\\b",
        "x" * 500,
        "Ω",
        "a b",
        "-rf",
    ],
)
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    safe = safe_name(name)
    assert (tmp_path / f"{safe}.fits").resolve().parent == tmp_path.resolve()
    assert not safe.startswith((".", "-"))
    (tmp_path / f"{safe}.fits").write_bytes(b"")  # the file system takes it


@given(st.text(max_size=300), st.text(max_size=300))
def test_different_ids_have_different_safe_names(one: str, other: str) -> None:
    assert (safe_name(one) == safe_name(other)) == (one == other)
    assert set(safe_name(one)).isdisjoint('/\\\0:*?"<>| \n')


def test_names_that_a_file_system_mixes_up_are_told_apart(tmp_path: Path) -> None:
    file = csv(tmp_path, "name,ra,dec", "NGC1,1,1", "ngc1,2,2", "NGC1,3,3", "M31,4,4")
    names = [each.name for each in read_positions(file).targets]
    assert len({name.lower() for name in names}) == 4
    assert names[3] == "M31"
    # and in the same way whatever else is in the table
    shuffled = csv(tmp_path, "name,ra,dec", "NGC1,3,3", "ngc1,2,2", "NGC1,1,1")
    assert [each.name for each in read_positions(shuffled).targets] == names[2::-1]


def test_ids_of_the_archive_need_no_position(tmp_path: Path) -> None:
    keys = ("plate", "mjd", "fiberid")
    file = csv(tmp_path, "PLATE,MJD,FIBERID", "0266,51602,0013", "266,51602,x", ",,")
    positions = read_positions(file, keys=keys)
    (target,) = positions.targets
    assert target.key == "266-51602-13"
    assert target.name == "266-51602-13"
    assert math.isnan(target.ra_deg)
    assert [each.row for each in positions.refused] == [2, 3]


def test_half_a_position_is_refused_beside_an_id_too(tmp_path: Path) -> None:
    positions = read_positions(
        csv(tmp_path, "source_id,ra,dec", "1,5,", "2,,", "3,5,6"), keys=("source_id",)
    )
    assert [(each.row, each.key) for each in positions.targets] == [(2, "2"), (3, "3")]
    assert "both coordinates" in positions.refused[0].reason


def test_a_right_ascension_of_360_is_0(tmp_path: Path) -> None:
    positions = read_positions(csv(tmp_path, "ra,dec", "360,1", "-0.0000001,2"))
    assert [each.ra_deg for each in positions.targets] == pytest.approx([0, 359.9999999])


def test_a_large_id_survives_fits(tmp_path: Path) -> None:
    Table({"SOURCE_ID": np.array([5853498713190525696]), "ra": [1.0], "dec": [2.0]}).write(
        tmp_path / "t.fits"
    )
    (target,) = read_positions(tmp_path / "t.fits", keys=("source_id",)).targets
    assert target.key == "5853498713190525696"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"a,b\n1,2\n", "expected columns ra and dec, got a, b"),
        ("t.txt", b"ra,dec\n", "name ending in .csv"),
        ("t.fits", b"not a fits", "cannot be read as fits"),
        ("t.vot", b"<html>", "cannot be read as votable"),
        ("t.csv", b"", "cannot be read"),
    ],
)
def test_a_table_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_positions(tmp_path / name)


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv: no such file"):
        read_positions(tmp_path / "none.csv")


@given(st.floats(0, 359.99), st.floats(-90, 90), st.floats(0, 359.99), st.floats(-90, 90))
def test_separation_agrees_with_astropy(ra: float, dec: float, ra2: float, dec2: float) -> None:
    target = Target(row=1, name="", ra_deg=ra, dec_deg=dec)
    expected = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(ra2, dec2, unit="deg")).arcsec
    assert float(separation_arcsec(target, ra2, dec2)) == pytest.approx(expected, abs=1e-6)
