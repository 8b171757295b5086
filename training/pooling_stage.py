"""The stage that says what a vector holds beside the mean of the encoder's outputs.

    <out>/pooling/    light in a fibre, latents of images, turns of pictures; see pooling.py
    <out>/pooling.json

The transformer stays as it is; the encoder's hash changes, since its vectors do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from training import artifact
from training.image_latents import features_of, principal_latents
from training.pooling import Pooling, PoolingConfig
from training.recipe import Recipe
from training.stages import Figures, Progress, batches, prepare_data, report
from training.tokenizers.image import ImageTokenizer

NUM_IMAGES = 4_000  # that the axes of latents are taken from


def make_pooling(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Give the encoder in `out` the light, the latents and the turns that its recipe names.

    Raises:
        ValueError: the recipe names none, the encoder is missing, it has no tokenizer of images,
            or the data have too few of them.
    """
    settings = recipe.encoder
    if not settings.pools:
        raise ValueError(
            "the recipe gives vectors nothing: set light, latents or picture_turns under [encoder]"
        )
    read: artifact.Read = {}
    transformer = artifact.load_transformer(out, read)
    config = PoolingConfig(
        dim=transformer.config.dim, light=settings.light, picture_turns=settings.picture_turns
    )
    figures: Figures = {
        "light": settings.light, "latents": settings.latents,
        "picture_turns": settings.picture_turns,
    }  # fmt: skip
    if not settings.latents:
        pooling = Pooling(config)
    else:
        files = prepare_data(recipe, out, progress, num_workers=num_workers)
        tokenizer = artifact.load_codecs(out, tuple(transformer.config.domains_in)).get("image")
        if not isinstance(tokenizer, ImageTokenizer):
            raise ValueError("latents are of images, and this encoder has no tokenizer of images")
        features = _summaries(recipe, files, tokenizer, progress)
        pooling, share = _with_latents(features, config, settings.latents)
        figures |= {"images": len(features), "share_of_variance": share}
    artifact.save_pooling(out, pooling, half=settings.half)
    return report(out, "pooling", figures)


def _summaries(
    recipe: Recipe, files: Sequence[Path], tokenizer: ImageTokenizer, progress: Progress
) -> Float[Tensor, "image feature"]:
    """Of the first images of the data."""
    seen = (
        each.image
        for batch in batches(recipe.data.survey, files, lambda what, share: None)
        for each in batch.observations
        if each.image is not None
    )
    parts, num = [], 0
    while num < NUM_IMAGES and (some := list(itertools.islice(seen, 64))):
        parts.append(features_of(tokenizer, some))
        num += len(some)
        progress("summarising images", min(1.0, num / NUM_IMAGES))
    if not parts:
        raise ValueError(f"latents are of images, and {len(files):,} files have none")
    return torch.cat(parts)[:NUM_IMAGES]


def _with_latents(
    features: Float[Tensor, "image feature"], config: PoolingConfig, num: int
) -> tuple[Pooling, float]:
    """A pooling with latents, and the share of the variance that they hold."""
    found = principal_latents(features, num)
    pooling = Pooling(replace(config, latents=num, latent_features=features.shape[1]))
    with torch.no_grad():
        pooling.latent_mean.copy_(found.mean)
        pooling.latent_std.copy_(found.std)
        pooling.latent_axes.copy_(found.axes)
        share = float(pooling.latents(features).var(dim=0).sum())
    return pooling.requires_grad_(False), share
