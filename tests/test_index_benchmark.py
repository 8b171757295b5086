"""The index benchmark: ground truth, synthetic rows, and the document of a small run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from index.versions import open_version, verify

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "index.py"
ROWS, DIM, QUERIES = 3_000, 32, 30
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
}
CELLS = {
    (kind, share) for kind in ("random", "correlated") for share in (0.5, 0.1, 0.01, 1e-3, 1e-4)
}
ASKED_FOR = {"faiss IVF,RaBitQfs + refine": "faiss", "hnswlib": "hnswlib", "usearch f32": "usearch"}
ASKED = list(ASKED_FOR)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in (BENCHMARKS, SCRIPT):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module(name)


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("synthetic_vectors", monkeypatch)


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("curve", monkeypatch)


def rows_of(vectors: ModuleType, num_rows: int, **options: int) -> Any:
    """Vectors and both attributes of the first rows."""
    blocks = list(vectors.Population(**options).blocks(num_rows))
    parts = ("vectors", *vectors.ATTRIBUTES)
    return tuple(np.concatenate([getattr(block, part) for block in blocks]) for part in parts)


def test_rows_follow_from_seed_and_number_alone(vectors: ModuleType) -> None:
    few, many = rows_of(vectors, 20, dim=8), rows_of(vectors, vectors.BLOCK_ROWS + 5, dim=8)
    alone = vectors.Population(dim=8).block(1)

    for short, long in zip(few, many, strict=True):
        np.testing.assert_array_equal(short, long[:20])
    np.testing.assert_array_equal(alone.vectors[:5], many[0][-5:])
    np.testing.assert_array_equal(alone.cluster_share[:5], many[2][-5:])
    assert many[0].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(many[0], axis=1), 1, atol=1e-6)
    assert not np.isclose(few[0], rows_of(vectors, 20, dim=8, seed=1)[0]).any(axis=1).all()
    queries = vectors.Population(dim=8).queries(40)
    np.testing.assert_array_equal(queries[:7], vectors.Population(dim=8).queries(7))
    assert (queries @ many[0].T).max() < 1 - 1e-6  # no query is a row


def test_attributes_take_the_share_asked_for(vectors: ModuleType) -> None:
    found, *attributes = rows_of(vectors, vectors.BLOCK_ROWS, dim=16)

    for values in attributes:
        assert values.min() >= 0
        assert values.max() < 1
        for share in (0.5, 0.1, 0.01):
            # three standard deviations of the count of rows
            error = 3 * (share * (1 - share) / len(values)) ** 0.5
            assert (values < share).mean() == pytest.approx(share, abs=error)
    # one knows nothing of the vectors, rows chosen by the other lie together
    apart = [np.linalg.norm(found[values < 0.01].mean(axis=0)) for values in attributes]
    assert apart[0] < 0.2 < apart[1]


def test_the_dimension_of_a_flat_space_is_found(vectors: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for dim in (4, 16):
        # neighbours of a point in a flat space of that dimension, at random
        radii = np.sort(rng.random((4000, 20)) ** (1 / dim), axis=1)
        assert vectors.intrinsic_dimension(radii) == pytest.approx(dim * 19 / 18, rel=0.03)
    with pytest.raises(ValueError, match="its own neighbour"):
        vectors.intrinsic_dimension(np.array([[0.0, 1.0, 2.0]]))


@pytest.mark.slow
def test_a_million_vectors_have_intrinsic_dimension_16(
    vectors: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = module("exact_neighbors", monkeypatch)
    population = vectors.Population()
    truth = exact.ExactNeighbors(population.queries(300), k=20)
    for block in population.blocks(1_000_000):
        truth.add(vectors.row_numbers(block), block.vectors)

    assert vectors.intrinsic_dimension(truth.distances) == pytest.approx(16, abs=1)


def test_exact_neighbors_are_those_of_a_sort(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    exact = module("exact_neighbors", monkeypatch)
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, 6)).astype(np.float32)
    rows[200:220] = rows[:20]  # ties
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[150:160]
    found = exact.ExactNeighbors(queries, k=12)
    for some in np.array_split(rng.permutation(300), 9):  # any order, blocks smaller than k too
        found.add(some, rows[some])

    scores = queries.astype(np.float64) @ rows.T.astype(np.float64)
    for i in range(10):
        order = np.lexsort((np.arange(300), -scores[i].round(12)))[:12]
        np.testing.assert_array_equal(found.rows[i], order)
        np.testing.assert_allclose(found.scores[i], scores[i][order], atol=1e-12)

    few = exact.ExactNeighbors(queries, k=3)
    few.add(np.array([7]), rows[7:8])
    assert few.rows.tolist() == [[7, -1, -1]] * 10
    assert exact.recall(np.array([[1, 2, 3]]), np.array([[3, 2, -1]])) == [1.0]
    assert exact.recall(np.array([[1, -1, -1]]), np.array([[3, 1, -1]])) == [0.5]
    assert np.isnan(exact.recall(np.array([[1, 2, 3]]), np.full((1, 3), -1))).all()


def test_a_rate_is_interpolated_between_the_efforts_that_count(curve: ModuleType) -> None:
    def point(recall: float, rate: float) -> Any:
        return curve.Point(None, recall, 0.0, 0.0, rate, 1)

    points = [point(0.90, 4000), point(0.96, 1000), point(1.0, 10), point(0.95, 500)]
    assert curve.rate_at(points, 0.98) == pytest.approx(100)
    assert curve.rate_at(points, 0.96) == pytest.approx(1000)
    assert curve.rate_at(points[:2], 0.98) is None
    assert curve.rate_at(points[:2], 0.5) == 4000  # not extrapolated
    assert curve.rate_at([*points, point(0.99, 1)], 0.98) == pytest.approx(100)


def test_the_best_round_counts(curve: ModuleType) -> None:
    truth = np.array([[1, 2], [3, 4], [5, 6]])
    made = curve.point(7, [[2.0, 2.0], [1.0, 3.0, 1.0]], [[1, 2], [3], [9, 9]], truth)

    assert (made.recall, made.p50_ms, made.num_queries) == (0.5, 1.0, 3)
    assert made.queries_per_second == pytest.approx(600)


def test_rows_are_divided_among_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = module("segments", monkeypatch)
    for layout in ("equal", "nightly"):
        for number in segments.NUM_SEGMENTS:
            rows = segments.divided(layout, 1_000, number)
            assert (sum(rows), len(rows)) == (1_000, number)
    assert segments.divided("nightly", 1_000, 3) == [998, 1, 1]
    with pytest.raises(ValueError, match="'equal' or 'nightly'"):
        segments.divided("daily", 1_000, 3)


def test_memory_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = module("resident_memory", monkeypatch)
    before = memory.anonymous_mib()
    # more than the 32 MiB that the allocator may keep of what was freed and hand out again
    held = np.ones(2**23)
    assert memory.anonymous_mib() - before == pytest.approx(64, abs=4)
    file = tmp_path / "held.npy"
    np.save(file, held)
    assert memory.cached_mib([file]) == pytest.approx(64, abs=0.1)
    assert memory.mapped_mib(tmp_path) == 0
    mapped = np.load(file, mmap_mode="r")
    assert mapped.sum() == 2**23
    assert memory.mapped_mib(tmp_path) == pytest.approx(64, abs=0.1)
    assert memory.mapped_mib(tmp_path, without=["held.npy"]) == 0


def test_a_synthetic_sky_is_a_sky(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vectors = module("synthetic_vectors", monkeypatch)
    sky = module("synthetic_sky", monkeypatch)
    population = vectors.Population(dim=DIM)
    sky.write_sky(tmp_path / "sky", population, segment_rows=[1_000, 1, 99])
    version = open_version(tmp_path / "sky")
    expected, *attributes = rows_of(vectors, 1_100, dim=DIM)

    assert verify(tmp_path / "sky").problems == ()
    assert version.num_objects == 1_100
    assert [live.segment.num_rows for live in version.segments] == [1_000, 1, 99]
    found = version.vectors(np.arange(1_100), sky.VIEW)
    np.testing.assert_allclose(found, expected, atol=5e-4)  # float16
    for name, values in zip(vectors.ATTRIBUTES, attributes, strict=True):
        np.testing.assert_array_equal(version.where(f"{name} < 0.3"), np.flatnonzero(values < 0.3))
    ra_deg, dec_deg = sky.positions(0, 1_100)
    near, _ = version.in_cone(ra_deg[5], dec_deg[5], 1e-3)
    assert near.tolist() == [5]
    hits = version.search(expected[:20], view=sky.VIEW, k=1)
    np.testing.assert_array_equal(hits.keys[:, 0], np.arange(20))
    with pytest.raises(ValueError, match="not there yet"):
        sky.write_sky(tmp_path / "sky", population, segment_rows=[5])


def test_no_benchmark_hides_the_package(tmp_path: Path) -> None:
    # a script's own folder comes first on the path: that of this script, and that of the others
    for folder in (SCRIPT, BENCHMARKS):
        code = f"import sys; sys.path.insert(0, {str(folder)!r}); import index; print(index)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
            env=ENVIRONMENT,
        )  # fmt: skip
        assert str(ROOT / "index" / "__init__.py") in done.stdout, done.stderr


def test_the_truth_with_and_without_filters_is_a_naive_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vectors, truth = module("synthetic_vectors", monkeypatch), module("truth", monkeypatch)
    num_rows = vectors.BLOCK_ROWS + 1_000
    prepared = truth.prepare(
        tmp_path, vectors.Population(dim=8), num_rows=num_rows, num_queries=6, num_more=2,
        num_filtered=3, filters=truth.all_filters(), with_vectors=True,
    )  # fmt: skip
    expected, *attributes = rows_of(vectors, num_rows, dim=8)
    queries = np.load(tmp_path / "queries.npy")
    scores = queries.astype(np.float64) @ expected.T.astype(np.float64)

    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), expected)
    assert len(queries) == 8
    np.testing.assert_array_equal(prepared.rows, np.argsort(-scores[:6], axis=1)[:, :10])
    assert {(each.kind, each.selectivity) for each in prepared.filtered} == CELLS
    for each, rows in prepared.filtered.items():
        values = attributes[("random", "correlated").index(each.kind)]
        passed = np.where(values < each.selectivity, scores[:3], -np.inf)
        naive = np.argsort(-passed, axis=1)[:, :10]
        naive[np.take_along_axis(passed, naive, axis=1) == -np.inf] = -1
        np.testing.assert_array_equal(rows, naive)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the script, from a folder that is not ours."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [
        sys.executable, str(SCRIPT), "--json", "--rows", str(ROWS), "--dim", str(DIM),
        "--queries", str(QUERIES), "--rounds", "1", "--seconds", "1", "--build-threads", "1",
        "--peers-python", sys.executable, "--work", str(elsewhere), "--peers", *ASKED,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert list(elsewhere.iterdir()) == []  # nothing is left behind
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_the_document_has_the_shape_that_was_agreed(report: dict[str, Any]) -> None:
    assert list(report) == [
        "recall@10", "p50_ms", "qps_1_thread", "qps_at_098", "peers", "memory_mib", "build_s",
        "filters", "nightly", "run",
    ]  # fmt: skip
    assert list(report["peers"]) == ASKED
    for figures in report["peers"].values():
        assert list(figures) == ["qps_at_098", "memory_mib", "build_s"]
    for line in report["filters"]:
        assert list(line) == ["kind", "selectivity", "recall@10", "p95_ms"]
    assert {(line["kind"], line["selectivity"]) for line in report["filters"]} == CELLS
    run = report["run"]
    assert {"machine", "measured_at_utc", "commit", "rows", "seed", "efforts"} <= set(run)
    assert (run["rows"], run["dim"], run["queries"], run["seed"]) == (ROWS, DIM, QUERIES, 0)


def test_what_is_measured_is_plausible(report: dict[str, Any]) -> None:
    assert report["recall@10"] >= 0.95
    assert min(report[name] for name in ("p50_ms", "qps_1_thread", "build_s", "memory_mib")) > 0
    for line in report["filters"]:
        # nothing passes the narrowest filters among so few rows
        assert (line["recall@10"] or 1) >= 0.95
        assert line["p95_ms"] > 0
    assert report["filters"][0]["recall@10"] is not None


def test_a_peer_that_is_not_there_is_named(report: dict[str, Any]) -> None:
    there = {name: importlib.util.find_spec(needs) is not None for name, needs in ASKED_FOR.items()}
    assert there["faiss IVF,RaBitQfs + refine"]
    for name, is_there in there.items():
        figures, efforts = report["peers"][name], report["run"]["efforts"].get(name)
        if not is_there:
            assert set(figures.values()) == {None}
            assert ASKED_FOR[name] in report["run"]["not_measured"][name]
            continue
        assert name not in report["run"]["not_measured"]
        assert figures["build_s"] > 0
        assert max(each["recall@10"] for each in efforts) > 0.98  # its rows are our rows
    assert report["nightly"] is None
    assert "nightly" in report["run"]["not_measured"]
