"""The stage that trains the decoder of an encoder on whole streams; see decoder_fitting.py.

    <out>/tokens/             token shards of every data set
    <out>/model.safetensors   with another decoder
    <out>/decoder.json

Vectors stay as they are, and with them the search head, if they are means of the outputs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from training import artifact
from training.decoder_fitting import fit_decoder
from training.recipe import Recipe
from training.stages import Figures, Progress, report
from training.tokenizing import open_data, tokenize_data


def train_decoder(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Tokenize the data with the tokenizers in `out`, and train the decoder in it on the tokens.

    Raises:
        ValueError: the recipe has no [decoder], the encoder or a tokenizer is missing or does not
            fit; or as `fit_decoder`.
    """
    if recipe.decoder is None:
        raise ValueError("the recipe does not say what to ask a decoder for: give it [decoder]")
    read: artifact.Read = {}
    transformer = artifact.load_transformer(out, read)
    skipped = tokenize_data(recipe, out, progress, num_workers=num_workers)
    fitted = fit_decoder(transformer, open_data(recipe, out), recipe.decoder, progress=progress)
    artifact.save(out, transformer=transformer, codecs={}, half=recipe.encoder.half)
    return report(out, "decoder", {"skipped": skipped, **asdict(fitted)})
