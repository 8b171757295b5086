"""Fitting the tokenizers that are tables: quantiles of what was seen, or a grid that was asked for.

What they reach is measured on the last twentieth of the numbers, which the tables were not made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from training.artifact import save_codec
from training.modalities import STREAM
from training.observations import Ellipses
from training.reconstruction import code_use
from training.tokenizer_fitting import split
from training.tokenizers import ellipses as ellipses_tokenizer
from training.tokenizers.ellipses import EllipsesTokenizer, EllipsesTokenizerConfig
from training.tokenizers.scalar import (
    GridTokenizer,
    GridTokenizerConfig,
    ScalarTokenizer,
    ScalarTokenizerConfig,
)
from training.tokenizers.xp import MultiScalarTokenizer, MultiScalarTokenizerConfig
from training.training_data import Reservoir

ScalarCodec = ScalarTokenizer | GridTokenizer | MultiScalarTokenizer
REDSHIFT = "tok_z"


def fit_scalars(
    scalars: Mapping[str, Reservoir],
    *,
    num_bins: int,
    redshift: GridTokenizerConfig,
    reservoir_size: int = 0,
    folder: Path | None = None,
) -> tuple[dict[str, ScalarCodec], dict[str, dict[str, float]]]:
    """Fit one tokenizer per token stream; redshift gets its grid without data.

    Args:
        scalars: Token key -> numbers; Gaia's coefficients are rows of 55.
        num_bins: Of every table.
        redshift: Its grid.
        reservoir_size: Numbers that a table keeps beside it; the release keeps 100,000.
        folder: Below it go codecs/<name>, if anywhere.

    Returns:
        Token key -> tokenizer, and token key -> figures (`num_held_out`, `r2`, `codes_used`,
        `perplexity`); of redshift only where there is data.

    Raises:
        ValueError: a stream has fewer than two numbers, or some that are not finite; names it.
    """
    tokenizers: dict[str, ScalarCodec] = {REDSHIFT: GridTokenizer(redshift)}
    figures: dict[str, dict[str, float]] = {}
    for key in sorted(scalars):
        rows = torch.from_numpy(scalars[key].rows())
        try:
            train, held_out = split(list(rows), what="numbers")
            if key != REDSHIFT:
                tokenizers[key] = _fitted(key, torch.stack(list(train)), num_bins, reservoir_size)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        figures[key] = _figures(tokenizers[key], torch.stack(list(held_out)))
    if folder is not None:
        for key, fitted in tokenizers.items():
            save_codec(folder, STREAM[key].codec, fitted)
    return tokenizers, figures


def fit_ellipses(
    sources: Sequence[Ellipses], config: EllipsesTokenizerConfig, *, folder: Path | None = None
) -> EllipsesTokenizer:
    """Fit the tables of the shapes of sources around an object."""
    tokenizer = EllipsesTokenizer(config)
    tokenizer.fit(ellipses_tokenizer.stack(sources))
    if folder is not None:
        save_codec(folder, STREAM["catalog"].codec, tokenizer)
    return tokenizer


def _fitted(
    key: str, rows: Float[Tensor, "row column"], num_bins: int, reservoir_size: int
) -> ScalarCodec:
    if STREAM[key].kind == "multi_scalar":
        several = MultiScalarTokenizer(
            MultiScalarTokenizerConfig(
                num_scalars=rows.shape[1], num_bins=num_bins, reservoir_size=reservoir_size
            )
        )
        several.fit(rows)
        return several
    one = ScalarTokenizer(
        ScalarTokenizerConfig(num_bins=num_bins, log=STREAM[key].log, reservoir_size=reservoir_size)
    )
    one.fit(rows[:, 0])
    return one


def _figures(tokenizer: ScalarCodec, rows: Float[Tensor, "row column"]) -> dict[str, float]:
    """How well numbers come back: R2 on the scale that is quantized, mean over the columns."""
    if isinstance(tokenizer, MultiScalarTokenizer):
        codes = tokenizer.encode(rows)
        made, truth = tokenizer.decode(codes).double().asinh(), rows.asinh()
    else:
        codes = tokenizer.encode(rows[:, 0])
        made, truth = tokenizer.decode(codes)[:, None].double(), rows
        if isinstance(tokenizer, ScalarTokenizer) and tokenizer.config.log:
            made, truth = made.log(), truth.clamp_min(made.min()).log()
    unexplained = (made - truth).square().sum(dim=0)
    total = (truth - truth.mean(dim=0)).square().sum(dim=0)
    return {
        "num_held_out": float(len(rows)),
        "r2": float((1 - unexplained / total.clamp_min(1e-300)).mean()),
        **code_use(codes.flatten(), num_codes=tokenizer.num_codes),
    }
