"""Versions: opened, asked, rolled back, verified, damaged."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from index import disk
from index.errors import NotASky, UnknownObject, VersionCorrupt
from index.pruning import prune
from index.versions import Version, numbers, open_version, publish, rollback, verify, versions
from tests.index.conftest import Builder, write_cutout, write_spectrum

POSITIONS = [(150.0, 2.0), (150.001, 2.0), (359.9999, 0.0), (0.0001, 0.0), (77.0, 89.9999)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Two versions: five cutouts and a spectrum; then one cutout changed and one spectrum more."""
    from index.building import build

    folder = tmp_path_factory.mktemp("built")
    sky, files, spectra = folder / "sky", folder / "files", folder / "spectra"
    for seed, position in enumerate(POSITIONS):
        write_cutout(files / f"1{seed}.fits", seed, position=position)
    write_spectrum(spectra / "s0.fits", "10", fiber=1, redshift=0.5)

    def run() -> None:
        for survey, source in (("legacysurvey", files), ("sdss", spectra)):
            build(sky, [source], survey=survey, encoder=encoder, num_workers=0)

    run()
    write_cutout(files / "13.fits", 33, position=POSITIONS[3])
    write_spectrum(spectra / "alone.fits", "777", fiber=2, zwarning=4, position=(20.0, -7.0))
    run()
    assert numbers(sky) == [1, 2, 3, 4]
    return sky


@pytest.fixture
def sky(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "sky"
    shutil.copytree(built, copy)
    return copy


@pytest.fixture(scope="module")
def version(built: Path) -> Version:
    return open_version(built)


def test_what_a_version_says_about_itself(version: Version) -> None:
    assert (version.number, version.num_objects) == (4, 6)
    assert version.views == ("image", "joint", "spectrum")
    assert version.table["object_id"].to_pylist() == ["10", "11", "12", "13", "14", "777"]
    assert version.manifest.num_rows == 5 + 5 + 2
    assert version.num_without_position == 0


def test_keys_and_ids_belong_together(version: Version) -> None:
    keys = version.keys_of(["777", "12", "12"])
    assert version.objects(keys)["object_id"].to_pylist() == ["777", "12", "12"]

    with pytest.raises(UnknownObject, match="'nobody', '9'"):
        version.keys_of(["11", "nobody", "9"])
    for unknown in (-1, 6, 10**12):
        with pytest.raises(UnknownObject, match=str(unknown)):
            version.objects(np.array([0, unknown]))


@pytest.mark.parametrize(
    ("predicate", "found"),
    [
        ("redshift > 0.2", ["10"]),
        ("redshift is null", ["11", "12", "13", "14", "777"]),
        ("not redshift > 0.2", []),
        ("object_id = '12' or dec_deg < -5", ["12", "777"]),
        ("mag_u < 30", []),
        ("spectrum_class = 'GALAXY' and redshift_source = 'sdss'", ["10"]),
    ],
)
def test_a_predicate_gives_its_objects(version: Version, predicate: str, found: list[str]) -> None:
    keys = version.where(predicate)
    assert version.objects(keys)["object_id"].to_pylist() == found


@pytest.mark.parametrize(
    ("predicate", "named"),
    [
        ("redshft > 1", "redshft"),
        ("object_key > 1", "object_key"),
        ("views = 'image'", "views"),
        ("redshift > 'high'", "high"),
        ("object_id + 1 > 2", "object_id"),
        ("abs(redshift, 2) > 1", "abs"),
    ],
)
def test_a_predicate_that_cannot_be_applied_is_told(
    version: Version, predicate: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        version.where(predicate)


@pytest.mark.parametrize("centre", [(150.0, 2.0), (0.0, 0.0), (200.0, 89.99), (12.0, -40.0)])
@pytest.mark.parametrize("radius_arcsec", [0.5, 5.0, 3600.0, 648_000.0])
def test_cones_are_those_of_astropy(
    version: Version, centre: tuple[float, float], radius_arcsec: float
) -> None:
    keys, separations = version.in_cone(*centre, radius_arcsec)

    table = version.table
    places = SkyCoord(table["ra_deg"].to_numpy(), table["dec_deg"].to_numpy(), unit="deg")
    want = places.separation(SkyCoord(*centre, unit="deg")).arcsec
    inside = np.flatnonzero(want <= radius_arcsec)
    assert keys.tolist() == inside[np.argsort(want[inside], kind="stable")].tolist()
    np.testing.assert_allclose(separations, want[keys], rtol=1e-7, atol=1e-6)
    if len(keys):
        assert version.nearest(*centre) == (keys[0], separations[0])


@pytest.mark.parametrize(
    ("place", "named"),
    [((360.0, 0.0, 1.0), "360"), ((0.0, 91.0, 1.0), "91"), ((0.0, 0.0, 0.0), "radius"),
     ((0.0, 0.0, float("nan")), "radius")],
)  # fmt: skip
def test_a_cone_off_the_sky_is_refused(
    version: Version, place: tuple[float, float, float], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        version.in_cone(*place)


def test_views_of_objects(version: Version) -> None:
    keys = version.keys_of(["777", "10", "11"])
    assert version.has_view(keys, "spectrum").tolist() == [True, True, False]
    assert version.has_view(keys, "image").tolist() == [False, True, True]
    assert version.has_view(keys, "xp").tolist() == [False, False, False]
    with pytest.raises(UnknownObject, match="'11' has no spectrum view"):
        version.vectors(keys, "spectrum")


def test_rows_tell_where_an_object_came_from(version: Version, built: Path) -> None:
    rows = version.rows(version.keys_of(["10"])).to_pylist()
    by_view = {row["view"]: row for row in rows}

    assert sorted(by_view) == ["image", "joint", "spectrum"]
    assert by_view["image"]["source"] == str(built.parent / "files" / "10.fits")
    assert by_view["spectrum"]["source_id"] == "0001-52000-0001"
    assert by_view["joint"]["survey"] == "legacysurvey+sdss"
    assert by_view["image"]["calibrated"] is True
    assert "ivar estimated" in by_view["image"]["notes"]


def test_allowed_and_excluded_objects(version: Version) -> None:
    query = version.vectors(np.array([0]), "image")
    everything = version.search(query, view="image", k=9).keys[0].tolist()
    assert everything[0] == 0
    assert everything[5:] == [-1] * 4

    some = version.search(query, view="image", k=2, keys=np.array([4, 1]))
    assert sorted(some.keys[0]) == [1, 4]
    rest = version.search(query, view="image", k=5, exclude=np.array([0, 2]))
    assert rest.keys[0].tolist() == [key for key in everything[:5] if key not in (0, 2)] + [-1, -1]
    both = version.search(query, view="image", k=1, keys=np.array([0, 3]), exclude=np.array([0]))
    assert both.keys[0].tolist() == [3]
    none = version.search(query, view="image", k=1, keys=np.array([], np.int64))
    assert none.keys[0].tolist() == [-1]
    foreign = version.search(query, view="image", k=1, keys=np.array([-1, 10**9]))
    assert foreign.keys[0].tolist() == [-1]


def test_any_view_finds_objects_of_every_view(version: Version) -> None:
    query = version.vectors(np.array([0]), "image")
    found = version.search(query, view="any", k=6)
    assert sorted(found.keys[0]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_refused(version: Version, k: int) -> None:
    with pytest.raises(ValueError, match=str(k)):
        version.search(np.ones((1, 256), np.float32), view="image", k=k)


def test_other_bad_searches_are_refused(version: Version) -> None:
    good = np.ones((1, 256), np.float32)
    with pytest.raises(ValueError, match=r"'xp'.*image, joint, spectrum, any"):
        version.search(good, view="xp", k=1)
    with pytest.raises(ValueError, match="256 dimensions, got 8"):
        version.search(np.ones((1, 8), np.float32), view="image", k=1)
    with pytest.raises(ValueError, match="unit length"):
        version.search(good * 0, view="image", k=1)


def test_rolling_back_changes_what_is_opened_and_nothing_else(sky: Path) -> None:
    newest = open_version(sky)
    table = newest.table

    assert rollback(sky) == 3
    assert open_version(sky).number == 3
    assert [each.published for each in versions(sky)] == [False, False, True, False]
    assert newest.table is table  # who has it open keeps it
    assert rollback(sky, 1) == 1
    assert open_version(sky).views == ("image", "joint")
    with pytest.raises(ValueError, match="no version before"):
        rollback(sky)
    assert rollback(sky, 4) == 4
    assert open_version(sky).table.equals(table)
    with pytest.raises(ValueError, match="no version 7: expected one of 1, 2, 3, 4"):
        rollback(sky, 7)
    assert not verify(sky).problems


def test_a_version_that_is_not_whole_is_not_rolled_back_to(sky: Path) -> None:
    (sky / "versions" / "3" / "inputs.parquet").unlink()

    with pytest.raises(VersionCorrupt, match=r"inputs\.parquet"):
        rollback(sky, 3)
    assert open_version(sky).number == 4


def files_of(sky: Path) -> list[str]:
    names = sorted(str(file.relative_to(sky)) for file in sky.rglob("*") if file.is_file())
    return [name for name in names if name not in ("build.lock", "CURRENT")]


def test_verify_reads_every_file(built: Path) -> None:
    report = verify(built)
    vouchers = [name for name in files_of(built) if name.endswith(("manifest.json", "part.json"))]

    assert not report.problems
    assert report.versions == (1, 2, 3, 4)
    assert report.num_files == len(files_of(built)) - len(vouchers) - 1  # and sky.json


def test_verify_tells_which_version_to_go_back_to(sky: Path) -> None:
    of = {n: {each.name for each in open_version(sky, n).manifest.segments} for n in range(1, 5)}
    newest = sky / "segments" / (of[4] - of[3]).pop() / "vectors.npy"
    flip_a_bit(newest)
    report = verify(sky)

    assert (report.published, report.damaged) == (4, (4,))
    assert "skykin rollback SKY 3" in report.advice
    rollback(sky, 3)
    assert (verify(sky).damaged, verify(sky).advice) == ((4,), "")
    for name in {name for names in of.values() for name in names}:
        flip_a_bit(sky / "segments" / name / "object_key.npy")
    assert "no version is whole" in verify(sky).advice


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("content", ["", "7\n", "three", "-1", "²"])
def test_a_pointer_to_nowhere_is_told(sky: Path, content: str) -> None:
    (sky / "CURRENT").write_text(content)

    with pytest.raises(VersionCorrupt):
        open_version(sky)
    assert [problem.file for problem in verify(sky).problems] == ["CURRENT"]
    assert rollback(sky, 4) == 4  # the way back


def test_a_sky_without_a_published_version_says_what_to_do(sky: Path) -> None:
    (sky / "CURRENT").unlink()

    with pytest.raises(VersionCorrupt, match=r"there: 1, 2, 3, 4$"):
        open_version(sky)


@pytest.mark.parametrize("name", ["versions/4/manifest.json", "versions/4/moc.fits"])
def test_a_missing_file_of_a_version_is_named_when_it_is_opened(sky: Path, name: str) -> None:
    (sky / name).unlink()
    with pytest.raises(VersionCorrupt, match=Path(name).name):
        open_version(sky)


def test_what_is_no_sky_is_told(tmp_path: Path, sky: Path) -> None:
    with pytest.raises(NotASky, match="no folder"):
        open_version(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(NotASky, match=r"no sky\.json"):
        open_version(tmp_path / "photos")
    with pytest.raises(NotASky, match=r"no sky\.json"):
        open_version(sky / "CURRENT")
    disk.write_json(sky / "sky.json", {"format": 99})
    with pytest.raises(NotASky, match="format 1, got 99"):
        open_version(sky)


def test_opening_never_fails_while_versions_come_and_go(sky: Path) -> None:
    """Each is published, and the one before pruned, while others open what is published."""
    stop = threading.Event()
    failed: list[BaseException] = []
    opened: set[int] = set()

    def reads() -> None:
        while not stop.is_set():
            try:
                version = open_version(sky)
                assert version.live_rows.every.num_rows == version.manifest.num_rows
                opened.add(version.number)
            except BaseException as error:
                failed.append(error)
                return

    readers = [threading.Thread(target=reads) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(5, 25):
            copy_version(sky, number - 1, number)
            publish(sky, number)
            prune(sky, keep_versions=1, keep_days=0.0)
    finally:
        stop.set()
        for reader in readers:
            reader.join()

    assert not failed, failed
    assert len(opened) > 1
    gc.collect()
    assert prune(sky, keep_versions=1, keep_days=0.0).held == ()
    assert numbers(sky) == [24]


def copy_version(sky: Path, number: int, to: int) -> None:
    """The same version again under another number."""
    new = sky / "versions" / "new"
    shutil.copytree(sky / "versions" / str(number), new)
    text = json.dumps(disk.read_json(new / "manifest.json"))
    content = json.loads(text.replace(f"versions/{number}/", f"versions/{to}/"))
    disk.write_json(new / "manifest.json", content | {"number": to})
    new.rename(sky / "versions" / str(to))


def test_a_reader_keeps_its_version_while_another_is_published(
    tmp_path: Path, into: Builder
) -> None:
    sky, files = tmp_path / "sky", tmp_path / "files"
    write_cutout(files / "a.fits", 1)
    into(sky, files, "legacysurvey")
    reader = open_version(sky)  # nothing read yet but the manifest
    write_cutout(files / "a.fits", 2, position=(10.0, 10.0))
    write_cutout(files / "b.fits", 3)
    into(sky, files, "legacysurvey")

    assert reader.table.num_rows == 1
    assert abs(reader.table["ra_deg"][0].as_py() - 150) < 1e-3
    vector = reader.vectors(np.array([0]), "image")
    assert reader.search(vector, view="image", k=2).keys.tolist() == [[0, -1]]
    assert open_version(sky).search(vector, view="image", k=2).keys[0].min() == 0
