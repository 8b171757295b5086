"""From encoder vectors to the search space: 256 unit-length dimensions in which kin are close.

The head is small and reads frozen vectors, so it can be fitted again in minutes without embedding
anything. It is trained contrastively (InfoNCE, both directions): two vectors of one object, from
two disturbed copies of its image or from its image and its spectrum, belong together; those of
other objects do not. Where there is nothing to train on, centred principal components stand in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

SEARCH_DIM = 256
STD_FLOOR = 1e-6  # a dimension that never varies says nothing and must not divide by zero


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SearchHeadConfig:
    """Shape of a head."""

    views: tuple[str, ...]
    dim: int = Field(gt=0)  # of the encoder vectors
    hidden: int = Field(default=512, ge=0)  # 0: one linear map a view and nothing else
    dropout: float = Field(default=0.1, ge=0, lt=1)


class SearchHead(nn.Module):
    """Standardise each view by itself, map it in, then one network shared by all views."""

    mean: Tensor  # (view, dim)
    std: Tensor

    def __init__(self, config: SearchHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden or SEARCH_DIM
        self.register_buffer("mean", torch.zeros(len(config.views), config.dim))
        self.register_buffer("std", torch.ones(len(config.views), config.dim))
        self.inputs = nn.ModuleDict({view: nn.Linear(config.dim, width) for view in config.views})
        if config.hidden:
            self.norm = nn.LayerNorm(width)
            self.fc1 = nn.Linear(width, width)
            self.fc2 = nn.Linear(width, width)
            self.output = nn.Linear(width, SEARCH_DIM)
            self.dropout = nn.Dropout(config.dropout)

    def forward(self, vectors: Float[Tensor, "n dim"], view: str) -> Float[Tensor, "n search"]:
        """Unit vectors of one view.

        Raises:
            ValueError: the head was not made for this view.
        """
        number = self._number(view)
        x = (vectors - self.mean[number]) / self.std[number]
        x = self.inputs[view](x)
        if self.config.hidden:
            x = self.dropout(x)
            x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
            x = self.output(self.dropout(x))
        return F.normalize(x, dim=-1)

    def standardise(self, vectors: Mapping[str, Float[Tensor, "_ dim"]]) -> None:
        """Learn mean and spread of each view from a sample of encoder vectors."""
        for view, sample in vectors.items():
            number = self._number(view)
            self.mean[number] = sample.mean(dim=0)
            self.std[number] = sample.std(dim=0).clamp_min(STD_FLOOR)

    def _number(self, view: str) -> int:
        if view not in self.config.views:
            views = ", ".join(self.config.views)
            raise ValueError(f"this search head has no view {view!r}, it has {views}")
        return self.config.views.index(view)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewVectors:
    """Encoder vectors of one view with the object each belongs to; an object may come often."""

    objects: Int64[ndarray, " n"]
    vectors: Float32[ndarray, "n dim"]


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class HeadFitConfig:
    """How the head is trained."""

    hidden: int = Field(default=512, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    steps: int = Field(default=3000, gt=0)
    batch_size: int = Field(default=512, gt=1)  # objects; each is the negative of all others
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    temperature: float = Field(default=0.1, gt=0)
    # Share of the batches that pair two different views; None: by the number of objects.
    across_views: float | None = Field(default=None, ge=0, le=1)
    max_seconds: float = Field(default=120.0, gt=0)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class HeadReport:
    """What a fit reached: loss and the share of objects whose other vector is the nearest."""

    steps: int
    loss: float
    accuracy: float
    seconds: float


def principal_components(views: Mapping[str, Float32[ndarray, "_ dim"]]) -> SearchHead:
    """A head that needs no training: centred principal components of each view.

    Views are turned independently, so vectors of different views are not comparable.

    Raises:
        ValueError: there is no view, or a view has no vector.
    """
    if not views:
        raise ValueError("expected vectors of at least one view, got none")
    dim = next(iter(views.values())).shape[1]
    head = SearchHead(SearchHeadConfig(views=tuple(views), dim=dim, hidden=0, dropout=0.0))
    for number, (view, vectors) in enumerate(views.items()):
        if not len(vectors):
            raise ValueError(f"view {view} has no vectors to take principal components of")
        sample = torch.from_numpy(vectors).double()
        mean = sample.mean(dim=0)
        _, axes = torch.linalg.eigh((sample - mean).T @ (sample - mean))
        axes = axes.flip(1)[:, :SEARCH_DIM]  # largest first
        layer = head.inputs[view]
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            head.mean[number] = mean.float()
            layer.weight.zero_()
            layer.weight[: axes.shape[1]] = axes.T.float()
            layer.bias.zero_()
    return head.eval()


def fit(
    data: Mapping[str, ViewVectors],
    config: HeadFitConfig,
    *,
    progress: Callable[[float, int, float], None] | None = None,
) -> tuple[SearchHead, HeadReport]:
    """Train a head on encoder vectors of disturbed copies.

    Args:
        data: Vectors of each view. An object pairs with itself within a view where it comes twice,
            and across any two views that it has.
        config: How long and how fast.
        progress: Called after each step with (share of the run done, step, loss).

    Returns:
        The head in evaluation mode, and what it reached on its last 50 batches.

    Raises:
        ValueError: no view has an object twice and no two views share objects.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)  # initial weights and dropout
    rng = np.random.default_rng(config.seed)
    dim = next(iter(data.values())).vectors.shape[1]
    head = SearchHead(
        SearchHeadConfig(views=tuple(data), dim=dim, hidden=config.hidden, dropout=config.dropout)
    )
    tensors = {view: torch.from_numpy(part.vectors) for view, part in data.items()}
    head.standardise(tensors)
    pairings = _pairings(data)
    if not pairings:
        raise ValueError("no object has two vectors, so there is nothing to learn closeness from")
    share = np.array([len(pairing.objects) for pairing in pairings], dtype=float)
    across = np.array([pairing.left != pairing.right for pairing in pairings])
    if config.across_views is not None and across.any() and not across.all():
        share[across] *= config.across_views / share[across].sum()
        share[~across] *= (1 - config.across_views) / share[~across].sum()
    share /= share.sum()
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    recent: list[tuple[float, float]] = []
    step = 0
    for step in range(1, config.steps + 1):
        # The learning rate falls with whichever runs out first, steps or time.
        done = max(step / config.steps, (time.monotonic() - started) / config.max_seconds)
        for group in optimizer.param_groups:
            warm = min(1.0, step / 100)
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + np.cos(np.pi * min(done, 1)))
        pairing = pairings[rng.choice(len(pairings), p=share)]
        left, right = pairing.draw(config.batch_size, rng)
        a = head(tensors[pairing.left][left], pairing.left)
        b = head(tensors[pairing.right][right], pairing.right)
        logits = a @ b.T / config.temperature
        truth = torch.arange(len(a))
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        hit = (logits.argmax(dim=1) == truth).float().mean()
        recent = [*recent[-49:], (loss.item(), hit.item())]
        if progress is not None:
            progress(done, step, loss.item())
        if done >= 1:
            break
    mean_loss, mean_hit = np.mean(recent, axis=0)
    report = HeadReport(step, float(mean_loss), float(mean_hit), time.monotonic() - started)
    return head.eval(), report


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where the vectors of each object stand in one view."""

    order: Int64[ndarray, " row"]  # rows, those of one object side by side
    objects: Int64[ndarray, " object"]  # ascending
    start: Int64[ndarray, " object"]  # in `order`
    count: Int64[ndarray, " object"]

    @classmethod
    def of(cls, part: ViewVectors) -> _Rows:
        order = np.argsort(part.objects, kind="stable")
        objects, start, count = np.unique(
            part.objects[order], return_index=True, return_counts=True
        )
        return cls(order, objects, start, count)


@dataclass(frozen=True, slots=True)
class _Pairing:
    """Objects that have a vector in both views (two of them where the views are the same)."""

    left: str
    right: str
    objects: Int64[ndarray, " object"]
    rows: Mapping[str, _Rows]

    def draw(
        self, num: int, rng: np.random.Generator
    ) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"]]:
        """Rows of `num` different objects in the left and in the right view."""
        objects = rng.choice(self.objects, size=min(num, len(self.objects)), replace=False)
        left, right = self.rows[self.left], self.rows[self.right]
        at_left, at_right = (np.searchsorted(rows.objects, objects) for rows in (left, right))
        first = rng.integers(left.count[at_left])
        if self.left == self.right:  # another copy than the left one
            second = (first + 1 + rng.integers(right.count[at_right] - 1)) % right.count[at_right]
        else:
            second = rng.integers(right.count[at_right])
        return (
            left.order[left.start[at_left] + first],
            right.order[right.start[at_right] + second],
        )


def _pairings(data: Mapping[str, ViewVectors]) -> list[_Pairing]:
    rows = {view: _Rows.of(part) for view, part in data.items()}
    pairings = []
    views = tuple(data)
    for number, left in enumerate(views):
        for right in views[number:]:
            if left == right:
                shared = rows[left].objects[rows[left].count > 1]
            else:
                shared = np.intersect1d(rows[left].objects, rows[right].objects)
            if len(shared) > 1:  # a lone object has no negatives
                pairings.append(_Pairing(left, right, shared, rows))
    return pairings
