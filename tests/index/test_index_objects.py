"""Rows, objects and the files of the object table."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy import units
from astropy.coordinates import Latitude, Longitude
from hypothesis import given, settings
from hypothesis import strategies as st
from mocpy import MOC

from index.errors import VersionCorrupt
from index.footprint import covers, footprint, read_footprint, read_moc, write_footprint
from index.object_writing import write_objects
from index.objects import CATALOGUE, as_rows, healpix_cells, merge_rows
from index.partitions import divide, read_partitions
from training.observations import CatalogueValue, Image, Observation, fingerprint

Row = dict[str, object]


def observation(catalogue: dict[str, CatalogueValue], **fields: object) -> Observation:
    pixels = np.ones((1, 96, 96), np.float32)
    image = Image(pixels, pixels, np.zeros(pixels.shape, bool), ("DES-R",))
    known: dict[str, object] = {
        "survey": "legacysurvey", "release": "DR9", "source_id": "a", "object_id": "a",
        "fingerprint": fingerprint("a"), "source": "/a.fits", "image": image,
    }  # fmt: skip
    return Observation(**(known | fields), catalogue=catalogue)  # type: ignore[arg-type]


def seen(rows: list[Row]) -> pa.Table:
    """Rows as merge_rows takes them; what is not given is NULL."""
    rows = [{"survey": "s", "release": "", "source_id": "x"} | row for row in rows]
    names = dict.fromkeys(["ra_deg", "dec_deg", *(name for row in rows for name in row)])
    kinds = {"ra_deg": pa.float64(), "dec_deg": pa.float64()} | CATALOGUE
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], kinds.get(name)) for name in names}
    )


def ids(*keys: int) -> pa.Table:
    return pa.table({"object_key": list(keys), "object_id": [f"id{key}" for key in keys]})


def test_a_value_that_is_not_finite_is_null() -> None:
    catalogue: dict[str, CatalogueValue] = {"mag_r": math.nan, "mag_g": math.inf, "redshift": 0.5}
    rows = as_rows([(0, observation(catalogue), ("image",))], reader="legacysurvey")

    line = rows.to_pylist()[0]
    assert (line["mag_r"], line["mag_g"], line["redshift"]) == (None, None, 0.5)
    assert rows["mag_r"].null_count == 1


def test_catalogue_columns_keep_their_type_whatever_a_reader_gives() -> None:
    lines: list[dict[str, CatalogueValue]] = [{"mag_r": 17, "num": 2**60 + 1}, {"good": True}]
    rows = as_rows(
        [(i, observation(line), ("image",)) for i, line in enumerate(lines)], reader="legacysurvey"
    )

    assert rows.schema.field("mag_r").type == pa.float64()
    assert rows["num"].to_pylist() == [2**60 + 1, None]
    assert rows["good"].to_pylist() == [None, True]


@pytest.mark.parametrize("name", ["object_id", "survey", "views", "_healpix_29", "fingerprint"])
def test_a_catalogue_column_may_not_take_our_names(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        as_rows([(0, observation({name: "x"}), ("image",))], reader="legacysurvey")


def test_a_column_of_texts_and_numbers_is_named() -> None:
    lines: list[dict[str, CatalogueValue]] = [{"quality": 1}, {"quality": "good"}]
    with pytest.raises(ValueError, match="quality"):
        as_rows(
            [(i, observation(line), ("image",)) for i, line in enumerate(lines)],
            reader="legacysurvey",
        )


def test_calibrated_values_come_first_then_by_survey() -> None:
    rows: list[Row] = [
        {"view": "image", "survey": "a", "calibrated": False, "mag_r": 1.0, "mag_g": 1.0},
        {"view": "spectrum", "survey": "z", "calibrated": True, "mag_r": 3.0, "mag_z": 3.0},
        {"view": "image", "survey": "k", "calibrated": True, "mag_r": 2.0},
    ]
    rows = [{"object_key": 4, "release": "", "source_id": "x"} | row for row in rows]
    for order in (rows, rows[::-1]):
        line = merge_rows(seen(order), ids(4)).to_pylist()[0]

        assert (line["mag_r"], line["mag_g"], line["mag_z"], line["mag_i"]) == (2, 1, 3, None)
        assert line["object_id"] == "id4"
        assert line["views"] == ["image", "spectrum"]


def test_a_redshift_keeps_the_source_that_gave_it() -> None:
    rows: list[Row] = [
        {"object_key": 1, "view": "image", "calibrated": True, "redshift_source": "nobody"},
        {"object_key": 1, "view": "spectrum", "calibrated": True, "redshift": 0.3},
        {"object_key": 2, "view": "spectrum", "calibrated": True, "redshift": 0.4,
         "redshift_source": "sdss"},
    ]  # fmt: skip
    lines = merge_rows(seen(rows), ids(1, 2)).to_pylist()

    assert [(line["redshift"], line["redshift_source"]) for line in lines] == [
        (0.3, None),
        (0.4, "sdss"),
    ]


def test_an_object_without_rows_is_gone_and_one_without_position_has_null() -> None:
    rows: list[Row] = [{"object_key": 2, "view": "image", "calibrated": True}]
    table = merge_rows(seen(rows), ids(1, 2))

    (line,) = table.to_pylist()
    assert (line["object_key"], line["ra_deg"], line["_healpix_29"]) == (2, None, None)


position = st.tuples(st.floats(0, 360, exclude_max=True), st.floats(-90, 90))


@settings(deadline=None, max_examples=50)
@given(place=position)
def test_healpix_cells_are_those_of_mocpy(place: tuple[float, float]) -> None:
    ra_deg, dec_deg = (np.array([value]) for value in place)
    moc = MOC.from_lonlat(
        Longitude(ra_deg * units.deg), Latitude(dec_deg * units.deg), max_norder=29
    )

    assert healpix_cells(ra_deg, dec_deg).tolist() == [int(moc.to_depth29_ranges[0, 0])]


def test_an_unknown_position_has_no_cell() -> None:
    cells = healpix_cells(np.array([np.nan, 10.0]), np.array([np.nan, 10.0]))

    assert cells[0] == -1
    assert cells[1] >= 0


@settings(deadline=None)
@given(
    cells=st.lists(st.integers(-1, 12 * 4**29 - 1) | st.just(5), max_size=40),
    most=st.integers(1, 10),
)
def test_every_object_is_in_one_cell_that_holds_it(cells: list[int], most: int) -> None:
    given_cells = np.array(cells, np.int64)
    divided = list(divide(given_cells, max_objects=most))

    where = [int(row) for _, rows in divided for row in rows]
    assert sorted(where) == list(range(len(cells)))
    for cell, rows in divided:
        if cell.order < 0:
            assert (given_cells[rows] == -1).all()
            continue
        assert (given_cells[rows] >> (2 * (29 - cell.order)) == cell.pixel).all()
        assert len(rows) <= most or cell.order == 29
    assert len({cell for cell, _ in divided}) == len(divided)


def table_of(num: int, *, redshift: float = 0.1) -> pa.Table:
    rng = np.random.default_rng(3)
    rows: list[Row] = [
        {
            "object_key": key, "view": "image", "calibrated": True, "redshift": redshift,
            "ra_deg": rng.uniform(0, 360), "dec_deg": rng.uniform(-90, 90),
        }
        for key in range(num)
    ]  # fmt: skip
    rows.append({"object_key": num, "view": "image", "calibrated": False})
    return merge_rows(seen(rows), ids(*range(num + 1)))


def test_partitions_come_back_ordered_by_key(tmp_path: Path) -> None:
    table = table_of(60)
    keys = table["object_key"].to_numpy()
    partitions = write_objects(tmp_path, before=None, merged=table, touched=keys).partitions

    assert len(partitions) == 13  # twelve cells of order 0, and the object without position
    assert read_partitions(tmp_path, partitions).equals(table)


def test_a_damaged_partition_is_named(tmp_path: Path) -> None:
    table = table_of(5)
    keys = table["object_key"].to_numpy()
    partitions = write_objects(tmp_path, before=None, merged=table, touched=keys).partitions
    file = tmp_path / partitions[-1].file
    file.write_bytes(b"PAR1" + file.read_bytes()[4:-9])

    with pytest.raises(VersionCorrupt, match=r"\.parquet"):
        read_partitions(tmp_path, partitions)


@settings(deadline=None, max_examples=60)
@given(place=position, angle=st.floats(0, 2 * np.pi), distance=st.floats(0, 60))
def test_within_an_arcminute_of_an_object_is_inside(
    place: tuple[float, float], angle: float, distance: float
) -> None:
    from astropy.coordinates import SkyCoord

    there = SkyCoord(*place, unit="deg")
    near = there.directional_offset_by(angle * units.rad, distance * units.arcsec)
    moc = footprint(np.array([place[0]]), np.array([place[1]]))

    assert covers(moc, np.array([near.ra.deg]), np.array([near.dec.deg]))[0]
    far = there.directional_offset_by(angle * units.rad, 30 * units.arcmin)
    assert not covers(moc, np.array([far.ra.deg]), np.array([far.dec.deg]))[0]


@pytest.mark.parametrize("content", ["3/", "3/18-16", '{"60": [1]}', '{"a": 1}'])
def test_a_moc_that_covers_nothing_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "area"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"area cannot be read .* expected cells of the sky"):
        read_moc(file)


def test_a_footprint_comes_back(tmp_path: Path) -> None:
    moc = footprint(np.array([10.0, 200.0]), np.array([-5.0, 80.0]))
    write_footprint(tmp_path / "moc.fits", moc)

    assert read_footprint(tmp_path / "moc.fits") == moc
    (tmp_path / "moc.fits").write_bytes(b"no FITS")
    with pytest.raises(VersionCorrupt, match=r"moc\.fits"):
        read_footprint(tmp_path / "moc.fits")
