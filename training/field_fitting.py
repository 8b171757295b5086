"""Fitting the tokenizer of maps over an image: the mean squared error of values from 0 to 1.

Source: arXiv 2510.17960 (batch 256, weights averaged with a decay of 0.9999 a step).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from training.observations import Field
from training.reconstruction import measure_fields, precision
from training.tokenizer_fitting import (
    FitConfig,
    Fitted,
    Progress,
    descend,
    device_of,
    seeded,
    split,
)
from training.tokenizers import field as field_tokenizer
from training.tokenizers.field import FieldTokenizer, FieldTokenizerConfig


def fit_field_tokenizer(
    fields: Sequence[Field],
    config: FieldTokenizerConfig,
    fit: FitConfig,
    *,
    name: str = "segmentation_map",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Fitted[FieldTokenizer]:
    """Fit on maps, turned and mirrored at random; `name` is the codec's, the rest as for images."""
    train, held_out = split(fields, what="maps")
    tokenizer = seeded(lambda: FieldTokenizer(config), fit)

    def loss(rng: np.random.Generator, done: float) -> dict[str, Tensor]:
        rows = rng.integers(len(train), size=fit.batch_size)
        value = field_tokenizer.stack([train[row] for row in rows])
        turned = _turned(value, rng).to(device_of(tokenizer))
        with precision(bfloat16=fit.bfloat16):
            made = tokenizer(turned).value
        return {"squared_error": (made.float() - turned).square().mean()}

    losses = descend(
        tokenizer, loss, fit, name=name, num_items=len(train), folder=folder, progress=progress
    )
    return Fitted(tokenizer, measure_fields(tokenizer, held_out, batch_size=fit.batch_size), losses)


def _turned(value: Float[Tensor, "b y x"], rng: np.random.Generator) -> Float[Tensor, "b y x"]:
    """Each map by a quarter turn of its own, perhaps mirrored."""
    quarters, mirrored = rng.integers(4, size=len(value)), rng.integers(2, size=len(value))
    turns = zip(value, quarters.tolist(), mirrored.tolist(), strict=True)
    return torch.stack([torch.rot90(one.T if mirror else one, turn) for one, turn, mirror in turns])
