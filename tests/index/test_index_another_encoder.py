"""Another encoder: everything is made again beside the published version, or nothing is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from index.errors import EncoderMismatch, GateRefused
from index.nightly import nightly
from index.versions import current_number, numbers, open_version, rollback, verify
from tests.index.conftest import Builder, write_cutout, write_encoder, write_spectrum
from tests.index.test_index_nightly import answers, config_of, ids, same


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another encoder than that of the tests."""
    folder = tmp_path_factory.mktemp("other") / "other"
    write_encoder(folder, seed=5)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three cutouts, of one of which there is a spectrum."""
    folder = tmp_path / "files"
    for seed, name in enumerate(("123", "b", "c")):
        write_cutout(folder / "cutouts" / f"{name}.fits", seed)
    write_spectrum(folder / "spectra" / "s.fits", "123", redshift=0.25)
    return folder


def test_everything_is_made_again_beside_the_published_version(
    tmp_path: Path, files: Path, encoder: Path, other: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    places = (("legacysurvey", files / "cutouts"), ("sdss", files / "spectra"))
    nightly(sky, config_of(encoder, *places))
    before, old = open_version(sky), answers(sky)
    write_cutout(files / "cutouts" / "a.fits", 9)
    (files / "cutouts" / "c.fits").unlink()

    report = nightly(sky, config_of(other, *places))

    assert (report.outcome, report.version, report.num_embedded) == ("published", 2, 4)
    assert report.objects_came.names == ("a",)
    assert report.objects_went.names == ("c",)
    removed = {gate.name: gate.measured for gate in report.gates}
    assert removed["removed rows of view image"] == pytest.approx(1 / 3)
    assert removed["removed rows of view spectrum"] == 0
    after = open_version(sky)
    assert after.encoder.hash != before.encoder.hash
    assert after.keys_of(["123", "b"]).tolist() == before.keys_of(["123", "b"]).tolist()
    fresh = tmp_path / "fresh"
    into(fresh, files / "cutouts", "legacysurvey", encoder=other)
    into(fresh, files / "spectra", "sdss", encoder=other)
    same(answers(sky), answers(fresh))
    assert not verify(sky).problems
    assert before.search(before.vectors(np.array([0]), "image"), view="image", k=1).keys == [[0]]

    assert nightly(sky, config_of(other, *places, keep_versions=1)).outcome == "unchanged"
    assert into(sky, files / "cutouts", "legacysurvey", encoder=None).published is False
    assert rollback(sky, 1) == 1  # held by a reader, so it was not pruned
    assert answers(sky) == old
    with pytest.raises(EncoderMismatch):  # the sky's encoder is that of what is published
        into(sky, files / "cutouts", "legacysurvey", encoder=other)
    again = into(sky, files / "cutouts", "legacysurvey", encoder=None)
    assert (again.version, open_version(sky).encoder.hash) == (3, before.encoder.hash)
    assert not verify(sky).problems


def test_what_cannot_be_read_again_keeps_the_old_version(
    tmp_path: Path, files: Path, encoder: Path, other: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    places = (("legacysurvey", files / "cutouts"), ("sdss", files / "spectra"))
    nightly(sky, config_of(encoder, *places))
    (files / "spectra").rename(tmp_path / "away")

    with pytest.raises(GateRefused, match="1 files cannot be read again"):
        nightly(sky, config_of(other, *places, max_removed_share=1.0))

    assert (current_number(sky), numbers(sky)) == (1, [1])
    assert ids(open_version(sky)) == ["123", "b", "c"]
    write_cutout(files / "cutouts" / "d.fits", 8)
    assert into(sky, files / "cutouts", "legacysurvey", encoder=None).num_embedded == 1
    assert not verify(sky).problems


def test_an_encoder_that_changed_in_its_place_is_not_mixed_in(
    tmp_path: Path, files: Path, encoder: Path, other: Path
) -> None:
    sky, mine = tmp_path / "sky", tmp_path / "mine"
    shutil.copytree(encoder, mine)
    place = ("legacysurvey", files / "cutouts")
    nightly(sky, config_of(mine, place))
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    write_cutout(files / "cutouts" / "d.fits", 8)

    unnamed = config_of(mine, place).sources
    from index.nightly_config import NightlyConfig

    with pytest.raises(EncoderMismatch, match="mine"):
        nightly(sky, NightlyConfig(sources=unnamed, num_workers=0))

    assert current_number(sky) == 1
    assert len(list((sky / "store").iterdir())) == 1
