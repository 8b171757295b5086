"""A sky that was damaged: found, named, and never carried on as if it were whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from index import coding
from index.codec import IndexConfig
from index.compacting import compact, reindex
from index.errors import NotASky, SkykinError, VersionCorrupt
from index.inputs import read_inputs
from index.nightly import nightly
from index.nightly_config import NightlyConfig, SourceConfig
from index.pruning import prune
from index.versions import current_number, numbers, open_version, rollback, verify, versions
from tests.index.conftest import write_cutout, write_encoder, write_spectrum

NUM_OBJECTS = 6
KINDS = {
    "CURRENT", "sky.json", "manifest.json", "inputs.parquet", "moc.fits", "segment.json",
    "vectors.npy", "object_key.npy", "rows.parquet", "index.faiss", "codec.json", "trained.faiss",
    "config.json", "model.safetensors", "part.json", "fingerprint.npy",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file there is: two surveys, the sky's own head, codecs, deleted rows."""
    folder = tmp_path_factory.mktemp("built")
    write_encoder(folder / "encoder", seed=0)
    shutil.rmtree(folder / "encoder" / "head")
    for n in range(NUM_OBJECTS):
        write_cutout(folder / "files" / f"1{n}.fits", n, position=(150.0 + n, 2.0))
    write_spectrum(folder / "spectra" / "s.fits", "10", redshift=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coding, "NUM_QUERIES", 16)  # 256 take half of the time
        night(folder)
        reindex(folder / "sky", IndexConfig(exact_rows=2, indexed_rows=1))
        write_cutout(folder / "files" / "11.fits", 77, position=(151.0, 2.0))
        night(folder)
    assert numbers(folder / "sky") == [1, 2, 3]
    return folder


def night(folder: Path) -> None:
    """A nightly with all files below a folder."""
    sources = (
        SourceConfig(survey="legacysurvey", path=str(folder / "files")),
        SourceConfig(survey="sdss", path=str(folder / "spectra")),
    )
    nightly(
        folder / "sky",
        NightlyConfig(
            sources=sources, encoder=str(folder / "encoder"), num_workers=0, max_removed_share=0.5
        ),
    )


@pytest.fixture
def work(built: Path, tmp_path: Path) -> Path:
    """A copy to damage, with its files."""
    return Path(shutil.copytree(built, tmp_path / "work"))


@pytest.fixture
def sky(work: Path) -> Path:
    return work / "sky"


def files_of(sky: Path) -> list[str]:
    names = sorted(str(file.relative_to(sky)) for file in sky.rglob("*") if file.is_file())
    return [name for name in names if name != "build.lock" and not name.startswith("nightly/")]


def one_of_each_kind(sky: Path) -> list[str]:
    """The last file of every name and place, which a published version has where any has it."""
    kinds = {}
    for name in files_of(sky):
        place, file = Path(name).parts[0], Path(name).name
        kinds[place, file if file in KINDS else ""] = name
    return list(kinds.values())


def ask(sky: Path) -> None:
    """Read all of the published version and search it in every way."""
    version = open_version(sky)
    keys = version.table["object_key"].to_numpy()
    assert version.moc is not None
    version.in_cone(150.0, 2.0, 3600.0)
    version.where("redshift > 0.2")
    version.rows(keys[:2])
    read_inputs(sky / version.manifest.inputs)
    for view in version.views:
        mine = keys[version.has_view(keys, view)]
        for recall in (0.98, 1):
            version.search(version.vectors(mine, view), view=view, k=3, recall=recall)


def flip(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    # every other time in what comes first, where formats keep what they need most
    end = len(content) if rng.random() < 0.5 else min(len(content), 200)
    content[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


@pytest.mark.parametrize("num_flips", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_any_file_is_found_and_named(sky: Path, seed: int, num_flips: int) -> None:
    names = one_of_each_kind(sky) if num_flips == 1 else files_of(sky)
    assert {Path(name).name for name in names} >= KINDS
    for folder in ("objects/", "/deleted/", "head/"):
        assert any(folder in name for name in names)
    rng = np.random.default_rng(seed)
    for name in names:
        whole = (sky / name).read_bytes()
        for _ in range(num_flips):
            flip(sky / name, rng)
            assert [problem.file for problem in verify(sky).problems] == [name]
            with suppress(SkykinError):  # refused by name, or what is damaged was not needed
                ask(sky)
            (sky / name).write_bytes(whole)
    assert not verify(sky).problems


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "folder", "circle"])
def test_a_file_that_is_none_any_more_is_named(sky: Path, damage: str) -> None:
    for name in one_of_each_kind(sky):
        if name == "sky.json" and damage in ("gone", "folder", "circle"):
            continue  # then it is no sky, see below
        file, whole = sky / name, (sky / name).read_bytes()
        file.unlink()
        if damage in ("cut", "empty"):
            file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
        elif damage == "folder":
            file.mkdir()
        elif damage == "circle":
            file.symlink_to(file.name)
        found = [problem.file for problem in verify(sky).problems]
        assert name in found, name
        if name == "CURRENT" or name.startswith("versions/3/"):
            with pytest.raises(VersionCorrupt, match=file.name):
                open_version(sky)
        if file.is_dir():
            file.rmdir()
        file.unlink(missing_ok=True)
        file.write_bytes(whole)
    assert not verify(sky).problems


UNREADABLE = """
import ctypes, sys
from pathlib import Path
from index.versions import verify
header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # root may read anything: give that right up
assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
for problem in verify(Path(sys.argv[1])).problems:
    print(problem.file, problem.reason, sep=": ")
"""


def test_a_file_that_cannot_be_read_is_named(sky: Path) -> None:
    closed = ["CURRENT", "sky.json", "versions/1/manifest.json", "versions/3/moc.fits"]
    closed += [open_version(sky).manifest.segments[0].head.file]
    for name in closed:
        (sky / name).chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, str(sky)], capture_output=True, text=True, check=False
    )
    for name in closed:
        (sky / name).chmod(0o644)

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(
        f"{name}: cannot be read: Permission denied" for name in closed
    )


def flip_last(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["vectors.npy", "object_key.npy", "rows.parquet"])
def test_compaction_does_not_vouch_for_a_damaged_segment(sky: Path, name: str) -> None:
    (image, *_) = [r for r in open_version(sky).manifest.segments if r.view == "image"]
    flip_last(sky / "segments" / image.name / name)

    with pytest.raises(VersionCorrupt, match=rf"{image.name}.*{name}"):
        compact(sky)

    assert current_number(sky) == 3
    assert [problem.file for problem in verify(sky).problems] == [f"segments/{image.name}/{name}"]


@pytest.mark.parametrize(
    "kind",
    ["rows", "objects", "mapped", "moc", "deleted", pytest.param("store", marks=pytest.mark.slow)],
)
def test_a_nightly_does_not_carry_damage_on(work: Path, kind: str) -> None:
    sky = work / "sky"
    version = open_version(sky)
    if kind == "store":  # left by a night that was stopped before it wrote a version
        write_cutout(work / "files" / "19.fits", 99)
        night(work)
        shutil.rmtree(sky / "versions" / "4")
        rollback(sky, 3)
        parts = sorted(
            sky.glob("store/*/image/*/vectors.npy"), key=lambda part: part.stat().st_mtime
        )
        damaged = parts[-1]
    else:
        write_cutout(work / "files" / "11.fits", 99, position=(151.0, 2.0))
        # of object 11, which is in the second segment since it changed
        rows = [live for live in version.segments if 1 in live.segment.object_key][-1]
        damaged = {
            "rows": rows.segment.folder / "rows.parquet",
            "objects": sky / version.manifest.partitions[0].file,
            "mapped": sky / str(version.manifest.partitions[0].mapped),
            "moc": sky / str(version.manifest.moc),
            "deleted": next(sky.glob("versions/3/deleted/image-*")),
        }[kind]
    del version
    flip_last(damaged)

    with pytest.raises(VersionCorrupt, match=damaged.name):
        night(work)

    assert current_number(sky) == 3
    assert str(damaged.relative_to(sky)) in [problem.file for problem in verify(sky).problems]
    if kind == "store":
        shutil.rmtree(damaged.parent)  # as the error says
        night(work)
        assert open_version(sky).num_objects == NUM_OBJECTS + 1


def test_a_version_under_another_number_is_refused(sky: Path) -> None:
    shutil.copytree(sky / "versions" / "2", sky / "versions" / "7")

    with pytest.raises(VersionCorrupt, match=r"7/manifest\.json is that of version 2"):
        open_version(sky, 7)
    with pytest.raises(VersionCorrupt, match="is that of version 2"):
        rollback(sky, 7)
    with pytest.raises(VersionCorrupt, match="is that of version 2"):
        versions(sky)
    with pytest.raises(VersionCorrupt, match="is that of version 2"):
        prune(sky, keep_versions=1, keep_days=0.0)
    report = verify(sky)
    assert [problem.file for problem in report.problems] == ["versions/7/manifest.json"]
    assert (report.damaged, report.advice) == ((7,), "")


def test_what_is_no_version_is_not_taken_for_one(sky: Path) -> None:
    (sky / "versions" / "9").write_text("a file")
    for name in ("08", "٣", "3.old", "-1", "0"):
        (sky / "versions" / name).mkdir()
    assert numbers(sky) == [1, 2, 3]
    assert not verify(sky).problems


@pytest.mark.parametrize("content", ["../../x", "../versions/1\n", "published: 3", "3 of 3"])
def test_a_pointer_out_of_the_sky_is_told_by_every_command(
    sky: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.cli import main

    (sky / "CURRENT").write_text(content)
    for command in ("versions", "verify", "compact", "rollback"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(sky)])
        told = capsys.readouterr().err
        assert ended.value.code == 2
        assert "CURRENT" in told
        assert "Traceback" not in told
    assert rollback(sky, 3) == 3
    assert not verify(sky).problems


def test_advice_never_names_a_version_that_nobody_measured(sky: Path) -> None:
    (sky / "unproved").write_text("3\n")
    (sky / "CURRENT").unlink()
    assert "skykin rollback SKY 2" in verify(sky).advice


def half_copied(sky: Path, to: Path, share: float) -> None:
    """As `cp -r` leaves it when it is stopped: the files that come first."""
    names = sorted(str(file.relative_to(sky)) for file in sky.rglob("*") if file.is_file())
    for name in names[: int(share * len(names))]:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(sky / name, to / name)
    last = to / name
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.8, 0.95])
def test_a_sky_half_copied_is_never_taken_for_a_whole_one(
    work: Path, tmp_path: Path, share: float
) -> None:
    copy = tmp_path / "copy"
    half_copied(work / "sky", copy, share)

    with pytest.raises((NotASky, VersionCorrupt)):
        open_version(copy)
    if (copy / "sky.json").exists():
        report = verify(copy)
        assert report.problems
        assert 3 not in set(report.versions) - set(report.damaged)
    shutil.copytree(work / "sky", copy, dirs_exist_ok=True)  # copied again
    assert not verify(copy).problems


def test_pruning_takes_a_link_to_a_folder_and_not_the_folder(sky: Path, tmp_path: Path) -> None:
    """As an operator leaves it who moved a folder to a larger disk."""
    for parent in ("segments", "versions"):
        (tmp_path / parent).mkdir()
        for folder in list((sky / parent).iterdir()):
            folder.rename(tmp_path / parent / folder.name)
            (sky / parent / folder.name).symlink_to(tmp_path / parent / folder.name)
    assert not verify(sky).problems
    rollback(sky, 2)

    pruned = prune(sky, keep_versions=1, keep_days=0.0)

    assert pruned.versions == (1,)
    assert numbers(sky) == [2, 3]
    assert not verify(sky).problems
    ask(sky)


def test_no_index_is_mapped_and_none_is_read_unproved() -> None:
    """FAISS crashes on merged lists that are mapped, and trusts whatever it is given."""
    root = Path(__file__).parents[2]
    sources = [
        file for floor in ("training", "index", "discovery", "app")
        for file in (root / floor).rglob("*.py")
    ]  # fmt: skip
    calls = {
        "IO_FLAG",
        "read_index(str",
        "merge_ondisk",
        "OnDiskInvertedLists",
        "os.fork",
        '"fork"',
    }
    found = {
        (str(file.relative_to(root)), call)
        for file in sources
        for call in calls
        if call in file.read_text()
    }
    # the one place that reads an index checks it first
    assert found == {("index/codec.py", "read_index(str")}


def test_an_index_from_elsewhere_is_never_handed_to_faiss(sky: Path) -> None:
    """Whole and well formed, of another segment of the same sky: still not the one written down."""
    one, other = sorted(sky.glob("segments/*/index.faiss"), key=lambda file: file.stat().st_size)[
        :2
    ]
    swapped = other.read_bytes()
    padded = swapped[: one.stat().st_size].ljust(one.stat().st_size, b"\0")
    for content in (swapped, padded):  # of another size, and of the recorded one
        one.write_bytes(content)
        with pytest.raises(VersionCorrupt, match=r"index\.faiss"):
            ask(sky)
        assert str(one.relative_to(sky)) in [problem.file for problem in verify(sky).problems]


@pytest.mark.parametrize("again", [compact, reindex], ids=["compact", "reindex"])
def test_a_segment_cut_short_is_refused_by_name(sky: Path, again: Callable[[Path], object]) -> None:
    name = open_version(sky).manifest.segments[0].name
    for file in sorted((sky / "segments" / name).iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        for work in (open_version, again):
            with pytest.raises(VersionCorrupt, match=rf"{name}.*{file.name}"):
                work(sky)
        file.write_bytes(whole)
    assert not verify(sky).problems
