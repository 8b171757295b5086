"""Builds: what is read, what is embedded, what becomes one object."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray
from PIL import Image as Picture

from index import compaction, embedding, updating
from index.building import build
from index.errors import EncoderMismatch, NotASky, SkyBusy
from index.versions import Version, numbers, open_version, verify
from tests.index.conftest import Builder, write_cutout, write_encoder, write_spectrum
from training import encoder as encoders
from training.observations import merge
from training.surveys import reader

CLOSE = 1e-4  # a search vector is rounded to float16; objects differ by 1e-3 and more


def stored(vectors: ndarray) -> ndarray:
    """Encoder vectors as the store keeps them."""
    return vectors.astype(np.float16).astype(np.float32)


def ids(version: Version) -> list[str]:
    return version.table["object_id"].to_pylist()


def write_picture(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (120, 120, 3), dtype=np.uint8)
    Picture.fromarray(pixels).save(file)
    return file


def views_of(version: Version) -> dict[str, list[str]]:
    table = version.table
    return dict(zip(table["object_id"].to_pylist(), table["views"].to_pylist(), strict=True))


@pytest.fixture
def cutouts(tmp_path: Path) -> Path:
    """Three cutouts, one of them in a folder below."""
    folder = tmp_path / "cutouts"
    for seed, name in enumerate(("a", "b", "deep/c")):
        write_cutout(folder / f"{name}.fits", seed, position=(150 + seed, 2.0))
    return folder


def test_search_vectors_are_those_of_the_encoder(
    tmp_path: Path, cutouts: Path, encoder: Path, into: Builder
) -> None:
    report = into(tmp_path / "sky", cutouts, "legacysurvey")
    version = open_version(tmp_path / "sky")
    loaded = encoders.load(encoder)

    assert (report.num_objects, report.num_rows, report.num_embedded) == (3, 6, 3)
    assert ids(version) == ["a", "b", "c"]
    for key, name in enumerate(("a", "b", "deep/c")):
        seen = reader("legacysurvey").read_one(cutouts / f"{name}.fits", "")
        embedded = loaded.embed([seen])
        for view, vector in zip(embedded.views, embedded.vectors, strict=True):
            want = loaded.search_vectors(stored(vector[None]), view)
            np.testing.assert_allclose(version.vectors(np.array([key]), view), want, atol=CLOSE)
            other = version.vectors(np.array([(key + 1) % 3]), view)
            assert np.abs(other - want).max() > 1e-3  # so that a mix-up would show


def test_the_object_table_has_what_the_reader_saw(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    into(tmp_path / "sky", cutouts, "legacysurvey")
    line = open_version(tmp_path / "sky").objects(np.array([2])).to_pylist()[0]
    seen = reader("legacysurvey").read_one(cutouts / "deep/c.fits", "")

    assert line["object_id"] == "c"
    assert (line["ra_deg"], line["dec_deg"]) == (seen.ra_deg, seen.dec_deg)
    for name, value in seen.catalogue.items():
        assert line[name] == value
    assert line["redshift"] is None
    assert line["views"] == ["image", "joint"]


def test_a_second_build_reads_and_embeds_nothing(
    tmp_path: Path, cutouts: Path, into: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    for file in cutouts.rglob("*.fits"):
        file.chmod(0)  # root reads it all the same, so the reader is watched too
    monkeypatch.setattr(updating, "find_changes", _nothing_was_read)

    report = into(sky, cutouts, "legacysurvey")

    assert (report.version, report.num_embedded, report.published) == (1, 0, False)
    assert numbers(sky) == [1]


def _nothing_was_read(read: object, **options: object) -> object:
    assert read is None
    from index.changes import find_changes

    return find_changes(None, **options)  # type: ignore[arg-type]


def test_one_more_file_embeds_one(tmp_path: Path, cutouts: Path, into: Builder) -> None:
    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    before = open_version(sky)
    write_cutout(cutouts / "0.fits", 9)

    report = into(sky, cutouts, "legacysurvey")

    assert (report.version, report.num_embedded, report.num_objects) == (2, 1, 4)
    assert ids(open_version(sky)) == ["a", "b", "c", "0"]  # keys that were given stay
    assert ids(before) == ["a", "b", "c"]


def test_a_build_without_current_adds_to_the_newest_version(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    write_cutout(tmp_path / "more" / "d.fits", 9)
    (sky / "CURRENT").unlink()

    more = into(sky, tmp_path / "more", "legacysurvey")

    assert (more.version, more.num_embedded, more.published) == (2, 1, True)
    assert ids(open_version(sky)) == ["a", "b", "c", "d"]

    (sky / "CURRENT").unlink()

    again = into(sky, cutouts, "legacysurvey")

    assert (again.version, again.num_embedded, again.published) == (2, 0, True)
    assert ids(open_version(sky)) == ["a", "b", "c", "d"]


def test_a_touched_file_is_hashed_and_a_copied_one_is_not_embedded_again(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    os.utime(cutouts / "a.fits")
    shutil.move(cutouts / "b.fits", cutouts / "deep" / "b.fits")

    report = into(sky, cutouts, "legacysurvey")
    rows = open_version(sky).rows(np.array([1])).to_pylist()

    assert (report.num_embedded, report.num_objects, report.num_rows) == (0, 3, 6)
    assert {row["source"] for row in rows} == {str(cutouts / "deep" / "b.fits")}
    assert into(sky, cutouts, "legacysurvey").published is False


def test_a_changed_file_gets_a_new_row_and_the_old_one_is_deleted(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    before = open_version(sky)
    write_cutout(cutouts / "b.fits", 77, position=(10.0, -3.0))

    report = into(sky, cutouts, "legacysurvey")
    after = open_version(sky)

    assert (report.num_embedded, report.num_objects, report.num_rows) == (1, 3, 6)
    assert ids(after) == ids(before)
    assert abs(after.table["ra_deg"][1].as_py() - 10) < 1e-3
    assert sum(record.num_deleted for record in after.manifest.segments) == 2
    key = np.array([1])
    old, new = before.vectors(key, "image"), after.vectors(key, "image")
    assert np.abs(old - new).max() > 1e-2
    found = after.search(old, view="image", k=3)
    assert sorted(found.keys[0]) == [0, 1, 2]  # the deleted row does not come back as a second 1
    np.testing.assert_array_equal(before.vectors(key, "image"), old)  # who reads the old keeps it
    assert not verify(sky).problems


def test_a_file_that_went_bad_or_away_loses_nothing(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    (cutouts / "a.fits").write_text("no FITS at all")
    (cutouts / "b.fits").unlink()

    report = into(sky, cutouts, "legacysurvey")

    assert report.num_objects == 3
    assert [skipped.file for skipped in report.skipped] == [str(cutouts / "a.fits")]


def test_bad_files_are_listed_every_time_and_the_rest_is_published(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    (cutouts / "broken.fits").write_bytes((cutouts / "a.fits").read_bytes()[:4000])
    (cutouts / "text.fits").write_text("hello")
    for _ in range(2):
        report = into(tmp_path / "sky", cutouts, "legacysurvey")

        assert report.num_objects == 3
        assert [Path(skipped.file).name for skipped in report.skipped] == [
            "broken.fits",
            "text.fits",
        ]
        assert all(skipped.reason for skipped in report.skipped)


def test_a_pipe_and_a_name_that_is_not_utf8_do_not_stop_the_build(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    os.mkfifo(cutouts / "pipe.fits")
    content = (cutouts / "a.fits").read_bytes()
    Path(os.fsdecode(os.fsencode(cutouts) + b"/\xff.fits")).write_bytes(content)

    report = into(tmp_path / "sky", cutouts, "legacysurvey")

    assert report.num_objects == 3
    reasons = {Path(skipped.file).name: skipped.reason for skipped in report.skipped}
    assert "expected a regular file, got a pipe" in reasons["pipe.fits"]
    assert "its name is not UTF-8" in reasons["\\udcff.fits"]


def test_only_bad_files_publish_nothing(tmp_path: Path, into: Builder) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "text.fits").write_text("hello")

    with pytest.raises(ValueError, match=r"no usable object in 1 files: .*text\.fits"):
        into(tmp_path / "sky", folder, "legacysurvey")
    assert not (tmp_path / "sky" / "CURRENT").exists()

    write_cutout(folder / "good.fits", 1)
    assert into(tmp_path / "sky", folder, "legacysurvey").version == 1


def test_the_same_id_twice_keeps_the_first_in_path_order(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    write_cutout(cutouts / "deep" / "a.fits", 50)  # "a.fits" comes first
    for _ in range(2):
        report = into(sky, cutouts, "legacysurvey")

        (skipped,) = report.skipped
        assert skipped.file == str(cutouts / "deep" / "a.fits")
        assert "'a'" in skipped.reason
        assert str(cutouts / "a.fits") in skipped.reason
        assert report.num_objects == 3
    write_cutout(cutouts / "0" / "a.fits", 51)  # earlier in path order, but later to come
    assert len(into(sky, cutouts, "legacysurvey").skipped) == 2
    rows = open_version(sky).rows(np.array([0]))
    assert set(rows["source"].to_pylist()) == {str(cutouts / "a.fits")}


def test_another_release_is_another_row_of_the_same_object(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    write_cutout(cutouts / "dr10" / "a.fits", 50, release="DR10")
    report = into(tmp_path / "sky", cutouts, "legacysurvey")
    version = open_version(tmp_path / "sky")

    assert (report.num_objects, report.num_rows, report.skipped) == (3, 8, ())
    rows = version.rows(np.array([0])).filter(
        np.array(version.rows(np.array([0]))["view"].to_pylist()) == "image"
    )
    assert sorted(rows["release"].to_pylist()) == ["DR10", "DR9"]
    found = version.search(version.vectors(np.array([1]), "image"), view="image", k=5)
    assert sorted(found.keys[0].tolist()) == [-1, -1, 0, 1, 2]  # an object is found once


def test_image_and_spectrum_of_two_surveys_become_one_object(
    tmp_path: Path, encoder: Path, into: Builder
) -> None:
    sky, pictures, spectra = tmp_path / "sky", tmp_path / "pictures", tmp_path / "spectra"
    write_picture(pictures / "123.png", 1)
    write_picture(pictures / "456.png", 2)
    write_spectrum(spectra / "s.fits", "123", redshift=0.25)
    into(sky, pictures, "composite")

    report = into(sky, spectra, "sdss")
    version = open_version(sky)

    assert (report.num_objects, report.num_embedded, report.num_joint) == (2, 1, 1)
    assert views_of(version) == {"123": ["image", "joint", "spectrum"], "456": ["image"]}
    line = version.table.to_pylist()[0]
    assert (line["redshift"], line["redshift_source"]) == (pytest.approx(0.25), "sdss")
    parts = [
        reader("sdss").read_one(spectra / "s.fits", ""),
        reader("composite").read_one(pictures / "123.png", ""),
    ]
    loaded = encoders.load(encoder)
    embedded = loaded.embed([merge(parts)], views=("joint",))
    want = loaded.search_vectors(stored(embedded.vectors), "joint")
    np.testing.assert_allclose(version.vectors(np.array([0]), "joint"), want, atol=CLOSE)
    again = into(sky, spectra, "sdss")
    assert (again.published, again.num_embedded, again.num_joint) == (False, 0, 0)


def test_which_survey_comes_first_does_not_matter(tmp_path: Path, into: Builder) -> None:
    pictures, spectra = tmp_path / "pictures", tmp_path / "spectra"
    write_picture(pictures / "123.png", 1)
    write_spectrum(spectra / "s.fits", "123")
    sources = {"composite": pictures, "sdss": spectra}
    for sky, order in (("one", ("composite", "sdss")), ("two", ("sdss", "composite"))):
        for survey in order:
            into(tmp_path / sky, sources[survey], survey)
    one, two = (open_version(tmp_path / sky) for sky in ("one", "two"))

    assert one.table.equals(two.table)
    key = np.array([0])
    np.testing.assert_array_equal(one.vectors(key, "joint"), two.vectors(key, "joint"))


def test_the_same_name_in_two_image_surveys_is_two_objects(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    sky, pictures = tmp_path / "sky", tmp_path / "pictures"
    write_picture(pictures / "a.png", 1)
    write_picture(pictures / "z.png", 2)
    into(sky, cutouts, "legacysurvey")
    into(sky, pictures, "composite")

    assert ids(open_version(sky)) == ["a", "b", "c", "composite:a", "z"]
    write_picture(pictures / "a.png", 3)
    into(sky, pictures, "composite")
    assert ids(open_version(sky)) == ["a", "b", "c", "composite:a", "z"]


def write_crops(file: Path, names: list[str], seeds: list[int]) -> None:
    """Many pictures in one file; seed 0 is an empty picture, which is no use."""
    images = np.stack(
        [
            np.random.default_rng(seed).integers(0, 255, (120, 120, 3), dtype=np.uint8) * (seed > 0)
            for seed in seeds
        ]
    )
    np.savez(file, images=images, names=np.array(names))


def test_rows_of_one_file_change_one_by_one(tmp_path: Path, into: Builder) -> None:
    sky, file = tmp_path / "sky", tmp_path / "crops.npz"
    write_crops(file, ["a", "b", "c", "bad", "a"], [1, 2, 3, 0, 4])
    for _ in range(2):
        report = into(sky, file, "composite")

        assert report.num_objects == 3
        assert [skipped.file for skipped in report.skipped] == [str(file), f"{file}[3]"]
        assert "'a' (part 4) was already read" in report.skipped[0].reason
    before = open_version(sky).vectors(np.arange(3), "image")
    write_crops(file, ["new", "a", "b"], [5, 1, 9])  # c is not there any more, a moved, b changed

    report = into(sky, file, "composite")
    version = open_version(sky)
    after = version.vectors(np.arange(3), "image")

    assert (report.num_embedded, report.num_objects, report.skipped) == (2, 4, ())
    assert ids(version) == ["a", "b", "c", "new"]
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.abs(after[1] - before[1]).max() > CLOSE
    rows = version.live_rows.every
    parts = dict(zip(rows["source_id"].to_pylist(), rows["source_part"].to_pylist(), strict=True))
    assert parts == {"a": "1", "b": "2", "c": "2", "new": "0"}


def test_two_spectra_of_one_object_are_two_rows(tmp_path: Path, into: Builder) -> None:
    spectra = tmp_path / "spectra"
    write_spectrum(spectra / "s1.fits", "123", fiber=1)
    write_spectrum(spectra / "s2.fits", "123", fiber=2)
    write_spectrum(spectra / "s3.fits", "123", fiber=2)

    report = into(tmp_path / "sky", spectra, "sdss")

    assert (report.num_objects, report.num_rows) == (1, 2)
    assert [Path(skipped.file).name for skipped in report.skipped] == ["s3.fits"]


def test_the_joint_view_follows_its_parts(tmp_path: Path, into: Builder) -> None:
    sky, files, spectra = tmp_path / "sky", tmp_path / "files", tmp_path / "spectra"
    write_cutout(files / "123.fits", 1)
    write_spectrum(spectra / "s.fits", "123", fiber=1)
    into(sky, files, "legacysurvey")
    own = open_version(sky).vectors(np.array([0]), "joint")  # of image and fluxes
    into(sky, spectra, "sdss")
    both = open_version(sky).vectors(np.array([0]), "joint")
    write_cutout(files / "123.fits", 2)
    into(sky, files, "legacysurvey")
    changed = open_version(sky)

    assert np.abs(own - both).max() > 1e-2
    assert np.abs(changed.vectors(np.array([0]), "joint") - both).max() > 1e-2
    joint = [row for row in changed.live_rows.every.to_pylist() if row["view"] == "joint"]
    assert [row["survey"] for row in joint] == ["legacysurvey+sdss"]
    assert changed.manifest.num_rows == 3
    assert not verify(sky).problems


def test_a_part_that_cannot_be_read_leaves_the_joint_view_out_until_it_can(
    tmp_path: Path, into: Builder
) -> None:
    sky, pictures, spectra = tmp_path / "sky", tmp_path / "pictures", tmp_path / "spectra"
    file = write_picture(pictures / "123.png", 1)
    write_spectrum(spectra / "s.fits", "123")
    into(sky, pictures, "composite")
    away = file.rename(tmp_path / "away.png")

    report = into(sky, spectra, "sdss")

    assert views_of(open_version(sky)) == {"123": ["image", "spectrum"]}
    (skipped,) = report.skipped
    assert "joint view of 123 left out" in skipped.reason
    again = into(sky, spectra, "sdss")
    assert (len(again.skipped), again.published) == (1, False)
    away.rename(file)
    assert into(sky, spectra, "sdss").num_joint == 1
    assert views_of(open_version(sky)) == {"123": ["image", "joint", "spectrum"]}


def test_a_part_that_changed_unseen_leaves_the_joint_view_out(
    tmp_path: Path, into: Builder
) -> None:
    sky, pictures, spectra = tmp_path / "sky", tmp_path / "pictures", tmp_path / "spectra"
    write_picture(pictures / "123.png", 1)
    write_spectrum(spectra / "s.fits", "123")
    into(sky, pictures, "composite")
    write_picture(pictures / "123.png", 2)

    (skipped,) = into(sky, spectra, "sdss").skipped
    assert "build composite again" in skipped.reason
    assert into(sky, pictures, "composite").num_joint == 1


def test_keys_are_never_given_twice(tmp_path: Path, cutouts: Path, into: Builder) -> None:
    from index.versions import rollback

    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    write_cutout(cutouts / "d.fits", 4)
    into(sky, cutouts, "legacysurvey")
    rollback(sky)
    (cutouts / "d.fits").unlink()
    write_cutout(cutouts / "e.fits", 5)

    report = into(sky, cutouts, "legacysurvey")
    version = open_version(sky)

    assert report.version == 3
    assert version.keys_of(["e"]).tolist() == [4]  # 3 was d's, in version 2


def test_a_changed_head_makes_segments_again_without_embedding(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    sky = tmp_path / "sky"
    write_encoder(tmp_path / "one", seed=3, head_seed=1)
    write_encoder(tmp_path / "two", seed=3, head_seed=2)
    into(sky, cutouts, "legacysurvey", encoder=tmp_path / "one")
    write_cutout(cutouts / "b.fits", 70)
    into(sky, cutouts, "legacysurvey", encoder=tmp_path / "one")
    report = into(sky, cutouts, "legacysurvey", encoder=tmp_path / "two")
    fresh = tmp_path / "fresh"
    into(fresh, cutouts, "legacysurvey", encoder=tmp_path / "two")

    assert (report.num_embedded, report.published) == (0, True)
    one, two = open_version(sky), open_version(fresh)
    key = np.arange(3)
    np.testing.assert_array_equal(one.vectors(key, "image"), two.vectors(key, "image"))
    assert into(sky, cutouts, "legacysurvey", encoder=None).published is False  # now the sky's own


def test_many_small_segments_are_written_as_one(
    tmp_path: Path, into: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = partial(compaction.due, fanout=3, small_rows=100)
    monkeypatch.setattr(compaction, "due", due)
    sky, folder = tmp_path / "sky", tmp_path / "files"
    for seed in range(5):
        write_cutout(folder / f"{seed}.fits", seed)
        report = into(sky, folder, "legacysurvey")
        assert report.num_embedded == 1
    version = open_version(sky)

    per_view = [record.view for record in version.manifest.segments].count("image")
    assert per_view == 2
    found = version.search(version.vectors(np.arange(5), "image"), view="image", k=1)
    assert found.keys[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_workers_change_nothing(
    tmp_path: Path, cutouts: Path, into: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cutouts / "text.fits").write_text("hello")
    alone = into(tmp_path / "alone", cutouts, "legacysurvey")
    stages: list[tuple[str, int, int]] = []
    together = into(
        tmp_path / "together", cutouts, "legacysurvey", num_workers=2,
        progress=lambda *stage: stages.append(stage),
    )  # fmt: skip
    one, two = (open_version(tmp_path / sky) for sky in ("alone", "together"))

    assert one.table.equals(two.table)
    assert [skipped.file for skipped in alone.skipped] == [s.file for s in together.skipped]
    key = np.arange(3)
    np.testing.assert_allclose(one.vectors(key, "image"), two.vectors(key, "image"), atol=1e-3)
    assert ("embedding", 4, 4) in stages


@pytest.mark.parametrize("files_per_task", [pytest.param(1, marks=pytest.mark.slow), 64])
def test_a_worker_that_dies_costs_at_most_the_file_it_read(
    tmp_path: Path, into: Builder, monkeypatch: pytest.MonkeyPatch, files_per_task: int
) -> None:
    monkeypatch.setattr(embedding, "FILES_PER_TASK", files_per_task)
    sky, files = tmp_path / "sky", tmp_path / "files"
    for seed in range(12):
        write_cutout(files / f"{seed:02d}.fits", seed)
    killed: list[int] = []

    def kill_one(stage: str, done: int, total: int) -> None:
        children = multiprocessing.active_children()
        if done and children and not killed:
            os.kill(int(children[-1].pid or 0), signal.SIGKILL)
            killed.append(1)

    report = into(sky, files, "legacysurvey", num_workers=2, progress=kill_one)

    assert killed
    if not report.skipped:  # then it is the sky that one process makes
        into(tmp_path / "alone", files, "legacysurvey")
        assert open_version(sky).table.equals(open_version(tmp_path / "alone").table)
    assert len(report.skipped) <= (1 if files_per_task == 1 else 0)
    assert all("exit code -9" in skipped.reason for skipped in report.skipped)
    assert report.num_objects == 12 - len(report.skipped)
    assert report.num_rows == 2 * report.num_objects  # nothing twice
    again = into(sky, files, "legacysurvey")
    assert (again.num_objects, again.skipped) == (12, ())


def test_another_encoder_is_refused(tmp_path: Path, cutouts: Path, into: Builder) -> None:
    into(tmp_path / "sky", cutouts, "legacysurvey")
    write_encoder(tmp_path / "other", seed=5)

    with pytest.raises(EncoderMismatch, match="other"):
        into(tmp_path / "sky", cutouts, "legacysurvey", encoder=tmp_path / "other")
    assert len(list((tmp_path / "sky" / "store").iterdir())) == 1


def test_a_foreign_folder_is_refused_and_left_alone(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    with pytest.raises(NotASky, match=str(cutouts)):
        into(cutouts, cutouts, "legacysurvey")
    assert not (cutouts / "sky.json").exists()
    assert not (cutouts / "build.lock").exists()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(NotASky):
        into(file, cutouts, "legacysurvey")


@pytest.mark.parametrize(
    ("survey", "source", "named"),
    [
        ("hubble", "cutouts", "composite, desi"),
        ("legacysurvey", "nowhere", "nowhere"),
        ("legacysurvey", "empty", "empty"),
    ],
)
def test_bad_sources_are_told_before_anything_is_made(
    tmp_path: Path, cutouts: Path, into: Builder, survey: str, source: str, named: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=named):
        into(tmp_path / "sky", tmp_path / source, survey)
    assert not (tmp_path / "sky").exists()


def test_no_sources_and_negative_workers_are_refused(
    tmp_path: Path, cutouts: Path, encoder: Path
) -> None:
    with pytest.raises(ValueError, match="at least one"):
        build(tmp_path / "sky", [], survey="legacysurvey", encoder=encoder)
    with pytest.raises(ValueError, match="-1"):
        build(tmp_path / "sky", [cutouts], survey="legacysurvey", encoder=encoder, num_workers=-1)


def test_a_sky_among_its_sources_does_not_read_itself(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    for _ in range(2):
        report = into(cutouts / "sky", cutouts, "legacysurvey")  # it holds moc.fits

        assert (report.version, report.num_objects, report.skipped) == (1, 3, ())


def test_a_second_build_at_the_same_time_is_told_to_wait(
    tmp_path: Path, cutouts: Path, into: Builder
) -> None:
    from index import disk

    sky = tmp_path / "sky"
    into(sky, cutouts, "legacysurvey")
    with disk.only_writer(sky), pytest.raises(SkyBusy, match="another build"):
        into(sky, cutouts, "legacysurvey")


def test_the_ten_galaxies_seen_twice(tmp_path: Path, shared_data: Path, into: Builder) -> None:
    folder, sky = shared_data / "sdss_multimodal_10", tmp_path / "sky"
    into(sky, folder, "composite")
    report = into(sky, folder, "sdss")
    version = open_version(sky)

    assert (report.num_objects, report.num_rows, report.skipped) == (10, 30, ())
    assert set(ids(version)) == {file.stem for file in folder.glob("*.jpeg")}
    assert all(
        views == ["image", "joint", "spectrum"] for views in version.table["views"].to_pylist()
    )
    import pandas as pd

    listed = pd.read_csv(folder / "index.csv", dtype={"objid": str}).set_index("objid")
    table = version.table.to_pandas().set_index("object_id").loc[listed.index]
    np.testing.assert_allclose(table["redshift"], listed["z"], rtol=1e-6)
    np.testing.assert_allclose(table["flux_r_nmgy"], listed["spectroflux_r"], rtol=1e-6)
    np.testing.assert_allclose(table["ra_deg"], listed["ra"], atol=2e-4)
