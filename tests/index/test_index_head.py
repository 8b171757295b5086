"""Skies of an encoder without a search head: centred principal components of the sky's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

import discovery
from index import sky_head
from index.building import BuildReport, build
from index.errors import EncoderMismatch, VersionCorrupt
from index.manifest import read_head
from index.store import Store
from index.versions import Version, open_version, rollback, verify
from tests.index.conftest import Builder, write_cutout, write_spectrum
from training import artifact
from training import encoder as encoders
from training.search_head import SearchHead, SearchHeadConfig

CLOSE = 2e-3  # of a cosine of vectors in float16


@pytest.fixture(scope="module")
def headless(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as it is released: without head/."""
    folder = tmp_path_factory.mktemp("headless") / "tiny"
    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("head"))
    return folder


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cutouts, read only."""
    folder = tmp_path_factory.mktemp("cutouts")
    for seed, name in enumerate("abcd"):
        write_cutout(folder / f"{name}.fits", seed, position=(150 + seed, 2.0))
    return folder


@pytest.fixture(scope="module")
def built(
    cutouts: Path, headless: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BuildReport]:
    """A sky of the cutouts, read only, and what its build said."""
    sky = tmp_path_factory.mktemp("built") / "sky"
    return sky, build(sky, [cutouts], survey="legacysurvey", encoder=headless, num_workers=0)


@pytest.fixture
def sky(built: tuple[Path, BuildReport], tmp_path: Path) -> Path:
    """A copy of that sky."""
    return Path(shutil.copytree(built[0], tmp_path / "sky"))


@pytest.fixture
def spectra(tmp_path: Path) -> Path:
    folder = tmp_path / "spectra"
    for fiber in (1, 2, 3):
        write_spectrum(folder / f"spec-{fiber}.fits", f"12376{fiber}", fiber=fiber)
    return folder


def keys(version: Version) -> ndarray:
    return version.table["object_key"].to_numpy()


def encoder_vectors(version: Version, view: str) -> ndarray:
    """As the store has them, in the order of keys."""
    rows = version.live_rows.every.to_pylist()
    names = {row["object_key"]: row["fingerprint"] for row in rows if row["view"] == view}
    store = Store(version.sky / "store", encoder_hash=version.encoder.hash)
    return store.vectors(view, [names[key] for key in sorted(names)]).astype(np.float64)


def centred_cosines(vectors: ndarray) -> ndarray:
    less = vectors - vectors.mean(axis=0)
    less /= np.linalg.norm(less, axis=1, keepdims=True)
    return less @ less.T


def test_search_goes_by_centred_vectors(built: tuple[Path, BuildReport]) -> None:
    sky, report = built
    version = open_version(sky)

    assert report.num_objects == 4  # fewer than the 32 dimensions of a vector
    for view in ("image", "joint"):
        found = version.vectors(keys(version), view)
        want = centred_cosines(encoder_vectors(version, view))
        np.testing.assert_allclose(found @ found.T, want, atol=CLOSE)
        hits = version.search(found, view=view, k=4).keys
        np.testing.assert_array_equal(hits[:, 0], keys(version))  # each finds itself
        np.testing.assert_array_equal(hits, np.argsort(-want, axis=1))
    assert [note for note in report.notes if "view image" in note and "4 vectors" in note]
    assert verify(sky).problems == ()


def test_later_builds_use_the_head_of_the_first(tmp_path: Path, sky: Path, into: Builder) -> None:
    first = open_version(sky)
    before = first.vectors(keys(first), "image")
    write_cutout(tmp_path / "more/e.fits", 77)

    report = into(sky, tmp_path / "more", "legacysurvey", encoder=None)
    second = open_version(sky)
    again = into(sky, tmp_path / "more", "legacysurvey", encoder=None)

    assert (report.version, report.num_embedded, report.num_objects) == (2, 1, 5)
    assert not any("principal components" in note for note in report.notes)
    assert second.encoder == first.encoder
    assert first.encoder.head_hash == read_head(sky).encoder.head_hash != ""
    old = {each.name for each in first.manifest.segments}
    assert old < {each.name for each in second.manifest.segments}  # none was made again
    np.testing.assert_array_equal(second.vectors(keys(first), "image"), before)
    assert not again.published
    assert verify(sky).problems == ()


def test_a_view_that_comes_later_is_added(
    sky: Path, spectra: Path, headless: Path, into: Builder
) -> None:
    first = open_version(sky)
    before = first.vectors(keys(first), "image")

    into(sky, spectra, "sdss", encoder=None)
    second = open_version(sky)

    assert second.encoder.head_hash != first.encoder.head_hash
    np.testing.assert_array_equal(second.vectors(keys(first), "image"), before)
    found = second.vectors(keys(second)[4:], "spectrum")
    want = centred_cosines(encoder_vectors(second, "spectrum"))
    np.testing.assert_allclose(found @ found.T, want, atol=CLOSE)
    rollback(sky)
    loaded = encoders.load(headless)
    sky_head.attach(sky, loaded, open_version(sky).encoder)
    assert loaded.head_hash == first.encoder.head_hash
    assert verify(sky).problems == ()


@pytest.mark.slow
def test_the_head_does_not_depend_on_the_order_of_files(
    tmp_path: Path, sky: Path, cutouts: Path, headless: Path
) -> None:
    files = sorted(cutouts.iterdir(), reverse=True)
    other = tmp_path / "other"
    build(other, files, survey="legacysurvey", encoder=headless, num_workers=0)

    assert open_version(other).encoder == open_version(sky).encoder


@pytest.mark.slow
def test_one_object_alone_has_a_direction(tmp_path: Path, headless: Path, into: Builder) -> None:
    write_cutout(tmp_path / "alone/a.fits", 1)
    into(tmp_path / "sky", tmp_path / "alone", "legacysurvey", encoder=headless)
    version = open_version(tmp_path / "sky")
    found = version.vectors(keys(version), "image")

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    assert version.search(found, view="image", k=1).scores[0, 0] == pytest.approx(1, abs=1e-3)


def test_a_file_is_searched_by_the_head_of_the_sky(tmp_path: Path, sky: Path) -> None:
    write_cutout(tmp_path / "own/e.fits", 2)  # as c.fits, at another place
    opened = discovery.open(sky)

    hits = opened.search(discovery.Query(file=tmp_path / "own/e.fits", survey="legacysurvey", k=4))
    by_id = opened.search(discovery.Query(like=["c"], k=3))

    assert hits.ids[0] == "c"
    assert hits.ids[1:] == by_id.ids
    assert opened.encoder().head_hash == read_head(sky).encoder.head_hash


def test_a_head_that_is_gone_or_changed_is_refused(sky: Path, cutouts: Path, into: Builder) -> None:
    head = sky_head.folder_of(sky, read_head(sky).encoder.head_hash)
    weights = (head / "model.safetensors").read_bytes()
    changed = bytearray(weights)
    changed[-1] ^= 1
    (head / "model.safetensors").write_bytes(changed)

    assert [Path(each.file).name for each in verify(sky).problems] == ["model.safetensors"]
    with pytest.raises(VersionCorrupt, match="content is not that"):
        into(sky, cutouts, "legacysurvey", encoder=None)
    shutil.rmtree(head)
    with pytest.raises(EncoderMismatch, match="head none"):
        into(sky, cutouts, "legacysurvey", encoder=None)


def test_an_encoder_that_lost_its_head_is_refused(
    tmp_path: Path, cutouts: Path, encoder: Path, headless: Path, into: Builder
) -> None:
    write_cutout(tmp_path / "one/a.fits", 1)
    into(tmp_path / "sky", tmp_path / "one", "legacysurvey", encoder=encoder)

    with pytest.raises(EncoderMismatch, match="head none"):
        into(tmp_path / "sky", cutouts, "legacysurvey", encoder=headless)
    assert verify(tmp_path / "sky").problems == ()


def test_a_head_trained_later_takes_the_place_of_the_components(
    sky: Path, cutouts: Path, encoder: Path, into: Builder
) -> None:
    before = {each.name for each in open_version(sky).manifest.segments}

    report = into(sky, cutouts, "legacysurvey", encoder=encoder)
    version = open_version(sky)

    assert (report.version, report.num_embedded) == (2, 0)
    assert not before & {each.name for each in version.manifest.segments}
    assert version.encoder.head_hash == encoders.load(encoder).head_hash
    vectors = encoder_vectors(version, "image").astype(np.float32)
    want = encoders.load(encoder).search_vectors(vectors, "image")
    np.testing.assert_allclose(version.vectors(keys(version), "image"), want, atol=1e-3)


def test_a_survey_that_the_head_never_saw_is_named(
    tmp_path: Path, headless: Path, into: Builder
) -> None:
    write_cutout(tmp_path / "one/a.fits", 1)
    own = Path(shutil.copytree(headless, tmp_path / "own"))
    config = SearchHeadConfig(
        views=("image", "joint"), dim=32, hidden=0, surveys=("image/hsc", "joint/legacysurvey")
    )
    artifact.save_head(own, SearchHead(config))

    report = into(tmp_path / "sky", tmp_path / "one", "legacysurvey", encoder=own)

    told = [note for note in report.notes if "search head was trained" in note]
    assert len(told) == 1
    assert "view image of survey 'legacysurvey'" in told[0]
