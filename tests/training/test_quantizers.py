"""Quantizers against a direct computation of the published formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.tokenizers.quantizers import (
    FiniteScalarQuantizer,
    LinearQuantizer,
    LookupFreeQuantizer,
    QuantileQuantizer,
)

LEVELS = [(8, 5, 5, 5), (7, 5, 5, 5, 5), (3, 4), (2,)]


@pytest.mark.parametrize("levels", LEVELS)
def test_every_finite_scalar_code_survives_the_round_trip(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(quantizer.num_codes)
    values = quantizer.decode(codes)

    # A latent that the bound maps exactly onto each value.
    counts = torch.tensor(levels, dtype=torch.float64)
    half = (counts - 1) * 1.001 / 2
    offset = torch.where(counts % 2 == 0, 0.5, 0.0)
    steps = values.double() * (counts // 2)
    latent = torch.atanh((steps + offset) / half) - torch.atanh(offset / half)
    again = quantizer(latent.float())

    assert len(codes) == math.prod(levels)
    assert torch.equal(again.codes, codes)
    torch.testing.assert_close(again.values, values)
    assert float(values.abs().max()) <= 1


def test_finite_scalar_codes_follow_the_formula_number_by_number() -> None:
    levels = (8, 5, 5, 5)
    latent = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 2

    found = FiniteScalarQuantizer(levels)(latent)

    for row, code, values in zip(latent.tolist(), found.codes, found.values, strict=True):
        expected_code, basis = 0, 1
        for x, count, value in zip(row, levels, values, strict=True):
            half = (count - 1) * (1 + 1e-3) / 2
            offset = 0.5 if count % 2 == 0 else 0.0
            level = round(math.tanh(x + math.atanh(offset / half)) * half - offset)
            assert math.isclose(float(value), level / (count // 2), abs_tol=1e-6)
            expected_code += (level + count // 2) * basis
            basis *= count
        assert int(code) == expected_code


def test_the_first_finite_scalar_dimension_is_the_fastest() -> None:
    decoded = FiniteScalarQuantizer((3, 5)).decode(torch.arange(15))
    levels = [(a, b) for b, a in itertools.product((-1, -0.5, 0, 0.5, 1), (-1, 0, 1))]
    torch.testing.assert_close(decoded, torch.tensor(levels, dtype=torch.float32))


def test_the_gradient_passes_through_rounding() -> None:
    quantizer = FiniteScalarQuantizer((5, 5))
    latent = torch.tensor([[0.3, -1.2]], requires_grad=True)

    (gradient,) = torch.autograd.grad(quantizer(latent).values.sum(), latent)

    half = 4 * 1.001 / 2
    expected = half * (1 - torch.tanh(latent.detach()) ** 2) / 2  # as if nothing were rounded
    torch.testing.assert_close(gradient, expected)


def test_levels_below_two_are_refused() -> None:
    with pytest.raises(ValueError, match="two levels or more"):
        FiniteScalarQuantizer((5, 1))


def test_every_lookup_free_code_survives_the_round_trip_and_is_big_endian() -> None:
    quantizer = LookupFreeQuantizer(10)
    codes = torch.arange(1024)
    signs = quantizer.decode(codes)

    assert torch.equal(quantizer(signs * 0.3).codes, codes)
    assert torch.equal(quantizer(signs * 0.3).values, signs)
    assert signs[512].tolist() == [1.0] + [-1.0] * 9
    assert signs[1].tolist() == [-1.0] * 9 + [1.0]


def test_zero_counts_as_minus_one() -> None:
    assert LookupFreeQuantizer(3)(torch.zeros(1, 3)).values.tolist() == [[-1.0, -1.0, -1.0]]


def test_the_gradient_passes_through_the_signs() -> None:
    latent = torch.tensor([[0.3, -0.2]], requires_grad=True)
    (gradient,) = torch.autograd.grad((LookupFreeQuantizer(2)(latent).values * 3).sum(), latent)
    assert gradient.tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("inverse_temperature", [0.3, 100.0])
def test_entropy_loss_equals_the_softmax_over_all_codes(inverse_temperature: float) -> None:
    quantizer = LookupFreeQuantizer(4)
    latent = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)) * 0.3

    found = quantizer.entropy_loss(latent, inverse_temperature=inverse_temperature)

    codebook = quantizer.decode(torch.arange(16)).double()
    distance = -2 * latent.double() @ codebook.T
    share = (-distance * inverse_temperature).softmax(dim=-1)
    each = -(share * share.clamp_min(1e-30).log()).sum(dim=-1).mean()
    mean = share.mean(dim=0)
    together = -(mean * mean.clamp_min(1e-30).log()).sum()
    assert math.isclose(float(found), float(each - together), abs_tol=1e-4)


def test_commitment_is_zero_on_the_cube() -> None:
    quantizer = LookupFreeQuantizer(3)
    assert float(quantizer.commitment_loss(torch.tensor([[1.0, -1.0, 1.0]]))) == 0
    assert math.isclose(float(quantizer.commitment_loss(torch.zeros(1, 3))), 1.0)


def test_linear_steps_are_hit_exactly_and_the_outside_is_clamped() -> None:
    quantizer = LinearQuantizer(lowest=-1.0, highest=5.0, num_bins=1024)
    codes = torch.arange(1024)

    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    assert quantizer.encode(torch.tensor([-9.0, 9.0])).tolist() == [0, 1023]
    assert quantizer.encode(torch.tensor([-1 + 0.5 * 6 / 1023])).tolist() == [1]  # next step up


def test_a_linear_range_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match="lowest < highest"):
        LinearQuantizer(lowest=1.0, highest=1.0, num_bins=4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_bins=st.sampled_from([4, 16, 256]))
def test_quantile_tables_are_numpys_quantiles(seed: int, num_bins: int) -> None:
    values = np.random.default_rng(seed).lognormal(size=1000)
    quantizer = QuantileQuantizer(num_bins)

    quantizer.fit(torch.from_numpy(values))

    expected = np.quantile(values, np.linspace(0, 1, num_bins))
    np.testing.assert_allclose(quantizer.table.numpy(), expected, rtol=1e-6)


def test_quantile_bins_are_equally_populated() -> None:
    values = torch.from_numpy(np.random.default_rng(2).normal(size=25_501))
    quantizer = QuantileQuantizer(256)
    quantizer.fit(values)

    counts = torch.bincount(quantizer.encode(values.float()), minlength=256)

    assert counts[0] <= 2  # only the minimum
    assert int(counts[1:].min()) >= 98
    assert int(counts[1:].max()) <= 102


def test_a_quantile_table_refuses_what_is_not_finite() -> None:
    quantizer = QuantileQuantizer(4)
    with pytest.raises(ValueError, match="finite"):
        quantizer.fit(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="two or more"):
        quantizer.fit(torch.tensor([1.0]))
