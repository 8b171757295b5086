"""A larger model that begins by computing what a smaller one does: wider by a whole factor, deeper.

Every channel of the residual stream, head and hidden unit becomes several copies. What reads
channels reads the first copy of each, what reads heads and hidden units shares its weights out
among their copies at random, or copies would learn the same for ever. Blocks that are added at the
end add nothing yet. Norms see the mean and spread that they saw.

It is not exact: positions of a wider model have waves of lengths between those of the narrower one,
where its own are copied. First copies have the old ones, and what is read is read there; only the
means and spreads that norms take move a little.

Sources: Net2Net (arXiv 1511.05641), for transformers bert2BERT (arXiv 2110.07143); a departure from
AION-1, which trains every size from random weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from training.transformer_config import TransformerConfig

SIZES = ("dim", "num_heads", "encoder_depth", "decoder_depth", "mlp_ratio")
Weights = Mapping[str, Tensor]  # name in the transformer -> values

# What a block adds to its input goes through these.
_LAST = re.compile(r"(encoder|decoder)\.(\d+)\..*\b(proj|fc2)\.(weight|bias)$")


def grown(weights: Weights, old: TransformerConfig, new: TransformerConfig) -> dict[str, Tensor]:
    """Weights of a model that is as large or larger, from those of another one.

    Args:
        weights: Of the old model, all of its parameters.
        old: Its sizes.
        new: Those that are wanted. Streams may differ, all else but the sizes is taken as equal.

    Returns:
        What the new model has of the old one, and zeros where added blocks write. The rest of
        these, and the tables of new streams, are to be drawn.

    Raises:
        ValueError: the new model is narrower or shallower, its width is not a multiple, or its
            heads or MLPs are of another width than such a multiple asks for; names the sizes.
    """
    factor = _factor(old, new)
    generator = torch.Generator().manual_seed(0)
    made = {
        name: _widened(name, each, factor, old, generator) if factor > 1 else each
        for name, each in weights.items()
    }
    for name in weights:
        if (part := _LAST.match(name)) is None or int(part[2]) != 0:
            continue
        stack = part[1]
        before, after = (getattr(size, f"{stack}_depth") for size in (old, new))
        for number in range(before, after):
            added = name.replace(f"{stack}.0.", f"{stack}.{number}.", 1)
            made[added] = torch.zeros_like(made[name])
    return made


def _factor(old: TransformerConfig, new: TransformerConfig) -> int:
    factor, rest = divmod(new.dim, old.dim)
    if rest or not factor:
        raise ValueError(f"dim is to be a multiple of {old.dim}, got {new.dim}")
    if new.num_heads != factor * old.num_heads:
        raise ValueError(
            f"heads are to stay {old.dim // old.num_heads} wide: num_heads is to be "
            f"{factor * old.num_heads}, got {new.num_heads}"
        )
    if new.mlp_hidden != factor * old.mlp_hidden:
        raise ValueError(
            f"MLPs are to be {factor * old.mlp_hidden} wide, {factor} times {old.mlp_hidden}, got "
            f"{new.mlp_hidden}: choose another mlp_ratio"
        )
    for depth in ("encoder_depth", "decoder_depth"):
        if getattr(new, depth) < getattr(old, depth):
            raise ValueError(
                f"{depth} is to be {getattr(old, depth)} or more, got {getattr(new, depth)}"
            )
    return factor


def _widened(
    name: str, old: Tensor, factor: int, config: TransformerConfig, generator: torch.Generator
) -> Tensor:
    """One parameter, with copies of what it writes, and its reading adjusted to copies."""
    if name.endswith(("q_norm.weight", "k_norm.weight", "q_norm.bias", "k_norm.bias")):
        return old  # within a head
    if name.endswith(("token_emb.weight", "mod_emb", "mask_token")):
        return old.repeat_interleave(factor, dim=-1)
    head = config.dim // config.num_heads
    # a head is copied whole, or its queries would no longer meet its keys
    written = head if re.search(r"\.(qkv|q|kv)\.(weight|bias)$", name) else 1
    wide = old if "to_logits" in name else _copied(old, factor, written)
    if old.ndim == 1:
        return wide
    if name.endswith("fc2.weight"):
        return _shared(wide, factor, 1, generator)
    if re.search(r"attn\.proj\.weight$", name):
        return _shared(wide, factor, head, generator)
    first = torch.zeros(wide.shape[0], wide.shape[1], factor, dtype=old.dtype)
    first[..., 0] = wide
    return first.flatten(1)


def _copied(old: Tensor, factor: int, run: int) -> Tensor:
    """Rows, in runs of so many, each run several times."""
    runs = old.reshape(-1, run, *old.shape[1:])
    return runs.repeat_interleave(factor, dim=0).flatten(0, 1)


def _shared(
    old: Float[Tensor, "row column"], factor: int, run: int, generator: torch.Generator
) -> Float[Tensor, "row wider"]:
    """Columns shared out, at random, among the copies of the runs that they read."""
    runs = old.reshape(len(old), -1, 1, run)  # (row, which, copy, of a run)
    shape = (*runs.shape[:2], factor, run)
    shares = torch.rand(shape, generator=generator, dtype=torch.float32)
    shares = shares / shares.sum(dim=2, keepdim=True)
    return (runs * shares.to(old.dtype)).flatten(1)
