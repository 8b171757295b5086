"""Recipes: one TOML makes one encoder, and what is wrong in it is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from training import encoder
from training.augmentation import AugmentationConfig
from training.commands import commands
from training.decoder_stage import train_decoder
from training.head_fitting import HeadFitConfig
from training.masking import MaskingConfig
from training.pretraining_config import PretrainingConfig
from training.recipe import DataRecipe, LabelsRecipe, read_recipe
from training.surveys import reader
from training.surveys.simulated_sky import SkyConfig
from training.tokenizer_fitting import FitConfig
from training.tokenizers.ellipses import EllipsesTokenizerConfig
from training.tokenizers.image import ImageTokenizerConfig
from training.tokenizers.spectrum import SpectrumTokenizerConfig

TINY = """
[data.sky]
num_objects = 100
seed = 3
shard_objects = 25
merger = 0.1
[data.labels]
columns = ["spiral", "merger"]

[image_tokenizer.model]
hidden = 32
embedding = 4
multisurvey = 9
num_compressions = 3
num_consecutive = 1
levels = [8, 5, 5, 5]
gate_bias = 0.0
compression_multiplier = 100.0
[image_tokenizer.training]
num_steps = 3
batch_size = 4
label_weight = 1.0
decode_from = 0.4

[spectrum_tokenizer.model]
encoder_depths = [1, 1, 1, 1]
encoder_dims = [8, 8, 16, 16]
decoder_depths = [1, 1, 1, 1]
decoder_dims = [16, 8, 8, 2]
[spectrum_tokenizer.training]
num_steps = 3
batch_size = 4

[scalars]
num_bins = 64
redshift = { num_bins = 64, highest = 1.5 }

[encoder]
copies = 2
half = true
[encoder.model]
dim = 32
num_heads = 2
encoder_depth = 1
decoder_depth = 1
[encoder.model.domains_in]
tok_image = { vocabulary = 1000, grid = [12, 12] }
tok_spectrum_sdss = { vocabulary = 1024, grid = [273, 1] }
tok_z = { vocabulary = 64, grid = [1, 1] }
tok_flux_r = { vocabulary = 64, grid = [1, 1] }
tok_shape_r = { vocabulary = 64, grid = [1, 1] }
[encoder.training]
steps = 6
batch_size = 16
masking = { num_input_tokens = 32, num_target_tokens = 16 }
kinship = { label_share = 0.5 }

[search_head]
max_objects = 60
copies = 2
augmentation = { max_zoom = 0.05 }
[search_head.training]
steps = 20
batch_size = 32
hidden = 32
label_share = 0.3

[decoder]
steps = 7
batch_size = 4
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


def test_recipe_reads_every_table(recipe_file: Path) -> None:
    recipe = read_recipe(recipe_file)

    assert recipe.encoder.model.domains_in["tok_image"].num_tokens == 144
    assert recipe.encoder.training.masking.num_target_tokens == 16
    assert recipe.image_tokenizer is not None
    assert recipe.image_tokenizer.model.levels == (8, 5, 5, 5)
    assert recipe.search_head.augmentation.max_zoom == 0.05
    assert recipe.scalars.redshift.highest == 1.5


@pytest.mark.parametrize(
    "name",
    [
        "nano.toml",
        "longer.toml",
        "redshift.toml",
        "latents.toml",
        "whole.toml",
        "ranked.toml",
        "spectra.toml",
        "kinds.toml",
    ],
)
def test_shipped_recipes_are_valid_and_make_the_shipped_encoder(name: str) -> None:
    folder = encoder.SHIPPED / "nano"
    recipe = read_recipe(folder / name)
    nano = encoder.load("nano")

    assert recipe.encoder.model == nano.transformer.config
    assert recipe.image_tokenizer is not None
    assert recipe.spectrum_tokenizer is not None
    assert recipe.image_tokenizer.model == nano.codecs["image"].config
    assert recipe.spectrum_tokenizer.model == nano.codecs["spectrum"].config
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert size <= 20e6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden = 32\nembedding", "width = 32\nembedding", "image_tokenizer.model.width"),
        ("copies = 2\nhalf", "copys = 2\nhalf", "encoder.copys"),
        ("label_share = 0.3", "light_share = { image = 0.2 }", "asks for encoder.light = true"),
        ("[search_head]\n", '[search_head]\nbegin = "first"\n', "give training.light_share"),
        ("[search_head]\n", "[search_head]\nkinds = { step = 9 }\n", "search_head.kinds.step"),
        ("[search_head]\n", "[search_head]\nkinds = { steps = 0 }\n", "search_head.kinds.steps"),
        ("steps = 7", "step = 7", "decoder.step"),
        ("num_objects = 100", "num_object = 100", "unknown key 'num_object'"),
        ("steps = 6", "steps = 0", "encoder.training.steps"),
        ("steps = 6", "steps = 'many'", "encoder.training.steps"),
        ("[scalars]\nnum_bins = 64", "[scalers]\nnum_bins = 64", "unknown key 'scalers'"),
        ("tok_flux_r", "tok_flux_x", "unknown token stream 'tok_flux_x'"),
        ("num_objects = 100", "num_objects = 0", "num_objects must be 1 or more"),
        ("[encoder]", "[encoder", "cannot be read as TOML"),
        ("num_steps = 3", "learning_rate = nan", "learning_rate must be positive, got nan"),
        ("num_steps = 3", "warmup_steps = 0", "warmup_steps must lie in 1 to inf, got 0"),
        ("num_steps = 3", "crop_pixels = 97", "crop_pixels must lie in 1 to 96, got 97"),
        ("highest = 1.5", "highest = nan", "scalars.redshift: .*highest nan"),
        ("label_share = 0.5", "share = 0.5", "encoder.training.kinship.share"),
        ("columns", "column", "data.labels.column"),
        ("hidden = 32\nemb", "hidden = 0\nemb", "image_tokenizer.model: .*hidden, embedding"),
        ("hidden = 32\nemb", "hidden = 30\nemb", r"hidden \(30\) and image side"),
        (
            "levels = [8, 5, 5, 5]",
            "levels = [8, 5, 5, 1]",
            "image_tokenizer: .* two levels or more",
        ),
        ("[8, 8, 16, 16]", "[0, 8, 16, 16]", "spectrum_tokenizer: no tokenizer has these sizes"),
        ("levels = [8, 5, 5, 5]", "levels = [7, 5, 5, 5]", "tok_image has 1000 .* makes 875 and"),
        ("num_compressions = 3", "num_compressions = 2", "144 tokens under .* makes 1000 and 576"),
        ("num_bins = 64\nred", "num_bins = 32\nred", "tok_flux_r has 64 .* scalars makes 32 and 1"),
        ("tok_z =", "tok_xp_bp =", "tok_xp_bp has 64 codes and 1 tokens .* makes 64 and 55"),
        ("tok_z =", "tok_segmap =", r"stream tok_segmap, and the recipe no \[field_tokenizer\]"),
        ("dim = 32", "dim = 32\ndomains_in = 3", "expected a table of token streams, got 3"),
    ],
)
def test_wrong_recipe_is_named(recipe_file: Path, old: str, new: str, message: str) -> None:
    assert old in TINY
    text = TINY.replace(old, new, 1)
    if "domains_in = 3" in new:
        table = text.index("[encoder.model.domains_in]")
        text = text[:table] + text[text.index("[encoder.training]") :]
    recipe_file.write_text(text)

    with pytest.raises(ValueError, match=message) as error:
        read_recipe(recipe_file)
    assert str(recipe_file) in str(error.value)


@pytest.mark.slow
def test_commands_make_a_working_encoder(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    run = CliRunner()
    for stage, said in (
        ("tokenizer", "codecs: image R2"),
        ("encoder", "encoder after 6 steps, loss tok_image"),
        ("search-head", "search head after 20 steps"),
    ):
        made_by = {file: file.read_bytes() for file in (out / "codecs").rglob("*.*")}
        arguments = [stage, str(recipe_file), "--out", str(out), "--workers", "2"]
        result = run.invoke(commands, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert said in " ".join(result.stdout.split())
        # or all would be tokenized again
        assert all(file.read_bytes() == content for file, content in made_by.items())

    made = encoder.load(out)
    file = reader("simulated").list_files(out / "sky")[0]
    batch = next(iter(reader("simulated").read(file)))
    embedded = made.embed(batch.observations)
    vectors = embedded.vectors[[view == "image" for view in embedded.views]]
    found = made.search_vectors(vectors, "image")

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.std(axis=0).max() > 1e-3  # objects differ
    assert (out / "recipe.toml").read_text() == TINY
    figures = json.loads((out / "encoder.json").read_text())
    assert figures["rows"] == {"simulated": 200}  # two copies of each object
    assert figures["steps"] == 6
    arguments = ["decoder", str(recipe_file), "--out", str(out), "--workers", "2"]
    result = run.invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "decoder after 7 steps, nats held out: from image" in " ".join(result.stdout.split())
    redecoded = encoder.load(out)
    assert redecoded.hash != made.hash
    assert redecoded.head_hash == made.head_hash
    assert (redecoded.embed(batch.observations).vectors == embedded.vectors).all()
    assert json.loads((out / "decoder.json").read_text())["steps"] == 7
    columns = (out / "curve.csv").read_text().splitlines()[0]
    assert "tok_image" in columns
    assert "kinship" in columns
    codes = json.loads((out / "tokenizers.json").read_text())["image"]
    assert 0 <= codes["label_accuracy"] <= 1


def test_a_decoder_wants_to_know_what_it_is_asked(recipe_file: Path, tmp_path: Path) -> None:
    recipe = replace(read_recipe(recipe_file), decoder=None)

    with pytest.raises(ValueError, match=r"what to ask a decoder for: give it \[decoder\]"):
        train_decoder(recipe, tmp_path, lambda what, share: None)


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (PretrainingConfig, "learning_rate", math.inf),
        (PretrainingConfig, "weight_decay", math.inf),
        (PretrainingConfig, "warmup_share", math.nan),
        (MaskingConfig, "target_alpha", math.inf),
        (HeadFitConfig, "learning_rate", math.inf),
        (HeadFitConfig, "temperature", math.nan),
        (HeadFitConfig, "seed", -1),
        (AugmentationConfig, "max_shift_pixels", math.inf),
        (ImageTokenizerConfig, "compression_multiplier", math.nan),
        (ImageTokenizerConfig, "gate_bias", math.inf),
        (SpectrumTokenizerConfig, "max_ivar", -1.0),
        (SpectrumTokenizerConfig, "input_scale", math.nan),
        (SpectrumTokenizerConfig, "normalisation_range", (5.0, -1.0)),
        (EllipsesTokenizerConfig, "num_bins", 0),
        (EllipsesTokenizerConfig, "reservoir_size", -1),
        (SkyConfig, "ra_deg", math.nan),
        (SkyConfig, "dec_deg", math.nan),
        (FitConfig, "label_weight", math.nan),
        (FitConfig, "decode_from", 0.5),  # to what else, without label_weight
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    make: Callable[..., object], key: str, value: object
) -> None:
    with pytest.raises(ValueError, match=key):
        make(**{key: value})


def test_labels_need_a_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels: name their file"):
        DataRecipe(sources=(tmp_path,), labels=LabelsRecipe())
    assert DataRecipe(labels=LabelsRecipe()).labels is not None
