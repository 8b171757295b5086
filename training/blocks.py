"""Attention blocks of the transformer, with the tensor names of the released AION-1.

Normalisation comes before each part, queries and keys are normalised too, the MLP is gated, and no
linear map has a bias (package polymathic-aion 0.0.2).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


class LayerNorm(nn.Module):
    """Layer normalisation with a trained scale and a bias that stays zero, as released."""

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPS)


def _attend(
    q: Float[Tensor, "batch head query width"],
    k: Float[Tensor, "batch head key width"],
    v: Float[Tensor, "batch head key width"],
    allowed: Bool[Tensor, "batch _ key"] | None,
) -> Float[Tensor, "batch query dim"]:
    mask = None if allowed is None else allowed[:, None]
    # On a CPU the backward pass of bfloat16 attention is twice as slow as that of float32.
    with torch.autocast(q.device.type, enabled=q.device.type != "cpu"):
        if q.device.type == "cpu":
            q, k, v = q.float(), k.float(), v.float()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention with fused q, k, v and normalised queries and keys."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(dim // num_heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        allowed: Bool[Tensor, "batch _ token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        split = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (batch, head, token, width)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return self.proj(_attend(q, k, v, allowed))


class CrossAttention(nn.Module):
    """Queries look at a context of another length."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(dim // num_heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch query dim"],
        context: Float[Tensor, "batch key dim"],
        allowed: Bool[Tensor, "batch _ key"] | None = None,
    ) -> Float[Tensor, "batch query dim"]:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return self.proj(_attend(q, k, v, allowed))


class GatedMLP(nn.Module):
    """fc2(SiLU(fc1 x) * fc3 x), two thirds as wide as a plain MLP so that it costs the same."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(2 * (ratio * dim) / 3)
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.fc3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class EncoderBlock(nn.Module):
    """Tokens look at each other; normalised before every part, added after it."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qk_norm)
        self.norm2 = LayerNorm(dim)
        self.mlp = GatedMLP(dim, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        allowed: Bool[Tensor, "batch _ token"] | None,
    ) -> Float[Tensor, "batch token dim"]:
        x = x + self.attn(self.norm1(x), allowed)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Queries look at each other, then at the context."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads, qk_norm)
        self.query_norm = LayerNorm(dim)
        self.context_norm = LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, num_heads, qk_norm)
        self.norm2 = LayerNorm(dim)
        self.mlp = GatedMLP(dim, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "batch query dim"],
        context: Float[Tensor, "batch key dim"],
        allowed: Bool[Tensor, "batch query query"],
        context_allowed: Bool[Tensor, "batch 1 key"] | None,
    ) -> Float[Tensor, "batch query dim"]:
        x = x + self.self_attn(self.norm1(x), allowed)
        x = x + self.cross_attn(self.query_norm(x), self.context_norm(context), context_allowed)
        return x + self.mlp(self.norm2(x))
