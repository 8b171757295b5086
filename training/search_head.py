"""From encoder vectors to the search space: 256 unit-length dimensions in which kin are close.

The head is small and reads frozen vectors, so it can be fitted again in minutes without embedding
anything (head_fitting.py). Where there is nothing to train on, centred principal components stand
in.

Every view of every survey it learned from is standardised by its own mean and spread, since each
gives its vectors an offset. A survey that it never saw takes the statistics of the view over all
surveys, and `foreign` names it: whoever calls says so.

Where encoder vectors end with the light in a fibre, a head may give it a share of its space
(light_waves.py). That part is not learned: contrast among some hundred objects does not make it as
exact as it is. A head may know kinds (kind_head.py), and then says in part of a vector what the
object is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated

import torch
from jaxtyping import Float, Float32, Float64
from numpy import ndarray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from training.fibre_light import NUM_LIGHT
from training.light_waves import NUM_WAVES, wave_frequencies, with_waves
from training.pairing import ViewVectors

SEARCH_DIM = 256
Share = Annotated[float, Field(gt=0, lt=1)]
KindShare = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
KIND_DROPOUT = 0.2
STD_FLOOR = 1e-6  # a dimension that never varies says nothing and must not divide by zero


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SearchHeadConfig:
    """Shape of a head."""

    views: tuple[str, ...]
    dim: int = Field(gt=0)  # of the encoder vectors
    hidden: int = Field(default=512, ge=0)  # 0: one linear map a view and nothing else
    dropout: float = Field(default=0.1, ge=0, lt=1)
    # "view/survey" of each that has its own statistics; empty: which were seen is not known.
    surveys: tuple[str, ...] = ()
    # View -> share of the squared length of its search vectors, for the light at the end of the
    # encoder's; empty: there is none, or it counts as any other numbers.
    light_share: dict[str, Share] = field(default_factory=dict)
    # Numbers at the end of the encoder's vectors that kinds are read from too (image_latents.py).
    latents: int = Field(default=0, ge=0)
    # How sure it is of each of these are the first dimensions; what is left of the length is look.
    kinds: tuple[str, ...] = ()
    kind_width: int = Field(default=192, gt=0)  # of the layer between
    # Of the squared length where a kind is sure: what is left tells objects of one kind apart.
    kind_share: KindShare = 1.0
    # Survey -> the same, where another holds.
    kind_shares: dict[str, KindShare] = field(default_factory=dict)
    # Survey -> temperature of its kinds, where they are told less surely than it seems.
    kind_temperatures: dict[str, Temperature] = field(default_factory=dict)

    @model_validator(mode="after")
    def _kinds_fit(self) -> SearchHeadConfig:
        if self.kinds and (not self.hidden or self.num_outputs < 1):
            raise ValueError(f"{len(self.kinds)} kinds want a hidden layer, and room for the look")
        return self

    @property
    def num_outputs(self) -> int:
        """Dimensions of the look, which is made of the outputs of the transformer."""
        return SEARCH_DIM - (NUM_WAVES if self.light_share else 0) - len(self.kinds)

    @property
    def num_inputs(self) -> int:
        """Dimensions of an encoder vector before light and latents."""
        return self.dim - self.latents - (NUM_LIGHT if self.light_share else 0)


class SearchHead(nn.Module):
    """Standardise each view of each survey, map the view in, then one network shared by all."""

    frequencies: Tensor  # (light, wave)
    mean: Tensor  # (view, read), over all surveys
    std: Tensor
    survey_mean: Tensor  # (survey of a view, read)
    survey_std: Tensor

    def __init__(self, config: SearchHeadConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.hidden or config.num_outputs, config.num_inputs
        read = dim + config.latents
        self.register_buffer("mean", torch.zeros(len(config.views), read))
        self.register_buffer("std", torch.ones(len(config.views), read))
        if config.surveys:
            self.register_buffer("survey_mean", torch.zeros(len(config.surveys), read))
            self.register_buffer("survey_std", torch.ones(len(config.surveys), read))
        self.inputs = nn.ModuleDict({view: nn.Linear(dim, width) for view in config.views})
        if config.hidden:
            self.norm = nn.LayerNorm(width)
            self.fc1 = nn.Linear(width, width)
            self.fc2 = nn.Linear(width, width)
            self.output = nn.Linear(width, config.num_outputs)
            self.dropout = nn.Dropout(config.dropout)
        self.kinds: nn.Sequential | None = None
        if config.kinds:
            self.kinds = nn.Sequential(
                nn.Dropout(KIND_DROPOUT),
                nn.Linear(width + config.latents, config.kind_width),
                nn.GELU(),
                nn.Dropout(KIND_DROPOUT),
                nn.Linear(config.kind_width, len(config.kinds)),
            )
        if config.light_share:
            self.register_buffer("frequencies", wave_frequencies())

    def forward(
        self,
        vectors: Float[Tensor, "n dim"],
        view: str,
        surveys: str | Sequence[str] | None = None,
    ) -> Float[Tensor, "n search"]:
        """Unit vectors of one view.

        Args:
            vectors: As the encoder gives them.
            view: What they were made from.
            surveys: Whose observations, one for all or one each; None: not known. What is not
                known, and what `foreign` names, takes the statistics of the view.

        Raises:
            ValueError: the head was not made for this view.
        """
        made = self.without_light(vectors, view, surveys)
        if not self.config.light_share:
            return made
        light = vectors[:, self.config.num_inputs :][:, :NUM_LIGHT]
        share = self.config.light_share.get(view, 0.0)
        return with_waves(made, light, self.frequencies, share=share)

    def without_light(
        self,
        vectors: Float[Tensor, "n dim"],
        view: str,
        surveys: str | Sequence[str] | None = None,
    ) -> Float[Tensor, "n output"]:
        """Unit vectors to which the light does not count; see `forward`."""
        seen = self.standardised(vectors, view, surveys)
        x = self.hidden(seen, view)
        look = F.normalize(self.output(self.dropout(x)) if self.config.hidden else x, dim=-1)
        if self.kinds is None:
            return look
        sure = self._sure(self.kinds(self.told(x, seen)), surveys)
        rest = (1 - sure.square().sum(dim=-1, keepdim=True)).clamp_min(0).sqrt()
        return torch.cat([sure, rest * look], dim=-1)

    def _sure(
        self, logits: Float[Tensor, "n kind"], surveys: str | Sequence[str] | None
    ) -> Float[Tensor, "n kind"]:
        """How sure each kind is; of surveys with a temperature the length does not depend on it.

        The product of two is then not the chance that both are of one kind, but how much their
        distributions overlap (Bhattacharyya's coefficient), which holds where p itself does not.
        """
        share = _of_surveys(self.config.kind_shares, surveys, self.config.kind_share)
        temperature = _of_surveys(self.config.kind_temperatures, surveys, 0.0)
        share, temperature = share.to(logits.device), temperature.to(logits.device)
        is_doubted = temperature > 0
        p = (logits / torch.where(is_doubted, temperature, 1.0)).softmax(dim=-1)
        return share.sqrt() * torch.where(is_doubted, p.sqrt(), p)

    def standardised(
        self,
        vectors: Float[Tensor, "n dim"],
        view: str,
        surveys: str | Sequence[str] | None = None,
    ) -> Float[Tensor, "n read"]:
        """Outputs of the transformer, and then latents, of mean 0 and spread 1; see `forward`."""
        mean, std = self._statistics(view, surveys, len(vectors))
        return (self._read(vectors) - mean) / std

    def _read(self, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "n read"]:
        outputs = vectors[:, : self.config.num_inputs]
        if not self.config.latents:
            return outputs
        return torch.cat([outputs, vectors[:, -self.config.latents :]], dim=1)

    def told(
        self, hidden: Float[Tensor, "n hidden"], seen: Float[Tensor, "n read"]
    ) -> Float[Tensor, "n told"]:
        """What kinds are read from."""
        return torch.cat([hidden, seen[:, self.config.num_inputs :]], dim=1)

    def hidden(self, seen: Float[Tensor, "n read"], view: str) -> Float[Tensor, "n hidden"]:
        """What the look is read from, and kinds; of what `standardised` gives."""
        x = self.inputs[view](seen[:, : self.config.num_inputs])
        if self.config.hidden:
            x = self.dropout(x)
            x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return x

    def foreign(self, view: str, surveys: Sequence[str]) -> tuple[str, ...]:
        """Those surveys that the view was not trained on, in order; none where it is not known."""
        if not self.config.surveys:
            return ()
        return tuple(sorted({each for each in surveys if f"{view}/{each}" not in self._surveys}))

    def standardise(self, data: Mapping[str, ViewVectors]) -> None:
        """Learn mean and spread of each view, and of each survey of it that the head knows."""
        for view, part in data.items():
            number = self._number(view)
            sample = self._read(torch.from_numpy(part.vectors))
            self.mean[number], self.std[number] = self._mean_and_std(sample)
            for survey, rows in part.by_survey().items():
                place = self._surveys.get(f"{view}/{survey}")
                if place is not None:
                    some = sample[torch.from_numpy(rows)]
                    self.survey_mean[place], self.survey_std[place] = self._mean_and_std(some)

    def _mean_and_std(self, sample: Float[Tensor, "n read"]) -> tuple[Tensor, Tensor]:
        std = sample.std(dim=0, correction=0)
        if self.config.latents:  # principal components: their lengths say what matters
            std[-self.config.latents :] = std[-self.config.latents :].square().mean().sqrt()
        return sample.mean(dim=0), std.clamp_min(STD_FLOOR)

    def _statistics(
        self, view: str, surveys: str | Sequence[str] | None, num: int
    ) -> tuple[Float[Tensor, "*_ dim"], Float[Tensor, "*_ dim"]]:
        number = self._number(view)
        if surveys is None or not self.config.surveys:
            return self.mean[number], self.std[number]
        named = [surveys] if isinstance(surveys, str) else list(surveys)
        if not isinstance(surveys, str) and len(named) != num:
            raise ValueError(f"expected a survey for each of {num} vectors, got {len(named)}")
        # the statistics of the view stand behind those of the surveys
        places = [self._surveys.get(f"{view}/{each}", len(self._surveys)) for each in named]
        mean = torch.cat([self.survey_mean, self.mean[number : number + 1]])
        std = torch.cat([self.survey_std, self.std[number : number + 1]])
        return mean[places], std[places]

    @property
    def _surveys(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.config.surveys)}

    def _number(self, view: str) -> int:
        if view not in self.config.views:
            views = ", ".join(self.config.views)
            raise ValueError(f"this search head has no view {view!r}, it has {views}")
        return self.config.views.index(view)


def _of_surveys(
    known: Mapping[str, float], surveys: str | Sequence[str] | None, default: float
) -> Float[Tensor, "*n"]:
    """A number for all rows, or one for each as a column."""
    if surveys is None or isinstance(surveys, str):
        return torch.tensor(known.get(surveys or "", default))
    return torch.tensor([known.get(each, default) for each in surveys])[:, None]


def principal_components(
    views: Mapping[str, Float32[ndarray, "_ dim"]], *, like: SearchHead | None = None
) -> SearchHead:
    """A head that needs no training: centred principal components of each view.

    Views are turned independently, so vectors of different views are not comparable. Up to 256
    dimensions nothing is lost but the mean. Vectors that are all alike are not centred, which
    would leave nothing of them.

    Args:
        views: Vectors of each view, in any order; as few as one.
        like: A head of this kind whose views are taken over as they are, for more views.

    Raises:
        ValueError: there is no view, a view has no vector, or they are of another length.
    """
    if not views:
        raise ValueError("expected vectors of at least one view, got none")
    dim = next(iter(views.values())).shape[1]
    known = () if like is None else like.config.views
    if like is not None and (like.config.dim != dim or like.config.hidden):
        raise ValueError(f"expected principal components of {dim} dimensions, got {like.config}")
    names = (*known, *(view for view in views if view not in known))
    head = SearchHead(SearchHeadConfig(views=names, dim=dim, hidden=0, dropout=0.0))
    for number, view in enumerate(names):
        layer = head.inputs[view]
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.bias.zero_()
            if like is not None and view in known:
                head.mean[number] = like.mean[number]
                layer.load_state_dict(like.inputs[view].state_dict())
                continue
            if not len(views[view]):
                raise ValueError(f"view {view} has no vectors to take principal components of")
            sample = torch.from_numpy(views[view]).double()
            mean = sample.mean(dim=0)
            if (sample == sample[0]).all():
                mean = torch.zeros_like(mean)
            _, axes = torch.linalg.eigh((sample - mean).T @ (sample - mean))
            axes = axes.flip(1)[:, :SEARCH_DIM]  # largest first
            # an axis has no sign of its own: its largest component is made positive
            largest = axes.abs().argmax(dim=0, keepdim=True)
            axes = axes * axes.gather(0, largest).sign()
            head.mean[number] = mean.float()
            layer.weight.zero_()
            layer.weight[: axes.shape[1]] = axes.T.float()
    return head.eval()


def look_axes(
    made: Sequence[Float[Tensor, "_ search"]],
) -> tuple[Float64[Tensor, " axis"], Float64[Tensor, "search axis"]]:
    """Variances and principal axes of what a head makes of several views, largest first.

    Every view counts alike; directions are about the origin.

    Args:
        made: Unit vectors of each view.

    Raises:
        ValueError: there are fewer vectors than dimensions.
    """
    if sum(map(len, made)) < SEARCH_DIM:
        raise ValueError(
            f"expected {SEARCH_DIM} vectors or more to turn a head, got {sum(map(len, made))}"
        )
    wide = [each.double() for each in made]
    square = torch.stack([each.T @ each / len(each) for each in wide]).mean(dim=0)
    variances, axes = torch.linalg.eigh(square)
    return variances.flip(0), axes.flip(1)
