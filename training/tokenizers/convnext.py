"""ConvNeXt-V2 in one dimension: the networks on either side of a spectrum's codes.

Source: Woo et al. 2023 (arXiv 2301.00808) as the released package polymathic-aion 0.0.2 has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

KERNEL = 7  # pixels of the depthwise convolutions
STEM_STRIDE = 4


class ConvNextBlock(nn.Module):
    """ConvNeXt-V2 in one dimension; sequences are (b, position, channel)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.response_norm = GlobalResponseNorm(4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """Apply the block."""
        inner = self.norm(self.depthwise(x.transpose(1, 2)).transpose(1, 2))
        inner = self.response_norm(functional.gelu(self.expand(inner)))
        return x + self.contract(inner)


class GlobalResponseNorm(nn.Module):
    """Channels compete by their norm over the sequence (ConvNeXt-V2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """Normalise, with the input added."""
        norm = x.square().sum(dim=1, keepdim=True, dtype=torch.float32).sqrt()
        share = (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)).to(x.dtype)
        return torch.addcmul(self.beta.to(x.dtype), x, 1 + self.gamma.to(x.dtype) * share)


class PatchConv(nn.Module):
    """A convolution whose kernel equals its stride, on (b, position, channel)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, stride, stride=stride)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n2 out"]:
        """Downsample."""
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class PatchDeconv(nn.Module):
    """A transposed convolution whose kernel equals its stride, on (b, position, channel)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(width_in, width_out, stride, stride=stride)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n2 out"]:
        """Upsample."""
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ConvNextBlock(width) for _ in range(depth)))


class ConvNextEncoder(nn.Module):
    """Four stages, stride 32 in all, and a final norm."""

    def __init__(self, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        samplers = [nn.Sequential(PatchConv(2, dims[0], STEM_STRIDE), _norm(dims[0]))]
        for before, after in pairwise(dims):
            samplers.append(nn.Sequential(_norm(before), PatchConv(before, after, 2)))
        self.samplers = nn.ModuleList(samplers)
        self.stages = nn.ModuleList(map(_blocks, dims, depths))
        self.norm = _norm(dims[-1])
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "b 2 latent"]) -> Float[Tensor, "b n width"]:
        """Encode two channels, flux and inverse error."""
        x = x.transpose(1, 2)
        for sampler, stage in zip(self.samplers, self.stages, strict=True):
            x = stage(sampler(x))
        return self.norm(x)


class ConvNextDecoder(nn.Module):
    """Four stages, each upsampled before its blocks: flux and mask logit at the end."""

    def __init__(self, width: int, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        samplers = [nn.Sequential(PatchDeconv(width, dims[0], 2), _norm(dims[0]))]
        strides = (2, 2, STEM_STRIDE)
        for before, after, stride in zip(dims[:-1], dims[1:], strides, strict=True):
            samplers.append(nn.Sequential(_norm(before), PatchDeconv(before, after, stride)))
        self.samplers = nn.ModuleList(samplers)
        self.stages = nn.ModuleList(map(_blocks, dims, depths))
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b latent 2"]:
        """Decode."""
        for sampler, stage in zip(self.samplers, self.stages, strict=True):
            x = stage(sampler(x))
        return x


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
