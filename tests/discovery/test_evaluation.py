"""nDCG against scikit-learn, chance against shuffling, labels against what people write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from discovery import Query, Sky, evaluate
from index.evaluation import bootstrap_error, chance_ndcg, ndcg, read_labels

from .conftest import NUM_IN_PATCH, SPECTRUM_ONLY, object_id


@settings(deadline=None)  # a busy machine is no failure
@given(
    num=st.integers(3, 40),
    k=st.integers(1, 12),
    levels=st.sampled_from([2, 3, 11]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ndcg_is_scikit_learns(num: int, k: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevance = rng.integers(0, levels, num) / (levels - 1)
    relevance[:2] = 1.0
    gains = 2.0**relevance - 1
    queries = np.flatnonzero(relevance == 1)
    scores = rng.permuted(np.tile(np.arange(num, dtype=float), (len(queries), 1)), axis=1)
    scores[np.arange(len(queries)), queries] = -np.inf
    ranked = np.argsort(-scores, axis=1)[:, : min(k, num - 1)]
    found = np.full((len(queries), k), -1)
    found[:, : ranked.shape[1]] = ranked

    values = ndcg(gains, queries, found)

    for row, query in enumerate(queries):
        others = np.arange(num) != query
        oracle = ndcg_score(gains[None, others], scores[row : row + 1, others], k=k)
        assert values[row] == pytest.approx(oracle, abs=1e-12)


def test_the_best_order_scores_one_and_the_worst_less() -> None:
    gains = np.array([1.0, 0.2, 0.0, 1.0, 0.5])
    queries = np.array([0, 3])
    best = np.array([[3, 4, 1], [0, 4, 1]])
    np.testing.assert_allclose(ndcg(gains, queries, best), 1)
    assert (ndcg(gains, queries, best[:, ::-1].copy()) < 1).all()


@pytest.mark.parametrize(("num", "k"), [(30, 10), (6, 10)])
def test_chance_is_the_mean_of_random_orders(num: int, k: int) -> None:
    rng = np.random.default_rng(2)
    gains = 2.0 ** rng.choice([0, 0.3, 1], size=num, p=[0.6, 0.2, 0.2]) - 1
    gains[0] = 1.0
    queries = np.array([0])
    orders = rng.permuted(np.tile(np.arange(1, num), (20_000, 1)), axis=1)[:, :k]
    shuffled = ndcg(gains, np.zeros(len(orders), np.int64), orders)
    error = shuffled.std() / np.sqrt(len(shuffled))
    assert chance_ndcg(gains, queries, k)[0] == pytest.approx(shuffled.mean(), abs=4 * error)


def test_bootstrap_error_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).random(400)
    expected = values.std() / np.sqrt(len(values))
    assert bootstrap_error(values, seed=1) == pytest.approx(expected, rel=0.1)
    assert bootstrap_error(values, seed=1) == bootstrap_error(values, seed=1)


def write_labels(path: Path) -> Path:
    """Labels of the patch: every third object is one, some are unknown, one is not in the sky."""
    lines = ["object_id,ring,bar"]
    for n in range(NUM_IN_PATCH):
        ring = "" if n % 10 == 9 else f"{1.0 if n % 3 == 0 else 0.25 * (n % 2)}"
        lines.append(f"{object_id(n)},{ring},0.5")
    lines += [f"{SPECTRUM_ONLY},1,", "not-in-this-sky,1,"]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_evaluation_agrees_with_searching_one_by_one(sky: Sky, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv")
    relevance = {
        object_id(n): 1.0 if n % 3 == 0 else 0.25 * (n % 2)
        for n in range(NUM_IN_PATCH)
        if n % 10 != 9
    }
    queries = [name for name, value in relevance.items() if value == 1]
    values, precisions = [], []
    for query in queries:
        ids = [name for name in sky.search(Query(like=[query])).ids if name in relevance]
        gains = np.array([[2 ** relevance[name] - 1 for name in ids]])
        values.append(ndcg_score(gains, -np.arange(len(ids), dtype=float)[None], k=10))
        precisions.append(np.mean([relevance[name] > 0.9 for name in ids[:10]]))

    found = evaluate(sky, labels, "ring")

    assert found.view == "image"
    assert found.num_queries == len(queries)
    assert found.num_corpus == len(relevance)
    assert found.num_left_out == 2  # one has no image, one is not in the sky
    assert found.ndcg == pytest.approx(np.mean(values), abs=1e-9)
    assert found.precision == pytest.approx(np.mean(precisions))
    assert 0 < found.error < 0.2
    assert 0 < found.chance < 1
    assert set(found.to_json()) == {
        *("label", "queries", "corpus", "ndcg@10", "error", "precision@10", "chance", "version")
    }


def test_another_view_has_its_own_corpus(sky: Sky, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv")
    found = evaluate(sky, labels, "ring", view="spectrum")
    assert found.num_corpus == 9
    assert found.num_queries == 4  # 0, 3, 6 and the one without an image
    with pytest.raises(ValueError, match="no view 'xp', it has image, spectrum, joint"):
        evaluate(sky, labels, "ring", view="xp")


def test_nothing_to_ask_or_to_find_is_said(sky: Sky, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv")
    with pytest.raises(ValueError, match=r"no object .* bar above 0\.9 .* highest is 0\.5"):
        evaluate(sky, labels, "bar")
    lone = tmp_path / "lone.csv"
    lone.write_text(f"object_id,ring\n{object_id(0)},1\n{object_id(1)},0\n")
    with pytest.raises(ValueError, match="nothing to find"):
        evaluate(sky, lone, "ring")


def test_blank_is_unknown_and_ids_stay_strings(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("\ufeffobject_id,ring\n0012, 0.5\n1237648721217716541,1\n7,\nNA, \n")
    known = read_labels(file, "ring")
    assert known.to_dict() == {"0012": 0.5, "1237648721217716541": 1.0}


def test_the_ids_are_no_label(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("object_id,ring\n1,1\n")
    with pytest.raises(ValueError, match="object_id names the objects"):
        read_labels(file, "object_id")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("object_id,bar\na,1\n", "no column 'ring'; the columns are object_id, bar"),
        ("name,ring\na,1\n", "no column 'object_id'"),
        ("object_id,ring,ring\na,1,0\n", "more than one column 'ring'"),
        ("object_id,ring\na,1,9\nb,0,9\n", "not a CSV table .* Expected 2 fields in line 2, saw 3"),
        ("object_id,ring\na,1\na,0\n", "object a is listed twice"),
        ("object_id,ring\na,1.5\n", r"ring of object a .* 0 to 1.* got '1\.5'"),
        ("object_id,ring\na,-0.1\n", "0 to 1"),
        ("object_id,ring\na,yes\n", "got 'yes'"),
        ("object_id,ring\na,nan\n", "got 'nan'"),
        ("", "not a CSV table"),
    ],
)
def test_a_bad_labels_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_labels(file, "ring")
    assert str(file) in str(caught.value)


def test_a_missing_labels_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_labels(tmp_path / "none.csv", "ring")
