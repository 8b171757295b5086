"""The search head: unit vectors in which two views of one object meet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.fibre_light import NUM_LIGHT
from training.head_fitting import HeadFitConfig, NothingToLearn, fit
from training.light_head import adding_light
from training.pairing import ViewVectors, pairings, shares
from training.search_head import SEARCH_DIM, SearchHead, SearchHeadConfig, principal_components

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


def test_objects_that_share_a_label_come_together_and_copies_stay_so() -> None:
    data, truth = two_views()
    labels = np.stack([truth[:, 0] > 0, truth[:, 0] <= 0], axis=1)
    unseen, there = two_views(seed=9)
    copies = unseen["image"].vectors.reshape(NUM, 3, DIM)
    alike = (there[:, None, 0] > 0) == (there[None, :, 0] > 0)
    gaps, hits = {}, {}
    for share in (0.0, 0.5):
        head, _ = fit(data, replace(FAST, label_share=share), labels=labels)
        first, second = (apply(head, copies[:, n].copy(), "image") for n in (0, 1))
        cosines = first @ second.T
        gaps[share] = cosines[alike].mean() - cosines[~alike].mean()
        hits[share] = hit_rate(first, second)

    assert gaps[0.5] > gaps[0.0] + 0.2
    assert hits[0.5] > 0.7
    for nothing in (None, np.zeros_like(labels)):
        with pytest.raises(ValueError, match="no object has a label"):
            fit(data, replace(FAST, label_share=0.5), labels=nothing)


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

    with pytest.raises(NothingToLearn, match="no object has two vectors"):
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


def two_surveys(seed: int) -> tuple[ViewVectors, np.ndarray]:
    """Images of the same objects by two surveys, each with an offset and noise of its own."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(NUM, SIGNAL))
    world = np.random.default_rng(2)
    shared = world.normal(size=(SIGNAL, DIM))
    parts = []
    for number in range(2):
        look = shared + 0.5 * world.normal(size=(SIGNAL, DIM))
        louder = rng.normal(size=(NUM, 8)) @ np.eye(8, DIM, 20 * number) * 6
        parts.append(truth @ look + louder + 40 * number)
    vectors = np.concatenate(parts).astype(np.float32)
    names = ("legacysurvey",) * NUM + ("hsc",) * NUM
    objects = np.concatenate([np.arange(NUM)] * 2)
    return ViewVectors(objects=objects, vectors=vectors, surveys=names), vectors


def test_one_survey_finds_the_object_in_the_other() -> None:
    data, _ = two_surveys(seed=0)
    head, _ = fit({"image": data}, FAST)
    _, unseen = two_surveys(seed=5)
    legacy, hsc = torch.from_numpy(unseen[:NUM]), torch.from_numpy(unseen[NUM:])

    with torch.inference_mode():
        found = [head(legacy, "image", "legacysurvey"), head(hsc, "image", "hsc")]
        mixed = head(torch.from_numpy(unseen), "image", data.surveys)

    assert hit_rate(found[0].numpy(), found[1].numpy()) > 0.9
    torch.testing.assert_close(mixed, torch.cat(found))
    centred = [part - part.mean(dim=0) for part in (legacy, hsc)]
    assert hit_rate(centred[0].numpy(), centred[1].numpy()) < 0.5


def test_a_survey_never_seen_takes_the_statistics_of_the_view_and_is_named() -> None:
    data, vectors = two_surveys(seed=0)
    head, _ = fit({"image": data}, HeadFitConfig(steps=3, batch_size=32, hidden=0))
    some = torch.from_numpy(vectors[:5])

    with torch.inference_mode():
        unknown, foreign = head(some, "image"), head(some, "image", "sdss")
        known = head(some, "image", "legacysurvey")

    assert head.foreign("image", ["sdss", "hsc", "sdss"]) == ("sdss",)
    torch.testing.assert_close(foreign, unknown)
    assert (foreign - known).abs().max() > 0.01
    np.testing.assert_allclose(head.mean[0].numpy(), vectors.mean(axis=0), rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="a survey for each of 5 vectors, got 2"):
        head(some, "image", ["hsc", "hsc"])


def test_shares_of_batches_are_as_asked() -> None:
    objects = np.tile(np.arange(10), 4)
    surveys = ("a",) * 20 + ("b",) * 20
    vectors = np.zeros((40, 3), np.float32)
    image = ViewVectors(objects=objects, vectors=vectors, surveys=surveys)
    spectrum = ViewVectors(objects=np.arange(10), vectors=vectors[:10], surveys=("a",) * 10)
    found = pairings({"image": image, "spectrum": spectrum})

    share = shares(found, {"views": 0.2, "surveys": 0.3})

    of_kind = {kind: 0.0 for kind in ("copies", "surveys", "views")}
    for pairing, part in zip(found, share, strict=True):
        of_kind[pairing.kind] += part
    assert of_kind == pytest.approx({"copies": 0.5, "surveys": 0.3, "views": 0.2})
    alone = pairings({"spectrum": spectrum, "joint": spectrum})
    assert shares(alone, {"views": 0.2}).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"1\.1 together"):
        HeadFitConfig(across_views=0.5, across_surveys=0.6)


def test_two_draws_of_a_pairing_are_never_one_vector() -> None:
    data, _ = two_views()
    rng = np.random.default_rng(0)
    for pairing in pairings(data):
        left, right = pairing.draw(200, rng)
        views = (data[pairing.left[0]], data[pairing.right[0]])
        np.testing.assert_array_equal(views[0].objects[left], views[1].objects[right])
        assert pairing.left != pairing.right or (left != right).all()


def test_components_of_few_vectors_and_of_further_views() -> None:
    vectors = two_views()[0]["image"].vectors
    few = principal_components({"image": vectors[:3]})
    alone = principal_components({"image": vectors[:1]})
    more = principal_components({"spectrum": vectors + 1}, like=few)
    centred = vectors[:3] - vectors[:3].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)

    found = apply(few, vectors[:3], "image")

    np.testing.assert_allclose(found @ found.T, centred @ centred.T, atol=1e-4)
    assert np.linalg.norm(apply(alone, vectors[:1], "image")) == pytest.approx(1, abs=1e-5)
    assert more.config.views == ("image", "spectrum")
    np.testing.assert_array_equal(apply(more, vectors, "image"), apply(few, vectors, "image"))
    with pytest.raises(ValueError, match="of 40 dimensions"):
        principal_components({"joint": vectors}, like=SearchHead(SearchHeadConfig(views=(), dim=9)))


def with_light(data: dict[str, ViewVectors], seed: int = 0) -> dict[str, ViewVectors]:
    """The same vectors with light behind them, one of each object."""
    light = np.random.default_rng(seed).normal(0, 0.1, (NUM, NUM_LIGHT)).astype(np.float32)
    return {
        view: replace(part, vectors=np.hstack([part.vectors, light[part.objects]]))
        for view, part in data.items()
    }


@pytest.mark.parametrize("hidden", [0, 64])
def test_light_added_to_a_head_finds_the_other_view_and_leaves_kin(hidden: int) -> None:
    data, _ = two_views()
    head, _ = fit(data, replace(FAST, hidden=hidden))
    lit = adding_light(head, with_light(data), light_share={"image": 0.2, "spectrum": 0.3})
    unseen, _ = two_views(seed=9)
    seen = with_light(unseen, seed=9)
    first = {"image": slice(None, None, 3), "spectrum": slice(None)}  # copy of each object
    before = [apply(head, unseen[view].vectors, view)[rows] for view, rows in first.items()]
    after = [apply(lit, seen[view].vectors, view)[rows] for view, rows in first.items()]
    unlit = np.pad(unseen["image"].vectors, ((0, 0), (0, NUM_LIGHT)))
    dark = apply(lit, unlit, "image")[::3]

    assert lit.config.dim == DIM + NUM_LIGHT
    assert after[0].shape == (NUM, SEARCH_DIM)
    np.testing.assert_allclose(np.linalg.norm(after[0], axis=1), 1, atol=1e-5)
    assert hit_rate(*after) > max(0.98, hit_rate(*before))
    # without light, cosines are those of the head that it was added to
    np.testing.assert_allclose(dark @ dark.T, before[0] @ before[0].T, atol=0.02)


def test_light_is_added_to_a_head_for_the_same_vectors() -> None:
    data, _ = two_views()
    head, _ = fit(data, replace(FAST, steps=2))
    lit = with_light(data)
    few = {view: ViewVectors(objects=part.objects[:9], vectors=part.vectors[:9])
           for view, part in lit.items()}  # fmt: skip

    with pytest.raises(ValueError, match="dimensions without light"):
        adding_light(head, data, light_share={"image": 0.2})
    with pytest.raises(ValueError, match="256 vectors or more"):
        adding_light(head, few, light_share={"image": 0.2})


def test_a_head_with_light_is_given_another_share_of_it() -> None:
    data, _ = two_views()
    head, _ = fit(data, replace(FAST, steps=2))
    lit = with_light(data)
    first = adding_light(head, lit, light_share={"image": 0.2})
    other = adding_light(first, lit, light_share={"image": 0.5, "spectrum": 0.3})
    vectors, waves = (apply(each, lit["image"].vectors, "image") for each in (first, other))

    assert other.config.light_share == {"image": 0.5, "spectrum": 0.3}
    assert (first.config.kinds, first.config.dim) == (other.config.kinds, other.config.dim)
    own = first.config.num_outputs
    np.testing.assert_allclose(waves[:, :own] / vectors[:, :own], np.sqrt(0.5 / 0.8), rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(waves[:, own:], axis=1) ** 2, 0.5, atol=1e-5)


def test_fitting_with_light_does_not_read_it() -> None:
    data, _ = two_views()
    some, other = (
        fit(with_light(data, seed), replace(FAST, steps=20, light_share={"image": 0.2}))[0]
        for seed in (1, 2)
    )
    first, second = some.state_dict(), other.state_dict()

    assert some.config.dim == DIM + NUM_LIGHT
    assert all(torch.equal(first[name], second[name]) for name in first)
