"""Kinship: what training may ask of the vectors themselves, beside masked modelling.

Every row of a batch is to find its kin among all others: the other rows of its object, which show
other tokens of it, and, to a chosen share, rows of other objects that have a label in common. The
loss is the cross-entropy between that share-out and a softmax over cosines. With `label_share` 0 it
is InfoNCE (van den Oord et al. 2018, arXiv 1807.03748); a row that has kin by label alone adds the
term of supervised contrast (Khosla et al. 2020, arXiv 2004.11362). AION-1 has nothing of the kind:
it is absent unless a recipe asks for it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn import functional as F


@checked_dataclass(
    frozen=True,
    slots=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False),
)
class KinshipConfig:
    """How much kinship counts, and what makes kin."""

    weight: float = Field(default=1.0, gt=0)  # beside masked modelling
    temperature: float = Field(default=0.1, gt=0)
    label_share: float = Field(default=0.0, ge=0, lt=1)  # of the kin: those that share a label
    rows_per_object: int = Field(default=2, gt=0)  # in a batch, each with a mask of its own

    @model_validator(mode="after")
    def _has_kin(self) -> KinshipConfig:
        if self.rows_per_object == 1 and not self.label_share:
            raise ValueError("with rows_per_object 1 and label_share 0 nothing has kin")
        return self


def kinship_loss(
    vectors: Float[Tensor, "row dim"],
    objects: Int64[Tensor, " row"],
    labels: Bool[Tensor, "row label"],
    config: KinshipConfig,
) -> Float[Tensor, ""]:
    """Mean over the rows of all processes that have kin, of which each gives its own rows' part.

    Args:
        vectors: Of unit length, in float32.
        objects: Number of each row's object.
        labels: What is known of it; all False where nothing is. Not read with label_share 0.
        config: What makes kin.

    Returns:
        The sum over this process's rows, divided by the rows with kin of all processes; 0 where
        no row has kin.
    """
    first = len(vectors) * _rank()
    others, other_objects = _gathered(vectors), _gathered(objects)
    everyone = torch.arange(len(others), device=vectors.device)
    oneself = everyone[None] == everyone[first : first + len(vectors), None]
    same = (objects[:, None] == other_objects[None]) & ~oneself
    alike = torch.zeros_like(same)
    if config.label_share:
        shared = labels.float() @ _gathered(labels).float().T > 0
        alike = shared & ~same & ~oneself
    wanted = shared_out(same, alike, config.label_share)
    num_kin = (wanted.sum(dim=1) > 0).sum()
    if _world_size() > 1:
        torch.distributed.all_reduce(num_kin)
    logits = (vectors @ others.T / config.temperature).masked_fill(oneself, -torch.inf)
    log_shares = F.log_softmax(logits, dim=1).masked_fill(oneself, 0.0)
    return -(wanted * log_shares).sum() / num_kin.clamp(min=1)


def shared_out(
    same: Bool[Tensor, "row other"], alike: Bool[Tensor, "row other"], label_share: float
) -> Float[Tensor, "row other"]:
    """Each row's distribution over its kin; a kind of kin that it lacks leaves its share.

    Args:
        same: Which others are of its object.
        alike: Which others, of other objects, share a label with it.
        label_share: Of the latter.
    """
    shares = same.float() * (1 - label_share) / same.sum(dim=1, keepdim=True).clamp(min=1)
    shares += alike.float() * label_share / alike.sum(dim=1, keepdim=True).clamp(min=1)
    total = shares.sum(dim=1, keepdim=True)
    return shares / torch.where(total > 0, total, 1.0)


def _world_size() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _world_size() > 1 else 0


def _gathered(mine: Tensor) -> Tensor:
    """Rows of all processes, process after process; gradients find their way back."""
    return mine if _world_size() == 1 else cast(Tensor, _Gather.apply(mine))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """Every process gets the rows of all, and its own rows the gradients from all."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(_world_size())]
        torch.distributed.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(_world_size())[_rank()]
