"""A search head that knows kinds: some of a vector says what an object is, the rest its look.

How sure the head is of each kind are the first dimensions, p; what it made before takes what is
left of the length, 1 - |p|^2. (With a share s below 1 for kinds they are sqrt(s) p, so that look
always counts among the surest.) Two objects that are surely of one kind are then close whatever
they look like. One of which the head is in doubt is closer to those that are surely of the kind it
most likely is than to others that are in doubt as well, where a plain head ranks doubt beside
doubt: of the first ten as many are kin as the best guess is right, not as two guesses agree.

That wants a p that can be believed. Of surveys where it cannot, colour pictures above all, a
temperature t softens it, and the first dimensions are sqrt(s p(t)), always of the same length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy import ndarray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn import functional as F

from training.pairing import ViewVectors
from training.schedule import warm_cosine
from training.search_head import KindShare, SearchHead, Temperature, look_axes

# Of the largest: directions that hardly vary are rounding, and are not made to count more.
_LEAST_VARIANCE = 1e-5
_WARMUP_STEPS = 50
_STATISTICS = frozenset({"mean", "std", "survey_mean", "survey_std"})


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class KindFitConfig:
    """How a head learns to tell kinds."""

    width: int = Field(default=192, gt=0)  # of the layer that they are read through
    share: KindShare = 1.0  # of the squared length where a kind is sure
    shares: dict[str, KindShare] = field(default_factory=dict)  # of surveys where it is another
    # Of surveys whose kinds are told less surely than it seems; nothing is learned from them.
    temperatures: dict[str, Temperature] = field(default_factory=dict)
    steps: int = Field(default=800, gt=0)
    batch_size: int = Field(default=512, gt=0)  # vectors of one view
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class KindReport:
    """What a fit reached on the last tenth of its steps."""

    loss: float  # nats
    accuracy: float


def adding_kinds(
    head: SearchHead,
    data: Mapping[str, ViewVectors],
    labels: Bool[ndarray, "object label"],
    names: Sequence[str],
    config: KindFitConfig,
    *,
    latents: int = 0,
) -> tuple[SearchHead, KindReport]:
    """A head that tells kinds, and stays what it was in what it makes of the look.

    The look is turned to its principal components, those of least length are left out to make
    room, and the others are given equal weight, so that objects in doubt are told apart by all of
    what the head sees.

    Args:
        head: Trained, without kinds.
        data: Encoder vectors of the head's views, at least as many as its dimensions. They are as
            the head was made for, with `latents` numbers more at the end.
        labels: What is known of each object, by its number; objects with the same labels are of
            one kind, and those without any teach nothing.
        names: Of the labels.
        config: How long and how fast.
        latents: Numbers at the end of the vectors that kinds are read from too.

    Raises:
        ValueError: the head has kinds or is one linear map, or there are too few vectors, or fewer
            than two kinds.
    """
    if head.config.kinds or not head.config.hidden:
        raise ValueError(f"expected a trained search head without kinds, got {head.config}")
    num_inputs = head.config.num_inputs
    kinds, kind_of = kinds_of(labels, names)
    if len(kinds) < 2:
        raise ValueError(f"expected objects of two kinds or more, got {len(kinds)}")
    shown = {view: part for view, part in data.items() if view in head.config.views}
    seen = {view: _standardised(head, part, view) for view, part in shown.items()}
    shape = replace(
        head.config, dim=head.config.dim + latents, latents=latents, kinds=kinds,
        kind_width=config.width, kind_share=config.share, kind_shares=config.shares,
        kind_temperatures=config.temperatures,
    )  # fmt: skip
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with torch.no_grad():
        looks = [F.normalize(head.output(head.hidden(x, view)), dim=-1) for view, x in seen.items()]
    variances, axes = look_axes(looks)
    equal = axes / variances.clamp_min(_LEAST_VARIANCE * float(variances[0])).sqrt()
    for name in ("output.weight", "output.bias"):
        state[name] = equal.T[: shape.num_outputs].float() @ state[name]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        knowing = SearchHead(shape).eval()
        knowing.standardise(shown)
        for name in _STATISTICS & state.keys():  # of the outputs they stay what they were
            state[name] = torch.cat([state[name], getattr(knowing, name)[:, num_inputs:]], dim=1)
        knowing.load_state_dict(knowing.state_dict() | state)
        known = {view: kind_of[part.objects] for view, part in shown.items()}
        report = _fit(knowing, _told(knowing, shown), known, config)
    return knowing.eval(), report


def kinds_of(
    labels: Bool[ndarray, "object label"], names: Sequence[str]
) -> tuple[tuple[str, ...], Int64[ndarray, " object"]]:
    """The kinds that there are, and that of each object: -1 where it has no label.

    A kind is a set of labels, named by them, as in "spiral" or "spiral+merger".
    """
    sets, kind_of = np.unique(labels, axis=0, return_inverse=True)
    some = sets.any(axis=1)
    number = np.where(some, np.cumsum(some) - 1, -1)
    kinds = tuple(
        "+".join(name for name, has in zip(names, each, strict=True) if has) for each in sets[some]
    )
    return kinds, number[kind_of.reshape(-1)]


@torch.no_grad()
def _standardised(head: SearchHead, part: ViewVectors, view: str) -> Tensor:
    vectors = torch.from_numpy(part.vectors)[:, : head.config.dim]
    return head.standardised(vectors, view, part.surveys or None)


@torch.no_grad()
def _told(head: SearchHead, data: Mapping[str, ViewVectors]) -> dict[str, Tensor]:
    """What the head reads kinds of each vector from."""
    seen = {view: _standardised(head, part, view) for view, part in data.items()}
    return {view: head.told(head.hidden(x, view), x) for view, x in seen.items()}


def _fit(
    head: SearchHead,
    told: Mapping[str, Tensor],
    known: Mapping[str, Int64[ndarray, " row"]],
    config: KindFitConfig,
) -> KindReport:
    """Train the layers of the kinds; a batch is of one view, and every vector counts alike."""
    rng = np.random.default_rng(config.seed)
    assert head.kinds is not None
    layers = head.kinds.train()
    optimizer = torch.optim.AdamW(
        layers.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    labelled = {view: np.flatnonzero(mine >= 0) for view, mine in known.items()}
    views = list(labelled)
    sizes = np.array([len(rows) for rows in labelled.values()])
    recent: list[tuple[float, float]] = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            share = warm_cosine(step + 1, _WARMUP_STEPS, step / config.steps)
            group["lr"] = config.learning_rate * share
        view = views[int(rng.choice(len(views), p=sizes / sizes.sum()))]
        rows = rng.choice(labelled[view], config.batch_size)
        logits = layers(told[view][torch.from_numpy(rows)])
        truth = torch.from_numpy(known[view][rows])
        loss = F.cross_entropy(logits, truth)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        right = (logits.argmax(dim=1) == truth).float().mean()
        recent.append((loss.item(), right.item()))
    last = np.array(recent[-max(1, config.steps // 10) :]).mean(axis=0)
    return KindReport(float(last[0]), float(last[1]))
