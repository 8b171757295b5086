"""A small untrained encoder and observations to feed it, for the tests of this floor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from training import artifact
from training.artifact import Codec
from training.modalities import STREAM
from training.observations import Image, Observation, Spectrum
from training.search_head import SearchHead, SearchHeadConfig
from training.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.scalar import (
    GridTokenizer,
    GridTokenizerConfig,
    ScalarTokenizer,
    ScalarTokenizerConfig,
)
from training.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerConfig
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

DIM = 32
SCALARS = ("tok_flux_g", "tok_flux_r", "tok_shape_r")


def make_parts(seed: int = 0) -> tuple[Transformer, dict[str, Codec], SearchHead]:
    """Transformer, tokenizers and search head with fresh weights."""
    torch.manual_seed(seed)
    transformer = Transformer(
        TransformerConfig(
            dim=DIM, num_heads=2, encoder_depth=2, decoder_depth=1,
            domains_in={
                "tok_image": Domain(vocabulary=1000, grid=(12, 12)),
                "tok_spectrum_sdss": Domain(vocabulary=1024, grid=(273, 1)),
                "tok_z": Domain(vocabulary=64, grid=(1, 1)),
                **{key: Domain(vocabulary=64, grid=(1, 1)) for key in SCALARS},
            },
        )
    )  # fmt: skip
    codecs: dict[str, Codec] = {
        "image": ImageTokenizer(
            ImageTokenizerConfig(
                hidden=16, embedding=4, multisurvey=6, num_compressions=3, num_consecutive=1,
                levels=(8, 5, 5, 5), gate_bias=0.0, compression_multiplier=100.0,
            )
        ),
        "spectrum": SpectrumTokenizer(
            SpectrumTokenizerConfig(
                encoder_depths=(1, 1, 1, 1), encoder_dims=(4, 4, 8, 8),
                decoder_depths=(1, 1, 1, 1), decoder_dims=(8, 4, 4, 2),
            )
        ),
        "Z": GridTokenizer(GridTokenizerConfig(num_bins=64, highest=1.5)),
    }  # fmt: skip
    values = torch.logspace(-1, 3, 1000)
    for key in SCALARS:
        scalar = ScalarTokenizer(ScalarTokenizerConfig(num_bins=64, log=True))
        scalar.fit(values)
        codecs[STREAM[key].codec] = scalar
    head = SearchHead(SearchHeadConfig(views=("image", "spectrum", "joint"), dim=DIM, hidden=16))
    return transformer, codecs, head


def save_encoder(folder: Path, *, seed: int = 0, half: bool = False) -> Path:
    """Write a small encoder with fresh weights."""
    transformer, codecs, head = make_parts(seed)
    artifact.save(folder, transformer=transformer, codecs=codecs, head=head, half=half)
    return folder


def observe(
    number: int,
    *,
    image: bool = True,
    spectrum: bool = False,
    scalars: Mapping[str, float] | None = None,
) -> Observation:
    """An object that differs by its number: a round galaxy, a sloping spectrum."""
    rng = np.random.default_rng(number)
    seen_image, seen_spectrum = None, None
    if image:
        y, x = np.mgrid[:96, :96] - 47.5
        profile = (1 + number % 5) * 0.2 * np.exp(-np.hypot(x / (1 + number % 3), y) / 5)
        flux = rng.normal(profile, 0.02, (3, 96, 96)).astype(np.float32)
        seen_image = Image(
            flux, np.full_like(flux, 2500), np.zeros(flux.shape, bool), ("DES-G", "DES-R", "DES-Z")
        )
    if spectrum:
        length = 3600 + 50 * (number % 4)
        wavelength = 10 ** (3.58 + 1e-4 * np.arange(length))
        spectral = (wavelength / 6000) ** (number % 4 - 1) * 5 + rng.normal(0, 1, length)
        seen_spectrum = Spectrum(
            spectral.astype(np.float32),
            np.ones(length, np.float32),
            np.zeros(length, bool),
            wavelength,
        )
    return Observation(
        survey="simulated", release="", source_id=str(number), object_id=str(number),
        fingerprint=str(number), source="/nowhere", image=seen_image, spectrum=seen_spectrum,
        scalars=scalars or {},
    )  # fmt: skip
