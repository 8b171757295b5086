"""Distributions from a head: against a known one, calibrated, and wide where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float64
from numpy import ndarray

from training import probes
from training.densities import flatness
from training.features import Features
from training.posterior_probe import regress_densities
from training.probes import Split

NUM, DIM = 1600, 4
SPLIT = Split(np.arange(800), np.arange(800, NUM))


@pytest.fixture(scope="module")
def vectors() -> Features:
    return Features(np.random.default_rng(0).normal(2, 3, (NUM, DIM)).astype(np.float32))


@pytest.fixture(scope="module")
def width(vectors: Features) -> Float64[ndarray, " object"]:
    """Of the noise: it depends on the object."""
    return np.where(vectors.values[:, 1] > 2, 1.0, 0.2)


@pytest.fixture(scope="module")
def target(vectors: Features, width: ndarray) -> Float64[ndarray, " object"]:
    return vectors.values[:, 0] + width * np.random.default_rng(1).normal(size=NUM)


def test_a_posterior_is_calibrated_and_knows_its_width(
    vectors: Features, target: ndarray, width: ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MIN_STEPS", 600)
    found = regress_densities("mlp", vectors, target, SPLIT, seed=0)
    truth, known = target[SPLIT.test], vectors.values[SPLIT.test, 0].astype(np.float64)

    assert flatness(found.pit(truth)).p_value > 1e-3
    assert np.corrcoef(found.mean(), known)[0, 1] > 0.98
    wide = width[SPLIT.test] > 0.5
    assert found.deviation()[wide].mean() > 2.5 * found.deviation()[~wide].mean()
    low, high = found.interval(0.9).T
    assert ((truth > low) & (truth < high)).mean() == pytest.approx(0.9, abs=0.05)
    assert flatness(found.pit(truth + 0.5)).p_value < 1e-6


def test_a_linear_posterior_is_calibrated_where_the_relation_is_linear(vectors: Features) -> None:
    target = vectors.values[:, 0] + np.random.default_rng(1).normal(size=NUM)
    found = regress_densities("linear", vectors, target, SPLIT, seed=0)
    truth = target[SPLIT.test]
    assert flatness(found.pit(truth)).p_value > 1e-3
    assert np.sqrt(np.mean((found.mean() - truth) ** 2)) == pytest.approx(1, abs=0.12)
    assert found.deviation().mean() == pytest.approx(1, abs=0.15)


def test_where_nothing_is_to_be_known_it_is_the_distribution_of_all(
    vectors: Features, target: ndarray
) -> None:
    shuffled = np.random.default_rng(2).permutation(target)
    found = regress_densities("mlp", vectors, shuffled, SPLIT, seed=0)
    low, high = found.interval(0.68).T
    truth = shuffled[SPLIT.test]
    assert (high - low).mean() / 2 == pytest.approx(target.std(), rel=0.15)
    assert ((truth > low) & (truth < high)).mean() == pytest.approx(0.68, abs=0.07)


def test_attention_gives_a_posterior_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MIN_STEPS", 300)
    monkeypatch.setattr(probes, "MAX_EPOCHS", 60)
    rng = np.random.default_rng(0)
    num_tokens = rng.integers(2, 5, 700)
    starts = np.concatenate([[0], np.cumsum(num_tokens)])
    tokens = rng.normal(size=(starts[-1], 4)).astype(np.float16)
    tokens[:, 0] = 0
    carrier = starts[:-1] + rng.integers(0, num_tokens)
    tokens[carrier, 0] = 6
    target = tokens[carrier, 1].astype(np.float64)
    split = Split(np.arange(500), np.arange(500, 700))
    found = regress_densities("attentive", Features(tokens, starts), target, split, seed=0)
    truth = target[split.test]
    assert np.corrcoef(found.mean(), truth)[0, 1] > 0.75
    assert flatness(found.pit(truth)).p_value > 1e-3


def test_the_same_seed_gives_the_same_and_unknown_targets_teach_nothing(
    vectors: Features, target: ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MIN_STEPS", 50)
    monkeypatch.setattr(probes, "MAX_EPOCHS", 10)
    some = Split(SPLIT.train[:300], SPLIT.test[:50])
    more = Split(SPLIT.train[:400], SPLIT.test[:50])
    unknown = target.copy()
    unknown[300:] = np.nan
    one = regress_densities("linear", vectors, target, some, seed=3)
    other = regress_densities("linear", vectors, unknown, more, seed=3)
    np.testing.assert_allclose(one.mass, other.mass, atol=1e-6)


def test_nan_never_passes(vectors: Features, target: ndarray) -> None:
    spoilt = vectors.values.copy()
    spoilt[1000, 2] = np.nan
    infinite = target.copy()
    infinite[3] = np.inf
    for given, value, message in (
        (Features(spoilt), target, "output of object 1000 holds NaN"),
        (vectors, infinite, "a target is infinite"),
        (vectors, np.full(NUM, np.nan), "target 0 is known for no training object"),
        (vectors, np.ones(NUM), "expected ten or more different targets"),
    ):
        with pytest.raises(ValueError, match=message):
            regress_densities("mlp", given, value, SPLIT, seed=0)
    with pytest.raises(ValueError, match="output of object 1000"):
        probes.regress("linear", Features(spoilt), target[:, None], SPLIT, seed=0)
    with pytest.raises(ValueError, match="output of object 1000"):
        probes.classify("mlp", Features(spoilt), np.zeros(NUM, np.int64), SPLIT, seed=0)
    with pytest.raises(ValueError, match="a target is infinite"):
        probes.regress("mlp", vectors, infinite[:, None], SPLIT, seed=0)
