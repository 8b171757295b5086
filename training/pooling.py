"""From the encoder's tokens of an object to its vector, where the plain mean is not the answer.

An artefact may carry a folder `pooling/`, with any of:

* attentive pooling, softmax(Q K^T / sqrt d) V with trained Q, K and V (arXiv 2510.17960, Eq. 8);
* centres: the mean vector of a view of a survey, taken off every vector of that view and survey.
  Modality vectors give every survey an offset of its own, which hides kin across surveys;
* light: after the outputs of the transformer a vector has what its view measures of the light in a
  fibre (fibre_light.py), so that an image and a spectrum of one object have something exact in
  common;
* latents: last in a vector is what the image tokenizer saw before it rounded to codes
  (image_latents.py); zeros in views without an image;
* picture turns: the vector of a picture is the mean over its eight turns (turns.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from training.fibre_light import NUM_LIGHT
from training.image_latents import SQUARES, LatentMap


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PoolingConfig:
    """What `pooling/` holds."""

    dim: int = Field(gt=0)  # of the encoder
    attentive: bool = False
    centres: tuple[str, ...] = ()  # "view/survey" of each stored mean, e.g. "image/hsc"
    light: bool = False
    latents: int = Field(default=0, ge=0)
    latent_features: int = Field(default=0, ge=0)  # what latents are made of, see num_features
    picture_turns: bool = False

    @model_validator(mode="after")
    def _latents_have_features(self) -> PoolingConfig:
        each = 2 * len(SQUARES)
        if (
            self.latents % each
            or self.latent_features % each
            or self.latents > self.latent_features
        ):
            raise ValueError(
                f"latents ({self.latents}) and latent_features ({self.latent_features}) must be "
                f"multiples of {each}, and latents not the more"
            )
        return self

    @property
    def vector_dim(self) -> int:
        """Length of a vector."""
        return self.light_at.stop + self.latents

    @property
    def light_at(self) -> slice:
        """Where in a vector the light stands: behind the outputs, before the latents."""
        return slice(self.dim, self.dim + (NUM_LIGHT if self.light else 0))


class Pooling(nn.Module):
    """Attentive pooling, centres and latents of one encoder."""

    centres: Tensor  # (centre, dim)
    latent_mean: Tensor  # (feature,)
    latent_std: Tensor

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()
        self.config = config
        if config.attentive:
            self.query = nn.Parameter(torch.randn(config.dim))
            self.key = nn.Linear(config.dim, config.dim, bias=False)
            self.value = nn.Linear(config.dim, config.dim, bias=False)
        if config.centres:
            self.register_buffer("centres", torch.zeros(len(config.centres), config.dim))
        if config.latents:
            each = 2 * len(SQUARES)
            self.register_buffer("latent_mean", torch.zeros(config.latent_features))
            self.register_buffer("latent_std", torch.ones(config.latent_features))
            shape = (2, config.latent_features // each, config.latents // each)
            self.latent_axes = nn.Parameter(torch.zeros(shape))

    def attend(
        self, tokens: Float[Tensor, "token dim"], lengths: Sequence[int]
    ) -> Float[Tensor, "object dim"]:
        """One vector for each of the objects whose tokens lie end to end."""
        scores = self.key(tokens) @ self.query / self.config.dim**0.5
        score_of = torch.split(scores, list(lengths))
        value_of = torch.split(self.value(tokens), list(lengths))
        pairs = zip(score_of, value_of, strict=True)
        return torch.stack([score.softmax(dim=0) @ value for score, value in pairs])

    def latents(self, features: Float[Tensor, "n feature"]) -> Float[Tensor, "n latent"]:
        """What the summaries of feature maps are turned to."""
        return LatentMap(mean=self.latent_mean, std=self.latent_std, axes=self.latent_axes)(
            features
        )

    def centred(
        self, vectors: Float[Tensor, "n dim"], views: Sequence[str], surveys: Sequence[str]
    ) -> Float[Tensor, "n dim"]:
        """Vectors less the centre of their view and survey; as they are where none is stored.

        Raises:
            ValueError: there are centres, but none for one of these.
        """
        if not self.config.centres:
            return vectors
        names = [f"{view}/{survey}" for view, survey in zip(views, surveys, strict=True)]
        foreign = sorted(set(names) - set(self.config.centres))
        if foreign:
            known = ", ".join(self.config.centres)
            raise ValueError(f"this encoder has no centre for {foreign[0]}, it has {known}")
        return vectors - self.centres[[self.config.centres.index(name) for name in names]]


def centring(vectors: Mapping[str, Float[Tensor, "_ dim"]]) -> Pooling:
    """A pooling that only centres, from vectors (not yet centred) of each "view/survey".

    Raises:
        ValueError: there is nothing to take a mean of.
    """
    if not vectors or not all(map(len, vectors.values())):
        raise ValueError("expected vectors of every view and survey to centre, got none")
    dim = next(iter(vectors.values())).shape[1]
    pooling = Pooling(PoolingConfig(dim=dim, centres=tuple(vectors)))
    pooling.centres.copy_(torch.stack([mine.mean(dim=0) for mine in vectors.values()]))
    return pooling.eval().requires_grad_(False)
