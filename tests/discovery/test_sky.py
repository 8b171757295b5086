"""Asking a sky."""

from __future__ import annotations

import shutil
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord

import discovery
from discovery import NoObjectNear, NotASky, OutsideFootprint, Query, Sky, SourceGone, UnknownObject
from index.building import build
from training.surveys import reader

from .conftest import (
    NUM_IN_PATCH,
    NUM_WITH_SPECTRUM,
    PICTURES,
    SPECTRUM_ONLY,
    Files,
    object_id,
    positions,
    write_cutout,
    write_encoder,
)

NUM_IMAGES = len(positions()) + len(PICTURES)


def unit_vector(sky: Sky, files: Files, number: int, view: str = "image") -> np.ndarray:
    """The search vector of a cutout, made from its file and not taken from the index."""
    (batch,) = reader("legacysurvey").read(files.cutouts / f"{object_id(number)}.fits")
    return sky.embed(batch.observations, view=view)[0]


def test_a_sky_says_what_it_holds(sky: Sky) -> None:
    assert sky.version == 3  # three builds
    assert sky.views == ("image", "spectrum", "joint")
    assert sky.num_objects == NUM_IMAGES + 1
    assert sky.num_without_position == len(PICTURES)


def test_the_seed_is_not_among_its_hits(sky: Sky) -> None:
    hits = sky.search(Query(like=[object_id(3)]))
    assert object_id(3) not in hits.ids
    assert len(hits) == NUM_IMAGES - 1  # all others: fewer than the default of 50
    assert len(set(hits.ids)) == len(hits)
    assert (np.diff(hits.scores) <= 0).all()
    assert hits.table["rank"].tolist() == list(range(1, NUM_IMAGES))


def test_a_twin_comes_first_with_score_one(sky: Sky) -> None:
    hits = sky.search(Query(like=[object_id(0)], k=3))
    assert hits.ids[0] == object_id(1)
    assert hits.scores[0] == pytest.approx(1, abs=1e-3)  # vectors are stored as float16


@pytest.mark.parametrize(("like", "unlike"), [((2, 5), ()), ((2, 5, 9), (7,)), ((2,), (7, 11))])
def test_seeds_add_up_and_unlike_ones_are_subtracted(
    sky: Sky, files: Files, like: tuple[int, ...], unlike: tuple[int, ...]
) -> None:
    wanted = sum(unit_vector(sky, files, n) for n in like) - sum(
        (unit_vector(sky, files, n) for n in unlike), start=np.zeros(256)
    )
    wanted = wanted / np.linalg.norm(wanted)
    rest = [n for n in range(NUM_IN_PATCH) if n not in (*like, *unlike)]
    oracle = {object_id(n): float(unit_vector(sky, files, n) @ wanted) for n in rest}

    hits = sky.search(Query(like=[*map(object_id, like)], unlike=[*map(object_id, unlike)]))

    scores = dict(zip(hits.ids, hits.scores.tolist(), strict=True))
    assert not {object_id(n) for n in (*like, *unlike)} & set(hits.ids)
    for name, score in oracle.items():
        assert scores[name] == pytest.approx(score, abs=2e-3)  # float16 on disk


def test_seeds_that_cancel_out_are_refused(sky: Sky) -> None:
    with pytest.raises(ValueError, match="cancel out"):
        sky.search(Query(like=[object_id(0)], unlike=[object_id(1)]))  # twins


def test_unknown_ids_are_named(sky: Sky) -> None:
    for query in (Query(like=["nobody"]), Query(like=[object_id(0)], exclude=["nobody"])):
        with pytest.raises(UnknownObject, match="nobody"):
            sky.search(query)
    with pytest.raises(UnknownObject, match="nobody"):
        sky.object("nobody")


def test_k_above_the_corpus_names_the_limits(sky: Sky) -> None:
    assert len(sky.search(Query(like=[object_id(0)], k=NUM_IMAGES))) == NUM_IMAGES - 1
    with pytest.raises(ValueError, match=rf"between 1 and {NUM_IMAGES}, .* got 1,000"):
        sky.search(Query(like=[object_id(0)], k=1000))
    with pytest.raises(ValueError, match=rf"between 1 and {NUM_WITH_SPECTRUM + 1},"):
        sky.search(Query(like=[object_id(0)], view="spectrum", k=NUM_IMAGES))


def test_excluded_objects_do_not_return(sky: Sky) -> None:
    first, second = sky.search(Query(like=[object_id(0)], k=2)).ids
    hits = sky.search(Query(like=[object_id(0)], k=1, exclude=[first]))
    assert hits.ids == (second,)


def test_the_seeds_own_view_is_searched(sky: Sky) -> None:
    assert sky.search(Query(like=[object_id(0)])).view == "image"
    hits = sky.search(Query(like=[SPECTRUM_ONLY]))
    assert hits.view == "spectrum"
    assert set(hits.ids) == {object_id(n) for n in range(NUM_WITH_SPECTRUM)}
    assert set(hits.table["survey"]) == {"sdss"}


def test_an_image_may_ask_for_spectra(sky: Sky) -> None:
    hits = sky.search(Query(like=[object_id(20)], view="spectrum"))
    assert hits.seed.view == "image"
    assert set(hits.ids) == {*map(object_id, range(NUM_WITH_SPECTRUM)), SPECTRUM_ONLY}
    assert set(hits.table["view"]) == {"spectrum"}


def test_seeds_without_a_common_view_ask_for_one(sky: Sky) -> None:
    query = Query(like=[object_id(20), SPECTRUM_ONLY])
    with pytest.raises(ValueError, match="no view in common"):
        sky.search(query)
    assert sky.search(Query(like=query.like, view="image", k=5)).view == "image"


def test_a_view_that_the_sky_lacks_is_named(sky: Sky) -> None:
    with pytest.raises(ValueError, match="no view 'xp', it has image, spectrum, joint"):
        sky.search(Query(like=[object_id(0)], view="xp"))


def test_any_view_finds_objects_of_every_view(sky: Sky) -> None:
    hits = sky.search(Query(like=[object_id(0)], view="any", k=sky.num_objects))
    assert len(hits) == sky.num_objects - 1
    assert SPECTRUM_ONLY in hits.ids
    both = hits.table[hits.table["object_id"] == object_id(2)]
    assert both["survey"].tolist() == ["legacysurvey,sdss"]


@pytest.mark.parametrize(
    "predicate",
    [
        "mag_r < 18",
        "redshift between 0.1 and 0.3",
        "not (redshift > 0.2)",
        "redshift > 0.2 or mag_r < 17",
        "redshift is null and ra_deg > 100",
        "redshift_source = 'sdss'",
    ],
)
def test_a_predicate_leaves_what_pandas_leaves(sky: Sky, predicate: str) -> None:
    whole = sky.search(Query(like=[object_id(0)])).table.to_pandas()
    redshift, mag_r = whole["redshift"], whole["mag_r"]
    oracle = {
        "mag_r < 18": mag_r < 18,
        "redshift between 0.1 and 0.3": redshift.between(0.1, 0.3),
        "not (redshift > 0.2)": redshift <= 0.2,  # NULL is neither
        "redshift > 0.2 or mag_r < 17": (redshift > 0.2) | (mag_r < 17),
        "redshift is null and ra_deg > 100": redshift.isna() & (whole["ra_deg"] > 100),
        "redshift_source = 'sdss'": whole["redshift_source"] == "sdss",
    }[predicate]
    expected = whole["object_id"][oracle.fillna(False).astype(bool)].tolist()
    assert 0 < len(expected) < len(whole)
    assert list(sky.search(Query(like=[object_id(0)], where=predicate)).ids) == expected


def test_a_predicate_that_nothing_meets_gives_an_empty_table(sky: Sky) -> None:
    hits = sky.search(Query(like=[object_id(0)], where="redshift > 100"))
    assert len(hits) == 0
    assert hits.num_searched == 0
    assert hits.to_json()["hits"] == []


@pytest.mark.parametrize("predicate", ["colour > 3", "mag_r <", "1; drop table objects"])
def test_a_bad_predicate_is_refused(sky: Sky, predicate: str) -> None:
    with pytest.raises(ValueError, match=r"colour|predicate|condition"):
        sky.search(Query(like=[object_id(0)], where=predicate))


@pytest.mark.parametrize(
    ("ra_deg", "dec_deg", "radius_arcsec"),
    [
        (150.0801, 2.0401, 5.0),
        (0.0, 10.0, 5.0),
        (359.9999, 10.0, 5.0),
        (100.0, 89.9999, 5.0),
        (201.0, 89.9996, 5.0),
        (188.73625, -0.208, 5.0),
    ],
)
def test_the_nearest_object_and_its_separation_are_astropys(
    sky: Sky, ra_deg: float, dec_deg: float, radius_arcsec: float
) -> None:
    ids = list(positions())
    sky_positions = SkyCoord(list(positions().values()), unit="deg")
    asked = SkyCoord(ra_deg, dec_deg, unit="deg")
    separations = asked.separation(sky_positions).arcsec
    assert separations.min() < radius_arcsec

    hits = sky.search(Query(position=(ra_deg, dec_deg), radius_arcsec=radius_arcsec, k=5))

    assert hits.seed.object_id == ids[int(separations.argmin())]
    assert hits.seed.separation_arcsec == pytest.approx(separations.min(), abs=1e-6)
    assert hits.seed.object_id not in hits.ids
    assert hits.num_without_position == len(PICTURES)


def test_minus_zero_degrees_find_the_southern_object(sky: Sky) -> None:
    hits = sky.search(Query(position="12 34 56.7 -00 12 30", k=1))
    assert hits.seed.object_id == object_id(44)
    with pytest.raises(OutsideFootprint):
        sky.search(Query(position="12 34 56.7 +00 12 30", k=1))


def test_inside_the_footprint_with_nothing_near_names_the_nearest(sky: Sky) -> None:
    name = object_id(0)
    ra_deg, dec_deg = positions()[name]
    away = SkyCoord(ra_deg, dec_deg, unit="deg").directional_offset_by(225 * u.deg, 20 * u.arcsec)
    with pytest.raises(NoObjectNear, match=rf"nearest is {name}, 20\.0 arcsec away") as caught:
        sky.search(Query(position=(float(away.ra.deg), float(away.dec.deg))))
    assert "2 of 49 objects have no position" in str(caught.value)
    near = Query(position=(float(away.ra.deg), float(away.dec.deg)), radius_arcsec=21, k=1)
    assert sky.search(near).seed.object_id == name


def test_outside_the_footprint_says_how_far(sky: Sky) -> None:
    with pytest.raises(OutsideFootprint, match=r"square degrees.* deg away"):
        sky.search(Query(position=(240.0, -60.0)))


def test_a_cone_keeps_what_lies_inside(sky: Sky) -> None:
    centre, radius_deg = (150.08, 2.04), 0.03
    sky_positions = SkyCoord(list(positions().values()), unit="deg")
    inside = SkyCoord(*centre, unit="deg").separation(sky_positions).deg <= radius_deg
    oracle = {name for name, near in zip(positions(), inside, strict=True) if near}
    hits = sky.search(Query(like=[object_id(39)], cone=(*centre, radius_deg)))
    assert set(hits.ids) == oracle - {object_id(39)}
    assert len(oracle) > 3
    assert hits.num_without_position == len(PICTURES)
    bright = sky.search(
        Query(like=[object_id(39)], cone=(*centre, radius_deg), where="mag_r < 17.5")
    )
    assert 0 < len(bright) < len(hits)
    assert set(bright.ids) < set(hits.ids)


def test_an_empty_cone_is_no_answer_only_outside_the_footprint(sky: Sky) -> None:
    ra_deg, dec_deg = positions()[object_id(0)]
    inside = Query(like=[object_id(3)], cone=(ra_deg, dec_deg - 0.01, 0.001))
    assert len(sky.search(inside)) == 0
    with pytest.raises(OutsideFootprint, match="outside the footprint"):
        sky.search(Query(like=[object_id(3)], cone=(240.0, -60.0, 1.0)))


def test_a_file_of_ones_own_finds_its_twin_in_the_sky(sky: Sky, tmp_path: Path) -> None:
    file = tmp_path / "mine.fits"
    write_cutout(file, 10.0, 10.0, seed=12)
    hits = sky.search(Query(file=file, survey="legacysurvey", k=3))
    assert hits.ids[0] == object_id(12)
    assert hits.scores[0] == pytest.approx(1, abs=1e-3)
    assert hits.seed.source == str(file)
    assert hits.num_without_position is None


def test_an_observation_of_ones_own_is_a_seed_too(sky: Sky, files: Files) -> None:
    (batch,) = reader("sdss").read(files.spectra / "3.fits")
    hits = sky.search(Query(observations=batch.observations, k=2))
    assert hits.view == "spectrum"
    assert hits.ids[0] == object_id(3)


def test_a_file_that_cannot_be_used_is_told_why(sky: Sky, tmp_path: Path) -> None:
    text = tmp_path / "text.fits"
    text.write_text("not FITS at all")
    with pytest.raises(ValueError, match=r"text\.fits"):
        sky.search(Query(file=text, survey="legacysurvey"))
    with pytest.raises(ValueError, match="is not a file"):
        sky.search(Query(file=tmp_path / "none.fits", survey="legacysurvey"))
    with pytest.raises(ValueError, match="unknown survey 'atlas'"):
        sky.search(Query(file=text, survey="atlas"))


def test_vectors_are_of_unit_length(sky: Sky, files: Files) -> None:
    observations = sky.observations(object_id(0))
    vectors = sky.embed(observations)
    assert vectors.shape == (2, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="has no view spectrum"):
        sky.embed(observations[:1], view="spectrum")


def test_an_object_is_a_line_of_the_table_with_none_for_unknown(sky: Sky) -> None:
    line = sky.object(object_id(2))
    assert line["object_id"] == object_id(2)
    assert line["ra_deg"] == pytest.approx(positions()[object_id(2)][0], abs=1e-6)
    assert line["redshift"] == pytest.approx(0.15)
    assert set(str(line["views"]).split(",")) == {"image", "spectrum", "joint"}
    assert sky.object("disc")["ra_deg"] is None
    assert sky.object(object_id(30))["redshift"] is None


def test_observations_are_read_again_from_their_files(sky: Sky, files: Files) -> None:
    image, spectrum = sky.observations(object_id(4))
    (batch,) = reader("legacysurvey").read(files.cutouts / f"{object_id(4)}.fits")
    assert image.image is not None
    assert batch.observations[0].image is not None
    np.testing.assert_array_equal(image.image.flux, batch.observations[0].image.flux)
    assert spectrum.spectrum is not None
    assert [one.survey for one in sky.observations(object_id(4), view="spectrum")] == ["sdss"]


def test_a_source_that_is_gone_is_named(files: Files, tmp_path: Path) -> None:
    file = tmp_path / "cutouts" / "gone.fits"
    file.parent.mkdir()
    write_cutout(file, 10.0, 10.0, seed=1)
    build(tmp_path / "sky", [file], survey="legacysurvey", encoder=files.encoder, num_workers=0)
    sky = discovery.open(tmp_path / "sky")
    assert len(sky.observations("gone")) == 1
    file.unlink()
    with pytest.raises(SourceGone, match=r"gone.*cutouts/gone\.fits"):
        sky.observations("gone")


def test_refresh_moves_on_to_a_new_version(files: Files, tmp_path: Path) -> None:
    sources = tmp_path / "cutouts"
    sources.mkdir()
    for n in range(2):
        write_cutout(sources / f"{n}.fits", 10.0 + n, 10.0, seed=n)
    folder = tmp_path / "sky"
    build(folder, [sources], survey="legacysurvey", encoder=files.encoder, num_workers=0)
    sky = discovery.open(folder)
    assert not sky.refresh()
    write_cutout(sources / "2.fits", 13.0, 10.0, seed=2)
    build(folder, [sources], survey="legacysurvey", encoder=files.encoder, num_workers=0)
    assert sky.num_objects == 2  # what is open does not change by itself
    assert sky.refresh()
    assert sky.num_objects == 3
    assert set(sky.search(Query(like=["2"])).ids) == {"0", "1"}


def test_a_changed_encoder_is_refused(files: Files, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(files.encoder, encoder)
    file = tmp_path / "one.fits"
    write_cutout(file, 10.0, 10.0, seed=1)
    build(tmp_path / "sky", [file], survey="legacysurvey", encoder=encoder, num_workers=0)
    shutil.rmtree(encoder)
    write_encoder(encoder, seed=1)
    sky = discovery.open(tmp_path / "sky")
    with pytest.raises(discovery.EncoderMismatch, match="build the sky again"):
        sky.search(Query(file=file, survey="legacysurvey"))


def test_a_random_bright_object_is_bright_and_repeatable(sky: Sky) -> None:
    magnitudes = [sky.object(name)["mag_r"] for name in positions()]
    tenth = sorted(float(str(value)) for value in magnitudes)[round(0.1 * NUM_IMAGES) - 1]
    chosen = {sky.random_bright(seed) for seed in range(20)}
    assert len(chosen) > 1
    assert all(float(str(sky.object(name)["mag_r"])) <= tenth for name in chosen)
    assert sky.random_bright(5) == sky.random_bright(5)


@pytest.mark.parametrize("name", ["nowhere", "empty", "https://skies.example.org:8765"])
def test_a_folder_that_is_no_sky_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotASky, match="expected a sky made by"):
        discovery.open(tmp_path / name)
