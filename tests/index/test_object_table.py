"""Objects and rows read where they are asked for, against the whole table in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from index import disk
from index.choosing import choose, objects_in
from index.errors import VersionCorrupt
from index.filtering import Live
from index.object_table import ObjectTable
from index.object_writing import write_objects
from index.objects import CATALOGUE, OBJECT_FIELDS, ROW_FIELDS, healpix_cells
from index.partitions import Partition, read_partitions
from index.pruning import prune
from index.segment import Segment, write_segment
from index.segment_rows import SegmentRows
from index.versions import open_version, verify
from tests.index.conftest import Builder, write_cutout

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUM_KEYS = 400


def objects(
    keys: Sequence[int] | ndarray,
    ids: Sequence[str],
    *,
    seed: int,
    more: dict[str, pa.Array] | None = None,
) -> pa.Table:
    """Lines of an object table all over the sky; every third without a position."""
    rng = np.random.default_rng(seed)
    ra_deg, dec_deg = (
        rng.uniform(0, 360, len(keys)),
        np.degrees(np.arcsin(rng.uniform(-1, 1, len(keys)))),
    )
    nowhere = np.arange(len(keys)) % 3 == 2
    cells = healpix_cells(ra_deg, dec_deg)
    columns: dict[str, pa.Array] = {
        "object_key": pa.array(keys, pa.int64()),
        "object_id": pa.array(ids, pa.string()),
        "ra_deg": pa.array(ra_deg, mask=nowhere),
        "dec_deg": pa.array(dec_deg, mask=nowhere),
        "views": pa.array([["image"]] * len(keys), OBJECT_FIELDS["views"]),
        "_healpix_29": pa.array(cells, mask=nowhere),
    }
    columns |= {name: pa.nulls(len(keys), kind) for name, kind in CATALOGUE.items()}
    redshift = rng.random(len(keys))
    columns["redshift"] = pa.array(redshift, mask=rng.random(len(keys)) < 0.3)
    return pa.table(columns | (more or {}))


def both(
    folder: Path, tables: Sequence[pa.Table], *, num_keys: int = NUM_KEYS
) -> tuple[ObjectTable, pa.Table]:
    """Tables written one after the other, opened, and read as a whole by pyarrow alone."""
    partitions: list[Partition] = []
    for table in tables:
        keys = table["object_key"].to_numpy()
        partitions += write_objects(folder, before=None, merged=table, touched=keys).partitions
    files = [pq.read_table(folder / each.file, partitioning=None) for each in partitions]
    whole = pa.concat_tables(files, promote_options="permissive").sort_by("object_key")
    return ObjectTable(folder, partitions, num_keys=num_keys), whole


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectTable, pa.Table]:
    """Three tables of different columns, one of them of two types."""
    rng = np.random.default_rng(0)
    keys = rng.permutation(NUM_KEYS)[:300]  # others are gone
    ids = [f"{key}" if key % 2 else f"é{key}\U0001f30c" for key in keys.tolist()]
    numbers = pa.array(rng.integers(0, 5, 100))
    tables = [
        objects(
            keys[:100], ids[:100], seed=1, more={"count": numbers, "name": pa.array(["a"] * 100)}
        ),
        objects(keys[100:200], ids[100:200], seed=2, more={"count": numbers.cast(pa.float64())}),
        objects(keys[200:], ids[200:], seed=3, more={"is_star": pa.array([True] * 100)}),
    ]
    return both(tmp_path_factory.mktemp("sky"), tables)


def lines_of(whole: pa.Table, keys: ndarray) -> pa.Table:
    return whole.take(pc.index_in(pa.array(keys), whole["object_key"]))


def test_columns_are_those_of_the_whole_table(opened: tuple[ObjectTable, pa.Table]) -> None:
    table, whole = opened
    assert table.schema.equals(whole.schema)
    assert read_partitions(table.sky, table.partitions).equals(whole)
    assert str(table.schema.field("count").type) == "double"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 299), max_size=60),
    st.sets(st.sampled_from(["count", "name", "views", "object_id"]), min_size=1),
)
def test_lines_are_those_of_the_whole_table(
    opened: tuple[ObjectTable, pa.Table], places: list[int], columns: set[str]
) -> None:
    table, whole = opened
    keys = whole["object_key"].to_numpy()[np.array(places, int)]
    names = sorted(columns)
    want = whole.take(pa.array(places, pa.int64()))

    assert table.take(table.lines(keys)).equals(want)
    assert table.take(table.lines(keys), names).equals(want.select(names))
    nobody = table.lines(keys[:0])
    assert table.take(nobody, names).equals(want.select(names).slice(0, 0))


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, NUM_KEYS + 3)))
def test_a_key_that_is_not_here_has_no_line(
    opened: tuple[ObjectTable, pa.Table], keys: list[int]
) -> None:
    table, whole = opened
    there = set(whole["object_key"].to_pylist())
    lines = table.lines(np.array(keys, np.int64))
    assert (lines >= 0).tolist() == [key in there for key in keys]


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ids=st.lists(_TEXTS, unique=True, min_size=1, max_size=30),
    asked=st.lists(st.text(max_size=12)),
    seed=st.integers(0, 99),
)
def test_any_id_is_found_or_not_here(
    ids: list[str], asked: list[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.permutation(NUM_KEYS)[: len(ids)]
    table, _ = both(tmp_path_factory.mktemp("sky"), [objects(keys, ids, seed=seed)])
    known = dict(zip(ids, keys.tolist(), strict=True))
    wanted = [*asked, *ids, *(each + "\0" for each in ids), *ids[::-1]]

    assert table.keys_of_ids(wanted).tolist() == [known.get(each, -1) for each in wanted]


def test_ids_whose_hashes_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Keys up to 2^56 leave 8 bits of a hash: a dozen ids share each."""
    ids = [f"id{i}" for i in range(3_000)]
    keys = np.arange(3_000)[::-1].copy()
    table, _ = both(tmp_path, [objects(keys, ids, seed=0)], num_keys=3_000)
    lines = table._line_of_key
    crowded = ObjectTable(tmp_path, table.partitions, num_keys=2**56)
    crowded.__dict__["_line_of_key"] = lines  # of so many keys it would not fit into memory

    asked = [*ids, *(f"other{i}" for i in range(1_000))]
    assert crowded.keys_of_ids(asked).tolist() == [*keys.tolist(), *[-1] * 1_000]


@pytest.mark.parametrize(
    "condition",
    [
        "redshift > 0.5", "count > 2", "count = 2", "count % 2 = 1", "name = 'a'", "name IS NULL",
        "is_star", "is_star IS NULL", "ra_deg IS NULL", "object_id LIKE 'é%'", "mag_r < 20", "TRUE",
        "redshift > 0.5 AND (count < 3 OR is_star)", "redshift < -1", "redshift IS DISTINCT FROM 1",
    ],
)  # fmt: skip
def test_predicates_find_what_they_find_in_the_whole_table(
    opened: tuple[ObjectTable, pa.Table], condition: str
) -> None:
    import duckdb

    table, whole = opened
    with duckdb.connect() as database:
        database.register("objects", whole)
        want = database.execute(f"SELECT object_key FROM objects WHERE {condition}").fetchall()
    assert np.flatnonzero(table.where(condition)).tolist() == sorted(key for (key,) in want)


def test_positions_are_those_of_the_whole_table(opened: tuple[ObjectTable, pa.Table]) -> None:
    table, whole = opened
    known = whole.filter(whole["ra_deg"].is_valid())
    found = list(table.positions())
    order = np.argsort(np.concatenate([each.keys for each in found]))

    for name, column in (("keys", "object_key"), ("ra_deg", "ra_deg"), ("dec_deg", "dec_deg")):
        values = np.concatenate([getattr(each, name) for each in found])[order]
        np.testing.assert_array_equal(values, known[column].to_numpy())
    assert sorted(np.concatenate(list(table.keys())).tolist()) == whole["object_key"].to_pylist()


def test_a_sky_without_objects_answers(tmp_path: Path) -> None:
    table = ObjectTable(tmp_path, (), num_keys=0)
    assert table.schema.equals(pa.schema(OBJECT_FIELDS | CATALOGUE))
    assert table.keys_of_ids(["a"]).tolist() == [-1]
    assert table.lines(np.array([0, -1])).tolist() == [-1, -1]
    assert table.take(np.empty(0, np.int64)).num_rows == 0
    assert table.where("redshift > 0").tolist() == []
    assert list(table.positions()) == []


def test_partitions_of_old_are_read(opened: tuple[ObjectTable, pa.Table], tmp_path: Path) -> None:
    _, whole = opened
    keys = whole["object_key"].to_numpy()
    new = write_objects(tmp_path, before=None, merged=whole, touched=keys).partitions
    for each in new:
        assert each.mapped is not None
        (tmp_path / each.mapped).unlink()
    old = tuple(replace(each, mapped=None) for each in new)
    table = ObjectTable(tmp_path, old, num_keys=NUM_KEYS)

    assert table.take(table.lines(keys[::-1])).equals(whole.take(pa.array(np.arange(300)[::-1])))
    assert [each.files for each in old] == [(each.file,) for each in new]


@pytest.mark.parametrize("damage", ["cut", "foreign", "gone", "more"])
def test_a_damaged_mapped_file_is_named(tmp_path: Path, damage: str) -> None:
    table, _ = both(tmp_path, [objects(range(9), "abcdefghi", seed=0)])
    mapped = table.partitions[-1].mapped
    assert mapped is not None
    file = tmp_path / mapped
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        file.write_bytes(b"no Arrow file at all")
    elif damage == "gone":
        file.unlink()
    else:
        batch = pa.record_batch({"object_key": pa.array(range(10))})
        disk.write_batch(file, batch)

    with pytest.raises(VersionCorrupt, match=file.name):
        table.lines(np.array([0]))


def test_mapped_files_are_verified_and_pruned(tmp_path: Path, into: Builder) -> None:
    sky, files = tmp_path / "sky", tmp_path / "files"
    write_cutout(files / "0.fits", 0)
    into(sky, files, "legacysurvey")
    write_cutout(files / "0.fits", 1)
    into(sky, files, "legacysurvey")
    old, new = (open_version(sky, number).manifest.partitions for number in (1, 2))
    assert all((sky / file).is_file() for each in (*old, *new) for file in each.files)
    assert not verify(sky).problems

    prune(sky, keep_versions=1, keep_days=0.0)

    kept = {file for each in new for file in each.files}
    left = {str(file.relative_to(sky)) for file in (sky / "objects").rglob("*.*")}
    assert left == kept
    file = sky / str(new[0].mapped)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert [each.file for each in verify(sky).problems] == [new[0].mapped]


def test_no_question_takes_the_whole_table_into_memory(tmp_path: Path, into: Builder) -> None:
    sky, files = tmp_path / "sky", tmp_path / "files"
    for seed in range(3):
        write_cutout(files / f"{seed}.fits", seed, position=(10.0 + seed, 5.0))
    into(sky, files, "legacysurvey")
    version = open_version(sky)

    keys = version.keys_of(["0", "2"])
    assert version.objects(keys)["object_id"].to_pylist() == ["0", "2"]
    assert len(choose(version, where="redshift IS NULL", surveys=["legacysurvey"]).allowed) == 3  # type: ignore[arg-type]
    assert objects_in(version, "any").tolist() == [True] * 3
    assert version.in_cone(11.0, 5.0, 3.0)[0].tolist() == version.keys_of(["1"]).tolist()
    assert version.nearest(12.1, 5.0) is not None
    assert version.rows(keys).num_rows == 2 * len(version.views)
    assert set(version.surveys(keys)["survey"].to_pylist()) == {"legacysurvey"}
    assert version.vectors(keys, "image").shape == (2, 256)
    assert not {"table", "live_rows"} & set(vars(version))


def rows_of(num: int, *, names: Sequence[str] = ()) -> pa.Table:
    columns = {name: pa.nulls(num, kind) for name, kind in ROW_FIELDS.items()}
    columns |= {
        "survey": pa.array([("a", "b", "a+b")[i % 3] for i in range(num)]),
        "source": pa.array([f"file{i}" for i in range(num)]),
        "precision": pa.array(["float32"] * num),
    }
    return pa.table(columns | {name: pa.array(np.arange(float(num))) for name in names})


@settings(deadline=None, max_examples=40)
@given(
    rows_an_object=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    asked=st.lists(st.integers(-1, 13), max_size=9),
    seed=st.integers(0, 99),
    is_whole=st.booleans(),
)
def test_rows_are_those_of_the_whole_segment(
    rows_an_object: list[int],
    asked: list[int],
    seed: int,
    is_whole: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    keys = np.repeat(np.arange(len(rows_an_object)), rows_an_object)
    folder = tmp_path_factory.mktemp("segments")
    vectors = np.ones((len(keys), 4), np.float16)
    name = write_segment(
        folder, view="image", keys=keys, rows=rows_of(len(keys)), blocks=[vectors], dim=4,
        encoder_hash="e", head_hash="h",
    )  # fmt: skip
    segment = Segment(folder / name)
    table = pq.read_table(folder / name / "rows.parquet")
    pq.write_table(table, folder / name / "rows.parquet", row_group_size=5)
    alive = np.random.default_rng(seed).random(len(keys)) < 0.6
    live = Live(segment, None if is_whole else alive)
    alive = np.ones(len(keys), bool) if is_whole else alive
    rows, wanted = SegmentRows(live), np.array(asked, np.int64)

    mine = np.flatnonzero(alive & np.isin(keys, wanted))
    assert rows.of(wanted).tolist() == mine.tolist()
    first = [next(iter(np.flatnonzero(alive & (keys == key)).tolist()), -1) for key in asked]
    assert rows.first(wanted).tolist() == first
    assert rows.keys().tolist() == keys[alive].tolist()
    read = rows.read(mine)
    assert read.drop_columns(["view"]).equals(segment.rows().take(pa.array(mine)))
    assert read["view"].to_pylist() == ["image"] * len(mine)
    assert rows.read(mine, ["source"]).equals(read.select(["object_key", "view", "source"]))
    surveys = rows.surveys
    names = [surveys.names[number] for number in surveys.of_row.tolist()]
    assert names == segment.rows()["survey"].to_pylist()
