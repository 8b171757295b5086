"""The retrieval benchmark: rankings against brute force, and what it refuses to measure."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def ranking(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("ranking")


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("held_out")


def unit_vectors(num: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_ndcg_of_a_class_is_that_of_brute_force(ranking: ModuleType) -> None:
    vectors, is_class = unit_vectors(60, 0), np.arange(60) % 5 == 0
    scores = ranking.of_class(vectors, is_class)

    expected = []
    for query in np.flatnonzero(is_class):
        others = [place for place in range(60) if place != query]
        best = sorted(others, key=lambda place: -float(vectors[query] @ vectors[place]))[:10]
        discounts = [1 / np.log2(rank + 2) for rank in range(10)]
        gain = sum(d for d, place in zip(discounts, best, strict=True) if is_class[place])
        expected.append(gain / sum(discounts))
    np.testing.assert_allclose(scores.values, expected, rtol=1e-6)
    assert scores.chance == pytest.approx(11 / 59)


def test_lens_sets_do_not_see_each_other(ranking: ModuleType, held_out: ModuleType) -> None:
    background, lenses = unit_vectors(50, 1), unit_vectors(6, 2)
    lenses[3] = lenses[0]  # a twin, in another set

    class Sky:
        set_size = 3

    found = ranking.of_lenses(background, lenses, Sky())
    for start in (0, 3):
        alone = ranking.of_class(
            np.concatenate([background, lenses[start : start + 3]]), np.arange(53) >= 50
        )
        np.testing.assert_array_equal(found.values[start : start + 3], alone.values)


def test_across_views_the_own_vector_is_asked_for(ranking: ModuleType) -> None:
    keys = unit_vectors(1000, 3)

    perfect, blind = ranking.across(keys, keys), ranking.across(unit_vectors(1000, 4), keys)

    assert ranking.found(perfect) == 1
    assert perfect.values.mean() == 1
    assert ranking.found(blind) == pytest.approx(0.01, abs=0.01)
    assert blind.chance == pytest.approx(0.00454, abs=1e-5)  # 4.54 = the ten discounts


def test_the_oracle_is_perfect_without_noise_and_lost_in_it(ranking: ModuleType) -> None:
    rng = np.random.default_rng(0)
    flux = np.exp(rng.uniform(0, 8, (600, 8)))

    class Sky:
        known = {"flux": flux, "sigma": np.full((600, 4), 1e-3)}  # noqa: RUF012

    forth, back = ranking.oracle(Sky())
    assert min(ranking.found(forth), ranking.found(back)) > 0.99
    Sky.known = {"flux": flux, "sigma": np.full((600, 4), 1e6)}
    forth, back = ranking.oracle(Sky())
    assert max(ranking.found(forth), ranking.found(back)) < 0.1


def test_a_figure_is_the_median_over_skies(ranking: ModuleType) -> None:
    skies = [ranking.Scores(np.full(9, value), 0.1) for value in (0.1, 0.4, 0.9)]
    spread = [ranking.Scores(np.arange(100) / 100, 0.1)]

    assert ranking.figure(skies) == {
        "ndcg@10": pytest.approx(0.4),
        "error": pytest.approx(0),
        "chance": 0.1,
    }
    assert ranking.figure(spread)["error"] == pytest.approx(0.0289, rel=0.1)  # sigma / sqrt(100)


def test_a_sky_that_was_trained_on_is_refused(held_out: ModuleType, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[data.sky]\nseed = 7\n")
    held_out.check_unseen(tmp_path, range(10_000, 10_003))

    for seed in (10_001, 15_001):  # a sky, and that of its lenses
        recipe.write_text(f"[data.sky]\nseed = {seed}\n")
        with pytest.raises(ValueError, match=rf"recipe.toml trained on the sky of seed {seed}"):
            held_out.check_unseen(tmp_path, range(10_000, 10_003))


def test_a_held_out_sky_has_the_prevalence_of_the_paper(held_out: ModuleType) -> None:
    config = held_out.sky_config(10_000, 20_000)
    dealt = np.array(held_out.kinds(config))

    for label, share in (("spiral", 0.26), ("merger", 0.02), ("lens", 0.0)):
        is_one = np.isin(dealt, held_out.LABEL_KINDS[label])
        assert is_one.mean() == pytest.approx(share, abs=1e-3)
    assert held_out.size_of_set(20_000) == 20
    assert len(dealt) == 19_980
