"""The heads of probes: linear, with a hidden layer, or with attention over tokens before either.

The hidden layer is 256 GELUs with dropout 0.1, as the paper's. Attention pools the tokens by one
learned query an output.

Source: arXiv 2510.17960, section 6 and its appendix.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 256
DROPOUT = 0.1
HEAD_DIM = 64  # of the attention, as in the encoder


class Head(nn.Module):
    """From vectors (object, dim), or from tokens (object, token, dim), to outputs."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        num_outputs: int,
        mean: Tensor,
        scale: Tensor,
        *,
        attentive: bool,
        mlp: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.attention = Attention(dim, num_outputs) if attentive else None
        self.hidden = (
            nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT)) if mlp else None
        )
        width = HIDDEN if mlp else dim
        self.weight = nn.Parameter(torch.randn(num_outputs, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(
        self, inputs: Float[Tensor, "object *token dim"], padding: Bool[Tensor, "object token"]
    ) -> Float[Tensor, "object output"]:
        x = (inputs - self.mean) / self.scale
        x = x[:, None] if self.attention is None else self.attention(x, padding)
        if self.hidden is not None:
            x = self.hidden(x)
        # One row for all outputs, or after attention a row for each.
        outputs: Tensor = (x * self.weight).sum(dim=-1) + self.bias
        return outputs


class Attention(nn.Module):
    """Cross-attention of one learned query an output over tokens of LayerNorm."""

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.num_heads = dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(num_outputs, dim))
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, tokens: Float[Tensor, "object token dim"], padding: Bool[Tensor, "object token"]
    ) -> Float[Tensor, "object output dim"]:
        key, value = self.key_value(self.norm(tokens)).chunk(2, dim=-1)
        query = self.query.expand(len(tokens), -1, -1)
        query, key, value = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (query, key, value)
        )  # (object, head, output or token, width)
        allowed = ~padding[:, None, None, :]
        pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.proj(pooled.transpose(1, 2).flatten(-2))
