"""The simulated survey on disk: exact counts, one sky per seed, nothing half made."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord

from training import surveys
from training.observations import Observation
from training.surveys import simulated
from training.surveys.simulated import clear_sky
from training.surveys.simulated_sky import plan

SMALL = clear_sky(
    num_objects=10, seed=3, merger=0.1, lens=0.1, spectrum_fraction=0.5, shard_objects=4
)


def read_all(folder: Path, batch_size: int = 64) -> list[Observation]:
    found: list[Observation] = []
    for file in simulated.list_files(folder):
        for batch in simulated.read(file, batch_size=batch_size):
            assert not batch.skipped
            found.extend(batch.observations)
    return found


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated.simulate(SMALL, tmp_path_factory.mktemp("skies") / "sky", num_workers=1)


def test_counts_of_each_class_are_exact() -> None:
    counts = Counter(plan(clear_sky(num_objects=2000)).kinds)

    assert counts == {
        "spiral": 500,
        "merger": 40,
        "lens": 20,
        "edge_on": 280,
        "star": 200,
        "irregular": 160,
        "lenticular": 240,
        "elliptical": 560,
    }


def test_shares_of_spectra_and_of_the_i_band_are_exact() -> None:
    layout = plan(clear_sky(num_objects=1000, spectrum_fraction=0.4, i_band_fraction=0.7))

    assert layout.has_spectrum.sum() == 400
    assert layout.has_i.sum() == 700
    assert 200 < (layout.has_spectrum & layout.has_i).sum() < 360  # dealt out independently


def test_positions_lie_in_the_patch_and_apart() -> None:
    config = clear_sky(num_objects=3000, half_width_deg=0.5, min_separation_arcsec=8.0)
    layout = plan(config)
    places = SkyCoord(layout.ra_deg, layout.dec_deg, unit="deg")

    _, separation, _ = places.match_to_catalog_sky(places, nthneighbor=2)

    assert separation.arcsec.min() >= 8.0
    assert np.abs(layout.dec_deg - 2).max() <= 0.5
    assert np.abs(layout.ra_deg - 150).max() <= 0.51
    assert np.mean(layout.ra_deg > 150) == pytest.approx(0.5, abs=0.03)


def test_a_patch_across_zero_hours_keeps_right_ascensions_in_range() -> None:
    ra_deg = plan(clear_sky(num_objects=200, ra_deg=0.0)).ra_deg

    assert ((ra_deg >= 0) & (ra_deg < 360)).all()
    assert (ra_deg > 350).any()
    assert (ra_deg < 10).any()


def test_too_many_objects_for_the_patch_are_refused() -> None:
    config = clear_sky(num_objects=500, half_width_deg=0.01, min_separation_arcsec=10.0)

    with pytest.raises(ValueError, match="do not fit"):
        plan(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_objects": 0}, "num_objects must be 1 or more, got 0"),
        ({"shard_objects": 0}, "shard_objects"),
        ({"seed": -1}, "seed"),
        ({"spiral": 0.9, "star": 0.4}, "more than 1"),
        ({"lens": -0.1}, "lens must lie in 0 to 1, got -0.1"),
        ({"spectrum_fraction": 1.5}, "spectrum_fraction"),
        ({"dec_deg": 88.0}, "within 80 degrees"),
        ({"min_separation_arcsec": -1.0}, "min_separation_arcsec"),
    ],
)
def test_an_impossible_sky_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clear_sky(**changes)


def test_labels_tell_the_classes(sky: Path) -> None:
    labels = pd.read_csv(sky / "labels.csv", dtype={"object_id": str})
    kinds = simulated.kinds(SMALL)

    assert list(labels.columns) == ["object_id", *simulated.LABELS]
    assert list(labels.object_id) == [f"sim-3-{k:06d}" for k in range(10)]
    for name, counted in simulated.LABEL_KINDS.items():
        assert list(labels[name]) == [int(kind in counted) for kind in kinds]
    assert labels.lens.sum() == 1
    assert set(labels.barred) == {0, 1}  # some spirals have bars, nothing round has
    assert not labels.barred[labels.elliptical == 1].any()


def test_what_is_read_is_what_was_drawn(sky: Path) -> None:
    drawn = list(simulated.draw(SMALL))
    found = read_all(sky)

    assert [o.object_id for o in found] == [o.object_id for o in drawn]
    for one, other in zip(found, drawn, strict=True):
        assert one.fingerprint == other.fingerprint
        assert one.scalars == other.scalars
        assert one.catalogue == other.catalogue
        assert (one.ra_deg, one.dec_deg) == (other.ra_deg, other.dec_deg)
        assert one.image is not None
        assert other.image is not None
        assert one.image.bands == other.image.bands
        np.testing.assert_array_equal(one.image.flux, other.image.flux)
        np.testing.assert_array_equal(one.image.ivar, other.image.ivar)
        np.testing.assert_array_equal(one.image.mask, other.image.mask)
        assert one.object_mask is not None
        assert other.object_mask is not None
        np.testing.assert_array_equal(one.object_mask.value, other.object_mask.value)
        assert one.ellipses is not None
        assert other.ellipses is not None
        np.testing.assert_array_equal(one.ellipses.x, other.ellipses.x)
        np.testing.assert_array_equal(one.ellipses.shape_e1, other.ellipses.shape_e1)
        assert (one.spectrum is None) == (other.spectrum is None)
        if one.spectrum is not None and other.spectrum is not None:
            np.testing.assert_array_equal(one.spectrum.flux, other.spectrum.flux)
            np.testing.assert_array_equal(
                one.spectrum.wavelength_angstrom, other.spectrum.wavelength_angstrom
            )


def test_one_object_depends_on_its_number_only() -> None:
    (alone,) = simulated.draw(SMALL, [7])
    other_size = replace(SMALL, shard_objects=3)

    assert alone.fingerprint == list(simulated.draw(other_size))[7].fingerprint


def test_another_seed_is_another_sky() -> None:
    (one,) = simulated.draw(SMALL, [0])
    (other,) = simulated.draw(replace(SMALL, seed=4), [0])

    assert one.image is not None
    assert other.image is not None
    assert one.image.flux.shape[1:] == other.image.flux.shape[1:]
    assert not np.array_equal(one.image.flux[0], other.image.flux[0])


def test_a_number_outside_the_sky_is_refused() -> None:
    with pytest.raises(ValueError, match="object number must lie in 0 to 9, got 10"):
        list(simulated.draw(SMALL, [10]))


def test_two_processes_write_the_same_sky_as_one(sky: Path, tmp_path: Path) -> None:
    other = simulated.simulate(SMALL, tmp_path / "sky", num_workers=2)

    names = [file.name for file in simulated.list_files(sky)]
    assert names == ["shard-0000.hdf5", "shard-0001.hdf5", "shard-0002.hdf5"]
    assert [file.name for file in simulated.list_files(other)] == names
    for name in names:
        with h5py.File(sky / name) as one, h5py.File(other / name) as two:
            assert set(one) == set(two)
            for column in one:
                np.testing.assert_array_equal(one[column][:], two[column][:])
    assert (sky / "labels.csv").read_bytes() == (other / "labels.csv").read_bytes()


def test_observations_say_what_the_survey_measured(sky: Path) -> None:
    found = read_all(sky)

    assert sum(o.spectrum is not None for o in found) == 5
    assert sum("DES-I" in o.image.bands for o in found if o.image is not None) == 7
    kinds = dict(zip([o.object_id for o in found], simulated.kinds(SMALL), strict=True))
    for o in found:
        assert o.survey == "simulated"
        assert o.calibrated
        assert o.source_part == o.object_id == o.source_id
        assert Path(o.source).is_file()
        assert o.image is not None
        assert o.image.flux.shape[1:] == (96, 96)
        assert ("tok_z" in o.scalars) == (o.spectrum is not None) == ("redshift" in o.catalogue)
        assert ("tok_flux_i" in o.scalars) == ("DES-I" in o.image.bands)
        assert ("tok_shape_r" in o.scalars) == (kinds[o.object_id] != "star")
        mag_r, flux_r = o.catalogue["mag_r"], o.catalogue["flux_r_nmgy"]
        assert isinstance(mag_r, float)
        assert flux_r == pytest.approx(10 ** (0.4 * (22.5 - mag_r)))
        if o.spectrum is not None:
            assert o.catalogue["redshift_source"] == "simulated"
            is_star = kinds[o.object_id] == "star"
            assert o.catalogue["spectrum_class"] == ("STAR" if is_star else "GALAXY")


def test_batch_size_changes_nothing(sky: Path) -> None:
    threes = [o.fingerprint for o in read_all(sky, batch_size=3)]

    assert threes == [o.fingerprint for o in read_all(sky)]


def test_one_object_is_read_again_by_its_id(sky: Path) -> None:
    wanted = read_all(sky)[6]

    again = simulated.read_one(Path(wanted.source), wanted.source_part)

    assert again.fingerprint == wanted.fingerprint
    with pytest.raises(ValueError, match="no object 'sim-3-999999'"):
        simulated.read_one(Path(wanted.source), "sim-3-999999")


def test_the_survey_is_known_by_its_name() -> None:
    assert surveys.reader("simulated").list_files is simulated.list_files


def test_a_complete_sky_is_not_made_again(tmp_path: Path) -> None:
    config = replace(SMALL, num_objects=3)
    folder = simulated.simulate(config, tmp_path / "sky", num_workers=1)
    before = (folder / "shard-0000.hdf5").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []

    simulated.simulate(
        config, folder, num_workers=1, progress=lambda done, of: calls.append((done, of))
    )

    assert (folder / "shard-0000.hdf5").stat().st_mtime_ns == before
    assert calls == [(3, 3)]


def test_a_sky_of_another_config_is_replaced(tmp_path: Path) -> None:
    config = replace(SMALL, num_objects=6)
    simulated.simulate(config, tmp_path / "sky", num_workers=1)

    simulated.simulate(replace(config, num_objects=2), tmp_path / "sky", num_workers=1)

    assert len(read_all(tmp_path / "sky")) == 2
    assert len(list((tmp_path / "sky").glob("*.hdf5"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sky"]


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_sky_is_not_taken_for_a_whole_one(tmp_path: Path, num_workers: int) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulated.simulate(SMALL, tmp_path / "sky", num_workers=num_workers, progress=stop)
    assert not list(tmp_path.iterdir())

    progress: list[int] = []
    simulated.simulate(
        SMALL, tmp_path / "sky", num_workers=1, progress=lambda done, _: progress.append(done)
    )
    assert progress == [4, 8, 10]
    assert len(read_all(tmp_path / "sky")) == 10


def test_a_sky_without_its_config_is_made_again(tmp_path: Path) -> None:
    config = replace(SMALL, num_objects=2)
    folder = simulated.simulate(config, tmp_path / "sky", num_workers=1)
    (folder / "config.json").unlink()
    (folder / "shard-0000.hdf5").write_bytes(b"half written")

    simulated.simulate(config, folder, num_workers=1)

    assert len(read_all(folder)) == 2


def test_a_sky_left_behind_by_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".sky.partial"
    left.mkdir()
    (left / "shard-0000.hdf5").write_bytes(b"half written")

    simulated.simulate(replace(SMALL, num_objects=2), tmp_path / "sky", num_workers=1)

    assert not left.exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(ValueError, match=r"holds 'thesis.tex'"):
        simulated.simulate(SMALL, tmp_path, num_workers=1)

    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("content", [b"", b"just text\n", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_a_file_that_is_no_shard_is_skipped_with_a_reason(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.hdf5"
    file.write_bytes(content)

    (batch,) = simulated.read(file)

    assert not batch.observations
    assert batch.skipped[0].file == str(file)
    assert "not a readable shard" in batch.skipped[0].reason
    with pytest.raises(ValueError, match="not a readable shard"):
        simulated.read_one(file, "sim-3-000000")


def test_a_foreign_hdf5_file_is_skipped_with_the_column_it_lacks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["object_id"] = np.array([b"a", b"b"])

    (batch,) = simulated.read(tmp_path / "other.hdf5")

    assert "expected a column 'ra'" in batch.skipped[0].reason


def test_a_bad_row_is_skipped_and_the_others_are_read(sky: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shard-0000.hdf5"
    copy.write_bytes((sky / "shard-0000.hdf5").read_bytes())
    with h5py.File(copy, "r+") as shard:
        shard["image_array"][1] = np.nan

    (batch,) = simulated.read(copy)

    assert len(batch.observations) == 3
    assert batch.skipped[0].reason.startswith("row 1: image holds NaN")


def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty folder"):
        simulated.list_files(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        simulated.list_files(tmp_path / "nowhere")
