"""Multi-survey images to tokens and back: AION-1's convolutional autoencoder around an FSQ.

Images come in nanomaggies per pixel (observations.Image) on the nine channels of
observations.BANDS. AION-1 clips each band in the survey's own unit and then divides HSC by
10^((27.0 - 22.5) / 2.5) = 63.0957 to reach the zero point 22.5; here HSC is in nanomaggies
already, so its clip limits are divided instead, which gives the same numbers.

Source: arXiv 2510.17960 and the released package polymathic-aion 0.0.2. Departures, each a
configuration value that defaults to the released one: `compression_multiplier`, `gate_bias`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from training.observations import BANDS, IMAGE_SIZE, Image
from training.tokenizers.quantizers import FiniteScalarQuantizer, Quantized

NUM_CHANNELS = len(BANDS)
SILU_GAIN = 1.68  # makes up for what the SiLU takes from the deviation of a unit normal
HSC_NMGY = 10 ** (-(27.0 - 22.5) / 2.5)  # nanomaggies of one HSC count at zero point 27.0
CLIP_NMGY = (*(HSC_NMGY * counts for counts in (80, 110, 200, 330, 500)), 6.0, 15.0, 20.0, 25.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTokenizerConfig:
    """Size of the image tokenizer. The defaults are the released AION-1."""

    hidden: int = 512  # channels at the coarsest scale
    embedding: int = 5  # dimensions that are quantized, one per entry of levels
    multisurvey: int = 54  # channels that the bands of all surveys are projected to
    num_compressions: int = 2  # halvings of the image side, each doubles the channels
    num_consecutive: int = 4  # residual units at each scale
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    compression_softening_nmgy: float = 0.01  # flux where the arcsinh turns from linear to log
    # Channels are multiplier * softening * arcsinh(flux / softening). The released 10 leaves the
    # noise of a Legacy image below 0.1, under the biases; 100 brings it to 1: faster to train.
    compression_multiplier: float = 10.0
    # Squeeze-excite gates start at sigmoid(gate_bias). The released -10 closes every residual
    # unit at first, and a brief training never opens them; 0 starts half open.
    gate_bias: float = -10.0

    def __post_init__(self) -> None:
        scales = (self.compression_softening_nmgy, self.compression_multiplier)
        if not all(0 < scale < math.inf for scale in scales) or not math.isfinite(self.gate_bias):
            raise ValueError(
                "compression_softening_nmgy and compression_multiplier must be positive, "
                f"gate_bias finite, got {scales[0]}, {scales[1]} and {self.gate_bias}"
            )
        if min(self.hidden, self.embedding, self.multisurvey) < 1 or self.num_consecutive < 0:
            raise ValueError(
                "hidden, embedding and multisurvey must be 1 or more, num_consecutive 0 or more, "
                f"got {self.hidden}, {self.embedding}, {self.multisurvey} and "
                f"{self.num_consecutive}"
            )
        if len(self.levels) != self.embedding:
            raise ValueError(
                f"expected one level per embedding dimension, got {len(self.levels)} levels "
                f"and embedding {self.embedding}"
            )
        if self.hidden % 2**self.num_compressions or IMAGE_SIZE % 2**self.num_compressions:
            raise ValueError(
                f"hidden ({self.hidden}) and image side ({IMAGE_SIZE}) must be divisible by "
                f"2^num_compressions ({2**self.num_compressions})"
            )


@dataclass(frozen=True, slots=True)
class ImageTensors:
    """A batch of images on the nine channels; absent bands are 0 with channels False."""

    flux_nmgy: Float[Tensor, "b 9 y x"]
    ivar: Float[Tensor, "b 9 y x"]  # 0 where bad or absent
    channels: Bool[Tensor, "b 9"]  # True = the band was observed

    def to(self, device: torch.device | str) -> ImageTensors:
        """The batch on a device."""
        return ImageTensors(
            self.flux_nmgy.to(device), self.ivar.to(device), self.channels.to(device)
        )


@dataclass(frozen=True, slots=True)
class ImageReconstruction:
    """What training sees of one pass through the tokenizer."""

    compressed: Float[Tensor, "b 9 y x"]  # in compressed range, before the arcsinh is undone
    codes: Int64[Tensor, "b n"]
    values: Float[Tensor, "b row column embedding"]  # of the codes, with the gradient


def stack(images: Sequence[Image]) -> ImageTensors:
    """Put images of any bands and sizes onto the nine channels and IMAGE_SIZE pixels a side.

    Larger images lose their margin; around smaller ones flux and ivar are 0.
    """
    side = IMAGE_SIZE
    flux = np.zeros((len(images), NUM_CHANNELS, side, side), dtype=np.float32)
    ivar = np.zeros_like(flux)
    channels = np.zeros((len(images), NUM_CHANNELS), dtype=bool)
    for row, image in enumerate(images):
        where = [BANDS.index(band) for band in image.bands]
        good_ivar = np.where(image.mask, np.float32(0), image.ivar)
        flux[row, where] = centre(torch.tensor(image.flux)).numpy()
        ivar[row, where] = centre(torch.tensor(good_ivar)).numpy()
        channels[row, where] = True
    return ImageTensors(torch.from_numpy(flux), torch.from_numpy(ivar), torch.from_numpy(channels))


def centre(pixels: Float[Tensor, "*plane y x"]) -> Float[Tensor, "*plane 96 96"]:
    """The central IMAGE_SIZE pixels a side, with 0 around where the array is smaller.

    Of an odd margin the last row goes, as where AION-1 crops; AION-1 does not pad.
    """
    height, width = pixels.shape[-2:]
    if height == width == IMAGE_SIZE:
        return pixels
    top, left = (height - IMAGE_SIZE) // 2, (width - IMAGE_SIZE) // 2
    bottom, right = height - IMAGE_SIZE - top, width - IMAGE_SIZE - left
    return functional.pad(pixels, (-left, -right, -top, -bottom))


class ImageTokenizer(nn.Module):
    """Encode images to a grid of codes, row by row from the first row of the array."""

    clip_nmgy: Tensor  # (9, 1, 1)

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.grid_side = IMAGE_SIZE // 2**config.num_compressions
        self.num_tokens = self.grid_side**2
        self.register_buffer("clip_nmgy", torch.tensor(CLIP_NMGY)[:, None, None], persistent=False)
        self.project_in = ChannelsIn(config.multisurvey)
        self.encoder = nn.Sequential(*_encoder_layers(config))
        self.to_code = nn.Conv2d(config.hidden, config.embedding, 1)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.from_code = nn.Conv2d(config.embedding, config.hidden, 1)
        self.decoder = nn.Sequential(*_decoder_layers(config))
        self.project_out = nn.Conv2d(config.multisurvey, NUM_CHANNELS, 1)
        self.apply(_initialise)

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary."""
        return self.quantizer.num_codes

    def encode(
        self, flux_nmgy: Float[Tensor, "b 9 y x"], channels: Bool[Tensor, "b 9"]
    ) -> Int64[Tensor, "b n"]:
        """Give the codes of images; neither tensor is changed.

        Other sizes than 96 are cropped, or padded with 0, about the centre.

        Raises:
            ValueError: an image has no band.
        """
        return self.codes_of(self.features(flux_nmgy, channels))

    def features(
        self, flux_nmgy: Float[Tensor, "b 9 y x"], channels: Bool[Tensor, "b 9"]
    ) -> Float[Tensor, "b hidden row column"]:
        """The map that codes are rounded from; sizes and errors as in encode."""
        return self._features(self.compress(self.clip(centre(flux_nmgy))), channels)

    def codes_of(self, features: Float[Tensor, "b hidden row column"]) -> Int64[Tensor, "b n"]:
        """The codes that maps of features are rounded to."""
        return self.quantizer(self._latent(features)).codes.flatten(1)

    def decode(
        self, tokens: Int64[Tensor, "b n"], channels: Bool[Tensor, "b 9"]
    ) -> Float[Tensor, "b 9 96 96"]:
        """Give the flux in nanomaggies per pixel, 0 in the channels that are not asked for."""
        codes = tokens.reshape(-1, self.grid_side, self.grid_side)
        compressed = self._from_values(self.quantizer.decode(codes))
        return self.expand(compressed) * channels[:, :, None, None]

    def forward(
        self, flux_nmgy: Float[Tensor, "b 9 y x"], channels: Bool[Tensor, "b 9"]
    ) -> ImageReconstruction:
        """Encode and decode, with the gradient passing straight through the quantizer.

        The sides may be any multiple of the size of a token: all layers are convolutions.
        """
        quantized = self.quantized(flux_nmgy, channels)
        return ImageReconstruction(
            self._from_values(quantized.values).float(),
            quantized.codes.flatten(1),
            quantized.values,
        )

    def quantized(
        self, flux_nmgy: Float[Tensor, "b 9 y x"], channels: Bool[Tensor, "b 9"]
    ) -> Quantized:
        """Codes and their values, which carry the gradient; sides as in forward."""
        features = self._features(self.compress(self.clip(flux_nmgy)), channels)
        found: Quantized = self.quantizer(self._latent(features))
        return found

    def clip(self, flux_nmgy: Float[Tensor, "b 9 y x"]) -> Float[Tensor, "b 9 y x"]:
        """Limit each band symmetrically to the range that AION-1 keeps; a new tensor."""
        limit = self.clip_nmgy
        return torch.minimum(torch.maximum(flux_nmgy, -limit), limit)

    def compress(self, flux_nmgy: Float[Tensor, "b 9 y x"]) -> Float[Tensor, "b 9 y x"]:
        """Compress flux by arcsinh."""
        softening = self.config.compression_softening_nmgy
        scale = self.config.compression_multiplier * softening
        return torch.asinh(flux_nmgy / softening) * scale

    def expand(self, compressed: Float[Tensor, "b 9 y x"]) -> Float[Tensor, "b 9 y x"]:
        """Undo compress, up to twice the clip limit of each band: sinh has no other bound."""
        softening = self.config.compression_softening_nmgy
        scale = self.config.compression_multiplier * softening
        limit = torch.asinh(2 * self.clip_nmgy / softening)
        arcsinh = torch.minimum(torch.maximum(compressed.float() / scale, -limit), limit)
        return torch.sinh(arcsinh) * softening

    def _features(self, compressed: Tensor, channels: Tensor) -> Tensor:
        # Channels last is the faster layout for convolutions on a CPU.
        pixels = self.project_in(compressed, channels).contiguous(memory_format=torch.channels_last)
        found: Tensor = self.encoder(pixels)
        return found

    def _latent(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # rounding here would move codes
            latent = self.to_code(features.float())
        return latent.movedim(1, -1)  # (b, row, column, embedding)

    def _from_values(self, values: Tensor) -> Tensor:
        return self.project_out(self.decoder(self.from_code(values.movedim(-1, 1))))


class ChannelsIn(nn.Module):
    """AION-1's subsampled linear map: any subset of the channels to one fixed width.

    sqrt(channels / present) * (W (x * present) + b), so that the scale of the sum does not
    depend on how many bands a survey has.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(NUM_CHANNELS, width, 1)

    def forward(
        self, compressed: Float[Tensor, "b 9 y x"], channels: Bool[Tensor, "b 9"]
    ) -> Float[Tensor, "b width y x"]:
        """Project. Raises ValueError where an image has no band."""
        return self.linear(compressed * channels[:, :, None, None]) * self.scale(channels)

    @staticmethod
    def scale(channels: Bool[Tensor, "b 9"]) -> Float[Tensor, "b 1 1 1"]:
        """sqrt(channels / present). Raises ValueError where an image has no band."""
        present = channels.sum(dim=1)
        if (present == 0).any():
            raise ValueError("an image has no band: expected at least one of the nine channels")
        return (NUM_CHANNELS / present).sqrt()[:, None, None, None]


class ResidualUnit(nn.Module):
    """conv 3x3, ELU, conv 1x1, ELU, squeeze-excite, added to the input."""

    def __init__(self, width: int, *, gate_bias: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.excite = SqueezeExcite(width, gate_bias=gate_bias)

    def forward(self, x: Float[Tensor, "b width y x"]) -> Float[Tensor, "b width y x"]:
        """Apply the unit."""
        inner = functional.elu(self.conv(x), inplace=True)
        inner = functional.elu(self.pointwise(inner), inplace=True)
        return torch.addcmul(x, inner, self.excite(inner))


class SqueezeExcite(nn.Module):
    """A gate per channel from an attention-weighted mean over the pixels."""

    def __init__(self, width: int, *, gate_bias: float) -> None:
        super().__init__()
        inner = max(16, width // 2)
        self.attention = nn.Conv2d(width, 1, 1)
        self.squeeze = nn.Conv2d(width, inner, 1)
        self.gate = nn.Conv2d(inner, width, 1)
        self.gate_bias = gate_bias

    def forward(self, x: Float[Tensor, "b width y x"]) -> Float[Tensor, "b width 1 1"]:
        """Give the gate, in (0, 1)."""
        weights = self.attention(x).flatten(2).softmax(dim=-1)  # (b, 1, pixel)
        mean = (x.flatten(2) @ weights.transpose(1, 2).to(x.dtype))[..., None]  # (b, width, 1, 1)
        return self.gate(functional.leaky_relu(self.squeeze(mean), 0.1)).sigmoid()


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b width y x"]) -> Float[Tensor, "b width y x"]:
        """Normalise."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Upsample(nn.Module):
    """Twice the side: conv 1x1 to four times the channels, SiLU, pixel shuffle."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, 4 * width_out, 1)

    def forward(self, x: Float[Tensor, "b width y x"]) -> Float[Tensor, "b out y2 x2"]:
        """Upsample."""
        return functional.pixel_shuffle(functional.silu(self.conv(x)), 2)


def _initialise(module: nn.Module) -> None:
    """Keep the variance from layer to layer; PyTorch's own default loses most of it on the way."""
    if isinstance(module, nn.Conv2d):
        fan_in = module.weight[0].numel()
        nn.init.normal_(module.weight, std=fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Upsample):
        nn.init.normal_(module.conv.weight, std=SILU_GAIN * module.conv.in_channels**-0.5)
    if isinstance(module, SqueezeExcite):  # after its convolutions: apply goes inside out
        nn.init.zeros_(module.gate.weight)
        nn.init.constant_(module.gate.bias, module.gate_bias)  # type: ignore[arg-type]


def _units(width: int, count: int, config: ImageTokenizerConfig) -> list[nn.Module]:
    return [ResidualUnit(width, gate_bias=config.gate_bias) for _ in range(count)]


def _encoder_layers(config: ImageTokenizerConfig) -> list[nn.Module]:
    width = config.hidden // 2**config.num_compressions
    layers: list[nn.Module] = [nn.Conv2d(config.multisurvey, width, 7, padding=3)]
    layers += _units(width, 1, config)
    for _ in range(config.num_compressions):
        layers.append(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
        width *= 2
        layers += _units(width, config.num_consecutive, config)
    layers.append(nn.Conv2d(width, width, 7, padding=3))
    layers += _units(width, config.num_consecutive, config)
    layers.append(ChannelNorm(width))
    return layers


def _decoder_layers(config: ImageTokenizerConfig) -> list[nn.Module]:
    """The encoder's list reversed, without its norm."""
    width = config.hidden
    layers = _units(width, config.num_consecutive, config)
    layers.append(nn.Conv2d(width, width, 3, padding=1))
    for scale in range(config.num_compressions):
        layers += _units(width, config.num_consecutive, config)
        layers.append(Upsample(width, width // 2))
        width //= 2
        if scale == config.num_compressions - 1:
            layers += _units(width, 1, config)
    layers.append(nn.Conv2d(width, config.multisurvey, 3, padding=1))
    return layers
