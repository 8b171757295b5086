"""A search head that knows kinds: what it says of an object, and what comes of it in a search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy import ndarray
from pydantic import ValidationError

from training.fibre_light import NUM_LIGHT
from training.head_fitting import HeadFitConfig, fit
from training.kind_head import KindFitConfig, adding_kinds, kinds_of
from training.light_head import adding_light
from training.pairing import ViewVectors
from training.search_head import SEARCH_DIM, SearchHead, SearchHeadConfig, principal_components

DIM, NUM = 24, 900
NAMES = ("spiral", "merger", "ring")
FAST = HeadFitConfig(steps=60, batch_size=128, hidden=48)
TOLD = KindFitConfig(steps=300, batch_size=256)


def sky(seed: int) -> tuple[dict[str, ViewVectors], ndarray]:
    """Images and spectra of three kinds that overlap, a tenth of the objects without a label."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=NUM)
    centres = 0.5 * np.random.default_rng(1).standard_normal((3, DIM))
    look = rng.standard_normal((NUM, DIM)) * np.geomspace(2, 0.3, DIM)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((DIM, DIM)))[0]
    twice = np.repeat(np.arange(NUM), 2)
    vectors = {
        "image": (centres[kind] + look)[twice] + 0.05 * rng.standard_normal((2 * NUM, DIM)),
        "spectrum": (centres[kind] + look) @ turn,
    }
    objects = {"image": twice, "spectrum": np.arange(NUM)}
    labels = np.eye(3, dtype=bool)[kind] & (rng.random(NUM) < 0.9)[:, None]
    data = {
        view: ViewVectors(objects=objects[view], vectors=each.astype(np.float32))
        for view, each in vectors.items()
    }
    return data, labels


@pytest.fixture(scope="module")
def plain() -> SearchHead:
    return fit(sky(0)[0], FAST)[0]


@pytest.fixture(scope="module")
def knowing(plain: SearchHead) -> SearchHead:
    return adding_kinds(plain, *sky(0), NAMES, TOLD)[0]


@torch.inference_mode()
def vectors_of(head: SearchHead, data: dict[str, ViewVectors], view: str) -> ndarray:
    """One search vector of each object."""
    first = np.unique(data[view].objects, return_index=True)[1]
    made: ndarray = head(torch.from_numpy(data[view].vectors[first]), view).numpy()
    return made


def kin_share(queries: ndarray, keys: ndarray, kind: ndarray) -> float:
    """How many of the first ten are of the kind that asks, itself left out."""
    scores = queries @ keys.T
    np.fill_diagonal(scores, -np.inf)
    best = np.argsort(-scores, axis=1)[:, :10]
    return float((kind[best] == kind[:, None]).mean())


@pytest.mark.parametrize(("asks", "answers"), [("image", "image"), ("image", "spectrum")])
def test_more_kin_are_found_among_unseen_objects(
    plain: SearchHead, knowing: SearchHead, asks: str, answers: str
) -> None:
    data, labels = sky(9)
    kind, known = labels.argmax(axis=1), labels.any(axis=1)

    def share(head: SearchHead) -> float:
        asking, answering = (vectors_of(head, data, view)[known] for view in (asks, answers))
        return kin_share(asking, answering, kind[known])

    assert share(knowing) > share(plain) + 0.05


def test_the_first_dimensions_are_probabilities(knowing: SearchHead) -> None:
    data, labels = sky(9)
    made = vectors_of(knowing, data, "spectrum")
    sure, known = made[:, :3], labels.any(axis=1)
    places = [knowing.config.kinds.index(name) for name in NAMES]
    of_truth = sure[:, places][labels]

    assert made.shape == (NUM, SEARCH_DIM)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(sure.sum(axis=1), 1, atol=1e-5)
    assert -np.log(of_truth).mean() < 0.7 * np.log(3)  # a guess of equal shares has log 3
    right = sure[known][:, places].argmax(axis=1) == labels[known].argmax(axis=1)
    assert right.mean() > 0.75
    assert sure[known].max(axis=1).mean() < right.mean() + 0.05  # not surer than it is right


def test_look_is_turned_and_made_equal_and_nothing_else(
    plain: SearchHead, knowing: SearchHead
) -> None:
    data, _ = sky(0)
    before, after = plain.state_dict(), knowing.state_dict()
    kept = [name for name in before if not name.startswith("output.")]
    looks = [vectors_of(knowing, data, view)[:, 3:] for view in data]
    looks = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in looks]
    square = sum(each.T @ each / len(each) for each in looks)
    of_used = np.linalg.eigvalsh(square)[-DIM // 2 :]

    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert of_used.max() < 10 * of_used.min()


def test_the_same_seed_gives_the_same_head(plain: SearchHead) -> None:
    state = torch.random.get_rng_state()
    one, two = (
        adding_kinds(plain, *sky(0), NAMES, replace(TOLD, steps=5))[0].state_dict()
        for _ in range(2)
    )

    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_kind_is_a_set_of_labels() -> None:
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    kinds, kind_of = kinds_of(labels, NAMES)

    assert kinds == ("ring", "spiral", "spiral+merger")
    assert kind_of.tolist() == [1, -1, 2, 1, 0]


def test_what_cannot_be_told_kinds_is_refused(plain: SearchHead, knowing: SearchHead) -> None:
    data, labels = sky(0)
    few = {view: ViewVectors(objects=part.objects[:9], vectors=part.vectors[:9])
           for view, part in data.items()}  # fmt: skip
    linear = principal_components({view: part.vectors for view, part in data.items()})
    lit = {
        view: replace(part, vectors=np.pad(part.vectors, ((0, 0), (0, NUM_LIGHT))))
        for view, part in data.items()
    }

    for head in (knowing, linear):
        with pytest.raises(ValueError, match="trained search head without kinds"):
            adding_kinds(head, data, labels, NAMES, TOLD)
    with pytest.raises(ValueError, match="256 vectors or more"):
        adding_kinds(plain, few, labels, NAMES, TOLD)
    with pytest.raises(ValueError, match="two kinds or more, got 0"):
        adding_kinds(plain, data, np.zeros_like(labels), NAMES, TOLD)
    with pytest.raises(ValueError, match="without light or kinds"):
        adding_light(knowing, lit, light_share={"image": 0.2})
    with pytest.raises(ValidationError, match="256 kinds want a hidden layer, and room"):
        SearchHeadConfig(views=("image",), dim=DIM, kinds=tuple(map(str, range(256))))
    with pytest.raises(ValidationError, match="2 kinds want a hidden layer"):
        SearchHeadConfig(views=("image",), dim=DIM, hidden=0, kinds=("a", "b"))


def test_a_share_for_kinds_leaves_the_surest_a_look(plain: SearchHead) -> None:
    data, labels = sky(0)
    whole, part = (
        adding_kinds(plain, data, labels, NAMES, replace(TOLD, share=share))[0]
        for share in (1.0, 0.64)
    )
    every, some = (vectors_of(head, data, "image") for head in (whole, part))

    assert part.config.kind_share == 0.64
    np.testing.assert_allclose(some[:, :3], 0.8 * every[:, :3], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(some, axis=1), 1, atol=1e-5)
    assert (np.linalg.norm(some[:, 3:], axis=1) > 0.599).all()
    looks = [each[:, 3:] / np.linalg.norm(each[:, 3:], axis=1)[:, None] for each in (every, some)]
    np.testing.assert_allclose(looks[0], looks[1], atol=1e-3)


def test_a_survey_may_have_a_share_of_its_own(plain: SearchHead) -> None:
    data, labels = sky(0)
    config = replace(TOLD, share=0.64, shares={"composite": 0.16})
    head = adding_kinds(plain, data, labels, NAMES, config)[0]
    vectors = torch.from_numpy(data["image"].vectors[:4])

    with torch.inference_mode():
        known = head(vectors, "image")
        pictures = head(vectors, "image", "composite")
        mixed = head(vectors, "image", ["hsc", "composite", "composite", "hsc"])

    torch.testing.assert_close(pictures[:, :3], known[:, :3] / 2)
    torch.testing.assert_close(mixed, torch.stack([known[0], *pictures[1:3], known[3]]))
    torch.testing.assert_close(pictures.norm(dim=1), torch.ones(4))
    with pytest.raises(ValidationError, match="shares"):
        replace(config, shares={"composite": 0.0})


def test_in_doubt_kinds_are_softened_and_their_overlap_counts(plain: SearchHead) -> None:
    data, labels = sky(0)
    config = replace(TOLD, share=0.64, shares={"composite": 0.81}, temperatures={"composite": 3.0})
    head = adding_kinds(plain, data, labels, NAMES, config)[0]
    vectors = torch.from_numpy(data["image"].vectors[:6])

    with torch.inference_mode():
        trusted = head(vectors, "image")
        pictures = head(vectors, "image", "composite")
        mixed = head(vectors, "image", ["composite", "hsc"] * 3)

    p = (trusted[:, :3] / 0.8).double()
    softened = p ** (1 / 3) / (p ** (1 / 3)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(pictures[:, :3].double(), 0.9 * softened.sqrt(), atol=1e-5, rtol=0)
    torch.testing.assert_close(pictures[:, :3].norm(dim=1), torch.full((6,), 0.9))
    torch.testing.assert_close(pictures.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(mixed[::2], pictures[::2])
    torch.testing.assert_close(mixed[1::2], trusted[1::2])
    with pytest.raises(ValidationError, match="temperatures"):
        replace(config, temperatures={"composite": 0.0})
