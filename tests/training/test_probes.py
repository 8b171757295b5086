"""Heads on frozen outputs: what they find, and that they find nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float64
from numpy import ndarray
from sklearn.metrics import r2_score

from training import probes
from training.features import Features
from training.probes import Kind, Split

NUM, DIM = 500, 8
SPLIT = Split(np.arange(400), np.arange(400, NUM))


def r2(truth: ndarray, predicted: Float64[ndarray, "test output"]) -> float:
    return float(r2_score(truth[SPLIT.test], predicted))


@pytest.fixture(scope="module")
def vectors() -> Features:
    rng = np.random.default_rng(0)
    return Features(rng.normal(3, [0.1, 1, 10, 1, 1, 1, 1, 1], (NUM, DIM)).astype(np.float32))


@pytest.fixture(scope="module")
def linear_targets(vectors: Features) -> Float64[ndarray, "object two"]:
    rng = np.random.default_rng(1)
    scaled = (vectors.values - 3) / [0.1, 1, 10, 1, 1, 1, 1, 1]
    return scaled @ rng.normal(size=(DIM, 2)) + rng.normal(0, 0.05, (NUM, 2)) + [0, 100]


def test_linear_is_least_squares_where_the_relation_is_linear(
    vectors: Features, linear_targets: ndarray
) -> None:
    design = np.column_stack([vectors.values, np.ones(NUM)]).astype(np.float64)
    exact, *_ = np.linalg.lstsq(design[SPLIT.train], linear_targets[SPLIT.train], rcond=None)

    predicted = probes.regress("linear", vectors, linear_targets, SPLIT, seed=0)

    np.testing.assert_allclose(predicted, design[SPLIT.test] @ exact, atol=0.01)
    assert r2(linear_targets, predicted) > 0.99


def test_an_mlp_finds_a_relation_and_nothing_in_shuffled_targets(
    vectors: Features, linear_targets: ndarray
) -> None:
    found = probes.regress("mlp", vectors, linear_targets, SPLIT, seed=0)
    assert r2(linear_targets, found) > 0.98
    shuffled = np.random.default_rng(2).permutation(linear_targets)
    for kind in ("linear", "mlp"):
        nothing = probes.regress(kind, vectors, shuffled, SPLIT, seed=0)
        assert r2(shuffled, nothing) < 0.05


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_classes_are_told_apart(kind: Kind, vectors: Features, linear_targets: ndarray) -> None:
    classes = np.digitize(linear_targets[:, 0], [-2, 2]).astype(np.int64)
    found = probes.classify(kind, vectors, classes, SPLIT, seed=0)
    assert (found == classes[SPLIT.test]).mean() > 0.9
    shuffled = np.random.default_rng(2).permutation(classes)
    nothing = probes.classify(kind, vectors, shuffled, SPLIT, seed=0)
    most = np.bincount(classes).max() / NUM
    assert (nothing == shuffled[SPLIT.test]).mean() < most + 0.1


def test_attention_finds_what_one_token_carries_and_the_mean_hides() -> None:
    rng = np.random.default_rng(0)
    num_tokens = rng.integers(3, 7, NUM)
    starts = np.concatenate([[0], np.cumsum(num_tokens)])
    tokens = rng.normal(size=(starts[-1], DIM)).astype(np.float16)
    tokens[:, 0] = 0
    carrier = starts[:-1] + rng.integers(0, num_tokens)
    tokens[carrier, 0] = 6
    target = tokens[carrier, 1].astype(np.float64)[:, None]
    means = np.add.reduceat(tokens.astype(np.float32), starts[:-1]) / num_tokens[:, None]

    by_mean = probes.regress("linear", Features(means.astype(np.float32)), target, SPLIT, seed=0)
    by_attention = probes.regress("attentive", Features(tokens, starts), target, SPLIT, seed=0)

    assert r2(target, by_mean) < 0.35
    assert r2(target, by_attention) > 0.7


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_test_teaches_nothing(kind: Kind, vectors: Features, linear_targets: ndarray) -> None:
    changed = vectors.values.copy()
    changed[NUM - 1] *= 1e3
    targets = linear_targets.copy()
    targets[SPLIT.test] = 7
    one = probes.regress(kind, vectors, linear_targets, SPLIT, seed=0)
    other = probes.regress(kind, Features(changed), targets, SPLIT, seed=0)
    np.testing.assert_allclose(one[:-1], other[:-1], rtol=1e-5, atol=1e-5)


def test_an_unknown_target_is_as_good_as_no_object(
    vectors: Features, linear_targets: ndarray
) -> None:
    unknown = linear_targets.copy()
    unknown[100:400, 0] = np.nan
    fewer = Split(SPLIT.train[:100], SPLIT.test)
    one = probes.regress("linear", vectors, unknown, SPLIT, seed=0)
    other = probes.regress("linear", vectors, linear_targets, fewer, seed=0)
    np.testing.assert_allclose(one[:, 0], other[:, 0])
    by_mlp = probes.regress("mlp", vectors, unknown, SPLIT, seed=0)
    assert np.isfinite(by_mlp).all()
    assert r2(linear_targets[:, 1:], by_mlp[:, 1:]) > 0.95


def test_an_unknown_probe_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'forest'.*linear, mlp, attentive, attentive-mlp"):
        probes.kind_of("forest")
