"""Parts of a sky to search in, and hits of one place on the sky."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Latitude, Longitude, SkyCoord
from hypothesis import given
from hypothesis import strategies as st
from mocpy import MOC

from discovery import Query, Sky
from discovery.near_duplicates import first_of_each_place

from .conftest import NUM_WITH_SPECTRUM, object_id, positions

SEED = object_id(20)


@pytest.mark.parametrize("form", ["fits", "json", "ascii"])
def test_a_moc_leaves_the_objects_inside(sky: Sky, tmp_path: Path, form: str) -> None:
    centre = (Longitude(150.05 * u.deg), Latitude(2.05 * u.deg))
    moc = MOC.from_cone(*centre, radius=0.04 * u.deg, max_depth=18)
    file = tmp_path / "area"
    if form == "fits":
        moc.save(file, format="fits")
    else:
        file.write_text(moc.to_string(format=form))
    places = np.array(list(positions().values()))
    inside = SkyCoord(places, unit="deg").separation(SkyCoord(*centre)).deg < 0.04
    expected = {name for name, there in zip(positions(), inside, strict=True) if there} - {SEED}
    hits = sky.search(Query(like=[SEED], moc=file))

    assert 3 < len(expected) < 30
    assert set(hits.ids) == expected
    assert hits.num_without_position == sky.num_without_position


def test_what_is_no_moc_is_refused(sky: Sky, tmp_path: Path) -> None:
    file = tmp_path / "area"
    for content in (b"SIMPLE  = nothing", b"{not json", b"5/1-3 x", bytes(range(256))):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="area cannot be read as a MOC"):
            sky.search(Query(like=[SEED], moc=file))
    with pytest.raises(ValueError, match="nowhere cannot be read as a MOC"):
        sky.search(Query(like=[SEED], moc=tmp_path / "nowhere"))


def test_a_survey_leaves_the_objects_that_it_observed(sky: Sky) -> None:
    spectra = sky.search(Query(like=[object_id(0)], view="spectrum", seen_by=["sdss"], k=5))
    everywhere = sky.search(Query(like=[SEED], view="any", seen_by=["sdss"]))

    assert spectra.num_searched == NUM_WITH_SPECTRUM  # one more has only a spectrum, less the seed
    assert everywhere.num_searched == NUM_WITH_SPECTRUM + 1
    none = sky.search(Query(like=[SEED], view="image", seen_by=["sdss"]))
    assert none.num_searched == 0
    with pytest.raises(ValueError, match=r"survey 'hsc': expected .*sdss"):
        sky.search(Query(like=[SEED], seen_by=["hsc"]))
    with pytest.raises(ValueError, match="seen_by takes a list of surveys"):
        Query(like=[SEED], seen_by="sdss")


def test_an_asked_recall_of_one_is_the_answer_of_an_exact_sky(sky: Sky) -> None:
    hits = [sky.search(Query(like=[SEED], k=10, recall=recall)) for recall in (0.5, 1)]

    assert hits[0].ids == hits[1].ids
    for wrong in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="recall must be above 0"):
            Query(like=[SEED], recall=wrong)


def test_of_near_hits_the_best_alone_is_returned(sky: Sky) -> None:
    all_of_them = sky.search(Query(like=[SEED]))
    radius_arcsec = 100.0  # the patch has a grid of 72 arcsec
    hits = sky.search(Query(like=[SEED], k=5, collapse_arcsec=radius_arcsec))
    place = {name: SkyCoord(*where, unit="deg") for name, where in positions().items()}
    expected: list[str] = []
    for name in all_of_them.ids:
        here = place.get(name)
        near = [
            here.separation(place[other]).arcsec
            for other in expected
            if here is not None and other in place
        ]
        if min(near, default=np.inf) > radius_arcsec:
            expected.append(name)

    assert list(hits.ids) == expected[:5]
    assert list(hits.ids) != list(all_of_them.ids[:5])
    with pytest.raises(ValueError, match=r"collapse_arcsec must be in \(0, 3600\]"):
        Query(like=[SEED], collapse_arcsec=0)


@given(
    st.lists(st.tuples(st.floats(0, 0.01), st.floats(-0.005, 0.005), st.booleans()), max_size=30),
    st.floats(0.5, 30),
)
def test_kept_hits_are_apart_and_others_near_a_better_one(
    places: list[tuple[float, float, bool]], radius_arcsec: float
) -> None:
    ra_deg, dec_deg = (np.array([each[i] for each in places], float) for i in (0, 1))
    unknown = np.array([each[2] for each in places], bool)
    ra_deg[unknown] = np.nan
    kept = first_of_each_place(ra_deg, dec_deg, radius_arcsec)
    there = SkyCoord(np.nan_to_num(ra_deg), dec_deg, unit="deg")

    assert kept[unknown].all()
    for i in np.flatnonzero(~unknown):
        better = [j for j in np.flatnonzero(kept & ~unknown) if j < i]
        nearest = min((there[i].separation(there[j]).arcsec for j in better), default=np.inf)
        if abs(nearest - radius_arcsec) > 1e-6:
            assert kept[i] == (nearest > radius_arcsec)
