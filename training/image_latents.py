"""What the image tokenizer sees before it rounds to codes, in some hundred numbers.

A code keeps one of a few thousand shapes of a patch; the feature map that it is rounded from tells
arms, tails and arcs apart that get the same code. An encoder may carry that map at the end of its
vectors: mean and deviation of its channels in squares about the centre, of the channels a few
combinations. The network that makes it runs for the codes in any case, so it costs next to nothing.

It is a departure from AION-1, whose transformer sees codes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.observations import Image
from training.tokenizers.image import ImageTokenizer, stack

# Sides of the squares in shares of the map, from the core to the whole.
SQUARES = (1 / 6, 1 / 3, 2 / 3, 1.0)
_STD_FLOOR = 1e-4  # of a channel that hardly varies; maps are of the order of 1


def num_features(tokenizer: ImageTokenizer) -> int:
    """How many numbers a map is summarised by, before they are turned."""
    return 2 * len(SQUARES) * tokenizer.config.hidden


def summarised(maps: Float[Tensor, "image channel y x"]) -> Float[Tensor, "image feature"]:
    """Mean and deviation of every channel in every square, from the core to the whole."""
    maps = maps.float()
    side = maps.shape[-1]
    parts: list[Tensor] = []
    for share in SQUARES:
        margin = (side - max(1, round(share * side))) // 2
        inside = slice(margin, side - margin)
        square = maps[:, :, inside, inside].flatten(2)
        parts += [square.mean(dim=2), square.std(dim=2, correction=0)]
    return torch.cat(parts, dim=1)


@torch.inference_mode()
def features_of(
    tokenizer: ImageTokenizer, images: Sequence[Image], *, at_once: int = 8
) -> Float[Tensor, "image feature"]:
    """Summaries of some images."""
    parts = []
    for start in range(0, len(images), at_once):
        seen = stack(images[start : start + at_once])
        parts.append(summarised(tokenizer.features(seen.flux_nmgy, seen.channels)))
    return torch.cat(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentMap:
    """From summaries to latents."""

    mean: Float[Tensor, " feature"]
    std: Float[Tensor, " feature"]
    axes: Float[Tensor, "2 channel kept"]  # of means, and of deviations

    def __call__(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image latent"]:
        """Latents: a few combinations of the channels, of mean and deviation in every square."""
        even = (features - self.mean) / self.std
        by_square = even.reshape(len(even), len(SQUARES), 2, -1)
        kept = torch.einsum("isdc,dck->isdk", by_square, self.axes)
        return kept.flatten(1) / features.shape[1] ** 0.5


def principal_latents(features: Float[Tensor, "image feature"], num: int) -> LatentMap:
    """The map to so many latents, by principal components of the channels over all squares.

    Every feature counts alike. All that there is to tell has the variance 1 in sum, so latents are
    small beside the outputs of a transformer. One map serves all squares: for each its own would
    take twenty times the room of this one and tell kinds no better.

    Raises:
        ValueError: latents are not as many for each square, or more than features, or there are no
            more summaries than that.
    """
    each = 2 * len(SQUARES)
    if num % each or not 0 < num <= features.shape[1]:
        raise ValueError(
            f"latents must be a multiple of {each}, up to {features.shape[1]}, got {num}"
        )
    if len(features) <= num:
        raise ValueError(f"{num} latents want more images than that, got {len(features)}")
    wide = features.double()
    mean, std = wide.mean(dim=0), wide.std(dim=0).clamp_min(_STD_FLOOR)
    by_square = ((wide - mean) / std).reshape(len(wide), len(SQUARES), 2, -1)
    axes = []
    for part in by_square.unbind(dim=2):  # means, deviations
        rows = part.flatten(0, 1)
        _, found = torch.linalg.eigh(rows.T @ rows / len(rows))
        kept = found.flip(1)[:, : num // each]  # largest first
        # an axis has no sign of its own: its largest component is made positive
        largest = kept.abs().argmax(dim=0, keepdim=True)
        axes.append(kept * kept.gather(0, largest).sign())
    return LatentMap(mean=mean.float(), std=std.float(), axes=torch.stack(axes).float())
