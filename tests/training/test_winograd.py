from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training import artifact
from training.tokenizers.fast_image import speed_up
from training.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.winograd import WinogradConv2d, cook_toom


@pytest.mark.parametrize(("num_outputs", "num_taps"), [(2, 3), (4, 3), (4, 4), (3, 2)])
def test_the_three_matrices_filter(num_outputs: int, num_taps: int) -> None:
    rng = np.random.default_rng(0)
    data, taps = rng.normal(size=num_outputs + num_taps - 1), rng.normal(size=num_taps)
    outputs, filters, inputs = cook_toom(num_outputs, num_taps)

    filtered = outputs @ ((filters @ taps) * (inputs @ data))

    assert filtered == pytest.approx(np.correlate(data, taps, mode="valid"), abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(
    side=st.sampled_from([3, 7]),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    batch=st.integers(1, 3),
    bias=st.booleans(),
)
def test_any_image_is_convolved_as_by_the_direct_way(
    side: int, height: int, width: int, batch: int, bias: bool
) -> None:
    direct = nn.Conv2d(5, 6, side, padding=side // 2, bias=bias)
    x = torch.randn(batch, 5, height, width)

    made = WinogradConv2d(direct)(x)

    expected = direct.double()(x.double())
    assert made.shape == expected.shape
    assert (made - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
    ],
)
def test_another_convolution_is_refused(other: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="expected a convolution of stride 1"):
        WinogradConv2d(other)


@torch.no_grad()
def test_the_sped_up_tokenizer_gives_the_same_latents_and_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(gate_bias=0.0, num_consecutive=1)).eval()
    tokenizer.project_in.linear.bias = nn.Parameter(torch.randn(54))
    flux = torch.randn(2, 9, 96, 96) * torch.tensor([0.02, 2.0])[:, None, None, None]
    channels = torch.zeros(2, 9, dtype=torch.bool)
    channels[0, :5] = channels[1, 5:8] = True
    expected = tokenizer._latent(tokenizer.features(flux, channels))
    codes = tokenizer.encode(flux, channels)

    speed_up(tokenizer)

    made = tokenizer._latent(tokenizer.features(flux, channels))
    winograd = [layer for layer in tokenizer.modules() if isinstance(layer, WinogradConv2d)]
    assert len(winograd) == 3
    scale = expected.std(dim=(0, 1, 2))
    assert ((made - expected).abs() / scale).max() < 1e-4
    assert (tokenizer.encode(flux, channels) != codes).sum() <= 1
    with pytest.raises(ValueError, match="changed for speed cannot be saved"):
        artifact.save_codec(tmp_path, "image", tokenizer)
    with pytest.raises(ValueError, match="an image has no band"):
        tokenizer.encode(flux, torch.zeros_like(channels))
