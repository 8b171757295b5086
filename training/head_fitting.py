"""Training a search head contrastively (InfoNCE, both directions).

Two vectors of one object, from two disturbed copies of its image, from the images of two surveys,
from its image and its spectrum or from all of it and a part, belong together; those of other
objects do not, unless they share a label and a share is set aside for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from torch.nn import functional as F

from training.kinship import shared_out
from training.pairing import ViewVectors, pairings, shares
from training.schedule import warm_cosine
from training.search_head import SearchHead, SearchHeadConfig, Share

_WARMUP_STEPS = 100


class NothingToLearn(ValueError):
    """No object has two vectors, so nothing tells what is close."""


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class HeadFitConfig:
    """How the head is trained."""

    hidden: int = Field(default=512, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    steps: int = Field(default=3000, gt=0)
    batch_size: int = Field(default=512, gt=1)  # objects; each is to be told from all others
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    # Share of the batches that pair two views, or two surveys in one view; None: by the number of
    # objects. What is left goes to copies within one survey.
    across_views: float | None = Field(default=None, ge=0, le=1)
    across_surveys: float | None = Field(default=None, ge=0, le=1)
    label_share: float = Field(default=0.0, ge=0, lt=1)  # of what belongs together: by label
    light_share: dict[str, Share] = field(default_factory=dict)  # as in SearchHeadConfig
    max_seconds: float = Field(default=120.0, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shares_fit(self) -> HeadFitConfig:
        share = (self.across_views or 0) + (self.across_surveys or 0)
        if share > 1:
            raise ValueError(f"across_views and across_surveys are {share:g} together, above 1")
        return self


@dataclass(frozen=True, slots=True)
class HeadReport:
    """What a fit reached: loss and the share of objects whose other vector is the nearest."""

    steps: int
    loss: float
    accuracy: float
    seconds: float


def fit(
    data: Mapping[str, ViewVectors],
    config: HeadFitConfig,
    *,
    labels: Bool[ndarray, "object label"] | None = None,
    device: str = "cpu",
    progress: Callable[[float, int, float], None] | None = None,
) -> tuple[SearchHead, HeadReport]:
    """Train a head on encoder vectors of disturbed copies.

    Args:
        data: Vectors of each view. An object pairs with itself within a survey of a view where it
            comes twice, and across any two surveys and views that it has.
        config: How long and how fast.
        labels: What is known of each object, by its number, for config.label_share; all False:
            nothing.
        device: Where it is trained; the head comes back to the CPU.
        progress: Called after each step with (share of the run done, step, loss).

    Returns:
        The head in evaluation mode, and what it reached on its last 50 batches.

    Raises:
        NothingToLearn: no object has two vectors.
        ValueError: label_share without a label.
    """
    if config.label_share and (labels is None or not labels.any()):
        raise ValueError(f"label_share is {config.label_share:g}, and no object has a label")
    started = time.monotonic()
    found = pairings(data)
    if not found:
        raise NothingToLearn("no object has two vectors, so there is nothing to learn from")
    rng = np.random.default_rng(config.seed)
    share = shares(found, {"views": config.across_views, "surveys": config.across_surveys})
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # initial weights and dropout
        head = _new_head(data, config).to(device)
        known = torch.from_numpy(np.zeros((0, 0)) if labels is None else labels).float().to(device)
        tensors = {view: torch.from_numpy(part.vectors).to(device) for view, part in data.items()}
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        recent: list[tuple[float, float]] = []
        step = 0
        for step in range(1, config.steps + 1):
            # The learning rate falls with whichever runs out first, steps or time.
            done = max(step / config.steps, (time.monotonic() - started) / config.max_seconds)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * warm_cosine(step, _WARMUP_STEPS, done)
            pairing = found[rng.choice(len(found), p=share)]
            rows = pairing.draw(config.batch_size, rng)
            a, b = (
                head.without_light(tensors[view][torch.from_numpy(some).to(device)], view, survey)
                for (view, survey), some in zip((pairing.left, pairing.right), rows, strict=True)
            )
            logits = a @ b.T / config.temperature
            truth = torch.arange(len(a), device=device)
            wanted = torch.eye(len(a), device=device)
            if config.label_share:
                mine = known[torch.from_numpy(data[pairing.left[0]].objects[rows[0]]).to(device)]
                alike = (mine @ mine.T > 0) & ~wanted.bool()
                wanted = shared_out(wanted.bool(), alike, config.label_share)
            loss = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
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
    return head.cpu().eval(), report


def _new_head(data: Mapping[str, ViewVectors], config: HeadFitConfig) -> SearchHead:
    named = [
        f"{view}/{survey}" for view, part in data.items() for survey in part.by_survey() if survey
    ]
    head = SearchHead(
        SearchHeadConfig(
            views=tuple(data),
            dim=next(iter(data.values())).vectors.shape[1],
            hidden=config.hidden,
            dropout=config.dropout,
            surveys=tuple(named),
            light_share=config.light_share,
        )
    )
    head.standardise(data)
    return head
