"""Tractor and sweep tables: a row is what astropy reads, and what the survey documents of it."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from tests.training.legacy_files import (
    BRICK,
    BRICKID,
    CENTRE,
    SIZE,
    SOURCE,
    brick_wcs,
    positions,
    write_coadds,
    write_table,
)
from training.observations import IMAGE_SIZE, Observation, Skipped
from training.surveys import legacysurvey
from training.surveys.neighbours import Shapes, object_mask
from training.surveys.tractor_table import group_by_brick, open_table

OLD = {  # DR6 to DR8
    **{name: SOURCE[name] for name in ("BRICKID", "BRICKNAME", "OBJID", "RA", "DEC", "EBV")},
    **{"RELEASE": ("J", 6000), "BRICK_PRIMARY": ("L", True), "TYPE": ("10A", "EXP")},
    **{name: cell for name, cell in SOURCE.items() if name.startswith("FLUX_")},
    **{"FRACDEV": ("E", 0.0)},
    **{f"SHAPEEXP_{part}": ("E", value) for part, value in (("R", 2.0), ("E1", 0.1), ("E2", 0.2))},
    **{f"SHAPEDEV_{part}": ("E", value) for part, value in (("R", 4.0), ("E1", 0.3), ("E2", 0.0))},
}


def read(file: Path, *, batch_size: int = 64) -> tuple[list[Observation], list[str]]:
    seen: list[Observation] = []
    reasons: list[str] = []
    for batch in legacysurvey.read(file, batch_size=batch_size):
        assert 0 < len(batch.observations) + len(batch.skipped) <= batch_size
        seen += batch.observations
        assert all(isinstance(each, Skipped) and each.file == str(file) for each in batch.skipped)
        reasons += [each.reason for each in batch.skipped]
    return seen, reasons


def real_tables(shared_data: Path) -> list[Path]:
    folder = shared_data / "legacysurvey_catalogues_bricks"
    other = shared_data / "desi_spectra" / "tractor-1054p567.fits"
    return [*folder.glob("tractor-*.fits"), *folder.glob("sweep-*.fits"), other]


def test_rows_of_the_real_tables_are_those_of_astropy(shared_data: Path) -> None:
    files = real_tables(shared_data)
    assert len(files) == 7
    for file in files:
        table = Table.read(file)
        seen, reasons = read(file)
        assert reasons == []
        assert len(seen) == len(table)
        for source, row in zip(seen, table, strict=True):
            assert source.source_id == f"{row['RELEASE']}-{row['BRICKID']}-{row['OBJID']}"
            assert source.object_id == source.source_id == source.source_part
            assert (source.ra_deg, source.dec_deg) == (row["RA"], row["DEC"])
            kind = str(row["TYPE"]).strip()
            assert source.catalogue["morphology"] == kind
            expected = {"tok_ebv": row["EBV"]}
            for band in ("G", "R", "Z", "W1", "W2", "W3", "W4"):
                if row[f"FLUX_{band}"] > 0 and row[f"FLUX_IVAR_{band}"] > 0:
                    expected[f"tok_flux_{band.lower()}"] = row[f"FLUX_{band}"]
            model = "SHAPE" if "SHAPE_R" in table.colnames else f"SHAPE{kind.replace('REX', 'EXP')}"
            if kind != "PSF":
                for part in ("r", "e1", "e2"):
                    expected[f"tok_shape_{part}"] = row[f"{model}_{part.upper()}"]
            assert dict(source.scalars) == expected
            for band in "grz":
                assert source.catalogue[f"flux_{band}_nmgy"] == row[f"FLUX_{band.upper()}"]
            assert source.catalogue["mag_r"] == pytest.approx(22.5 - 2.5 * np.log10(row["FLUX_R"]))
            assert "flux_i_nmgy" not in source.catalogue
            assert source.image is None
            assert "magnitudes not corrected for Galactic extinction" in source.notes


def test_the_galaxy_of_the_desi_spectrum_has_its_published_row(shared_data: Path) -> None:
    file = shared_data / "desi_spectra" / "tractor-1054p567.fits"

    ((seen,), _) = read(file)

    assert (seen.release, seen.source_id) == ("dr9 north", "9011-607466-2657")
    assert seen.ra_deg == pytest.approx(105.48977, abs=1e-5)
    assert seen.catalogue["radius_arcsec"] == pytest.approx(0.38778, abs=1e-5)
    assert seen.scalars["tok_flux_w2"] == pytest.approx(6.44036, abs=1e-5)


def test_what_yields_objects_is_listed_and_the_rest_is_refused(shared_data: Path) -> None:
    folder = shared_data / "legacysurvey_catalogues_bricks"
    good = sorted(file for file in real_tables(shared_data) if file.parent == folder)

    assert legacysurvey.list_files(folder) == good
    for file in sorted(folder.glob("*.fits*")):
        if file in good:
            continue
        seen, reasons = read(file)
        assert seen == []
        if file.name.startswith("legacysurvey-"):
            assert reasons[0].startswith("a brick coadd: it is read with the Tractor")
        else:
            assert (
                "no usable HDU: expected an image (band, y, x) or a Tractor or sweep" in reasons[0]
            )
        with pytest.raises(ValueError, match=file.name):
            legacysurvey.read_one(file, "")
    cutouts = shared_data / "legacysurvey_fits_cutouts"
    assert len(legacysurvey.list_files(cutouts)) == 4  # the truncated one too, for its reason


@pytest.mark.parametrize("lower", [False, True])
def test_shapes_of_older_releases_are_those_of_the_type(lower: bool, tmp_path: Path) -> None:
    kinds = [
        ("EXP", {}, (2.0, 0.1, 0.2)),
        ("REX", {}, (2.0, 0.1, 0.2)),
        ("DEV", {"FRACDEV": 1.0}, (4.0, 0.3, 0.0)),
        ("COMP", {"FRACDEV": 0.25}, (2.5, 0.15, 0.15)),
        ("SIMP", {"SHAPEEXP_R": 0.0, "SHAPEEXP_E1": 0.0, "SHAPEEXP_E2": 0.0}, (0.45, 0.0, 0.0)),
        ("PSF", {}, None),
    ]
    rows = [{"OBJID": i, "TYPE": kind, **more} for i, (kind, more, _) in enumerate(kinds)]

    seen, reasons = read(write_table(tmp_path / "t.fits", rows, columns=OLD, lower=lower))

    assert reasons == []
    for source, (kind, _, shape) in zip(seen, kinds, strict=True):
        assert source.release == "dr6"
        assert source.catalogue["morphology"] == kind
        got = [source.scalars.get(f"tok_shape_{part}") for part in ("r", "e1", "e2")]
        assert got == ([None] * 3 if shape is None else pytest.approx(shape))


@pytest.mark.parametrize(
    ("release", "name"),
    [
        (5000, "dr5"),
        (7000, "dr7"),
        (8000, "dr8 south"),
        (8001, "dr8 north"),
        (9010, "dr9 south"),
        (9012, "dr9 south"),
        (9011, "dr9 north"),
        (9999, "dr10"),
        (10000, "dr10"),
        (10300, "dr10"),
    ],
)
def test_release_numbers_have_names(release: int, name: str, tmp_path: Path) -> None:
    (seen,), _ = read(write_table(tmp_path / "t.fits", [{"RELEASE": release}]))

    assert seen.release == name
    assert seen.source_id == f"{release}-{BRICKID}-0"


def test_the_i_band_is_there_where_it_was_observed(tmp_path: Path) -> None:
    columns = SOURCE | {"FLUX_I": ("E", 12.0), "FLUX_IVAR_I": ("E", 1.0)}
    rows: list[dict[str, Any]] = [{"OBJID": 0}, {"OBJID": 1, "FLUX_I": 0.0, "FLUX_IVAR_I": 0.0}]

    (with_i, without), _ = read(write_table(tmp_path / "t.fits", rows, columns=columns))

    assert with_i.scalars["tok_flux_i"] == 12
    assert with_i.catalogue["mag_i"] == pytest.approx(22.5 - 2.5 * np.log10(12))
    assert "flux_i_nmgy" not in without.catalogue


def test_secondary_rows_and_duplicated_stars_are_left_out_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"OBJID": 0},
        {"OBJID": 1, "BRICK_PRIMARY": False},
        {"OBJID": 2, "TYPE": "DUP"},
        {"OBJID": 3, "BRICK_PRIMARY": False, "TYPE": "DUP"},
        {"OBJID": 4},
    ]
    file = write_table(tmp_path / "t.fits", rows)

    seen, reasons = read(file)

    assert [source.source_part[-2:] for source in seen] == ["-0", "-4"]
    assert reasons == [
        "2 rows are not BRICK_PRIMARY: other bricks have them",
        "1 rows of TYPE DUP: stars that other rows model",
    ]
    for part in (f"9010-{BRICKID}-1", f"9010-{BRICKID}-2", f"9010-{BRICKID}-9", "12", "a-b-c"):
        with pytest.raises(ValueError, match=str(file)):
            legacysurvey.read_one(file, part)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"RA": 360.1}, "expected ra_deg in [0, 360)"),
        ({"RA": -0.1}, "expected ra_deg in [0, 360)"),
        ({"RA": np.nan}, "expected both coordinates of the position or none, got ra_deg nan"),
        ({"RA": np.nan, "DEC": np.nan}, "no position"),
        ({"DEC": 90.5}, "expected ra_deg in [0, 360) and dec_deg in [-90, 90]"),
        ({"TYPE": "XYZ"}, "unknown TYPE 'XYZ': expected one of PSF, REX, EXP, DEV, SER"),
        ({"RELEASE": 7}, "unknown RELEASE 7"),
        ({"OBJID": 0}, "the same id as row 0"),
    ],
)
def test_a_bad_row_is_skipped_with_its_number_and_id(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    file = write_table(tmp_path / "t.fits", [{"OBJID": 0}, {"OBJID": 1, **row}, {"OBJID": 2}])

    seen, (told,) = read(file)

    assert len(seen) == 2
    number, release = row.get("OBJID", 1), row.get("RELEASE", 9010)
    assert told.startswith(f"row 1 ({release}-{BRICKID}-{number}): {reason}")


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    row = {
        **{"FLUX_G": np.nan, "FLUX_R": -2.0, "FLUX_Z": np.inf, "FLUX_W1": 0.0},
        **{"SHAPE_R": np.nan, "SHAPE_E1": np.nan, "EBV": np.nan},
    }

    (seen,), _ = read(write_table(tmp_path / "t.fits", [row]))

    assert set(seen.scalars) == {"tok_flux_w2", "tok_flux_w3", "tok_flux_w4"}
    assert seen.catalogue == {"flux_r_nmgy": -2.0, "morphology": "EXP"}


@pytest.mark.parametrize(
    ("name", "unit", "reason"),
    [
        ("FLUX_G", "Jy", "column 'flux_g': expected nanomaggy, got 'Jy'"),
        ("FLUX_W1", "mag", "column 'flux_w1': expected nanomaggy, got 'mag'"),
        ("RA", "rad", "column 'ra': expected deg, got 'rad'"),
        ("SHAPE_R", "pixel", "column 'shape_r': expected arcsec, got 'pixel'"),
    ],
)
def test_a_table_in_other_units_is_refused(
    name: str, unit: str, reason: str, tmp_path: Path
) -> None:
    file = write_table(tmp_path / "t.fits", [{}], units={name: unit})

    assert read(file) == ([], [reason])


def test_the_survey_s_own_units_are_accepted(tmp_path: Path) -> None:
    units = {"FLUX_G": "nanomaggy", "FLUX_R": "nanomaggies", "RA": "deg", "SHAPE_R": "arcsec"}

    seen, reasons = read(write_table(tmp_path / "t.fits", [{}], units=units))

    assert (len(seen), reasons) == (1, [])


def test_a_gzipped_table_is_the_same_table(tmp_path: Path) -> None:
    rows = [{"OBJID": i, "FLUX_G": 1.0 + i} for i in range(50)]
    file = write_table(tmp_path / "t.fits", rows)
    packed = tmp_path / "t.fits.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))

    plain, zipped = read(file)[0], read(packed)[0]

    assert [a.fingerprint for a in plain] == [b.fingerprint for b in zipped]
    packed.write_bytes(packed.read_bytes()[:-300])
    assert read(packed)[1][0].startswith("truncated or damaged gzip file")


def test_scaled_integers_in_a_table_are_scaled(tmp_path: Path) -> None:
    columns = SOURCE | {"FLUX_G": ("I", 7)}
    file = write_table(tmp_path / "t.fits", [{}], columns=columns)
    number = list(columns).index("FLUX_G") + 1
    for key, value in ((f"TSCAL{number}", 0.5), (f"TZERO{number}", 100.0)):
        fits.setval(file, key, value=value, ext=1)

    (seen,), _ = read(tmp_path / "t.fits")

    assert seen.scalars["tok_flux_g"] == 103.5


def test_an_empty_table_yields_nothing(tmp_path: Path) -> None:
    assert read(write_table(tmp_path / "t.fits", [])) == ([], [])


def test_renumbered_rows_and_a_new_row_change_no_other_object(tmp_path: Path) -> None:
    write_coadds(tmp_path, bands="gr")
    rng = np.random.default_rng(2)
    far = [[30, 30], [390, 390], [30.5, 380]]
    rows = positions(rng.uniform(150, 250, (8, 2)).tolist() + far)
    file = tmp_path / f"tractor-{BRICK}.fits"
    before = {o.source_id: o.fingerprint for o in read(write_table(file, rows))[0]}

    after = {o.source_id: o.fingerprint for o in read(write_table(file, rows[::-1]))[0]}
    new = positions(np.array([[380.3, 30.4]]))[0] | {"OBJID": 99}
    more = {o.source_id: o.fingerprint for o in read(write_table(file, [new, *rows]))[0]}
    rows[3] = rows[3] | {"FLUX_Z": 11.0}
    other = {o.source_id: o.fingerprint for o in read(write_table(file, rows))[0]}

    assert after == before
    assert more.items() >= before.items()
    assert len(more) == 12
    assert {key for key in before if before[key] != other[key]} == {f"9010-{BRICKID}-3"}


def test_the_bricks_of_a_sweep_come_one_after_the_other_and_all_rows_are_found(
    tmp_path: Path,
) -> None:
    rows = [
        {"BRICKID": BRICKID + i % 3, "OBJID": i, "RELEASE": 8000 + i % 2, "RA": 10.0 + i % 3}
        for i in range(60)
    ]
    file = write_table(tmp_path / "sweep-000p000-010p005.fits", rows)

    seen, reasons = read(file, batch_size=7)

    assert reasons == []
    assert {o.source_id for o in seen} == {
        f"{row['RELEASE']}-{row['BRICKID']}-{row['OBJID']}" for row in rows
    }
    bricks = [o.source_id.rsplit("-", 1)[0] for o in seen]
    assert len({b for i, b in enumerate(bricks) if i == 0 or b != bricks[i - 1]}) == 6
    assert sum(b != a for a, b in itertools.pairwise(bricks)) == 5
    for source in seen[::13]:
        again = legacysurvey.read_one(file, source.source_part)
        assert again.fingerprint == source.fingerprint


def test_a_brick_that_touches_another_is_known_at_the_pole_and_at_ra_0(tmp_path: Path) -> None:
    places = {1: (359.9999, 0.0), 2: (0.0001, 0.0), 3: (10.0, 89.9999), 4: (190.0, 89.9999)}
    rows = [{"BRICKID": i, "RA": ra, "DEC": dec} for i, (ra, dec) in places.items()]
    with open_table(write_table(tmp_path / "t.fits", rows)) as table:
        groups = group_by_brick(table)

    touching = {
        (a.brickid, b.brickid)
        for a in groups
        for b in groups
        if a.brickid < b.brickid and a.touches(b)
    }

    assert touching == {(1, 2), (3, 4)}


def test_ellipses_are_the_nearest_sources_of_the_cutout(tmp_path: Path) -> None:
    write_coadds(tmp_path, bands="g")
    rng = np.random.default_rng(8)
    pixels = np.concatenate([[[210.3, 190.8]], rng.uniform(0, SIZE, (400, 2))])
    rows = positions(pixels)
    for row in rows:
        row |= {"SHAPE_R": rng.uniform(0.2, 3), "SHAPE_E1": rng.uniform(-0.5, 0.5)}
        row["TYPE"] = str(rng.choice(["PSF", "REX", "EXP", "DEV", "SER", "DUP"]))
        row["BRICK_PRIMARY"] = bool(rng.random() < 0.7)
    rows[0] |= {"TYPE": "EXP", "BRICK_PRIMARY": True}
    file = write_table(tmp_path / f"tractor-{BRICK}.fits", rows)

    seen = legacysurvey.read_one(file, f"9010-{BRICKID}-0")

    lower_left = np.ceil(pixels[0] - 48)
    place = np.rint(pixels - lower_left)
    inside = ((place >= 0) & (place < IMAGE_SIZE)).all(axis=1)
    inside &= np.array([row["TYPE"] != "DUP" for row in rows])
    distance = np.hypot(*(place - 47.5).T)
    expected = sorted(np.flatnonzero(inside), key=lambda i: distance[i])
    assert len(expected) > 20
    assert seen.ellipses is not None
    assert len(seen.ellipses.x) == 20
    got = np.hypot(seen.ellipses.x - 47.5, seen.ellipses.y - 47.5)
    np.testing.assert_allclose(got, distance[expected[:20]], rtol=1e-5)
    assert (seen.ellipses.x[0], seen.ellipses.y[0]) == (47, 48)
    assert seen.ellipses.shape_r_arcsec[0] == pytest.approx(rows[0]["SHAPE_R"])
    assert seen.ellipses.shape_e1[0] == pytest.approx(rows[0]["SHAPE_E1"])
    for x, y, radius in zip(
        seen.ellipses.x, seen.ellipses.y, seen.ellipses.shape_r_arcsec, strict=True
    ):
        same = [i for i in expected if (place[i] == (x, y)).all()]
        radii = [0.0 if rows[i]["TYPE"] == "PSF" else rows[i]["SHAPE_R"] for i in same]
        assert any(radius == pytest.approx(each) for each in radii)


def test_neighbours_in_a_sweep_come_from_the_touching_brick_too(tmp_path: Path) -> None:
    write_coadds(tmp_path, bands="g")
    rows = positions(np.array([[200, 200], [230, 200], [200, 260]]))
    rows[1] |= {"BRICKID": BRICKID + 1, "BRICKNAME": "1236p056", "OBJID": 0}
    file = write_table(tmp_path / "sweep-120p005-130p010.fits", rows)

    seen = {source.source_id: source for source in read(file)[0]}

    mine = seen[f"9010-{BRICKID}-0"].ellipses
    assert mine is not None
    assert list(zip(mine.x, mine.y, strict=True)) == [(48, 48), (78, 48)]
    assert seen[f"9010-{BRICKID + 1}-0"].image is None


@pytest.mark.parametrize(("e1", "e2"), [(0.4, 0.0), (-0.4, 0.0), (0.0, 0.4), (0.3, -0.35), (0, 0)])
def test_the_object_mask_is_the_half_light_ellipse_of_tractor(e1: float, e2: float) -> None:
    radius_arcsec, x, y = 4.0, 40.3, 52.8
    # tractor ellipses.py, EllipseE.getRaDecBasis: the ellipse's own unit vectors on the sky.
    theta, ellipticity = np.arctan2(e2, e1) / 2, np.hypot(e1, e2)
    ratio = (1 - ellipticity) / (1 + ellipticity)
    basis = radius_arcsec * np.array(
        [[np.cos(theta) * ratio, np.sin(theta)], [-np.sin(theta) * ratio, np.cos(theta)]]
    )
    pixels = np.stack(np.meshgrid(np.arange(IMAGE_SIZE) - x, np.arange(IMAGE_SIZE) - y))
    east_north = pixels * np.array([-0.262, 0.262])[:, None, None]
    own = np.einsum("ij,jyx->iyx", np.linalg.inv(basis), east_north)

    field = object_mask(
        np.array([x]),
        np.array([y]),
        Shapes(
            kind=np.array(["DEV"]),
            radius_arcsec=np.array([radius_arcsec]),
            e1=np.array([float(e1)]),
            e2=np.array([float(e2)]),
        ),
    )

    clear = np.abs(np.hypot(*own) - 1) > 1e-4
    np.testing.assert_array_equal((field.value > 0)[clear], (np.hypot(*own) < 1)[clear])
    assert set(np.unique(field.value)) == {np.float32(0), np.float32(0.8)}


def test_the_object_mask_has_a_value_for_each_type_and_small_sources_on_top(
    tmp_path: Path,
) -> None:
    write_coadds(tmp_path, bands="g")
    values = {"PSF": 0.2, "REX": 0.4, "EXP": 0.6, "DEV": 0.8, "SER": 1.0}
    pixels = np.array([[200 + 18 * i, 200] for i in range(-2, 3)] + [[200, 205]])
    rows = [
        row | {"TYPE": kind, "SHAPE_R": 1.0}
        for row, kind in zip(positions(pixels), [*values, "SER"], strict=True)
    ]
    rows[5] |= {"SHAPE_R": 10.0, "SHAPE_E1": 0.0, "SHAPE_E2": 0.0}
    file = write_table(tmp_path / f"tractor-{BRICK}.fits", rows)

    seen = legacysurvey.read_one(file, f"9010-{BRICKID}-2")

    assert seen.object_mask is not None
    at = seen.object_mask.value[48, [12, 30, 48, 66, 84]]
    np.testing.assert_allclose(at, list(values.values()))
    assert seen.object_mask.value[53, 48] == 1
    assert seen.object_mask.value[2, 2] == 0


def test_flipped_bits_of_a_table_end_in_rows_or_reasons(tmp_path: Path) -> None:
    rows = [{"OBJID": i, "FLUX_G": 1.0 + i} for i in range(20)]
    file = write_table(tmp_path / "t.fits", rows)
    content = file.read_bytes()
    rng = np.random.default_rng(4)
    for turn in range(120):
        damaged = bytearray(content)
        for place in rng.integers(len(content) if turn % 2 else 11520, size=2):
            damaged[place % len(content)] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        seen, reasons = read(file)
        assert seen or reasons
        for source in seen:
            assert all(np.isfinite(value) for value in source.scalars.values())


def test_a_truncated_table_says_so(tmp_path: Path) -> None:
    rows = [{"OBJID": i} for i in range(200)]
    file = write_table(tmp_path / "t.fits", rows)
    content = file.read_bytes()
    for share in np.linspace(0, 0.9, 12):
        file.write_bytes(content[: int(share * len(content))])
        seen, reasons = read(file)
        assert seen == []
        assert len(reasons) == 1
        with pytest.raises(ValueError, match=str(file)):
            legacysurvey.read_one(file, f"9010-{BRICKID}-0")


def test_companions_of_a_table_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    write_coadds(tmp_path, bands="g")
    file = tmp_path / f"tractor-{BRICK}.fits"
    file.write_bytes(b"SIMPLE  = nonsense")

    assert legacysurvey.companions(file) == ()
    assert legacysurvey.companions(tmp_path / "absent.fits") == ()


def test_reading_four_times_as_many_rows_needs_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for num_bricks in (3, 12):
        rows = [
            {"BRICKID": 1 + brick, "OBJID": i, "RA": 10.0 + brick, "DEC": 0.0}
            for brick in range(num_bricks)
            for i in range(80)
        ]
        file = write_table(tmp_path / f"{num_bricks}.fits", rows)
        del rows
        tracemalloc.start()
        num = sum(len(batch.observations) for batch in legacysurvey.read(file))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert num == 80 * num_bricks

    assert peaks[1] < 1.3 * peaks[0] + 200_000


def test_the_brick_s_plane_is_that_of_the_files(tmp_path: Path) -> None:
    files = write_coadds(tmp_path, bands="g")
    written = WCS(fits.getheader(files["image-g"], 1)).wcs_pix2world([[0, 0], [419, 3]], 0)

    np.testing.assert_allclose(written, brick_wcs().wcs_pix2world([[0, 0], [419, 3]], 0))
    assert np.abs(written - CENTRE).max() < 0.05
