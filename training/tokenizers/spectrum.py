"""Spectra on any wavelength grid to tokens and back: AION-1's ConvNeXt-V2 around an LFQ.

Token 0 is the normalisation, the other codes cover a latent wavelength grid shared by all surveys.
Masked pixels count in the input like any others: their inverse variance says what they are worth.

Source: arXiv 2510.17960 and the released package polymathic-aion 0.0.2. The paper calls the
normalisation a robust median; the released code, followed here, takes a mean over unmasked pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from training.observations import Spectrum
from training.tokenizers.convnext import STEM_STRIDE, ConvNextDecoder, ConvNextEncoder
from training.tokenizers.quantizers import LinearQuantizer, LookupFreeQuantizer

MIN_NORMALISATION = 0.1  # in the unit of the flux


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumTokenizerConfig:
    """Size of the spectrum tokenizer. The defaults are the released AION-1."""

    encoder_depths: tuple[int, ...] = (3, 3, 27, 3)
    encoder_dims: tuple[int, ...] = (64, 128, 256, 512)
    decoder_depths: tuple[int, ...] = (3, 9, 3, 3)
    decoder_dims: tuple[int, ...] = (256, 128, 64, 2)  # the last: flux and mask logit
    embedding: int = 10  # signs, so 2^embedding codes
    first_wavelength_angstrom: float = 3500.0
    wavelength_step_angstrom: float = 0.8
    num_wavelengths: int = 8704
    normalisation_bins: int = 1024
    normalisation_range: tuple[float, float] = (-1.0, 5.0)  # of log10(normalisation + 1)
    input_scale: float = 0.2  # brings the normalised flux to the near-linear part of the arcsinh
    max_ivar: float | None = 100.0  # what is above is clipped; None clips nothing
    max_flux: float | None = None  # symmetric; likewise

    def __post_init__(self) -> None:
        for name in (
            "first_wavelength_angstrom", "wavelength_step_angstrom", "input_scale", "max_ivar",
            "max_flux",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        lowest, highest = self.normalisation_range
        if not -1 <= lowest < highest < math.inf or self.normalisation_bins < 2:
            raise ValueError(
                "normalisation_range must rise from -1 or more in 2 normalisation_bins or more, "
                f"got {self.normalisation_range} and {self.normalisation_bins}"
            )
        sizes = {
            len(sizes)
            for sizes in (
                self.encoder_depths, self.encoder_dims, self.decoder_depths, self.decoder_dims
            )
        }  # fmt: skip
        if sizes != {4}:
            raise ValueError("depths and dims of encoder and decoder need four entries each")
        if self.num_wavelengths % self.stride:
            raise ValueError(
                f"num_wavelengths must be divisible by {self.stride}, got {self.num_wavelengths}"
            )
        if self.decoder_dims[-1] != 2:
            raise ValueError(f"the last decoder dim must be 2, got {self.decoder_dims[-1]}")

    @property
    def stride(self) -> int:
        """Wavelengths of the latent grid that one code covers."""
        return STEM_STRIDE * 2**3


@dataclass(frozen=True, slots=True)
class SpectrumTensors:
    """A batch of spectra, ragged lengths padded at the red end.

    A padded pixel has wavelength +infinity, mask True, ivar 0 and flux 0, and counts nowhere.
    """

    flux: Float[Tensor, "b wavelength"]  # 1e-17 erg / s / cm^2 / Angstrom
    ivar: Float[Tensor, "b wavelength"]
    mask: Bool[Tensor, "b wavelength"]  # True = bad
    wavelength_angstrom: Float[Tensor, "b wavelength"]  # ascending, float64

    def to(self, device: torch.device | str) -> SpectrumTensors:
        """The batch on a device."""
        return SpectrumTensors(
            self.flux.to(device),
            self.ivar.to(device),
            self.mask.to(device),
            self.wavelength_angstrom.to(device),
        )


@dataclass(frozen=True, slots=True)
class SpectrumDecoded:
    """Spectra on the latent grid, or at the wavelengths that were asked for."""

    flux: Float[Tensor, "b wavelength"]  # in the unit that was encoded
    mask_logits: Float[Tensor, "b wavelength"]  # above 0: rather bad than good

    @property
    def mask(self) -> Bool[Tensor, "b wavelength"]:
        """True where a pixel is rather bad than good."""
        return self.mask_logits > 0


@dataclass(frozen=True, slots=True)
class SpectrumReconstruction:
    """What training sees of one pass through the tokenizer."""

    decoded: SpectrumDecoded
    normalisation: Float[Tensor, " b"]  # as quantized
    codes: Int64[Tensor, "b n"]  # without the normalisation token
    latent: Float[Tensor, "b n embedding"]  # before its signs are taken


def stack(spectra: Sequence[Spectrum]) -> SpectrumTensors:
    """Put spectra of any lengths and grids into one batch."""
    # two at least, which it takes to interpolate
    shape = (len(spectra), max(2, *(len(spectrum.flux) for spectrum in spectra)))
    flux = np.zeros(shape, dtype=np.float32)
    ivar = np.zeros(shape, dtype=np.float32)
    mask = np.ones(shape, dtype=bool)
    wavelength = np.full(shape, np.inf, dtype=np.float64)
    for row, spectrum in enumerate(spectra):
        length = len(spectrum.flux)
        flux[row, :length] = spectrum.flux
        ivar[row, :length] = np.where(spectrum.mask, np.float32(0), spectrum.ivar)
        mask[row, :length] = spectrum.mask
        wavelength[row, :length] = spectrum.wavelength_angstrom
    return SpectrumTensors(
        torch.from_numpy(flux),
        torch.from_numpy(ivar),
        torch.from_numpy(mask),
        torch.from_numpy(wavelength),
    )


def interpolate(
    values: Float[Tensor, "b channel pixel"],
    *,
    wavelength_angstrom: Float[Tensor, "b pixel"],
    at_angstrom: Float[Tensor, " new"],
) -> Float[Tensor, "b channel new"]:
    """Interpolate linearly; exactly 0 outside the range of each row's finite wavelengths.

    Args:
        values: Quantities on one wavelength grid, which may differ from row to row.
        wavelength_angstrom: Ascending in each row; +infinity marks padding at the end.
        at_angstrom: Where to interpolate, the same for all rows.
    """
    at = at_angstrom.to(wavelength_angstrom).expand(len(values), -1).contiguous()
    left = torch.searchsorted(wavelength_angstrom.contiguous(), at) - 1
    left = left.clamp(0, wavelength_angstrom.shape[1] - 2)
    x0, x1 = wavelength_angstrom.gather(1, left), wavelength_angstrom.gather(1, left + 1)
    channels = [-1, values.shape[1], -1]
    y0 = values.gather(2, left[:, None].expand(channels))
    y1 = values.gather(2, left[:, None].expand(channels) + 1)
    inside = (at >= wavelength_angstrom[:, :1]) & (at <= x1) & torch.isfinite(x1)
    weight = ((at - x0) / torch.where(inside, x1 - x0, 1.0)).to(values.dtype)
    return torch.where(inside[:, None], y0 + (y1 - y0) * weight[:, None], 0.0)


class SpectrumTokenizer(nn.Module):
    """Encode spectra to one normalisation token and one code per stretch of wavelength."""

    grid_angstrom: Tensor  # (latent,), float64

    def __init__(self, config: SpectrumTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = 1 + config.num_wavelengths // config.stride
        grid = torch.arange(config.num_wavelengths, dtype=torch.float64)
        grid = config.first_wavelength_angstrom + config.wavelength_step_angstrom * grid
        # Saved, and what was saved is believed: the release rounded it to float32.
        self.register_buffer("grid_angstrom", grid)
        lowest, highest = config.normalisation_range
        self.normalisation_quantizer = LinearQuantizer(
            lowest=lowest, highest=highest, num_bins=config.normalisation_bins
        )
        self.encoder = ConvNextEncoder(config.encoder_depths, config.encoder_dims)
        self.encoder_norm = nn.LayerNorm(config.encoder_dims[-1])
        self.to_code = nn.Conv1d(config.encoder_dims[-1], config.embedding, 1)
        self.quantizer = LookupFreeQuantizer(config.embedding)
        self.from_code = nn.Conv1d(config.embedding, config.encoder_dims[-1], 1)
        self.decoder = ConvNextDecoder(
            config.encoder_dims[-1], config.decoder_depths, config.decoder_dims
        )

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary, shared by the normalisation token and the codes."""
        return max(self.quantizer.num_codes, self.config.normalisation_bins)

    def encode(
        self,
        flux: Float[Tensor, "b pixel"],
        ivar: Float[Tensor, "b pixel"],
        mask: Bool[Tensor, "b pixel"],
        wavelength_angstrom: Float[Tensor, "b pixel"],
    ) -> Int64[Tensor, "b n"]:
        """Give the tokens of spectra as stack() makes them; no tensor is changed."""
        level, normalisation = self._normalisation(flux, mask)
        latent = self._latent(flux, ivar, wavelength_angstrom, normalisation)
        return torch.cat([level[:, None], self.quantizer(latent).codes], dim=1)

    def decode(
        self,
        tokens: Int64[Tensor, "b n"],
        wavelength_angstrom: Float[Tensor, "b wavelength"] | None = None,
    ) -> SpectrumDecoded:
        """Give flux and mask logits at some wavelengths, or on the latent grid.

        Outside the latent grid nothing is known: there the flux is 0 and the mask True. (The
        release gives the normalisation there, as if it had been seen.)
        """
        normalisation = self._from_level(tokens[:, 0])
        decoded = self._from_values(self.quantizer.decode(tokens[:, 1:]), normalisation)
        if wavelength_angstrom is None:
            return decoded
        flux = self.resample(decoded.flux, wavelength_angstrom)
        logits = self.resample(decoded.mask_logits, wavelength_angstrom)
        inside = self._inside(wavelength_angstrom)
        return SpectrumDecoded(flux, torch.where(inside, logits, torch.inf))

    def forward(self, spectra: SpectrumTensors) -> SpectrumReconstruction:
        """Encode and decode, with the gradient passing straight through the quantizer."""
        _, normalisation = self._normalisation(spectra.flux, spectra.mask)
        latent = self._latent(
            spectra.flux, spectra.ivar, spectra.wavelength_angstrom, normalisation
        )
        quantized = self.quantizer(latent)
        decoded = self._from_values(quantized.values, normalisation)
        return SpectrumReconstruction(decoded, normalisation, quantized.codes, latent)

    def resample(
        self,
        latent_values: Float[Tensor, "b latent"],
        wavelength_angstrom: Float[Tensor, "b pixel"],
    ) -> Float[Tensor, "b pixel"]:
        """Bring values from the latent grid to other wavelengths; 0 outside the latent grid."""
        grid = self.grid_angstrom
        inside = self._inside(wavelength_angstrom)
        where = torch.where(inside, wavelength_angstrom.to(grid.dtype), grid[0])
        left = (torch.searchsorted(grid, where.contiguous()) - 1).clamp(0, len(grid) - 2)
        weight = ((where - grid[left]) / (grid[left + 1] - grid[left])).to(latent_values.dtype)
        y0, y1 = latent_values.gather(1, left), latent_values.gather(1, left + 1)
        return torch.where(inside, y0 + (y1 - y0) * weight, 0.0)

    def _inside(self, wavelength_angstrom: Tensor) -> Tensor:
        grid = self.grid_angstrom
        return (wavelength_angstrom >= grid[0]) & (wavelength_angstrom <= grid[-1])

    def _normalisation(self, flux: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token and value of the mean over unmasked pixels."""
        good = ~mask
        total = torch.where(good, self._clip(flux), 0.0).sum(dim=1)
        mean = (total / (good.sum(dim=1) + 1)).clamp_min(MIN_NORMALISATION)
        level = self.normalisation_quantizer.encode(torch.log10(mean + 1))
        return level, self._from_level(level)

    def _clip(self, flux: Tensor) -> Tensor:
        limit = self.config.max_flux
        finite = torch.nan_to_num(flux)
        return finite if limit is None else finite.clamp(-limit, limit)

    def _from_level(self, level: Tensor) -> Tensor:
        logarithm = self.normalisation_quantizer.decode(level)
        return (10**logarithm - 1).clamp_min(MIN_NORMALISATION)

    def _latent(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor, normalisation: Tensor
    ) -> Tensor:
        scale = normalisation[:, None]
        inverse_sigma = torch.nan_to_num(ivar).clamp(0, self.config.max_ivar).sqrt()
        channels = torch.stack([self._clip(flux) / scale - 1, inverse_sigma / scale], dim=1)
        channels = interpolate(
            channels * self.config.input_scale,
            wavelength_angstrom=wavelength,
            at_angstrom=self.grid_angstrom,
        )
        features = self.encoder(torch.asinh(channels))
        return self.to_code(self.encoder_norm(features).transpose(1, 2)).transpose(1, 2)

    def _from_values(self, values: Tensor, normalisation: Tensor) -> SpectrumDecoded:
        features = self.from_code(values.transpose(1, 2)).transpose(1, 2)
        flux, mask_logits = self.decoder(features).float().unbind(dim=2)
        return SpectrumDecoded((flux + 1) * normalisation[:, None], mask_logits)
