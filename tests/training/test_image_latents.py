"""What vectors hold of an image before it is codes: summaries, components, kinds from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from tests.training.small_encoder import DIM, make_parts, observe, save_encoder
from training import artifact, encoder
from training.fibre_light import NUM_LIGHT, light_of
from training.head_fitting import HeadFitConfig, fit
from training.image_latents import features_of, num_features, principal_latents, summarised
from training.kind_head import KindFitConfig, adding_kinds
from training.pairing import ViewVectors
from training.pooling import Pooling, PoolingConfig
from training.search_head import SearchHead
from training.tokenizers.image import ImageTokenizer, stack

NUM_LATENTS = 16


def test_a_map_is_summarised_by_squares_about_its_centre() -> None:
    maps = np.random.default_rng(0).standard_normal((3, 4, 12, 12)).astype(np.float32)
    squares = [
        maps[:, :, a:b, a:b].reshape(3, 4, -1) for a, b in ((5, 7), (4, 8), (2, 10), (0, 12))
    ]
    expected = np.concatenate(
        [each for square in squares for each in (square.mean(axis=2), square.std(axis=2))], axis=1
    )

    found = summarised(torch.from_numpy(maps))

    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@given(quarters=st.integers(0, 3), mirrored=st.booleans(), side=st.integers(1, 24))
@settings(deadline=None, max_examples=30)
def test_a_turned_map_has_the_same_summary(quarters: int, mirrored: bool, side: int) -> None:
    maps = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    turned = torch.rot90(maps.flip(3) if mirrored else maps, quarters, (2, 3))

    torch.testing.assert_close(summarised(turned), summarised(maps), atol=1e-5, rtol=1e-4)


def test_latents_are_principal_components_of_the_channels() -> None:
    rng = np.random.default_rng(1)
    channels = 6
    features = rng.standard_normal((400, 8 * channels)) * np.geomspace(1, 99, 8 * channels)
    features[:, 1::channels] = 3 * features[:, ::channels] + 7  # two channels that say the same
    even = (features - features.mean(axis=0)) / features.std(axis=0, ddof=1)
    of_means = even.reshape(400, 4, 2, channels)[:, :, 0].reshape(-1, channels)
    expected = np.linalg.svd(of_means, full_matrices=False)[2]

    found = principal_latents(torch.from_numpy(features).float(), 8 * channels)
    made = found(torch.from_numpy(features).float()).numpy()
    few = principal_latents(torch.from_numpy(features).float(), 16)

    assert made.var(axis=0, ddof=1).sum() == pytest.approx(1, abs=1e-3)  # nothing is lost
    first = np.abs(expected[0] @ found.axes[0].numpy()[:, 0])
    assert first == pytest.approx(1, abs=1e-3)
    in_all = made.reshape(400, 4, 2, channels)[..., 0]
    assert in_all.var(axis=0).sum() == pytest.approx(2 / 6, abs=0.03)
    torch.testing.assert_close(few.axes, found.axes[:, :, :2])
    for num, message in ((9, "multiple of 8, up to 48, got 9"), (56, "up to 48, got 56")):
        with pytest.raises(ValueError, match=message):
            principal_latents(torch.from_numpy(features).float(), num)
    with pytest.raises(ValueError, match="48 latents want more images than that, got 48"):
        principal_latents(torch.from_numpy(features[:48]).float(), 48)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One encoder without latents, and with light and latents."""
    root = tmp_path_factory.mktemp("latents")
    transformer, codecs, _ = make_parts()
    tokenizer = codecs["image"]
    assert isinstance(tokenizer, ImageTokenizer)
    pooling = _pooling(tokenizer)
    artifact.save(root / "more", transformer=transformer, codecs=codecs, pooling=pooling)
    return save_encoder(root / "plain"), root / "more"


def _pooling(tokenizer: ImageTokenizer) -> Pooling:
    seen = [each.image for each in map(observe, range(20)) if each.image is not None]
    pooling = Pooling(
        PoolingConfig(
            dim=DIM, light=True, latents=NUM_LATENTS, latent_features=num_features(tokenizer)
        )
    )
    found = principal_latents(features_of(tokenizer, seen), NUM_LATENTS)
    pooling.load_state_dict(
        {"latent_mean": found.mean, "latent_std": found.std, "latent_axes": found.axes}
    )
    return pooling


def test_latents_stand_behind_the_same_vectors_and_light(folders: tuple[Path, Path]) -> None:
    plain, more = (encoder.load(folder) for folder in folders)
    seen = [observe(1, spectrum=True), observe(2), observe(3, image=False, spectrum=True)]

    before, after = plain.embed(seen), more.embed(seen)
    end = DIM + NUM_LIGHT
    light = [light_of(seen[row], view) for row, view in zip(after.rows, after.views, strict=True)]
    tokenizer = more.codecs["image"]
    assert isinstance(tokenizer, ImageTokenizer)
    assert more.pooling is not None
    images = [each.image for each in seen if each.image is not None]
    with torch.no_grad():
        expected = more.pooling.latents(features_of(tokenizer, images)).numpy()

    assert (more.dim, more.num_latents) == (end + NUM_LATENTS, NUM_LATENTS)
    assert after.views == before.views
    np.testing.assert_array_equal(after.vectors[:, :DIM], before.vectors)
    np.testing.assert_array_equal(after.vectors[:, DIM:end], light)
    for row, view, vector in zip(after.rows, after.views, after.vectors, strict=True):
        of_image = (
            expected[row] if view in ("image", "joint") and row < 2 else np.zeros(NUM_LATENTS)
        )
        np.testing.assert_allclose(vector[end:], of_image, atol=1e-5)
    alone = np.concatenate([more.embed([each]).vectors for each in seen])
    np.testing.assert_allclose(alone, after.vectors, atol=1e-5)
    assert more.embed(seen[1:2], ["spectrum"]).vectors.shape == (0, more.dim)


@torch.inference_mode()
def test_codes_are_those_that_features_are_rounded_to() -> None:
    tokenizer = make_parts()[1]["image"]
    assert isinstance(tokenizer, ImageTokenizer)
    images = stack([each.image for each in map(observe, range(4)) if each.image is not None])

    maps = tokenizer.features(images.flux_nmgy, images.channels)

    assert maps.shape == (4, tokenizer.config.hidden, 12, 12)
    codes = tokenizer.encode(images.flux_nmgy, images.channels)
    assert torch.equal(tokenizer.codes_of(maps), codes)
    rounded = tokenizer.quantizer.decode(codes.reshape(4, 12, 12))
    latent = tokenizer._latent(maps)
    assert float((rounded - torch.tanh(latent)).abs().mean()) < 0.15


def test_latents_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    transformer, codecs, _ = make_parts()
    pooling = Pooling(PoolingConfig(dim=DIM, latents=8, latent_features=16))
    artifact.save(tmp_path, transformer=transformer, codecs=codecs, pooling=pooling)

    with pytest.raises(ValueError, match="latent_features is 16, the image tokenizer gives 128"):
        artifact.load(tmp_path)
    for latents, features in ((8, 9), (3, 8), (16, 8)):
        with pytest.raises(ValueError, match=rf"latents \({latents}\) and latent_features"):
            PoolingConfig(dim=DIM, latents=latents, latent_features=features)


NUM = 900
FAST = HeadFitConfig(steps=40, batch_size=128, hidden=48)


def told_by_latents(seed: int) -> tuple[dict[str, ViewVectors], ndarray]:
    """Images and spectra whose outputs know nothing of two kinds; the latents of images do."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=NUM)
    look = rng.standard_normal((NUM, DIM))
    latents = rng.standard_normal((NUM, 2)) * [0.1, 0.02]
    latents[:, 0] += 0.3 * kind
    twice = np.repeat(np.arange(NUM), 2)
    near = look[twice] + 0.05 * rng.standard_normal((2 * NUM, DIM))
    data = {
        "image": ViewVectors(
            objects=twice, vectors=np.hstack([near, latents[twice]]).astype(np.float32)
        ),
        "spectrum": ViewVectors(
            objects=np.arange(NUM),
            vectors=np.hstack([look, np.zeros((NUM, 2))]).astype(np.float32),
        ),
    }
    return data, np.eye(2, dtype=bool)[kind]


@torch.inference_mode()
def applied(head: SearchHead, part: ViewVectors, view: str) -> ndarray:
    made: ndarray = head(torch.from_numpy(part.vectors), view).numpy()
    return made


def test_a_head_reads_kinds_from_latents_and_its_look_as_before() -> None:
    data, labels = told_by_latents(0)
    outputs = {
        view: replace(part, vectors=np.ascontiguousarray(part.vectors[:, :DIM]))
        for view, part in data.items()
    }
    plain = fit(outputs, FAST)[0]
    told = KindFitConfig(steps=300, batch_size=256)

    blind = adding_kinds(plain, outputs, labels, ("spiral", "merger"), told)[0]
    head, report = adding_kinds(plain, data, labels, ("spiral", "merger"), told, latents=2)
    unseen, truth = told_by_latents(1)
    seen = applied(head, unseen["image"], "image")
    kind = truth.argmax(axis=1)[unseen["image"].objects]
    columns = [head.config.kinds.index(name) for name in ("spiral", "merger")]

    assert (head.config.dim, head.config.latents) == (DIM + 2, 2)
    assert head.config.num_inputs == blind.config.num_inputs == DIM
    assert report.accuracy > 0.7  # of both views; spectra are guessed
    assert (seen[:, columns].argmax(axis=1) == kind).mean() > 0.9
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-5)
    other = replace(unseen["image"], vectors=np.ascontiguousarray(unseen["image"].vectors[:, :DIM]))
    looks = [
        each[:, 2:] / np.linalg.norm(each[:, 2:], axis=1, keepdims=True)
        for each in (seen, applied(blind, other, "image"))
    ]
    np.testing.assert_allclose(looks[0], looks[1], atol=1e-4)
    first, second = (
        each.state_dict()["std"][0] for each in (head, blind)
    )  # latents keep their lengths: one scale for both
    assert torch.equal(first[:DIM], second)
    assert first[DIM] == first[DIM + 1]
