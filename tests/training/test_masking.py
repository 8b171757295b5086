"""The sampler: what is shown and asked for, as laws that hold for every draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.masking import MaskingConfig, Masks, sample_masks

LENGTHS = (144, 273, 1, 1, 1)
STREAMS = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))


def draw(present: list[list[bool]], config: MaskingConfig, seed: int = 0) -> Masks:
    return sample_masks(torch.tensor(present), STREAMS, config, torch.Generator().manual_seed(seed))


some_streams = st.lists(st.booleans(), min_size=5, max_size=5).filter(any)


@settings(deadline=None, max_examples=60)
@given(
    present=st.lists(some_streams, min_size=1, max_size=8),
    num_inputs=st.integers(1, 500),
    num_targets=st.integers(1, 500),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_draw_obeys_the_rules(
    present: list[list[bool]], num_inputs: int, num_targets: int, seed: int
) -> None:
    config = MaskingConfig(num_input_tokens=num_inputs, num_target_tokens=num_targets)
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


def test_object_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="object 1 of the batch has no tokens"):
        draw([[True] * 5, [False] * 5], MaskingConfig())
