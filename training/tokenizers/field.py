"""Maps over an image to tokens and back: AION-1's scalar-field autoencoder around an FSQ.

A map is an object mask, or a property from 0 to 1 in each pixel. Source: the released package
polymathic-aion 0.0.2 (a VQ-VAE of strided convolutions and residual layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from training.observations import IMAGE_SIZE, Field
from training.tokenizers.image import centre
from training.tokenizers.quantizers import FiniteScalarQuantizer, Quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldTokenizerConfig:
    """Size of the field tokenizer."""

    hidden: int  # channels at the coarsest scale
    decoder_hidden: int | None = None  # channels where the decoder starts; None = hidden
    levels: tuple[int, ...] = (8, 5, 5, 5)
    num_compressions: int = 3  # halvings of the image side, each doubles the channels
    num_residual: int = 2  # residual layers at the coarsest scale
    residual_hidden: int = 64  # channels inside a residual layer
    sigmoid: bool = True  # over the decoder's output, before it is clipped to 0 and 1
    output_extension: float | None = None  # and stretched this far beyond 0 and 1 before that

    def __post_init__(self) -> None:
        steps = 2**self.num_compressions
        coarsest = {"hidden": self.hidden, "decoder_hidden": self.decoder_width}
        for name, width in coarsest.items():
            if width % (steps // 2) or width < steps // 2:
                raise ValueError(f"{name} must be divisible by {steps // 2}, got {width}")
        if self.num_compressions < 1 or IMAGE_SIZE % steps:
            raise ValueError(
                f"num_compressions must be 1 or more and 2^num_compressions divide {IMAGE_SIZE}, "
                f"got {self.num_compressions}"
            )

    @property
    def decoder_width(self) -> int:
        """Channels where the decoder starts."""
        return self.hidden if self.decoder_hidden is None else self.decoder_hidden


@dataclass(frozen=True, slots=True)
class FieldReconstruction:
    """What training sees of one pass through the tokenizer."""

    value: Float[Tensor, "b 96 96"]  # before it is clipped to 0 and 1
    codes: Int64[Tensor, "b n"]


def stack(fields: Sequence[Field]) -> Float[Tensor, "b 96 96"]:
    """Put fields of any sizes into one batch: the centre of larger ones, 0 around smaller ones."""
    return torch.stack([centre(torch.tensor(field.value)) for field in fields])


class FieldTokenizer(nn.Module):
    """Encode maps of values from 0 to 1 to a grid of codes, from the first row of the array."""

    def __init__(self, config: FieldTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.grid_side = IMAGE_SIZE // 2**config.num_compressions
        self.num_tokens = self.grid_side**2
        self.encoder = nn.Sequential(*_encoder_layers(config))
        self.to_code = nn.Conv2d(config.hidden, len(config.levels), 1)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.from_code = nn.Conv2d(len(config.levels), config.decoder_width, 1)
        self.decoder = nn.Sequential(*_decoder_layers(config))

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary."""
        return self.quantizer.num_codes

    def encode(self, value: Float[Tensor, "b y x"]) -> Int64[Tensor, "b n"]:
        """Give the codes of fields; other sizes than 96 are cropped or padded with 0."""
        return self._quantized(value).codes.flatten(1)

    def decode(self, tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b 96 96"]:
        """Give the fields, from 0 to 1."""
        codes = tokens.reshape(-1, self.grid_side, self.grid_side)
        return self._from_values(self.quantizer.decode(codes)).clamp(0, 1)

    def forward(self, value: Float[Tensor, "b y x"]) -> FieldReconstruction:
        """Encode and decode, with the gradient passing straight through the quantizer."""
        quantized = self._quantized(value)
        return FieldReconstruction(self._from_values(quantized.values), quantized.codes.flatten(1))

    def _quantized(self, value: Tensor) -> Quantized:
        latent = self.to_code(self.encoder(centre(value)[:, None]))
        return self.quantizer(latent.movedim(1, -1))

    def _from_values(self, values: Float[Tensor, "b y x code"]) -> Float[Tensor, "b 96 96"]:
        field = self.decoder(self.from_code(values.movedim(-1, 1))).squeeze(1)
        if self.config.sigmoid:
            field = field.sigmoid()
        extension = self.config.output_extension or 0.0
        return (1 + 2 * extension) * field - extension


class ResidualLayer(nn.Module):
    """ReLU, conv 3x3, batch norm, ReLU, conv 1x1, added to the input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, inner, 3, padding=1)
        self.norm = nn.BatchNorm2d(inner)
        self.pointwise = nn.Conv2d(inner, width, 1)

    def forward(self, x: Float[Tensor, "b width y x"]) -> Float[Tensor, "b width y x"]:
        """Apply the layer."""
        return x + self.pointwise(self.norm(self.conv(x.relu())).relu())


def _residual(width: int, config: FieldTokenizerConfig) -> nn.Sequential:
    layers = (ResidualLayer(width, config.residual_hidden) for _ in range(config.num_residual))
    return nn.Sequential(*layers)


def _encoder_layers(config: FieldTokenizerConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    before = 1
    for remaining in reversed(range(config.num_compressions)):
        after = config.hidden // 2**remaining
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        before = after
    layers.append(nn.Conv2d(config.hidden, config.hidden, 3, padding=1))
    layers.append(_residual(config.hidden, config))
    return layers


def _decoder_layers(config: FieldTokenizerConfig) -> list[nn.Module]:
    """As released: the width drops at the first upsampling and grows again towards the last."""
    width = config.decoder_width
    layers: list[nn.Module] = [nn.ConvTranspose2d(width, width, 3, padding=1)]
    layers.append(_residual(width, config))
    inner = [width // 2**remaining for remaining in range(config.num_compressions - 1, 0, -1)]
    widths = [width, *inner, 1]
    for before, after in pairwise(widths):
        layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    return layers
