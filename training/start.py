"""Where training begins: fresh weights, or those of an encoder that was trained before.

A published encoder goes on learning: from more data, with another masking, with a stream added, or
in a larger model that begins by computing the same (growth.py). What the model has and that encoder
lacks (a new stream's tables) is drawn fresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training import artifact
from training.growth import SIZES, grown
from training.modalities import STREAM
from training.transformer import Draw, initialise
from training.transformer_config import TransformerConfig


@dataclass(frozen=True, slots=True)
class Start:
    """Weights to begin from."""

    weights: Mapping[str, Tensor]  # name in the transformer -> values
    digest: str  # of the files they were read from


def read_start(source: str, model: TransformerConfig, out: Path) -> Start:
    """Read the transformer of an encoder that the model continues.

    Args:
        source: A folder, or a repository of the Hub, as artifact.load takes it.
        model: What is to be trained; it may have other streams and be larger, all else is the same.
        out: Folder with the tokenizers whose codes it is trained on.

    Raises:
        ValueError: the encoder cannot be read, the model is smaller or not grown evenly (`grown`),
            another setting differs, or the encoder's tokenizer of a stream is not the one in `out`,
            so that a code would mean something else; names both.
    """
    folder = artifact.folder_of(source)
    read: artifact.Read = {}
    transformer = artifact.load_transformer(folder, read)
    there = transformer.config
    shared = [key for key in model.domains_in if key in there.domains_in]
    for key in shared:
        codec = f"codecs/{STREAM[key].codec}"
        ours, theirs = (_digest_of_codec(place, key) for place in (out, folder))
        if ours != theirs:
            raise ValueError(
                f"begin: the tokenizer of {key} in {folder / codec} is not the one in "
                f"{out / codec}: its codes would mean something else"
            )
    wanted, has = (_comparable(each, shared) for each in (model, there))
    for setting, value in wanted.items():
        if has[setting] != value:
            raise ValueError(
                f"begin: {setting} is {has[setting]} in {folder}, {value} in the model to train"
            )
    weights = {name: each.detach().float() for name, each in transformer.named_parameters()}
    try:
        weights = grown(weights, there, model)
    except ValueError as error:
        raise ValueError(f"begin: {folder} cannot grow to the model to train: {error}") from error
    return Start(weights, artifact.hash_of(read))


def _digest_of_codec(folder: Path, key: str) -> str:
    read: artifact.Read = {}
    artifact.load_codec(folder, STREAM[key].codec, key=key, read=read)
    return artifact.hash_of(read)


def _comparable(config: TransformerConfig, streams: Sequence[str]) -> dict[str, object]:
    """Settings in which a model and the one that it continues must agree."""
    settings = artifact.dump_config(config)
    for free in ("domains_in", "domains_out", "released_layout", *SIZES):
        del settings[free]
    return settings | {key: config.domains_in[key] for key in streams}


def drawn_from(start: Start, otherwise: Draw = initialise) -> Draw:
    """How `devices.build` fills parameters: from the start, and what it lacks as `otherwise`."""

    def draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if name in start.weights:
            parameter.copy_(start.weights[name])
        else:
            otherwise(name, parameter, generator)

    return draw
