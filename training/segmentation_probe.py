"""A convolutional probe for maps: from the frozen outputs of an image's tokens to its pixels.

The tokens lie on the grid of the image; transposed convolutions double its side until it has 96
pixels, and the squared error is minimised, as for the spiral arms and bars that the volunteers of
Galaxy Zoo 3D marked.

Source: arXiv 2510.17960 (a small upsampler of convolutions, squared error, intersection over
union); sizes are ours.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from training.features import Features
from training.observations import IMAGE_SIZE
from training.probes import Split, check_features, learn, predict

WIDTH = 64  # channels at the grid of the tokens; half as many at each doubling
MIN_WIDTH = 16
BATCH = 32


class Upsampler(nn.Module):
    """From tokens (object, token, dim), row by row, to maps."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, side: int, num_maps: int, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.side = side
        width = WIDTH
        modules: list[nn.Module] = [nn.Conv2d(dim, width, 1)]
        while side < IMAGE_SIZE:
            narrower = max(width // 2, MIN_WIDTH)
            modules += [
                nn.GroupNorm(1, width), nn.GELU(), nn.ConvTranspose2d(width, narrower, 2, stride=2)
            ]  # fmt: skip
            width, side = narrower, 2 * side
        modules += [nn.GELU(), nn.Conv2d(width, num_maps, 3, padding=1)]
        self.layers = nn.Sequential(*modules)

    def forward(
        self, tokens: Float[Tensor, "object token dim"], padding: Bool[Tensor, "object token"]
    ) -> Float[Tensor, "object map y x"]:
        x = ((tokens - self.mean) / self.scale).transpose(1, 2)
        return self.layers(x.reshape(*x.shape[:2], self.side, self.side))


def segment(
    features: Features,
    maps: Float32[ndarray, "object map y x"],
    split: Split,
    *,
    seed: int,
    device: str = "cpu",
) -> Float32[ndarray, "test map y x"]:
    """Predict maps of the test objects, from 0 to 1.

    Args:
        features: Outputs of the tokens of one image an object, row by row of their grid.
        maps: Values from 0 to 1 on the 96 pixels a side that the encoder sees; NaN = not known,
            not learned from.
        split: Objects to learn from and to predict.
        seed: Of weights and order.
        device: Where it is trained.

    Raises:
        ValueError: features are not tokens of a square grid that 96 is a power of two times, or
            not finite; maps have another size or values, or none is known.
    """
    side = _grid_side(features)
    check_features(features, split)
    if maps.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE) or len(maps) != len(features):
        raise ValueError(
            f"expected maps of {IMAGE_SIZE} px a side for {len(features)} objects, got {maps.shape}"
        )
    if np.isnan(maps[split.train]).all():
        raise ValueError("no training object has a known map")
    if (maps < 0).any() or (maps > 1).any():
        raise ValueError("expected maps of values from 0 to 1")

    def loss(outputs: Tensor, objects: Tensor) -> Tensor:
        truth = torch.from_numpy(maps[objects.cpu().numpy()]).to(outputs.device)
        there = ~torch.isnan(truth)
        return F.mse_loss(outputs[there], truth[there])

    def make(mean: Tensor, scale: Tensor) -> Upsampler:
        return Upsampler(features.dim, side, maps.shape[1], mean, scale)

    known = split.train[~np.isnan(maps[split.train]).all(axis=(1, 2, 3))]
    learnt = learn(make, features, known, loss, seed=seed, device=device, batch_size=BATCH)
    outputs = predict(learnt.head, features, split.test, device=device, batch_size=BATCH)
    return outputs.clamp(0, 1).numpy()


def intersection_over_union(
    predicted: Float32[ndarray, "object map y x"],
    truth: Float32[ndarray, "_ _ _ _"],
    *,
    threshold: float = 0.5,
) -> Float64[ndarray, " map"]:
    """Of each map the mean over objects of shared over joint area, both above a threshold.

    Objects where neither has any area are left out; pixels of unknown truth (NaN) count nowhere.

    Raises:
        ValueError: shapes differ, a prediction is not finite, or no object has any area in a map.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"expected maps of one shape, got {predicted.shape} and {truth.shape}")
    if not np.isfinite(predicted).all():
        raise ValueError("a predicted map holds NaN or infinity")
    known = ~np.isnan(truth)
    ours, theirs = (predicted > threshold) & known, (truth > threshold) & known
    shared = (ours & theirs).sum(axis=(2, 3))
    joint = (ours | theirs).sum(axis=(2, 3))
    if not (joint > 0).any(axis=0).all():
        empty = int((joint > 0).any(axis=0).argmin())
        raise ValueError(f"no object has any area above {threshold} in map {empty}")
    share = shared / np.maximum(joint, 1)
    return np.array([share[joint[:, k] > 0, k].mean() for k in range(truth.shape[1])])


def _grid_side(features: Features) -> int:
    if features.starts is None:
        raise ValueError("expected the outputs of tokens, got one vector an object")
    lengths = np.unique(np.diff(features.starts))
    side = round(float(lengths[0]) ** 0.5)
    doublings = np.log2(IMAGE_SIZE / max(side, 1))
    if len(lengths) > 1 or side**2 != lengths[0] or doublings % 1 or doublings < 0:
        raise ValueError(
            f"expected tokens of a square grid whose side is {IMAGE_SIZE} halved, got "
            f"{', '.join(map(str, lengths[:3]))} tokens an object"
        )
    return side
