"""What codes are drawn from, against distributions worked out by hand and the reference package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from training.sampling import SamplingConfig, draw, log_probabilities, random_numbers

CHANCES = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


def chances(**settings: Any) -> list[float]:
    return log_probabilities(CHANCES.log(), **settings)[0].exp().tolist()


def test_temperature_is_a_power_of_the_probabilities() -> None:
    squared = [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]
    assert chances(temperature=0.5) == pytest.approx(squared, rel=1e-5)
    roots = [math.sqrt(p) for p in (0.1, 0.4, 0.2, 0.3)]
    expected = [root / sum(roots) for root in roots]
    assert chances(temperature=2.0) == pytest.approx(expected, rel=1e-5)
    assert chances() == pytest.approx([0.1, 0.4, 0.2, 0.3], rel=1e-5)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.01, [0, 1, 0, 0]),
        (0.39, [0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 0, 3 / 7]),
        (0.69, [0, 4 / 7, 0, 3 / 7]),
        (0.71, [0, 4 / 9, 2 / 9, 3 / 9]),
        (0.95, [0.1, 0.4, 0.2, 0.3]),
        (1.0, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_a_nucleus_is_the_smallest_set_that_reaches_its_share(
    top_p: float, expected: list[float]
) -> None:
    assert chances(top_p=top_p) == pytest.approx(expected, abs=1e-6)


def test_the_temperature_acts_within_the_nucleus_of_the_model() -> None:
    assert chances(top_p=0.6, temperature=0.5) == pytest.approx([0, 16 / 25, 0, 9 / 25], rel=1e-5)


def test_codes_that_there_are_not_leave_their_share_to_the_others() -> None:
    allowed = torch.tensor([[True, False, True, True]])
    assert chances(allowed=allowed) == pytest.approx([1 / 6, 0, 2 / 6, 3 / 6], rel=1e-5)
    assert chances(allowed=allowed, top_p=0.6) == pytest.approx([0, 0, 0.4, 0.6], rel=1e-5)


def test_filtering_is_that_of_the_reference() -> None:
    generate = pytest.importorskip("aion.fourm.generate")
    sampler = generate.GenerationSampler(torch.nn.Identity())
    torch.manual_seed(5)
    logits = 3 * torch.randn(50, 200)
    for top_p, temperature in ((0.3, 1.0), (0.8, 0.7), (0.97, 1.9)):
        kept = sampler.top_k_top_p_filtering(logits.clone(), top_p=top_p)
        expected = (kept / temperature).softmax(dim=-1)
        ours = log_probabilities(logits, top_p=top_p, temperature=temperature).exp()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    noise = torch.from_numpy(np.random.default_rng(3).standard_exponential((20_000, 4))).float()
    codes = draw(log_probabilities(CHANCES.log()).expand(20_000, -1), noise)
    counts = torch.bincount(codes, minlength=4).numpy()
    assert chisquare(counts, 20_000 * np.array([0.1, 0.4, 0.2, 0.3])).pvalue > 1e-3
    shifted = 20_000 * np.array([0.12, 0.38, 0.2, 0.3])
    assert chisquare(counts, shifted).pvalue < 1e-6


def test_a_model_that_gives_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        log_probabilities(torch.tensor([[0.0, math.nan]]))


def test_a_schedule_draws_every_token_once() -> None:
    for num_tokens in (1, 2, 5, 144, 273):
        for schedule in ("cosine", "linear", "at-once"):
            steps = None if schedule == "at-once" else 12
            config = SamplingConfig(schedule=schedule, num_steps=steps)
            counts = config.tokens_per_step(num_tokens)
            assert sum(counts) == num_tokens
            assert min(counts) > 0
            assert len(counts) <= (steps or 1)


def test_schedules_are_those_of_their_names() -> None:
    assert SamplingConfig(schedule="linear", num_steps=4).tokens_per_step(100) == (25,) * 4
    assert SamplingConfig(schedule="at-once").tokens_per_step(100) == (100,)
    cosine = SamplingConfig(schedule="cosine", num_steps=4).tokens_per_step(1000)
    known = [1000 * math.cos(math.pi / 2 * step / 4) for step in range(5)]
    assert cosine == pytest.approx(-np.diff(known), abs=1)
    assert list(cosine) == sorted(cosine)


def test_random_numbers_differ_by_seed_name_and_sample() -> None:
    def first(seed: int, name: str, sample: int) -> float:
        return random_numbers(seed, name, sample).random()

    assert first(1, "a", 0) == first(1, "a", 0)
    assert len({first(1, "a", 0), first(2, "a", 0), first(1, "b", 0), first(1, "a", 1)}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"temperature": math.nan}, "temperature must be positive"),
        ({"top_p": 0.0}, "top_p must lie above 0 and be at most 1, got 0"),
        ({"top_p": 1.01}, "top_p must lie above 0 and be at most 1, got 1.01"),
        ({"top_p": math.nan}, "top_p"),
        ({"num_steps": 0}, "num_steps must be 1 or more"),
        ({"num_samples": 0}, "num_samples must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"schedule": "at-once", "num_steps": 3}, "is one step, got num_steps 3"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'cosine', 'linear' or 'at-once'"):
        SamplingConfig(schedule="sine")  # type: ignore[arg-type]
