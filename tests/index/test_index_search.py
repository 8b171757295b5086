"""Search over segments against brute force in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from index import search
from index.errors import VersionCorrupt
from index.filtering import Filter, Live
from index.search import Neighbors, find, fuse, unit_queries
from index.segment import Segment, write_segment

DIM = 16


def unit(rows: int, seed: int, *, repeats: int = 1) -> ndarray:
    """Unit vectors as float16 keeps them; `repeats` gives groups of equal ones."""
    made = np.random.default_rng(seed).standard_normal((-(-rows // repeats), DIM))
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return np.repeat(made, repeats, axis=0)[:rows].astype(np.float16)


def write(folder: Path, keys: ndarray, vectors: ndarray) -> Segment:
    rows = pa.table({"source": [str(key) for key in keys], "precision": ["float32"] * len(keys)})
    name = write_segment(
        folder,
        view="image",
        keys=keys.astype(np.int64),
        rows=rows,
        blocks=np.array_split(vectors, 3),
        dim=DIM,
        encoder_hash="e",
        head_hash="h",
    )
    return Segment(folder / name)


def brute_force(
    query: ndarray, keys: ndarray, vectors: ndarray, k: int
) -> tuple[list[int], list[float]]:
    """Best score of each object, by the definition of the cosine, ties by key."""
    wide = vectors.astype(np.float32)
    wide = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float64)
    scores = (wide * query.astype(np.float64)).sum(axis=1).astype(np.float32)
    best: dict[int, float] = {}
    for key, score in zip(keys.tolist(), scores.tolist(), strict=True):
        best[key] = max(score, best.get(key, -2.0))
    order = sorted(best, key=lambda key: (-best[key], key))[:k]
    return order, [best[key] for key in order]


@settings(deadline=None, max_examples=40)
@given(
    num_rows=st.integers(1, 60),
    num_objects=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    k=st.integers(1, 70),
    seed=st.integers(0, 1000),
    repeats=st.sampled_from([1, 1, 5]),
    filtered=st.booleans(),
    deleted=st.booleans(),
)
def test_search_is_brute_force(
    num_rows: int,
    num_objects: int,
    cuts: list[int],
    k: int,
    seed: int,
    repeats: int,
    filtered: bool,
    deleted: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, num_objects, num_rows)
    vectors = unit(num_rows, seed, repeats=repeats)
    alive = rng.random(num_rows) < 0.7 if deleted else np.ones(num_rows, bool)
    allowed = rng.random(num_objects) < 0.5 if filtered else np.ones(num_objects, bool)
    folder = tmp_path_factory.mktemp("segments")
    segments = []
    for rows in np.split(np.arange(num_rows), sorted(min(cut, num_rows) for cut in cuts)):
        rows = rows[np.argsort(keys[rows], kind="stable")]
        made = write(folder, keys[rows], vectors[rows])
        segments.append(Live(made, alive[rows] if deleted else None))
    queries = unit_queries(vectors[: min(3, num_rows)].astype(np.float32))

    found = find(queries, segments, k=k, chosen=Filter(allowed if filtered else None))

    use = alive & allowed[keys]
    for i, query in enumerate(queries):
        want_keys, want_scores = brute_force(query, keys[use], vectors[use], k)
        assert found.keys[i, : len(want_keys)].tolist() == want_keys
        np.testing.assert_allclose(found.scores[i, : len(want_keys)], want_scores, atol=2e-7)
        assert (found.keys[i, len(want_keys) :] == -1).all()
        assert np.isneginf(found.scores[i, len(want_keys) :]).all()


def test_equal_vectors_tie_exactly_and_are_ordered_by_key(tmp_path: Path) -> None:
    vectors = np.repeat(unit(1, 0), 1000, axis=0)
    keys = np.arange(1000)
    segments = [Live(write(tmp_path, keys[i::3], vectors[i::3]), None) for i in (2, 0, 1)]

    found = find(unit_queries(unit(4, 9).astype(np.float32)), segments, k=50, chosen=Filter())

    assert (found.keys == np.arange(50)).all()
    assert (found.scores == found.scores[:, :1]).all()


def test_the_batch_of_queries_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = [Live(write(tmp_path, np.arange(500), unit(500, 1)), None)]
    queries = unit_queries(unit(20, 2).astype(np.float32))
    whole = find(queries, segments, k=7, chosen=Filter())

    assert len(queries) > search._FEW_QUERIES
    monkeypatch.setattr(search, "_PRODUCT_SIZE", 1500)  # three queries at a time
    for found in (
        find(queries, segments, k=7, chosen=Filter()),
        *(find(query[None], segments, k=7, chosen=Filter()) for query in queries[:1]),
    ):
        np.testing.assert_array_equal(found.keys, whole.keys[: len(found.keys)])
        np.testing.assert_array_equal(found.scores, whole.scores[: len(found.scores)])


@pytest.mark.parametrize("block_rows", [64, 1 << 16])
def test_few_queries_and_many_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    """A scan by FAISS where the vectors lie, and products of blocks of rows."""
    keys = np.sort(np.random.default_rng(0).integers(0, 300, 500))
    segments = [Live(write(tmp_path, keys, unit(500, 1)), None)]
    queries = unit_queries(unit(3, 2).astype(np.float32))
    scanned = find(queries, segments, k=9, chosen=Filter())

    monkeypatch.setattr(search, "_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(search, "_FEW_QUERIES", 0)
    blocks = find(queries, segments, k=9, chosen=Filter())

    np.testing.assert_array_equal(blocks.keys, scanned.keys)
    np.testing.assert_array_equal(blocks.scores, scanned.scores)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_query_without_a_direction_is_refused(bad: float) -> None:
    queries = np.ones((2, DIM), np.float32)
    queries[1] = bad
    with pytest.raises(ValueError, match="query 1"):
        unit_queries(queries)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_queries_are_scaled_to_unit_length(scale: float, seed: int) -> None:
    query = unit(1, seed).astype(np.float32) * np.float32(scale)

    np.testing.assert_allclose(np.linalg.norm(unit_queries(query), axis=1), 1, rtol=1e-6)


def test_fused_ranks_follow_the_formula() -> None:
    image = Neighbors(np.array([[7, 3, 5]]), np.array([[0.9, 0.8, 0.1]], np.float32))
    joint = Neighbors(np.array([[3, 9, -1]]), np.array([[0.2, 0.1, -np.inf]], np.float32))

    found = fuse([image, joint], k=5)

    want = {3: 1 / 62 + 1 / 61, 7: 1 / 61, 9: 1 / 62, 5: 1 / 63}
    assert found.keys[0].tolist() == [3, 7, 9, 5, -1]
    np.testing.assert_allclose(found.scores[0, :4], list(want.values()), rtol=1e-6)
    assert np.isneginf(found.scores[0, 4])


def test_a_segment_comes_back(tmp_path: Path) -> None:
    keys, vectors = np.array([2, 2, 5, 9]), unit(4, 3)
    made = write(tmp_path, keys, vectors)

    assert (made.view, made.num_rows, made.dim, made.max_rows_per_object) == ("image", 4, DIM, 2)
    assert made.rows()["source"].to_pylist() == ["2", "2", "5", "9"]
    assert made.rows()["object_key"].to_pylist() == keys.tolist()
    np.testing.assert_allclose(made.vectors(np.array([3, 0])), vectors[[3, 0]], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(made.vectors(slice(0, 4)), axis=1), 1, rtol=1e-6)


def test_the_same_rows_make_the_same_segment(tmp_path: Path) -> None:
    first = write(tmp_path, np.arange(5), unit(5, 3))
    again = write(tmp_path, np.arange(5), unit(5, 3))

    assert first.folder == again.folder
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ascending"):
        write(tmp_path, np.array([3, 1]), unit(2, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["vectors.npy", "object_key.npy", "rows.parquet"])
def test_a_file_cut_short_is_named_when_a_segment_is_opened(tmp_path: Path, name: str) -> None:
    made = write(tmp_path, np.arange(5), unit(5, 3))
    file = made.folder / name
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(VersionCorrupt, match=name):
        Segment(made.folder)
