"""Scalars to tokens: monotone, refuses NaN, keeps no sample of the data."""

from __future__ import annotations

import math

import pytest
import torch

from training.tokenizers.scalar import (
    GridTokenizer,
    GridTokenizerConfig,
    ScalarTokenizer,
    ScalarTokenizerConfig,
)


def fitted(*, log: bool, num_bins: int = 64) -> tuple[ScalarTokenizer, torch.Tensor]:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).exp() * 10
    tokenizer = ScalarTokenizer(ScalarTokenizerConfig(num_bins=num_bins, log=log))
    tokenizer.fit(values)
    return tokenizer, values


@pytest.mark.parametrize("log", [False, True])
def test_decoding_is_monotone_and_within_one_bin(log: bool) -> None:
    tokenizer, values = fitted(log=log)

    tokens = tokenizer.encode(values)
    decoded = tokenizer.decode(tokens)

    assert tokens.shape == (5000, 1)
    every = tokenizer.decode(torch.arange(64)[:, None])
    assert bool((every[1:] > every[:-1]).all())
    below = tokenizer.decode((tokens - 1).clamp_min(0))
    assert bool((values <= decoded * (1 + 1e-5)).all())
    assert bool((values >= below * (1 - 1e-5)).all())


@pytest.mark.parametrize("log", [False, True])
def test_codes_survive_the_round_trip(log: bool) -> None:
    tokenizer, _ = fitted(log=log)
    codes = torch.arange(64)[:, None]
    table = tokenizer.quantizer.table
    assert torch.equal(tokenizer.quantizer.encode(table), codes[:, 0])


def test_faint_and_negative_fluxes_share_the_lowest_code() -> None:
    tokenizer = ScalarTokenizer(ScalarTokenizerConfig(num_bins=8, log=True))
    tokenizer.fit(torch.linspace(-1, 10, 100))

    tokens = tokenizer.encode(torch.tensor([-5.0, 0.0, 0.04]))

    assert tokens.flatten().tolist() == [0, 0, 0]
    assert math.isclose(float(tokenizer.decode(tokens)[0]), math.exp(-3), rel_tol=1e-5)


def test_only_the_table_is_saved() -> None:
    tokenizer, _ = fitted(log=True)
    state = tokenizer.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {"quantizer.table": (64,)}


def test_loading_a_table_gives_the_same_tokens() -> None:
    tokenizer, values = fitted(log=True)
    other = ScalarTokenizer(tokenizer.config)
    other.load_state_dict(tokenizer.state_dict())
    assert torch.equal(other.encode(values), tokenizer.encode(values))


def test_nan_is_refused_not_binned() -> None:
    tokenizer, _ = fitted(log=False)
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.encode(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="NaN"):
        GridTokenizer(GridTokenizerConfig()).encode(torch.tensor([float("nan")]))


def test_redshift_is_decoded_to_within_one_step() -> None:
    tokenizer = GridTokenizer(GridTokenizerConfig(num_bins=256, lowest=0.0, highest=1.0))
    redshift = torch.linspace(0, 1, 1000)

    decoded = tokenizer.decode(tokenizer.encode(redshift))

    assert float((decoded - redshift).min()) >= -1e-6  # the next step up
    assert float((decoded - redshift).max()) <= 1 / 255


def test_the_saved_grid_is_believed_over_the_configuration() -> None:
    released = GridTokenizer(GridTokenizerConfig(num_bins=16, highest=6.0))
    other = GridTokenizer(GridTokenizerConfig(num_bins=16, highest=1.0))
    other.load_state_dict(released.state_dict())
    assert float(other.decode(torch.tensor([[15]]))[0]) == 6.0


@pytest.mark.parametrize("log", [False, True])
def test_what_lies_below_the_range_is_told(log: bool) -> None:
    tokenizer, values = fitted(log=log)
    below = torch.tensor([-30.0, -0.5])
    assert tokenizer.below_range(below).tolist() == [True, True]
    assert not tokenizer.below_range(values).any()
    assert tokenizer.encode(below).flatten().tolist() == [0, 0]


def test_a_negative_parallax_is_told_even_where_the_table_starts_at_its_floor() -> None:
    tokenizer = ScalarTokenizer(ScalarTokenizerConfig(num_bins=8, log=True))
    tokenizer.fit(torch.linspace(-1, 10, 100))
    values = torch.tensor([-2.0, 0.0, 0.04, 0.06, 5.0])
    assert tokenizer.below_range(values).tolist() == [True, True, True, False, False]


def test_a_reservoir_keeps_quantiles_of_the_fit() -> None:
    values = torch.arange(1001).float()
    tokenizer = ScalarTokenizer(ScalarTokenizerConfig(num_bins=8, reservoir_size=101))
    tokenizer.fit(values)
    assert torch.equal(tokenizer.quantizer.reservoir, values[::10])
