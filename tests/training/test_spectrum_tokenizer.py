"""Spectra to tokens: interpolation, padding, normalisation, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.observations import Spectrum
from training.tokenizers.spectrum import (
    SpectrumTokenizer,
    SpectrumTokenizerConfig,
    interpolate,
    stack,
)

SMALL = SpectrumTokenizerConfig(
    encoder_depths=(1, 1, 1, 1),
    encoder_dims=(4, 6, 8, 12),
    decoder_depths=(1, 1, 1, 1),
    decoder_dims=(8, 6, 4, 2),
)


def tokenizer() -> SpectrumTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SpectrumTokenizer(SMALL).eval()
        for parameter in model.parameters():  # the initial deviation of 0.02 hardly moves a code
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return model


def spectrum(
    length: int = 3000, *, first: float = 3600.0, log: bool = False, seed: int = 0
) -> Spectrum:
    rng = np.random.default_rng(seed)
    pixel = np.arange(length)
    wavelength = first * 10 ** (1e-4 * pixel) if log else first + 1.5 * pixel
    flux = 5 + 2 * np.sin(wavelength / 300) + rng.normal(0, 0.5, length)
    mask = rng.random(length) < 0.02
    ivar = np.where(mask, 0.0, 4.0)
    return Spectrum(flux.astype(np.float32), ivar.astype(np.float32), mask, wavelength)


def encode(model: SpectrumTokenizer, spectra: list[Spectrum]) -> torch.Tensor:
    batch = stack(spectra)
    return model.encode(batch.flux, batch.ivar, batch.mask, batch.wavelength_angstrom)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(2, 60))
def test_interpolation_is_numpys_and_zero_outside(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, 100, length)) + np.arange(length) * 1e-3
    y = rng.normal(size=(2, length))
    at = np.concatenate([rng.uniform(-20, 130, 50), x])

    found = interpolate(
        torch.from_numpy(y)[None],
        wavelength_angstrom=torch.from_numpy(x)[None],
        at_angstrom=torch.from_numpy(at),
    )

    expected = [np.interp(at, x, row, left=0, right=0) for row in y]
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-9)


def test_padding_at_infinity_counts_nowhere() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, math.inf, math.inf]], dtype=torch.float64)
    y = torch.tensor([[[1.0, 3.0, 5.0, 0.0, 0.0]]], dtype=torch.float64)
    at = torch.tensor([0.9, 1.0, 2.5, 3.0, 3.1, 900.0], dtype=torch.float64)
    found = interpolate(y, wavelength_angstrom=x, at_angstrom=at)
    assert found.flatten().tolist() == [0.0, 1.0, 4.0, 5.0, 0.0, 0.0]


@torch.inference_mode()
def test_order_batch_size_and_padding_change_nothing() -> None:
    spectra = [spectrum(3000, seed=1), spectrum(4000, log=True, seed=2), spectrum(1000, seed=3)]
    model = tokenizer()

    together = encode(model, spectra)
    shuffled = encode(model, [spectra[n] for n in (2, 0, 1)])
    single = torch.cat([encode(model, [one]) for one in spectra])

    assert together.shape == (3, 273)
    assert torch.equal(shuffled, together[[2, 0, 1]])
    assert torch.equal(single, together)
    assert len(set(together[:, 1:].flatten().tolist())) > 20  # else equality would say little


@torch.inference_mode()
def test_encoding_leaves_the_callers_tensors_alone() -> None:
    batch = stack([spectrum()])
    given_tensors = (batch.flux, batch.ivar * 1000, batch.mask, batch.wavelength_angstrom)
    before = [tensor.clone() for tensor in given_tensors]
    tokenizer().encode(*given_tensors)
    assert all(torch.equal(a, b) for a, b in zip(given_tensors, before, strict=True))


@torch.inference_mode()
def test_decoding_the_tokens_is_what_the_forward_pass_decodes() -> None:
    batch = stack([spectrum(seed=4), spectrum(seed=5)])
    model = tokenizer()

    seen = model(batch)
    tokens = model.encode(batch.flux, batch.ivar, batch.mask, batch.wavelength_angstrom)
    decoded = model.decode(tokens)

    assert decoded.flux.shape == decoded.mask_logits.shape == (2, 8704)
    assert torch.equal(seen.codes, tokens[:, 1:])
    torch.testing.assert_close(decoded.flux, seen.decoded.flux)
    torch.testing.assert_close(decoded.mask_logits, seen.decoded.mask_logits)


@torch.inference_mode()
def test_token_zero_is_the_mean_over_unmasked_pixels() -> None:
    flux = torch.tensor([[4.0, 6.0, 1000.0], [-50.0, -50.0, 0.0]])
    mask = torch.tensor([[False, False, True], [False, False, True]])
    wavelength = torch.tensor([[4000.0, 5000.0, 6000.0]], dtype=torch.float64).expand(2, 3)

    tokens = tokenizer().encode(flux, torch.ones(2, 3), mask, wavelength)

    buckets = np.linspace(-1, 5, 1024, dtype=np.float32)
    norms = np.array([10 / 3, 0.1], dtype=np.float32)  # sum over unmasked / (number + 1), floored
    expected = np.searchsorted(buckets, np.log10(norms + 1))
    assert tokens[:, 0].tolist() == expected.tolist()


@torch.inference_mode()
def test_brightness_goes_to_the_first_token_only() -> None:
    model = tokenizer()
    one = spectrum(seed=6)
    # Brighter by a whole number of steps of the normalisation, with errors to match.
    batch = stack([one])
    level, norm = model._normalisation(batch.flux, batch.mask)
    factor = float((10 ** float(model.normalisation_quantizer.decode(level + 200)) - 1) / norm)
    brighter = model.encode(
        batch.flux * factor, batch.ivar * factor**2, batch.mask, batch.wavelength_angstrom
    )
    dim = encode(model, [one])
    assert abs(int(brighter[0, 0]) - int(dim[0, 0]) - 200) <= 1
    assert not torch.equal(brighter[:, 0], dim[:, 0])


def test_resampling_to_its_own_grid_changes_nothing_and_is_zero_outside() -> None:
    model = tokenizer()
    values = torch.randn(2, 8704, generator=torch.Generator().manual_seed(0))
    grid = model.grid_angstrom.expand(2, -1)
    torch.testing.assert_close(model.resample(values, grid), values, rtol=1e-5, atol=1e-5)
    outside = torch.tensor([[3499.0, 10463.0, math.inf]], dtype=torch.float64).expand(2, 3)
    assert model.resample(values, outside).tolist() == [[0.0] * 3] * 2


def test_the_latent_grid_is_the_released_one() -> None:
    grid = tokenizer().grid_angstrom
    assert len(grid) == 8704
    assert float(grid[0]) == 3500.0
    assert math.isclose(float(grid[-1]), 10462.4)


def test_the_released_size_can_be_built() -> None:
    with torch.device("meta"):
        model = SpectrumTokenizer(SpectrumTokenizerConfig())
    blocks = [len(stage) for stage in model.encoder.stages]  # type: ignore[arg-type]
    assert blocks == [3, 3, 27, 3]
    assert model.num_tokens == 273
    assert model.num_codes == 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_dims": (4, 6, 8)}, "four entries"),
        ({"num_wavelengths": 8700}, "divisible by 32"),
        ({"decoder_dims": (8, 6, 4, 3)}, "must be 2"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectrumTokenizerConfig(**change)  # type: ignore[arg-type]


@torch.inference_mode()
def test_decoding_at_asked_wavelengths_masks_what_lies_outside_the_grid() -> None:
    model = tokenizer()
    tokens = torch.randint(
        0, 1024, (2, model.num_tokens), generator=torch.Generator().manual_seed(0)
    )
    grid = model.grid_angstrom
    on_grid = model.decode(tokens)
    middle = (grid[10] + grid[11]) / 2
    asked = torch.stack([grid[0] - 1, grid[0], middle, grid[11], grid[-1], grid[-1] + 1])

    found = model.decode(tokens, asked.expand(2, -1))

    expected = (on_grid.flux[:, 10] + on_grid.flux[:, 11]) / 2
    torch.testing.assert_close(found.flux[:, 2], expected)
    torch.testing.assert_close(found.flux[:, [1, 3, 4]], on_grid.flux[:, [0, 11, -1]])
    assert (found.flux[:, [0, 5]] == 0).all()
    assert found.mask[:, [0, 5]].all()
    assert torch.equal(found.mask[:, [1, 3, 4]], on_grid.mask[:, [0, 11, -1]])
