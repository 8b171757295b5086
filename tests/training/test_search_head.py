"""The search head: unit vectors in which two views of one object meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.search_head import (
    SEARCH_DIM,
    HeadFitConfig,
    SearchHead,
    SearchHeadConfig,
    ViewVectors,
    fit,
    principal_components,
)

NUM, DIM, SIGNAL = 600, 40, 6
FAST = HeadFitConfig(steps=150, batch_size=128, hidden=64, learning_rate=3e-3)


def two_views(seed: int = 0) -> tuple[dict[str, ViewVectors], np.ndarray]:
    """Objects of six true numbers, hidden in two views under louder nuisance dimensions."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(NUM, SIGNAL))
    mixing = np.random.default_rng(1).normal(size=(2, SIGNAL, DIM))

    def see(view: int, copies: int) -> ViewVectors:
        objects = np.repeat(np.arange(NUM), copies)
        nuisance = rng.normal(size=(len(objects), 10)) @ np.eye(10, DIM, view * 15) * 6
        vectors = truth[objects] @ mixing[view] + nuisance + 7
        return ViewVectors(objects=objects, vectors=vectors.astype(np.float32))

    return {"image": see(0, 3), "spectrum": see(1, 1)}, truth


def hit_rate(queries: np.ndarray, keys: np.ndarray) -> float:
    """Share of queries whose own object is the nearest key."""
    return float((np.argmax(queries @ keys.T, axis=1) == np.arange(len(keys))).mean())


def apply(head: SearchHead, vectors: np.ndarray, view: str) -> np.ndarray:
    with torch.inference_mode():
        return head(torch.from_numpy(vectors), view).numpy()


def test_fit_brings_copies_and_views_of_unseen_objects_together() -> None:
    data, _ = two_views()
    head, report = fit(data, FAST)
    unseen, _ = two_views(seed=9)
    copies = unseen["image"].vectors.reshape(NUM, 3, DIM)

    first, second = (apply(head, copies[:, n].copy(), "image") for n in (0, 1))
    spectra = apply(head, unseen["spectrum"].vectors, "spectrum")
    raw = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (copies[:, 0], copies[:, 1])]

    assert hit_rate(first, second) > 0.9
    assert hit_rate(first, spectra) > 0.9
    assert hit_rate(raw[0], raw[1]) < 0.5  # what there was without a head
    assert report.steps == 150
    assert report.accuracy > 0.9


def test_same_seed_gives_the_same_head() -> None:
    data, _ = two_views()
    config = HeadFitConfig(steps=5, batch_size=32, hidden=16)
    first, second = (fit(data, config)[0].state_dict() for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_vectors_are_unit_and_alone_in_their_batch() -> None:
    data, _ = two_views()
    head, _ = fit(data, HeadFitConfig(steps=3, batch_size=32, hidden=16))
    vectors = data["image"].vectors[:10]
    found = apply(head, vectors, "image")

    assert found.shape == (10, SEARCH_DIM)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(apply(head, vectors[4:5], "image"), found[4:5], atol=1e-5)


def test_time_budget_ends_the_fit() -> None:
    data, _ = two_views()
    config = HeadFitConfig(steps=10**7, batch_size=32, hidden=16, max_seconds=0.3)
    _, report = fit(data, config)

    assert report.steps < 10**5
    assert report.seconds < 5


def test_nothing_to_learn_from_is_said() -> None:
    vectors = np.zeros((5, DIM), np.float32)
    lonely = {"image": ViewVectors(objects=np.arange(5), vectors=vectors)}

    with pytest.raises(ValueError, match="no object has two vectors"):
        fit(lonely, FAST)


def test_principal_components_keep_every_angle() -> None:
    vectors = two_views()[0]["image"].vectors
    head = principal_components({"image": vectors})
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)

    found = apply(head, vectors, "image")

    np.testing.assert_allclose(found @ found.T, centred @ centred.T, atol=1e-3)
    spread = (found * np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)[:, None]).var(axis=0)
    assert (np.diff(spread[:DIM]) < 1e-3).all()  # largest first
    assert np.allclose(found[:, DIM:], 0)


def test_principal_components_of_wide_vectors_are_the_leading_ones() -> None:
    rng = np.random.default_rng(0)
    wide = (rng.normal(size=(500, 300)) * np.linspace(3, 0.1, 300)).astype(np.float32)
    head = principal_components({"image": wide})
    layer = head.inputs["image"].weight
    assert isinstance(layer, torch.Tensor)

    kept = np.square((wide - wide.mean(axis=0)) @ layer.detach().numpy().T).sum()
    total = np.square(wide - wide.mean(axis=0)).sum()

    assert layer.shape == (SEARCH_DIM, 300)
    assert kept / total > 0.99
    with pytest.raises(ValueError, match="image has no vectors"):
        principal_components({"image": wide[:0]})
    with pytest.raises(ValueError, match="at least one view"):
        principal_components({})


def test_head_refuses_a_view_it_was_not_made_for() -> None:
    head = SearchHead(SearchHeadConfig(views=("image",), dim=4, hidden=0))

    with pytest.raises(ValueError, match="no view 'spectrum', it has image"):
        head(torch.zeros(1, 4), "spectrum")
