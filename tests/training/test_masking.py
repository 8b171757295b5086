"""The sampler: what is shown and asked for, as laws that hold for every draw."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.masking import Chance, MaskingConfig, Masks, sample_masks

LENGTHS = (144, 273, 1, 1, 1)
STREAMS = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))


def chance(num: int, seed: int = 0, step: int = 1, first: int = 0) -> Chance:
    places = range(first, first + num)
    return Chance.draw(seed, step, places, num_positions=len(STREAMS), num_streams=len(LENGTHS))


def draw(present: list[list[bool]], config: MaskingConfig, seed: int = 0) -> Masks:
    available = torch.tensor(present)[:, STREAMS]
    return sample_masks(available, STREAMS, config, chance(len(present), seed))


some_streams = st.lists(st.booleans(), min_size=5, max_size=5).filter(any)


@settings(deadline=None, max_examples=60)
@given(
    present=st.lists(some_streams, min_size=1, max_size=8),
    num_inputs=st.integers(1, 500),
    num_targets=st.integers(1, 500),
    seed=st.integers(0, 2**32 - 1),
    hidden=st.sampled_from([0.0, 0.5, 1.0]),
    fill=st.sampled_from(["tokens", "streams"]),
)
def test_every_draw_obeys_the_rules(
    present: list[list[bool]],
    num_inputs: int,
    num_targets: int,
    seed: int,
    hidden: float,
    fill: Literal["tokens", "streams"],
) -> None:
    config = MaskingConfig(
        num_input_tokens=num_inputs, num_target_tokens=num_targets, hidden_share=hidden,
        target_fill=fill,
    )  # fmt: skip
    masks = draw(present, config, seed)

    for row, has in enumerate(present):
        shown = masks.inputs[row][masks.input_valid[row]].tolist()
        asked = masks.targets[row][masks.target_valid[row]].tolist()
        tokens = sum(length for length, there in zip(LENGTHS, has, strict=True) if there)

        assert len(set(shown)) == len(shown)
        assert len(set(asked)) == len(asked)
        assert not set(shown) & set(asked)
        assert all(has[STREAMS[position]] for position in shown + asked)
        assert 1 <= len(shown) <= num_inputs
        assert len(asked) <= num_targets
        assert (len(asked) >= 1) == (tokens > 1)


def test_kinds_are_hidden_whole_as_often_as_is_asked() -> None:
    rows = 4000
    available = torch.ones(rows, len(STREAMS), dtype=torch.bool)
    kinds = torch.tensor([0, 1, 2, 2, 2])  # the three numbers hide together
    config = MaskingConfig(num_input_tokens=600, hidden_share=0.5)
    masks = sample_masks(available, STREAMS, config, chance(rows), kind_of_stream=kinds)

    shows = torch.zeros(rows, 5, dtype=torch.bool)
    of_input = torch.where(masks.input_valid, STREAMS[masks.inputs], -1)
    for stream in range(5):
        shows[:, stream] = (of_input == stream).any(dim=1)

    # each of three kinds by a coin, unless it were all: 1/2 - 1/8 of the rows that hide
    for stream in (0, 1):
        assert float((~shows[:, stream]).double().mean()) == pytest.approx(0.5 * 0.375, abs=0.02)
    only_numbers = ~shows[:, :2].any(dim=1)
    assert float(only_numbers.double().mean()) == pytest.approx(0.5 / 8, abs=0.015)
    assert bool(shows[only_numbers, 2:].all())  # and all of them, for something else is asked
    hides_image = ~shows[:, 0]
    of_target = torch.where(masks.target_valid, STREAMS[masks.targets], -1)
    assert bool((of_target[hides_image] == 0).any(dim=1).double().mean() > 0.5)


def test_same_seed_same_masks() -> None:
    present = [[True] * 5] * 4
    first, second = draw(present, MaskingConfig(), 7), draw(present, MaskingConfig(), 7)
    other = draw(present, MaskingConfig(), 8)

    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.inputs, other.inputs)


def test_modality_drawn_first_shows_a_uniform_number_of_its_tokens() -> None:
    rows = 4000
    masks = draw([[True, False, False, False, False]] * rows, MaskingConfig(num_input_tokens=100))

    counts = masks.input_valid.sum(dim=1).numpy()  # the image alone: 1 to 100, evenly

    assert counts.min() == 1
    assert counts.max() == 100
    assert np.histogram(counts, bins=4, range=(1, 101))[0] == pytest.approx(rows / 4, rel=0.1)


def test_rest_of_the_budget_is_spread_evenly_over_the_other_tokens() -> None:
    config = MaskingConfig(num_input_tokens=128)
    masks = draw([[True, True, True, False, False]] * 3000, config)
    rows = masks.inputs[:, 0] == 417  # redshift, one token, was drawn first and so stands first

    streams = STREAMS[masks.inputs[rows]]
    image, spectrum = (streams == 0).sum().item(), (streams == 1).sum().item()

    assert rows.float().mean().item() == pytest.approx(1 / 3, abs=0.03)
    assert masks.input_valid[rows].all()
    assert spectrum / image == pytest.approx(273 / 144, rel=0.03)


def test_first_asked_modality_has_a_number_skewed_to_zero() -> None:
    config = MaskingConfig(num_input_tokens=1, num_target_tokens=400)
    masks = draw([[True, False, False, False, False]] * 4000, config)

    share = masks.target_valid.sum(dim=1).numpy() / 143
    expected = np.random.default_rng(0).beta(0.1, 1.0, 100_000)
    expected = np.maximum(np.ceil(expected * 143), 1) / 143

    assert np.median(share) == pytest.approx(np.median(expected), abs=0.01)
    assert share.mean() == pytest.approx(expected.mean(), abs=0.01)


def test_streams_that_take_turns_are_asked_for_evenly() -> None:
    """After the stream drawn first come all numbers, then the long streams in turns."""
    config = MaskingConfig(num_input_tokens=40, num_target_tokens=60, target_fill="streams")
    masks = draw([[True] * 5] * 2000, config)
    shown = torch.stack([(STREAMS[masks.inputs] == n).sum(dim=1) for n in range(5)], dim=1)
    asked = torch.stack([(STREAMS[masks.targets] == n).sum(dim=1) for n in range(5)], dim=1)
    room = asked.max(dim=1).values < 57  # the stream drawn first left some
    number_first = (asked[:, 0] - asked[:, 1]).abs() <= 1

    assert (asked.sum(dim=1) == 60).all()
    assert room.float().mean() > 0.7
    assert ((shown + asked)[room][:, 2:] == 1).all()
    assert number_first.float().mean() > 0.5


def test_place_in_the_batch_decides_alone() -> None:
    present = torch.ones(6, len(STREAMS), dtype=torch.bool)
    whole = sample_masks(present, STREAMS, MaskingConfig(), chance(6))
    parts = [
        sample_masks(present[:3], STREAMS, MaskingConfig(), chance(3, first=first))
        for first in (0, 3)
    ]
    other = sample_masks(present, STREAMS, MaskingConfig(), chance(6, step=2))

    assert torch.equal(whole.inputs, torch.cat([part.inputs for part in parts]))
    assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))
    assert not torch.equal(whole.inputs, other.inputs)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_sequence_is_shown_from_its_start_and_asked_in_order(lengths: list[int], seed: int) -> None:
    stream = torch.repeat_interleave(torch.arange(2), torch.tensor([50, 30]))
    available = torch.ones(len(lengths), 80, dtype=torch.bool)
    available[:, :50] = torch.arange(50) < torch.tensor(lengths)[:, None]
    numbers = Chance.draw(seed, 1, range(len(lengths)), num_positions=80, num_streams=2)
    config = MaskingConfig(num_input_tokens=20, num_target_tokens=20)
    masks = sample_masks(available, stream, config, numbers, sequences=(slice(0, 50),))

    for row, length in enumerate(lengths):
        inputs = masks.inputs[row][masks.input_valid[row]].tolist()
        targets = masks.targets[row][masks.target_valid[row]].tolist()
        shown = [position for position in inputs if position < 50]
        asked = [position for position in targets if position < 50]
        assert sorted(shown) == list(range(len(shown)))
        assert asked == list(range(len(shown), len(shown) + len(asked)))
        assert all(position < length for position in shown + asked)


def test_stream_that_cannot_be_asked_for_is_only_shown() -> None:
    askable = torch.tensor([True, False, True, True, True])
    present = torch.ones(200, len(STREAMS), dtype=torch.bool)
    masks = sample_masks(present, STREAMS, MaskingConfig(), chance(200), askable=askable)

    assert (STREAMS[masks.inputs] == 1).any()
    assert not ((STREAMS[masks.targets] == 1) & masks.target_valid).any()


def test_object_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="object 1 of the batch has no tokens"):
        draw([[True] * 5, [False] * 5], MaskingConfig())
