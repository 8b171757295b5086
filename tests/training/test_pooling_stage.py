"""The stage that gives vectors light and latents: of an encoder that stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.training.small_encoder import DIM, observe, save_encoder
from training import artifact, encoder
from training.commands import commands
from training.fibre_light import NUM_LIGHT
from training.image_latents import features_of, principal_latents
from training.pooling_stage import make_pooling
from training.recipe import Recipe, read_recipe
from training.surveys import reader
from training.tokenizers.image import ImageTokenizer

SHIPPED = encoder.SHIPPED / "nano" / "nano.toml"
NUM, LATENTS = 24, 16


def _recipe(*, light: bool = True, latents: int = LATENTS) -> Recipe:
    recipe = read_recipe(SHIPPED)
    sky = {"num_objects": NUM, "seed": 5, "spectrum_fraction": 0.0}
    return replace(
        recipe,
        data=replace(recipe.data, sky=sky),
        encoder=replace(recipe.encoder, light=light, latents=latents),
    )


def _silent(what: str, share: float) -> None:
    pass


def test_latents_are_taken_from_images_of_the_data_and_the_transformer_stays(
    tmp_path: Path,
) -> None:
    out = save_encoder(tmp_path / "encoder")
    (out / "head" / "config.json").unlink()
    (out / "head" / "model.safetensors").unlink()
    (out / "head").rmdir()
    before = encoder.load(out)

    figures = make_pooling(_recipe(), out, _silent, num_workers=1)
    after = encoder.load(out)
    tokenizer = after.codecs["image"]
    assert isinstance(tokenizer, ImageTokenizer)
    files = reader("simulated").list_files(out / "sky")
    images = [
        each.image
        for file in files
        for batch in reader("simulated").read(file)
        for each in batch.observations
        if each.image is not None
    ]
    expected = principal_latents(features_of(tokenizer, images), LATENTS)

    assert after.dim == DIM + NUM_LIGHT + LATENTS
    assert after.hash != before.hash
    assert after.pooling is not None
    torch.testing.assert_close(after.pooling.latent_mean, expected.mean)
    torch.testing.assert_close(after.pooling.latent_axes.data, expected.axes, atol=1e-3, rtol=0)
    assert figures["images"] == len(images) <= NUM
    assert 0.3 < figures["share_of_variance"] <= 1
    assert json.loads((out / "pooling.json").read_text())["latents"] == LATENTS
    seen = [observe(1)]
    assert (after.embed(seen).vectors[:, :DIM] == before.embed(seen).vectors).all()


def test_light_alone_wants_no_data(tmp_path: Path) -> None:
    out = save_encoder(tmp_path / "encoder")

    make_pooling(_recipe(latents=0), out, _silent)

    read: artifact.Read = {}
    assert artifact.load_pooling(out, read=read).config.vector_dim == DIM + NUM_LIGHT
    assert not (out / "sky").exists()


def test_a_recipe_that_gives_nothing_or_too_few_images_is_refused(tmp_path: Path) -> None:
    out = save_encoder(tmp_path / "encoder")
    with pytest.raises(ValueError, match="set light, latents or picture_turns under"):
        make_pooling(_recipe(light=False, latents=0), out, _silent)
    with pytest.raises(ValueError, match=f"80 latents want more images than that, got {NUM}"):
        make_pooling(_recipe(latents=80), out, _silent, num_workers=1)
    assert not (out / "pooling").exists()


def test_the_command_says_what_vectors_got(tmp_path: Path) -> None:
    out = save_encoder(tmp_path / "encoder")
    text = SHIPPED.read_text().replace("half = true", "half = true\nlight = true\nlatents = 8")
    few = text.replace("num_objects = 24000", f"num_objects = {NUM}")
    assert few != text
    recipe = tmp_path / "mine.toml"
    recipe.write_text(few)

    result = CliRunner().invoke(commands, ["pooling", str(recipe), "--out", str(out)])

    assert result.exit_code == 0, result.output
    assert f"{out / 'pooling'}: light and 8 latents" in result.output.replace("\n", "")
