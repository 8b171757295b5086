"""Images to tokens: units, channels, determinism, and the released architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.observations import BANDS, Image
from training.tokenizers.image import (
    CLIP_NMGY,
    ChannelsIn,
    ImageTokenizer,
    ImageTokenizerConfig,
    stack,
)

SMALL = ImageTokenizerConfig(
    hidden=16,
    embedding=3,
    multisurvey=6,
    num_compressions=3,
    num_consecutive=1,
    levels=(8, 5, 5),
    gate_bias=0.0,
    compression_multiplier=100.0,
)


def tokenizer(config: ImageTokenizerConfig = SMALL) -> ImageTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer(config).eval()


def images(count: int, bands: tuple[str, ...] = BANDS[5:], seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-48:48, -48:48]
    made = []
    for _ in range(count):
        light = np.exp(-np.hypot(x, y) / rng.uniform(3, 12)) * rng.uniform(0.1, 2)
        flux = light * rng.uniform(0.5, 2, (len(bands), 1, 1))
        flux = (flux + rng.normal(0, 0.01, flux.shape)).astype(np.float32)
        made.append(Image(flux, np.full_like(flux, 1e4), np.zeros(flux.shape, dtype=bool), bands))
    return made


def test_stack_puts_bands_on_their_channels_and_drops_what_is_masked() -> None:
    (image,) = images(1, ("DES-Z", "DES-G"))
    image.mask[0, 3, 4] = True

    batch = stack([image])

    assert batch.channels[0].tolist() == [band in ("DES-G", "DES-Z") for band in BANDS]
    np.testing.assert_array_equal(batch.flux_nmgy[0, 8], image.flux[0])
    np.testing.assert_array_equal(batch.flux_nmgy[0, 5], image.flux[1])
    assert float(batch.ivar[0, 8, 3, 4]) == 0
    assert float(batch.ivar[0, 8, 3, 5]) == 1e4
    assert float(batch.flux_nmgy[0, 6].abs().max()) == 0


@pytest.mark.parametrize(
    ("height", "width"), [(96, 96), (160, 160), (97, 130), (80, 95), (64, 200)]
)
def test_the_centre_of_an_image_stays_where_it_is(height: int, width: int) -> None:
    flux = np.random.default_rng(0).normal(1, 0.1, (1, height, width)).astype(np.float32)
    image = Image(flux, np.ones_like(flux), np.zeros(flux.shape, dtype=bool), ("DES-G",))

    batch = stack([image])

    seen, ivar = batch.flux_nmgy[0, 5].numpy(), batch.ivar[0, 5].numpy()
    for y, x in np.ndindex(96, 96):  # AION-1 crops from (side - 96) // 2 on
        row, column = y + (height - 96) // 2, x + (width - 96) // 2
        inside = 0 <= row < height and 0 <= column < width
        assert seen[y, x] == (flux[0, row, column] if inside else 0)
        assert ivar[y, x] == inside


@torch.inference_mode()
@pytest.mark.parametrize("side", [160, 61])
def test_a_tensor_of_another_size_is_cropped_or_padded_as_an_image_is(side: int) -> None:
    flux = np.random.default_rng(1).normal(0, 0.1, (4, side, side)).astype(np.float32)
    image = Image(flux, np.ones_like(flux), np.zeros(flux.shape, dtype=bool), BANDS[5:])
    batch = stack([image])
    whole = torch.zeros(1, 9, side, side)
    whole[0, 5:] = torch.from_numpy(flux)
    model = tokenizer()

    codes = model.encode(whole, batch.channels)

    assert torch.equal(codes, model.encode(batch.flux_nmgy, batch.channels))
    assert codes.min() < codes.max()


@torch.inference_mode()
def test_encoding_leaves_the_callers_tensors_alone() -> None:
    batch = stack(images(2, BANDS[:5]))
    bright = batch.flux_nmgy * 100  # beyond the clip limits
    before = bright.clone()
    model = tokenizer()

    first, second = model.encode(bright, batch.channels), model.encode(bright, batch.channels)

    assert torch.equal(bright, before)
    assert torch.equal(first, second)


@torch.inference_mode()
def test_order_and_batch_size_change_nothing() -> None:
    batch = stack(images(9))
    model = tokenizer()

    together = model.encode(batch.flux_nmgy, batch.channels)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = model.encode(batch.flux_nmgy[order], batch.channels[order])
    single = torch.cat(
        [model.encode(batch.flux_nmgy[n : n + 1], batch.channels[n : n + 1]) for n in range(9)]
    )

    assert together.shape == (9, 144)
    assert torch.equal(shuffled, together[order])
    assert torch.equal(single, together)


@torch.inference_mode()
def test_absent_channels_do_not_matter_whatever_they_hold() -> None:
    batch = stack(images(2))
    rubbish = batch.flux_nmgy.clone()
    rubbish[:, :5] = 7.0
    model = tokenizer()
    assert torch.equal(
        model.encode(rubbish, batch.channels), model.encode(batch.flux_nmgy, batch.channels)
    )


@torch.inference_mode()
def test_decoding_the_codes_is_what_the_forward_pass_decodes() -> None:
    batch = stack(images(3))
    model = tokenizer()

    seen = model(batch.flux_nmgy, batch.channels)
    tokens = model.encode(batch.flux_nmgy, batch.channels)
    decoded = model.decode(tokens, batch.channels)

    assert torch.equal(seen.codes, tokens)
    expected = model.expand(seen.compressed) * batch.channels[:, :, None, None]
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-6)
    assert float(decoded[:, :5].abs().max()) == 0


@torch.inference_mode()
def test_a_token_sees_its_own_place_row_by_row() -> None:
    batch = stack(images(1))
    model = tokenizer()
    changed = batch.flux_nmgy.clone()
    changed[0, 5:, 0:8, 88:96] += 3.0  # the last token of the first row
    before, after = (
        model._latent(model._features(model.compress(flux), batch.channels))
        for flux in (batch.flux_nmgy, changed)
    )
    moved = (after - before).abs().sum(dim=-1)[0]
    assert float(moved[:6, 6:].sum()) > 0.9 * float(moved.sum())


def test_compression_is_undone_and_clips_at_aions_limits() -> None:
    model = tokenizer()
    flux = torch.linspace(-1, 1, 96 * 96).reshape(1, 1, 96, 96).expand(2, 9, 96, 96)

    torch.testing.assert_close(model.expand(model.compress(flux)), flux, rtol=1e-4, atol=1e-6)
    limits = model.clip(flux * 1e4).amax(dim=(0, 2, 3))
    released_hsc = torch.tensor([80.0, 110, 200, 330, 500]) / 63.0957
    torch.testing.assert_close(limits[:5], released_hsc)
    assert limits[5:].tolist() == [6.0, 15.0, 20.0, 25.0]
    assert len(CLIP_NMGY) == len(BANDS)


def test_released_compression_is_the_published_formula() -> None:
    model = tokenizer(ImageTokenizerConfig(hidden=16, multisurvey=6, num_consecutive=1))
    flux = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = 10 * 0.01 * torch.arcsinh(flux / 0.01)
    torch.testing.assert_close(model.compress(flux), expected)


@torch.inference_mode()
def test_the_band_embedding_is_the_subsampled_linear_map() -> None:
    layer = ChannelsIn(6)
    layer.linear.bias.data.normal_()  # type: ignore[union-attr]
    x = torch.randn(1, 9, 2, 2)
    channels = torch.tensor([[False] * 5 + [True, True, False, True]])

    found = layer(x, channels)

    weight, bias = layer.linear.weight[:, :, 0, 0], layer.linear.bias
    pixel = x[0, :, 1, 0] * channels[0]
    assert bias is not None
    torch.testing.assert_close(found[0, :, 1, 0], (9 / 3) ** 0.5 * (weight @ pixel + bias))


def test_an_image_without_a_band_is_refused() -> None:
    with pytest.raises(ValueError, match="no band"):
        tokenizer().encode(torch.zeros(1, 9, 96, 96), torch.zeros(1, 9, dtype=torch.bool))


def test_levels_must_match_the_embedding() -> None:
    with pytest.raises(ValueError, match="one level per embedding dimension"):
        ImageTokenizerConfig(levels=(8, 5))


def test_the_released_size_has_the_papers_fifty_million_parameters() -> None:
    with torch.device("meta"):
        model = ImageTokenizer(ImageTokenizerConfig())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 45e6 < count < 90e6
    assert model.num_tokens == 576
    assert model.num_codes == 4375
