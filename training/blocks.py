"""Attention blocks of the transformer, with the tensor names of the released AION-1.

Normalisation comes before each part, queries and keys are normalised too, and the MLP is gated
(package polymathic-aion 0.0.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from training.transformer_config import TransformerConfig

NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Packing:
    """Objects laid end to end in one long line of tokens, without padding."""

    lengths: tuple[int, ...]  # tokens of each object, none of them 0

    def runs(self) -> list[tuple[int, int]]:
        """(objects, tokens of each) for every run of objects of equal length."""
        return [(len(list(same)), length) for length, same in groupby(self.lengths)]

    def offsets(self, device: torch.device) -> Int[Tensor, " object_and_end"]:
        """Where each object begins, and where the last one ends."""
        ends = torch.tensor(self.lengths, device=device).cumsum(0)
        return F.pad(ends, (1, 0))


class LayerNorm(nn.Module):
    """Layer normalisation with a trained scale; as released its bias is stored and stays zero."""

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        if bias:
            self.bias = nn.Parameter(torch.zeros(dim))
        else:
            self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPS)


def attend(
    q: Float[Tensor, "batch query head width"],
    k: Float[Tensor, "batch key head width"],
    v: Float[Tensor, "batch key head width"],
    allowed: Bool[Tensor, "batch _ key"] | None,
) -> Float[Tensor, "batch query dim"]:
    """Each query looks at the keys of its batch row that it is allowed to see (None: all)."""
    mask = None if allowed is None else allowed[:, None]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    # On a CPU the backward pass of bfloat16 attention is twice as slow as that of float32.
    if q.device.type == "cpu" and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def attend_within(
    q: Float[Tensor, "token head width"],
    k: Float[Tensor, "token head width"],
    v: Float[Tensor, "token head width"],
    packing: Packing,
) -> Float[Tensor, "token dim"]:
    """Tokens of each packed object look at all tokens of that object, and at no other."""
    if q.device.type == "cuda":
        return attend_jagged(q, k, v, packing)
    parts, start = [], 0
    for count, length in packing.runs():  # no padding; equal lengths go through in one piece
        stop = start + count * length
        shape = (count, length, *q.shape[1:])
        same = [each[start:stop].reshape(shape) for each in (q, k, v)]
        parts.append(attend(same[0], same[1], same[2], None).flatten(0, 1))
        start = stop
    return torch.cat(parts)


def attend_jagged(
    q: Float[Tensor, "token head width"],
    k: Float[Tensor, "token head width"],
    v: Float[Tensor, "token head width"],
    packing: Packing,
) -> Float[Tensor, "token dim"]:
    """As `attend_within`, in one kernel for objects of all lengths; the way of a GPU."""
    offsets = packing.offsets(q.device)
    jagged = [
        torch.nested.nested_tensor_from_jagged(
            each, offsets, min_seqlen=min(packing.lengths), max_seqlen=max(packing.lengths)
        ).transpose(1, 2)
        for each in (q, k, v)
    ]
    mixed = F.scaled_dot_product_attention(jagged[0], jagged[1], jagged[2])
    return mixed.transpose(1, 2).values().flatten(1)


class Attention(nn.Module):
    """Self-attention with fused q, k, v and normalised queries and keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        self.q_norm, self.k_norm = _head_norm(config), _head_norm(config)

    def forward(
        self,
        x: Float[Tensor, "*batch token dim"],
        allowed: Bool[Tensor, "batch _ token"] | Packing | None = None,
        *,
        uniform: bool = False,
    ) -> Float[Tensor, "*batch token dim"]:
        """Mix tokens with those that they may see; `uniform` gives all of them equal weight."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        if uniform:
            return self.proj(v.mean(dim=-3, keepdim=True).expand_as(v).flatten(-2))
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if isinstance(allowed, Packing):
            return self.proj(attend_within(q, k, v, allowed))
        return self.proj(attend(q, k, v, allowed))


class CrossAttention(nn.Module):
    """Queries look at a context of another length."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)
        self.kv = nn.Linear(config.dim, 2 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        self.q_norm, self.k_norm = _head_norm(config), _head_norm(config)

    def forward(
        self,
        x: Float[Tensor, "batch query dim"],
        context: Float[Tensor, "batch key dim"],
        allowed: Bool[Tensor, "batch _ key"] | None = None,
    ) -> Float[Tensor, "batch query dim"]:
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return self.proj(attend(q, k, v, allowed))


class GatedMLP(nn.Module):
    """fc2(SiLU(fc1 x) * fc3 x), two thirds as wide as a plain MLP so that it costs the same."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.mlp_hidden
        self.fc1 = nn.Linear(config.dim, hidden, bias=config.mlp_bias)
        self.fc2 = nn.Linear(hidden, config.dim, bias=config.mlp_bias)
        self.fc3 = nn.Linear(config.dim, hidden, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate = F.silu(self.fc1(x), inplace=not torch.is_grad_enabled())
        return self.fc2(gate * self.fc3(x))


class EncoderBlock(nn.Module):
    """Tokens look at each other; normalised before every part, added after it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.norm2 = _norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        x: Float[Tensor, "*batch token dim"],
        allowed: Bool[Tensor, "batch _ token"] | Packing | None,
    ) -> Float[Tensor, "*batch token dim"]:
        x = x + self.attn(self.norm1(x), allowed)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Queries look at each other, then at the context."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.self_attn = Attention(config)
        self.query_norm = _norm(config)
        self.context_norm = _norm(config)
        self.cross_attn = CrossAttention(config)
        self.norm2 = _norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        x: Float[Tensor, "batch query dim"],
        context: Float[Tensor, "batch key dim"],
        allowed: Bool[Tensor, "batch query query"] | None,
        context_allowed: Bool[Tensor, "batch 1 key"] | None,
    ) -> Float[Tensor, "batch query dim"]:
        """One step; `allowed` None mixes all queries with equal weight, as AION.forward does."""
        x = x + self.self_attn(self.norm1(x), allowed, uniform=allowed is None)
        x = x + self.cross_attn(self.query_norm(x), self.context_norm(context), context_allowed)
        return x + self.mlp(self.norm2(x))


def _norm(config: TransformerConfig) -> LayerNorm:
    return LayerNorm(config.dim, bias=config.norm_bias)


def _head_norm(config: TransformerConfig) -> nn.Module:
    if not config.qk_norm:
        return nn.Identity()
    return LayerNorm(config.dim // config.num_heads, bias=config.norm_bias)
