"""Builds from readers of whole tables: files read with another, rows without pixels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.inputs import read_inputs
from index.versions import open_version
from tests.index.conftest import Builder
from tests.training.legacy_files import positions, write_coadds, write_table
from training.surveys import companions

COADD = "coadd-4-80613-thru20210324.fits"
REDROCK = "redrock-4-80613-thru20210324.fits"


@pytest.fixture
def spectra(tmp_path: Path, shared_data: Path) -> Path:
    """A folder with one real DESI coadd, without its redshifts."""
    folder = tmp_path / "spectra"
    folder.mkdir()
    shutil.copyfile(shared_data / "desi_spectra" / COADD, folder / COADD)
    return folder


def redshifts(sky: Path) -> dict[str, float | None]:
    table = open_version(sky).table
    return dict(zip(table["object_id"].to_pylist(), table["redshift"].to_pylist(), strict=True))


def test_redshifts_that_come_later_are_read(
    tmp_path: Path, spectra: Path, shared_data: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    first = into(sky, spectra, "desi")
    assert first.num_embedded == first.num_objects > 0
    assert set(redshifts(sky).values()) == {None}

    shutil.copyfile(shared_data / "desi_spectra" / REDROCK, spectra / REDROCK)
    second = into(sky, spectra, "desi")

    assert second.published
    assert second.num_objects == first.num_objects
    found = redshifts(sky)
    assert set(found) == {"9011-607466-2657"}
    assert found["9011-607466-2657"] == pytest.approx(0.3687, abs=5e-5)
    third = into(sky, spectra, "desi")
    assert (third.version, third.num_embedded, third.published) == (second.version, 0, False)


def test_a_touched_companion_is_hashed_and_changes_nothing(
    tmp_path: Path, spectra: Path, shared_data: Path, into: Builder
) -> None:
    shutil.copyfile(shared_data / "desi_spectra" / REDROCK, spectra / REDROCK)
    sky = tmp_path / "sky"
    into(sky, spectra, "desi")
    known = read_inputs(sky / open_version(sky).manifest.inputs)[("desi", str(spectra / COADD))]
    assert [each.path for each in known.companions] == [str(spectra / REDROCK)]
    others = tuple(map(str, companions("desi", spectra / COADD)))
    assert known.unchanged(others)

    os.utime(spectra / REDROCK, (1, 1))
    assert not known.unchanged(others)
    again = into(sky, spectra, "desi")

    assert again.num_embedded == 0
    (spectra / REDROCK).unlink()
    into(sky, spectra, "desi")
    assert set(redshifts(sky).values()) == {None}


def test_a_table_that_the_encoder_cannot_read_is_one_line(
    tmp_path: Path, shared_data: Path, into: Builder
) -> None:
    gaia = shared_data / "gaia_xp" / "XP_CONTINUOUS_RAW_with_missing_BP.csv"
    tractor = shared_data / "desi_spectra" / "tractor-1054p567.fits"
    cutouts = shared_data / "legacysurvey_fits_cutouts" / "temp_small.fits"
    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")

    (stars,) = into(sky, gaia, "gaia").skipped
    (one,) = into(sky, tractor, "legacysurvey").skipped

    first = "5853498713190525696: the encoder has no view for it (xp), nor for 2 more"
    assert (stars.file, stars.reason) == (str(gaia), first)
    assert one.reason.startswith("9011-607466-2657: the encoder has no view for it (catalogue")


def test_a_new_line_in_a_table_embeds_one_object(tmp_path: Path, into: Builder) -> None:
    survey, sky = tmp_path / "survey", tmp_path / "sky"
    write_coadds(survey)
    rows = positions(np.array([[110.0, 120.0], [200.0, 300.0], [310.0, 160.0]]))
    table = write_table(survey / "tractor-1234p056.fits", rows[:2])
    first = into(sky, survey, "legacysurvey")
    assert (first.num_objects, first.num_embedded) == (2, 2)

    write_table(table, [rows[2], *rows[:2]])
    second = into(sky, survey, "legacysurvey")

    assert (second.num_objects, second.num_embedded) == (3, 1)
    assert sorted(redshifts(sky)) == [f"9010-345678-{number}" for number in range(3)]
