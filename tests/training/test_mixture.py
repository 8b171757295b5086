"""Recipes of every size, mixtures of data sets, and training without Gaia."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.modalities import STREAM
from training.recipe import DataRecipe, DataSetRecipe, read_recipe
from training.shards import TokenShard
from training.tokenizing import TOKENS, open_data
from training.transformer_config import TransformerConfig

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
LEFT = DataSetRecipe(name="left", sources=(Path("a"),))
RIGHT = DataSetRecipe(name="right", sources=(Path("b"),))
PAIR = DataSetRecipe(name="both", pair=("left", "right"), matches=Path("m.parquet"))


@pytest.mark.parametrize("size", ["base", "large", "xl"])
def test_recipe_of_a_published_size_is_that_of_the_paper(size: str) -> None:
    recipe = read_recipe(RECIPES / f"{size}.toml").encoder
    training = recipe.training

    assert recipe.model == getattr(TransformerConfig, size)()
    assert (training.masking.num_input_tokens, training.masking.num_target_tokens) == (256, 128)
    assert training.batch_size == 8192
    assert training.steps == 205_000
    assert (training.learning_rate, training.weight_decay) == (2e-4, 0.05)


def test_every_recipe_is_readable() -> None:
    files = sorted(RECIPES.glob("*.toml"))

    assert [file.stem for file in files] == ["base", "large", "tiny", "tiny_grown", "xl"]
    assert all(read_recipe(file).data.mixture for file in files)


def test_one_switch_leaves_gaia_out(tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES / "base.toml")
    streams = {"legacysurvey": ("tok_image",), "gaia": ("tok_xp_bp",), "hsc": ("tok_image_hsc",)}
    streams |= {"sdss": ("tok_spectrum_sdss",), "desi": ("tok_spectrum_desi",)}
    for each in recipe.data.mixture:
        keys = [key for name in each.pair or (each.name,) for key in streams[name]]
        write(tmp_path / TOKENS / each.name / "00000", keys, recipe.encoder.model)
    without = replace(recipe, encoder=replace(recipe.encoder, gaia=False))
    kept = without.encoder.trained.domains_in

    assert {each.name for each in open_data(recipe, tmp_path)} == {
        each.name for each in recipe.data.mixture
    }
    assert {each.name for each in open_data(without, tmp_path)} == {
        "legacysurvey", "hsc", "sdss", "desi", "legacysurvey+sdss", "legacysurvey+desi",
        "legacysurvey+hsc", "hsc+sdss",
    }  # fmt: skip
    assert set(recipe.encoder.model.domains_in) - set(kept) == {
        key for key, stream in STREAM.items() if stream.survey == "gaia"
    }


def write(folder: Path, keys: list[str], model: TransformerConfig) -> None:
    lengths = {key: model.domains_in[key].num_tokens for key in keys}
    TokenShard(
        tokens={key: np.zeros((2, length), np.uint16) for key, length in lengths.items()},
        lengths={key: np.full(2, length, np.uint16) for key, length in lengths.items()},
        schema={
            key: (domain.vocabulary, domain.num_tokens) for key, domain in model.domains_in.items()
        },
        objects=np.arange(2)[:, None],
        ids=np.array([b"a", b"b"]),
    ).write(folder)


def test_mixture_that_contradicts_itself_is_refused() -> None:
    assert DataRecipe(sets=(LEFT, RIGHT, PAIR)).pairs == (PAIR,)
    wrong: dict[str, Callable[[], object]] = {
        "not both": lambda: DataRecipe(sets=(LEFT,), sources=(Path("c"),)),
        "two data sets are called 'left'": lambda: DataRecipe(sets=(LEFT, LEFT)),
        "pairs 'right', which is no data set": lambda: DataRecipe(sets=(LEFT, PAIR)),
        "'left' has no sources": lambda: DataRecipe(sets=(replace(LEFT, sources=()),)),
        "every weight is 0": lambda: DataRecipe(sets=(replace(LEFT, weight=0.0),)),
        "given together": lambda: DataSetRecipe(name="x", pair=("left", "right")),
        "sources, or pair and matches": lambda: replace(PAIR, sources=(Path("c"),)),
    }
    for message, make in wrong.items():
        with pytest.raises(ValueError, match=message):
            make()
