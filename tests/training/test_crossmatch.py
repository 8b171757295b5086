"""Matches are those of a brute-force search with astropy, at the poles and at RA = 0 too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.coordinates import Distance, SkyCoord
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from training.surveys.crossmatch import (
    Matches,
    MatchTable,
    Positions,
    crossmatch,
    match_table,
    nearest,
    read_matches,
    write_matches,
)

ARCSEC = 1 / 3600
# Where spheres go wrong: poles, RA = 0, their neighbourhoods, and plain sky.
CENTRES = ((0.0, 0.0), (360 - 1e-4, 0.0), (0.0, 90.0), (123.0, -90.0), (83.6, 22.0), (180.0, 89.9))


def positions(coordinates: SkyCoord, **kwargs: Any) -> Positions:
    return Positions(
        ra_deg=coordinates.ra.deg % 360, dec_deg=np.clip(coordinates.dec.deg, -90, 90), **kwargs
    )


def scattered(centre: tuple[float, float], offsets_arcsec: ndarray) -> SkyCoord:
    """Points around a centre, offsets (n, 2) in arcsec east and north of it."""
    origin = SkyCoord(*centre, unit="deg")
    angles = np.arctan2(offsets_arcsec[:, 0], offsets_arcsec[:, 1]) * units.rad
    distances = np.hypot(*offsets_arcsec.T) * units.arcsec
    return origin.directional_offset_by(angles, distances)


def brute_force(left: SkyCoord, right: SkyCoord, radius_arcsec: float) -> set[tuple[int, int]]:
    """Pairs by every separation there is."""
    if not len(left) or not len(right):
        return set()
    separation = left[:, None].separation(right[None, :]).arcsec
    to_right, to_left = separation.argmin(axis=1), separation.argmin(axis=0)
    return {
        (i, int(j))
        for i, j in enumerate(to_right)
        if to_left[j] == i and separation[i, j] <= radius_arcsec
    }


def pairs(matches: Matches) -> set[tuple[int, int]]:
    return set(zip(matches.left.tolist(), matches.right.tolist(), strict=True))


@settings(deadline=None, max_examples=60)
@given(
    centre=st.sampled_from(CENTRES),
    num_left=st.integers(0, 25),
    num_right=st.integers(0, 25),
    scale_arcsec=st.sampled_from([0.5, 3.0, 20.0]),
    radius_arcsec=st.sampled_from([0.3, 1.0, 10.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_matches_are_those_of_every_separation(
    centre: tuple[float, float],
    num_left: int,
    num_right: int,
    scale_arcsec: float,
    radius_arcsec: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    left = scattered(centre, rng.normal(scale=scale_arcsec, size=(num_left, 2)))
    right = scattered(centre, rng.normal(scale=scale_arcsec, size=(num_right, 2)))
    antipode = ((centre[0] + 180) % 360, -centre[1])
    right = right.insert(len(right), scattered(antipode, rng.normal(size=(1, 2)))[0])

    found = crossmatch(positions(left), positions(right), radius_arcsec=radius_arcsec)

    assert pairs(found) == brute_force(left, right, radius_arcsec)
    expected = left[found.left].separation(right[found.right]).arcsec
    np.testing.assert_allclose(found.separation_arcsec, expected, atol=1e-7)
    assert (np.diff(found.left) > 0).all()
    turned = crossmatch(positions(right), positions(left), radius_arcsec=radius_arcsec)
    assert {(j, i) for i, j in pairs(turned)} == pairs(found)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_whole_sky_is_matched(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ra_deg, dec_deg = rng.uniform(0, 360, 300), np.degrees(np.arcsin(rng.uniform(-1, 1, 300)))
    order = rng.permutation(300)
    sky = Positions(ra_deg=ra_deg, dec_deg=dec_deg)

    found = crossmatch(sky, Positions(ra_deg=ra_deg[order], dec_deg=dec_deg[order]))

    assert pairs(found) == {(int(row), place) for place, row in enumerate(order)}
    assert found.separation_arcsec.max() < 1e-9


@pytest.mark.parametrize("radius_arcsec", [1.0, 5.0])
def test_a_pair_across_right_ascension_zero_is_one_object(radius_arcsec: float) -> None:
    left = Positions(ra_deg=np.array([360 - 0.25 * ARCSEC]), dec_deg=np.array([0.0]))
    right = Positions(ra_deg=np.array([0.5 * ARCSEC]), dec_deg=np.array([0.0]))

    found = crossmatch(left, right, radius_arcsec=radius_arcsec)

    assert found.separation_arcsec == pytest.approx([0.75], abs=1e-7)


def test_the_nearest_of_several_is_taken_only_if_it_agrees() -> None:
    # 0 and 1 of the left are both nearest to 0 of the right, which prefers 1.
    left = Positions(ra_deg=np.array([0.0, 0.6, 10.0]) * ARCSEC, dec_deg=np.zeros(3))
    right = Positions(ra_deg=np.array([0.5, 10.9, 12.0]) * ARCSEC, dec_deg=np.zeros(3))

    assert pairs(crossmatch(left, right)) == {(1, 0), (2, 1)}
    assert pairs(nearest(left, right, radius_arcsec=1.0)) == {(0, 0), (1, 0), (2, 1)}


@given(seed=st.integers(0, 2**32 - 1), num_copies=st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_of_rows_at_one_place_the_first_is_taken(seed: int, num_copies: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 80, 10)
    rows = rng.permutation(np.repeat(np.arange(10), num_copies))
    other = rng.permutation(np.repeat(np.arange(10), num_copies))

    found = crossmatch(
        Positions(ra_deg=base[rows], dec_deg=base[rows]),
        Positions(ra_deg=base[other], dec_deg=base[other]),
    )

    first = {each: int(np.flatnonzero(rows == each)[0]) for each in range(10)}
    first_other = {each: int(np.flatnonzero(other == each)[0]) for each in range(10)}
    assert pairs(found) == {(first[each], first_other[each]) for each in range(10)}


def test_the_radius_is_inclusive_and_bounded() -> None:
    left = Positions(ra_deg=np.zeros(1), dec_deg=np.zeros(1))
    right = Positions(ra_deg=np.zeros(1), dec_deg=np.array([2 * ARCSEC]))

    assert len(crossmatch(left, right, radius_arcsec=1.999999).left) == 0
    assert len(crossmatch(left, right, radius_arcsec=2.000001).left) == 1
    for radius_arcsec in (0.0, -1.0, np.nan, 3601.0):
        with pytest.raises(ValueError, match="expected a radius"):
            crossmatch(left, right, radius_arcsec=radius_arcsec)


def test_rows_without_position_match_nothing() -> None:
    ra_deg, dec_deg = np.array([10.0, np.nan, 10.0]), np.array([np.nan, 5.0, 5.0])
    half = Positions(ra_deg=ra_deg, dec_deg=dec_deg)

    assert pairs(crossmatch(half, half)) == {(2, 2)}
    nowhere = Positions(ra_deg=np.full(2, np.nan), dec_deg=np.full(2, np.nan))
    assert pairs(crossmatch(half, nowhere)) == set()
    assert pairs(crossmatch(Positions(ra_deg=np.empty(0), dec_deg=np.empty(0)), half)) == set()


@pytest.mark.parametrize(
    ("ra_deg", "dec_deg"), [(360.0, 0.0), (-1e-9, 0.0), (1.0, 90.1), (1.0, -91.0), (np.inf, 0.0)]
)
def test_positions_off_the_sky_are_refused(ra_deg: float, dec_deg: float) -> None:
    with pytest.raises(ValueError, match=r"expected ra_deg in \[0, 360\).* in row 1"):
        Positions(ra_deg=np.array([0.0, ra_deg]), dec_deg=np.array([0.0, dec_deg]))


def test_columns_that_do_not_belong_together_are_refused() -> None:
    two = np.zeros(2)
    with pytest.raises(ValueError, match="given together"):
        Positions(ra_deg=two, dec_deg=two, pmra_mas_per_yr=two)
    moving = Positions(ra_deg=two, dec_deg=two, pmra_mas_per_yr=two, pmdec_mas_per_yr=two)
    still = Positions(ra_deg=two, dec_deg=two, epoch_year=2000.0)
    with pytest.raises(ValueError, match="epoch_year of both"):
        crossmatch(moving, still)


def moved(coordinates: SkyCoord, year: float) -> SkyCoord:
    return coordinates.apply_space_motion(new_obstime=Time(year, format="jyear"))


@settings(deadline=None, max_examples=25)
@given(
    centre=st.sampled_from(CENTRES),
    year=st.sampled_from([1998.0, 2006.3, 2016.0, 2021.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_stars_are_moved_as_astropy_moves_them(
    centre: tuple[float, float], year: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    there = scattered(centre, rng.normal(scale=60, size=(30, 2)))
    pmra, pmdec = rng.normal(scale=500, size=(2, 30))
    pmra[0], pmdec[0] = -800.0, 10300.0  # Barnard's star
    stars = SkyCoord(
        there.ra,
        there.dec,
        pm_ra_cosdec=pmra * units.mas / units.yr,
        pm_dec=pmdec * units.mas / units.yr,
        distance=Distance(10 * units.pc),
        obstime=Time(2016.0, format="jyear"),
    )
    later = moved(stars, year)
    order = rng.permutation(30)
    gaia = positions(there, pmra_mas_per_yr=pmra, pmdec_mas_per_yr=pmdec, epoch_year=2016.0)
    other = positions(SkyCoord(later.ra[order], later.dec[order]), epoch_year=year)

    found = crossmatch(gaia, other, radius_arcsec=0.1)

    assert pairs(found) == {(int(row), place) for place, row in enumerate(order)}
    # Perspective and light-time are not in the motion here: 2 mas in 18 years.
    assert found.separation_arcsec.max() < 2e-3
    turned = crossmatch(other, gaia, radius_arcsec=0.1)
    assert {(j, i) for i, j in pairs(turned)} == pairs(found)
    if year != 2016.0:
        assert len(crossmatch(positions(there), other, radius_arcsec=0.1).left) < 30


@settings(deadline=None, max_examples=25)
@given(centre=st.sampled_from(CENTRES), seed=st.integers(0, 2**32 - 1))
def test_each_row_of_the_other_survey_has_its_own_epoch(
    centre: tuple[float, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    there = scattered(centre, rng.normal(scale=30, size=(20, 2)))
    pmra, pmdec = rng.normal(scale=300, size=(2, 20))
    pmra[::7] = np.nan
    years = rng.uniform(1999, 2022, 20)
    years[::5] = np.nan
    steps = np.nan_to_num(years - 2016.0) * np.where(np.isnan(pmra), 0, 1) / 1000
    later = there.spherical_offsets_by(
        steps * np.nan_to_num(pmra) * units.arcsec, steps * pmdec * units.arcsec
    )
    order = rng.permutation(20)

    found = crossmatch(
        positions(there, pmra_mas_per_yr=pmra, pmdec_mas_per_yr=pmdec, epoch_year=2016.0),
        positions(later[order], epoch_year=years[order]),
        radius_arcsec=0.05,
    )

    assert pairs(found) == {(int(row), place) for place, row in enumerate(order)}
    assert found.separation_arcsec.max() < 1e-3


def test_matches_are_kept_as_a_table(tmp_path: Path) -> None:
    sky = Positions(ra_deg=np.array([1.0, 2.0, 3.0]), dec_deg=np.zeros(3))
    other = Positions(ra_deg=np.array([3.0, 1.0 + 0.5 * ARCSEC]), dec_deg=np.zeros(2))
    big = str(2**53 + 1)
    table = match_table(
        crossmatch(sky, other),
        left_survey="gaia",
        left_ids=[big, "b", "c"],
        right_survey="sdss",
        right_ids=["x", "y"],
    )

    write_matches(tmp_path / "matches.parquet", table)

    again = read_matches(tmp_path / "matches.parquet")
    assert isinstance(again, MatchTable)
    assert (again.left_survey, again.right_survey) == ("gaia", "sdss")
    assert again.left_id == (big, "c")
    assert again.right_id == ("y", "x")
    np.testing.assert_array_equal(again.separation_arcsec, table.separation_arcsec)
    assert again.separation_arcsec == pytest.approx([0.5, 0.0], abs=1e-7)
    plain = pq.read_table(tmp_path / "matches.parquet").to_pydict()
    assert plain["left_id"] == [big, "c"]


def test_other_files_are_no_matches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"left_id": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("left_id,right_id\n")

    with pytest.raises(ValueError, match=r"other.parquet: expected columns left_id, right_id"):
        read_matches(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"text.parquet"):
        read_matches(tmp_path / "text.parquet")
    with pytest.raises(OSError, match=r"none.parquet"):
        read_matches(tmp_path / "none.parquet")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LSDB 0.11 with pandas 3, on writing
def test_hats_catalogues_give_the_same_pairs(tmp_path: Path) -> None:
    lsdb = pytest.importorskip("lsdb")
    import dask
    import pandas as pd

    from training.surveys.crossmatch_hats import HatsCatalogue, crossmatch_hats

    rng = np.random.default_rng(5)
    ra_deg = np.concatenate([rng.uniform(0, 360, 40), 45 + rng.normal(scale=2 * ARCSEC, size=40)])
    dec_deg = np.concatenate([np.degrees(np.arcsin(rng.uniform(-1, 1, 40))), np.zeros(40)])
    dec_deg[40:] = rng.normal(scale=2 * ARCSEC, size=40)  # (45, 0) is a corner of four cells
    pmra, pmdec = rng.normal(scale=100, size=(2, 80))
    stars = SkyCoord(ra_deg, dec_deg, unit="deg")
    later = stars.spherical_offsets_by(
        -10 * pmra / 1000 * units.arcsec + rng.normal(scale=0.3, size=80) * units.arcsec,
        -10 * pmdec / 1000 * units.arcsec,
    )
    ids = np.arange(80) + 2**53 + 1
    years = np.full(80, 2006.0)
    gaia = pd.DataFrame(
        {"source_id": ids, "ra": ra_deg, "dec": dec_deg, "pmra": pmra, "pmdec": pmdec}
    )
    other = pd.DataFrame(
        {"name": [f"o{i}" for i in range(80)], "lon": later.ra.deg, "lat": later.dec.deg}
    ).assign(year=years)
    left = HatsCatalogue(
        folder=tmp_path / "gaia",
        survey="gaia",
        id_column="source_id",
        pmra_column="pmra",
        pmdec_column="pmdec",
        epoch_year=2016.0,
    )
    right = HatsCatalogue(
        folder=tmp_path / "other", survey="other", id_column="name", epoch_year="year"
    )
    narrow = HatsCatalogue(
        folder=tmp_path / "narrow", survey="other", id_column="name", epoch_year="year"
    )
    with dask.config.set(scheduler="synchronous"):
        for catalogue, table, ra, dec, margin in (
            (left, gaia, "ra", "dec", 20.0),
            (right, other, "lon", "lat", 20.0),
            (narrow, other, "lon", "lat", 1.5),
        ):
            lsdb.from_dataframe(
                table, ra_column=ra, dec_column=dec, partition_rows=30, margin_threshold=margin
            ).write_catalog(catalogue.folder, catalog_name=catalogue.survey, progress_bar=False)
        found = crossmatch_hats(left, right)
        with pytest.raises(ValueError, match="expected a margin of"):
            crossmatch_hats(left, narrow)

    expected = match_table(
        crossmatch(
            positions(stars, pmra_mas_per_yr=pmra, pmdec_mas_per_yr=pmdec, epoch_year=2016.0),
            positions(later, epoch_year=years),
        ),
        left_survey="gaia",
        left_ids=[str(each) for each in ids],
        right_survey="other",
        right_ids=list(other["name"]),
    )
    assert (found.left_survey, found.right_survey) == ("gaia", "other")
    assert 40 < len(found.left_id) < 80
    assert set(zip(found.left_id, found.right_id, strict=True)) == set(
        zip(expected.left_id, expected.right_id, strict=True)
    )
    by_id = dict(zip(expected.left_id, expected.separation_arcsec, strict=True))
    assert found.separation_arcsec == pytest.approx([by_id[each] for each in found.left_id])
