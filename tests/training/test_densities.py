"""Binned distributions, against sums by hand, numerical integrals and draws from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray
from scipy.interpolate import PchipInterpolator
from scipy.stats import norm

from training.densities import Densities, bin_edges, flatness
from training.tokenizers.scalar import (
    GridTokenizer,
    GridTokenizerConfig,
    ScalarTokenizer,
    ScalarTokenizerConfig,
)

# an atom at 0, then bins of width 1, 1 and 2
EDGES = np.array([0.0, 0.0, 1.0, 2.0, 4.0])
MASS = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])


@pytest.fixture
def some() -> Densities:
    return Densities(EDGES, MASS)


def drawn(densities: Densities, num: int, seed: int) -> ndarray:
    """Values from each distribution, (value, object)."""
    rng = np.random.default_rng(seed)
    columns = []
    for mass in densities.mass:
        number = rng.choice(len(mass), size=num, p=mass)
        low, high = densities.edges[:-1][number], densities.edges[1:][number]
        columns.append(low + rng.random(num) * (high - low))
    return np.stack(columns, axis=1)


def test_moments_are_those_of_the_density(some: Densities) -> None:
    assert some.mean() == pytest.approx([0.1 + 0.45 + 1.2, 0, 1.5])
    values = drawn(some, 400_000, 0)
    np.testing.assert_allclose(some.mean(), values.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(some.deviation(), values.std(axis=0), atol=0.01)
    assert some.deviation()[2] == pytest.approx(12**-0.5)


def test_density_and_atoms_add_up_to_one(some: Densities) -> None:
    integral = some.density() @ np.diff(EDGES)
    np.testing.assert_allclose(integral + some.atoms(), 1)
    assert some.density()[0] == pytest.approx([0, 0.2, 0.3, 0.2])
    assert some.atoms() == pytest.approx([0.1, 1, 0])


def test_quantiles_by_hand(some: Densities) -> None:
    assert some.median() == pytest.approx([1 + 0.2 / 0.3, 0, 1.5])
    assert some.quantile(0.05) == pytest.approx([0, 0, 1.05])
    assert some.quantile(0.2) == pytest.approx([0.5, 0, 1.2])
    assert some.quantile(1.0) == pytest.approx([4, 0, 2])
    assert some.interval(0.6)[0] == pytest.approx([0.5, 3])
    with pytest.raises(ValueError, match="a share in 0 to 1"):
        some.quantile(1.5)


def test_an_interval_holds_its_share_of_draws() -> None:
    rng = np.random.default_rng(1)
    densities = Densities(np.sort(rng.random(11)), rng.dirichlet(np.ones(10), 5))
    values = drawn(densities, 20_000, 2)
    for share in (0.3, 0.68, 0.95):
        low, high = densities.interval(share).T
        held = ((values >= low) & (values <= high)).mean(axis=0)
        np.testing.assert_allclose(held, share, atol=0.015)


def test_the_transform_of_draws_is_flat_and_of_wrong_ones_is_not() -> None:
    rng = np.random.default_rng(3)
    # a third of the mass in the atom: without even shares of it nothing would be flat
    mass = rng.dirichlet([4.0, *[1.0] * 8], 4000)
    densities = Densities(np.concatenate([[0], np.arange(9.0)]), mass)
    truth = drawn(densities, 1, 4)[0]
    good = flatness(densities.pit(truth))
    assert good.p_value > 0.01
    assert good.degrees == 9
    assert sum(good.shares) == pytest.approx(1)
    for wrong in (np.roll(truth, 1), np.clip(truth * 0.8, 0, None)):
        assert flatness(densities.pit(wrong)).p_value < 1e-6


def test_smooth_ones_are_those_of_scipy_and_agree_at_edges() -> None:
    rng = np.random.default_rng(7)
    edges = np.array([0.0, 0.0, 0.5, 2.0, 2.0, 2.5, 4.0])  # atoms at 0 and at 2
    smooth = Densities(edges, rng.dirichlet([1.0] * 6, 50), smooth=True)
    even = replace(smooth, smooth=False)
    for edge in (0.5, 2.5, 4.0):
        at = np.full(50, edge)
        np.testing.assert_allclose(smooth.pit(at), even.pit(at), atol=1e-12)
    knots, solid = np.array([0.0, 0.5, 2.0, 2.5, 4.0]), [1, 2, 4, 5]
    for row, mass in enumerate(smooth.mass):
        curve = PchipInterpolator(knots, np.append(0, mass[solid].cumsum()))
        for value in (0.2, 1.3, 2.2, 3.9):
            atoms = mass[0] + (mass[3] if value > 2 else 0)
            made = smooth.pit(np.full(50, value))[row]
            assert made == pytest.approx(float(curve(value)) + atoms, abs=1e-12)


@given(
    mass=arrays(np.float64, 6, elements=st.floats(0, 1)).filter(lambda each: each.sum() > 0.01),
    share=st.floats(0.001, 0.999),
)
def test_a_smooth_quantile_has_its_share_below_it(mass: ndarray, share: float) -> None:
    edges = np.array([0.0, 0.1, 1.0, 1.5, 3.0, 3.2, 5.0])
    smooth = Densities(edges, (mass / mass.sum())[None], smooth=True)
    value = smooth.quantile(share)
    assert edges[0] <= value[0] <= edges[-1]
    assert smooth.pit(value)[0] == pytest.approx(share, abs=1e-6)
    assert smooth.quantile(min(share + 0.001, 1))[0] >= value[0] - 1e-9


def test_smooth_ones_are_nearer_to_what_is_as_narrow_as_a_bin() -> None:
    rng = np.random.default_rng(9)
    edges = np.arange(11.0)
    centre = rng.uniform(3, 7, 4000)
    truth = centre + 0.5 * rng.normal(size=4000)
    below = norm.cdf((edges - centre[:, None]) / 0.5)
    mass = np.diff(below) / np.diff(below).sum(axis=1, keepdims=True)
    held = {}
    for smooth in (False, True):
        low, high = Densities(edges, mass, smooth=smooth).interval(0.68).T
        held[smooth] = float(((truth >= low) & (truth <= high)).mean())
    assert held[False] > 0.73
    assert abs(held[True] - 0.68) < 0.5 * (held[False] - 0.68)


def test_by_bin_it_asks_of_bins_alone_where_in_a_bin_truths_lie() -> None:
    rng = np.random.default_rng(5)
    mass = rng.dirichlet([4.0, *[1.0] * 3], 4000)
    densities = Densities(np.array([0.0, 0.0, 1.0, 2.0, 3.0]), mass)
    truth = drawn(densities, 1, 6)[0]
    inside = truth > 0
    narrow = np.where(inside, np.ceil(truth) - 0.5 + 0.1 * (truth - np.ceil(truth) + 0.5), 0.0)
    assert flatness(densities.pit(truth, by_bin=True)).p_value > 0.01
    assert flatness(densities.pit(narrow, by_bin=True)).p_value > 0.01
    assert flatness(densities.pit(narrow)).p_value < 1e-6
    wrong = np.where(inside, np.ceil(truth) % 3 + 0.5, 0.0)
    assert flatness(densities.pit(wrong, by_bin=True)).p_value < 1e-6


def test_by_bin_by_hand(some: Densities) -> None:
    for truth, (low, high) in {1.5: (0.3, 0.6), 2.0: (0.3, 0.6), 0.0: (0.0, 0.1)}.items():
        told = np.array([truth, 0.0, 0.0])
        pit = [some.pit(told, by_bin=True, seed=seed)[0] for seed in range(400)]
        assert low <= min(pit) <= low + 0.02
        assert high - 0.02 <= max(pit) <= high


def test_transform_by_hand(some: Densities) -> None:
    pit = some.pit(np.array([1.5, 0.0, 9.0]), seed=1)
    assert pit[0] == pytest.approx(0.45)
    assert pit[2] == 1.0  # beyond the last edge
    shares = [some.pit(np.array([0.0, -1.0, 1.0]), seed=seed) for seed in range(400)]
    first, second, third = np.array(shares).T
    assert first.max() <= 0.1  # a share of the atom
    assert first.mean() == pytest.approx(0.05, abs=0.006)
    assert second.mean() == pytest.approx(0.5, abs=0.06)  # below the lowest: in the atom too
    assert (third == 0).all()


def test_edges_of_a_grid_hold_what_its_codes_stand_for() -> None:
    codec = GridTokenizer(GridTokenizerConfig(num_bins=5, lowest=0.0, highest=2.0))
    edges = bin_edges(codec)
    assert edges == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0])
    check_edges(codec, edges, torch.linspace(0, 2, 41))


@pytest.mark.parametrize("log", [False, True])
def test_edges_of_quantiles_hold_what_their_codes_stand_for(log: bool) -> None:
    codec = ScalarTokenizer(ScalarTokenizerConfig(num_bins=9, log=log))
    values = torch.logspace(-1, 2, 500)
    codec.fit(values)
    check_edges(codec, bin_edges(codec), values)


def check_edges(
    codec: GridTokenizer | ScalarTokenizer, edges: ndarray, values: torch.Tensor
) -> None:
    codes = codec.encode(values)[:, 0].numpy()
    assert len(edges) == codec.num_codes + 1
    slack = 1e-5 * np.abs(edges).max()
    assert (values.numpy() >= edges[codes] - slack).all()
    assert (values.numpy() <= edges[codes + 1] + slack).all()


@pytest.mark.parametrize(
    ("edges", "mass", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "2 bins need one edge more, got 2"),
        ([0, 2, 1], [[0.5, 0.5]], "finite and ascend"),
        ([0, 1, np.nan], [[0.5, 0.5]], "finite and ascend"),
        ([0, 1, 2], [[0.5, 0.4]], "add up to 1"),
        ([0, 1, 2], [[np.nan, 1.0]], "add up to 1"),
        ([0, 1, 2], [[-0.5, 1.5]], "0 or more"),
    ],
)
def test_what_is_no_distribution_is_refused(
    edges: list[float], mass: list[list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Densities(np.array(edges, dtype=float), np.array(mass))


def test_nan_never_passes(some: Densities) -> None:
    with pytest.raises(ValueError, match="finite truths"):
        some.pit(np.array([1.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match="0 to 1"):
        flatness(np.full(100, np.nan))
    with pytest.raises(ValueError, match="50 values or more, got 20"):
        flatness(np.full(20, 0.5))
