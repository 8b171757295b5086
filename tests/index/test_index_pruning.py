"""Compaction and pruning: the same answers from fewer segments and fewer versions."""

from __future__ import annotations

import gc
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from index import compaction, disk, lease
from index.building import build
from index.compacting import compact
from index.errors import VersionCorrupt
from index.manifest import FileRecord, SegmentRecord
from index.pruning import prune
from index.versions import numbers, open_version, publish, rollback, verify
from tests.index.conftest import write_cutout
from tests.index.test_index_nightly import answers

_FILE = FileRecord(file="f", num_bytes=1, sha256="")


def segment(view: str, num_rows: int, num_deleted: int = 0) -> SegmentRecord:
    return SegmentRecord(
        name=f"{view}{num_rows}", view=view, num_rows=num_rows, head=_FILE, num_deleted=num_deleted
    )


def test_which_segments_are_due() -> None:
    few = [segment("image", 10), segment("image", 20), segment("joint", 10)]
    assert compaction.due(few) == ()
    assert compaction.due(few, fanout=2) == (0, 1)
    holes = [segment("image", 100, 21), segment("image", 100, 20), segment("joint", 5)]
    assert compaction.due(holes) == (0,)
    large = [segment("image", 1_000_000)] * 15
    assert compaction.due([*large, segment("image", 10)]) == ()
    assert len(compaction.due([*large, segment("image", 1_100_000)])) == 16


def test_a_thousand_nights_leave_few_segments_and_rewrite_a_row_seldom() -> None:
    sizes: list[int] = []
    written = 0
    for _ in range(1000):
        records = [segment("image", size) for size in sizes]
        chosen = compaction.due(records)
        merged = 10_000 + sum(sizes[i] for i in chosen)
        written += merged
        sizes = [size for i, size in enumerate(sizes) if i not in chosen] + [merged]
        assert len(sizes) <= 3 * compaction.FANOUT
    assert sum(sizes) == 10_000_000
    assert written <= 4 * 10_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Four versions, the last of four objects in three segments a view, one row deleted."""
    folder = tmp_path_factory.mktemp("built")
    sky, files = folder / "sky", folder / "files"

    def run() -> None:
        build(sky, [files], survey="legacysurvey", encoder=encoder, num_workers=0)

    for seed in range(2):
        write_cutout(files / f"{seed}.fits", seed)
    run()
    for seed in (2, 3):
        write_cutout(files / f"{seed}.fits", seed)
        run()
    write_cutout(files / "0.fits", 50)
    run()
    assert numbers(sky) == [1, 2, 3, 4]
    return sky


@pytest.fixture
def sky(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "sky"
    shutil.copytree(built, copy)
    return copy


def test_compaction_changes_no_answer_and_needs_no_store(sky: Path) -> None:
    before, stored = answers(sky), open_version(sky)
    keys = stored.table["object_key"].to_numpy()
    shutil.rmtree(sky / "store")

    report = compact(sky)

    after = open_version(sky)
    assert (report.version, report.published, report.num_after) == (5, True, 2)
    assert answers(sky) == before
    assert after.table.equals(stored.table)
    for view in after.views:
        np.testing.assert_array_equal(after.vectors(keys, view), stored.vectors(keys, view))
    assert [record.num_deleted for record in after.manifest.segments] == [0, 0]
    columns = ["object_key", "view", "source", "precision"]
    rows = [each.live_rows.every.select(columns).to_pylist() for each in (stored, after)]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))
    assert not verify(sky).problems
    again = compact(sky)
    assert (again.version, again.published) == (5, False)


def test_a_reader_goes_on_while_its_version_is_pruned(sky: Path) -> None:
    reader = open_version(sky, 1)  # nothing read yet but the manifest
    compact(sky)

    pruned = prune(sky, keep_versions=1, keep_days=0.0)

    assert (pruned.versions, pruned.held) == ((2, 3, 4), (1,))
    found = reader.search(reader.vectors(np.array([0]), "image"), view="image", k=2)
    assert sorted(found.keys[0].tolist()) == [0, 1]
    assert reader.live_rows.every.num_rows == 4
    assert reader.moc is not None
    assert not verify(sky).problems
    del reader
    gc.collect()
    pruned = prune(sky, keep_versions=1, keep_days=0.0)
    assert (pruned.versions, numbers(sky)) == ((1,), [5])
    assert pruned.num_bytes > 0
    used = {record.name for record in open_version(sky).manifest.segments}
    assert {folder.name for folder in (sky / "segments").iterdir()} == used
    assert not verify(sky).problems


def test_what_pruning_keeps(sky: Path) -> None:
    rollback(sky, 1)
    before = answers(sky)
    assert prune(sky, keep_versions=1, keep_days=1.0).versions == ()  # all are young
    for years in (3_000, 1e9):  # more than a calendar goes back
        assert prune(sky, keep_versions=1, keep_days=365.0 * years).versions == ()
    # a clock that was a year ahead, and is back now
    past = datetime.now(UTC) - timedelta(days=365)
    assert prune(sky, keep_versions=1, keep_days=1.0, now=past).versions == ()
    later = datetime.now(UTC) + timedelta(days=2)
    assert prune(sky, keep_versions=2, keep_days=1.0, now=later).versions == (2,)

    assert numbers(sky) == [1, 3, 4]  # the published, and the newest
    assert answers(sky) == before
    assert not verify(sky).problems
    for keep_versions, keep_days in ((0, 1.0), (1, -1.0)):
        with pytest.raises(ValueError, match="expected keep_versions"):
            prune(sky, keep_versions=keep_versions, keep_days=keep_days)


def test_nothing_is_pruned_where_a_version_is_damaged(sky: Path) -> None:
    (sky / "versions" / "2" / "manifest.json").write_text("{}")
    there = sorted(sky.rglob("*"))
    with pytest.raises(VersionCorrupt, match="manifest"):
        prune(sky, keep_versions=1, keep_days=0.0)
    publish(sky, 9)
    with pytest.raises(VersionCorrupt, match="9"):
        prune(sky, keep_versions=1, keep_days=0.0)
    assert sorted(sky.rglob("*")) == there


def test_what_a_killed_run_left_goes_with_the_next_pruning(sky: Path) -> None:
    shutil.copytree(next((sky / "segments").iterdir()), sky / "segments" / "image-0123")
    (sky / "objects" / "Norder=0" / "Npix=3-lost.parquet").write_bytes(b"x")
    pruned = prune(sky, keep_versions=4, keep_days=0.0)
    assert (pruned.versions, pruned.num_files) == ((), 5)
    assert not verify(sky).problems
    assert disk.read_json(sky / "versions" / "1" / "manifest.json")


def test_a_lease_goes_with_its_owner(sky: Path) -> None:
    folder = sky / "versions" / "1"
    reader = open_version(sky, 1)
    with lease.alone(folder) as is_alone:
        assert not is_alone
    del reader
    gc.collect()
    with lease.alone(folder) as is_alone:
        assert is_alone
