"""Maps from tokens: what they carry is found, pixel by pixel, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float32
from numpy import ndarray

from training import probes
from training.features import Features
from training.probes import Split
from training.segmentation_probe import intersection_over_union, segment

NUM, SIDE, DIM = 50, 12, 8
SPLIT = Split(np.arange(40), np.arange(40, NUM))


def tokens_of(values: Float32[ndarray, "object token dim"]) -> Features:
    num, length, dim = values.shape
    return Features(values.reshape(-1, dim), np.arange(num + 1) * length)


@pytest.fixture(scope="module")
def maps() -> Float32[ndarray, "object map y x"]:
    """A disc and a bar at places of their own in every object."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    rows = []
    for _ in range(NUM):
        cx, cy, bx = rng.uniform(25, 70, 3)
        disc = np.hypot(x - cx, y - cy) < 18
        rows.append(np.stack([disc, (np.abs(x - bx) < 10) & (np.abs(y - 48) < 30)]))
    return np.array(rows, dtype=np.float32)


@pytest.fixture(scope="module")
def features(maps: ndarray) -> Features:
    """In two of their dimensions tokens say how much of their patch each map covers."""
    patches = maps.reshape(NUM, 2, SIDE, 8, SIDE, 8).mean(axis=(3, 5))
    values = np.random.default_rng(1).normal(size=(NUM, SIDE**2, DIM)).astype(np.float32)
    values[..., :2] = 3 * patches.reshape(NUM, 2, -1).transpose(0, 2, 1)
    return tokens_of(values)


def test_maps_that_tokens_carry_are_found(
    features: Features, maps: ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MAX_EPOCHS", 25)
    monkeypatch.setattr(probes, "MIN_STEPS", 100)
    found = segment(features, maps, SPLIT, seed=0)
    truth = maps[SPLIT.test]
    assert found.shape == truth.shape
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (intersection_over_union(found, truth) > 0.7).all()
    assert (intersection_over_union(np.roll(found, 1, axis=0), truth) < 0.6).all()
    transposed = found.transpose(0, 1, 3, 2)  # rows and columns are told apart
    assert intersection_over_union(transposed, truth)[1] < 0.6


def test_unknown_pixels_teach_nothing_and_count_nowhere(maps: ndarray) -> None:
    predicted, truth = np.zeros((2, 1, 96, 96), np.float32), np.zeros((2, 1, 96, 96), np.float32)
    predicted[0, 0, :10, :10] = 1
    truth[0, 0, :10, :20] = 1
    assert intersection_over_union(predicted, truth) == pytest.approx([0.5])  # object 1 is empty
    truth[0, 0, :10, 10:15] = np.nan
    assert intersection_over_union(predicted, truth) == pytest.approx([100 / 150])
    predicted[1, 0, 0, 0] = 0.7
    assert intersection_over_union(predicted, truth) == pytest.approx([100 / 300])
    assert intersection_over_union(predicted, truth, threshold=0.8) == pytest.approx([100 / 150])


def test_what_is_no_map_is_refused(features: Features, maps: ndarray) -> None:
    values = features.values.copy()
    values[700] = np.inf
    bad = Features(values, features.starts)
    shorter = tokens_of(values.reshape(NUM, -1, DIM)[:, :100])
    for given, asked, message in (
        (bad, maps, "output of object 4 holds NaN"),
        (shorter, maps, "a square grid whose side is 96 halved, got 100 tokens"),
        (Features(values), maps, "got one vector an object"),
        (features, maps[:, :, :48], "maps of 96 px a side for 50 objects"),
        (features, maps[:10], "for 50 objects"),
        (features, maps * 2, "values from 0 to 1"),
        (features, np.full_like(maps, np.nan), "no training object has a known map"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(given, asked, SPLIT, seed=0)
    with pytest.raises(ValueError, match="holds NaN"):
        intersection_over_union(np.full_like(maps, np.nan), maps)
    with pytest.raises(ValueError, match=r"any area above 0\.5 in map 1"):
        intersection_over_union(*[maps * np.array([1, 0], np.float32)[:, None, None]] * 2)
    with pytest.raises(ValueError, match="of one shape"):
        intersection_over_union(maps[:3], maps)
