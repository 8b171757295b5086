"""Vectors of pictures as means over eight turns: the same however a picture was turned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small_encoder import make_parts, observe
from training import artifact, encoder
from training.encoder import Encoder
from training.observations import Field, Image, Observation
from training.pooling import Pooling, PoolingConfig
from training.turns import all_turns, in_turns, means, picture_of, turned


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("turns") / "encoder"
    transformer, codecs, head = make_parts()
    pooling = Pooling(PoolingConfig(dim=transformer.config.dim, picture_turns=True))
    artifact.save(out, transformer=transformer, codecs=codecs, head=head, pooling=pooling)
    return out


@pytest.fixture(scope="module")
def turning(folder: Path) -> Encoder:
    return encoder.load(folder)


@pytest.fixture(scope="module")
def still(folder: Path) -> Encoder:
    loaded = encoder.load(folder)
    loaded.turns_pictures = False
    return loaded


def picture(number: int, *, spectrum: bool = False) -> Observation:
    return replace(observe(number, spectrum=spectrum), calibrated=False)


def image_of(observation: Observation) -> Image:
    assert observation.image is not None
    return observation.image


def by_numpy(image: Image, quarters: int, mirrored: bool) -> Image:
    """The same turn plane by plane."""

    def of(planes: np.ndarray) -> np.ndarray:
        turned = [np.rot90(plane, quarters) for plane in planes]
        return np.stack([np.fliplr(plane) if mirrored else plane for plane in turned])

    return replace(image, flux=of(image.flux), ivar=of(image.ivar), mask=of(image.mask))


@settings(deadline=None, max_examples=20)
@given(quarters=st.integers(0, 3), mirrored=st.booleans())
def test_a_turn_takes_flux_ivar_and_mask_alike(quarters: int, mirrored: bool) -> None:
    image = image_of(observe(2))
    made, expected = turned(image, quarters, mirrored=mirrored), by_numpy(image, quarters, mirrored)

    assert (made.flux == expected.flux).all()
    assert (made.ivar == expected.ivar).all()
    assert (made.mask == expected.mask).all()


def test_a_picture_comes_in_eight_turns_and_nothing_else_does() -> None:
    pixels = image_of(picture(2)).flux.shape[1:]
    outlined = Field(np.ones(pixels, np.float32))
    seen = [
        observe(1), picture(2), observe(3, image=False, spectrum=True),
        replace(picture(4), object_mask=outlined),
    ]  # fmt: skip

    made, rows = in_turns(seen)

    assert [picture_of(each) is not None for each in seen] == [False, True, False, False]
    assert rows == [0, *[1] * 8, 2, 3]
    assert len({image_of(each).flux.tobytes() for each in made[1:9]}) == 8
    assert [made[0], made[9], made[10]] == [seen[0], seen[2], seen[3]]


def test_a_vector_is_the_mean_over_the_turns(turning: Encoder, still: Encoder) -> None:
    whole = turning.embed([picture(5)], ["image"]).vectors
    parts = still.embed(in_turns([picture(5)])[0], ["image"]).vectors

    assert parts.std(axis=0).max() > 1e-3  # a turn by itself does change a vector
    np.testing.assert_allclose(whole[0], parts.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("number", range(8))
def test_a_turned_picture_has_the_same_vector(turning: Encoder, number: int) -> None:
    one = picture(6)
    other = replace(one, image=all_turns(image_of(one))[number])

    vectors = turning.embed([one, other], ["image"]).vectors

    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_rows_and_views_are_those_of_the_observations(turning: Encoder, still: Encoder) -> None:
    seen = [observe(1), picture(2, spectrum=True), observe(3, spectrum=True)]

    made, plain = turning.embed(seen), still.embed(seen)

    assert made.rows.tolist() == plain.rows.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert made.views == plain.views
    same = [
        bool(np.allclose(*pair, atol=1e-5))
        for pair in zip(made.vectors, plain.vectors, strict=True)
    ]
    # the image of the picture and the joint view changed, its spectrum and all else did not
    assert same == [True, False, True, False, True, True, True]


def test_values_below_a_range_are_counted_once_an_observation(folder: Path) -> None:
    loaded = encoder.load(folder)
    dark = replace(picture(7), scalars={"tok_flux_r": 1e-9, "tok_flux_g": 5.0})

    made = loaded.embed([dark, dark])

    assert made.below_range["tok_flux_r"] == 2


def test_means_keep_the_order_of_the_first() -> None:
    made = [(1, "image"), (0, "image"), (1, "image"), (1, "joint")]
    vectors = np.array([[1, 1], [5, 5], [3, 1], [7, 7]], np.float32)

    kept, mean = means(made, vectors)

    assert kept == [(1, "image"), (0, "image"), (1, "joint")]
    assert mean.tolist() == [[2, 1], [5, 5], [7, 7]]
