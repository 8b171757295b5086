"""All forty streams: what an observation becomes tokens of, and which of them make a vector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.small_encoder import make_parts, observe
from training import artifact
from training.artifact import Artifact, Codec
from training.encoder import Encoder, NothingToRead
from training.halves import in_halves
from training.modalities import STREAM
from training.observations import Ellipses, Field, Observation, XpCoefficients, merge
from training.pooling import Pooling, PoolingConfig, centring
from training.surveys.simulated import SkyConfig, draw
from training.tokenizers.ellipses import EllipsesTokenizer, EllipsesTokenizerConfig, EllipseTensors
from training.tokenizers.field import FieldTokenizer, FieldTokenizerConfig
from training.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerConfig
from training.tokenizers.xp import MultiScalarTokenizer, MultiScalarTokenizerConfig
from training.tokens import streams_of, tokenize
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

NEVER_READ = {
    "tok_z", "tok_ra", "tok_dec", "tok_ebv", "tok_a_g", "tok_a_r", "tok_a_i", "tok_a_z", "tok_a_y",
}  # fmt: skip
NUMBERS = [key for key, stream in STREAM.items() if stream.kind in ("scalar", "grid")]


def make_codecs() -> dict[str, Codec]:
    codecs = make_parts()[1]
    field = FieldTokenizerConfig(hidden=8, residual_hidden=4)
    codecs["segmentation_map"] = FieldTokenizer(field).eval()
    ellipses = EllipsesTokenizer(EllipsesTokenizerConfig(num_bins=16, reservoir_size=0))
    ellipses.fit(EllipseTensors(torch.rand(4, 9, 5), torch.ones(4, 9, dtype=torch.bool)))
    codecs["catalog"] = ellipses
    for stream in STREAM.values():
        if stream.kind == "multi_scalar":
            xp = MultiScalarTokenizer(MultiScalarTokenizerConfig(num_bins=16))
            xp.fit(torch.randn(200, 55))
            codecs[stream.codec] = xp
        elif stream.kind == "scalar":
            scalar = ScalarTokenizer(ScalarTokenizerConfig(num_bins=16, log=stream.log))
            scalar.fit(torch.rand(200))
            codecs[stream.codec] = scalar
    return codecs


@pytest.fixture(scope="module")
def parts() -> Artifact:
    torch.manual_seed(0)
    codecs = make_codecs()
    domains = {}
    for key, stream in STREAM.items():
        codec, released = codecs[stream.codec], Domain.released(key)
        grid = (12, 12) if stream.kind == "image" else released.grid
        domains[key] = Domain(vocabulary=codec.num_codes, grid=grid)
    config = TransformerConfig(
        domains_in=domains, dim=32, num_heads=2, encoder_depth=1, decoder_depth=1
    )
    return Artifact(
        transformer=Transformer(config).eval().requires_grad_(False),
        codecs=codecs, head=None, encoder_hash="", head_hash="",
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(parts: Artifact) -> Encoder:
    return Encoder(parts)


def full(number: int, *, survey: str = "desi", hsc: bool = False) -> Observation:
    """An object of which everything was observed."""
    rng = np.random.default_rng(number)
    seen = observe(number, spectrum=True, scalars={key: float(rng.random()) for key in NUMBERS})
    assert seen.image is not None
    xp = XpCoefficients(*rng.normal(size=(2, 55)).astype(np.float32))
    radius = np.sort(rng.uniform(0, 30, 2 + number % 3)).astype(np.float32)
    columns = rng.random((3, len(radius)), dtype=np.float32)
    sources = Ellipses(
        x=47.5 + radius, y=np.full_like(radius, 47.5),
        shape_e1=columns[0], shape_e2=columns[1], shape_r_arcsec=columns[2],
    )  # fmt: skip
    bands = ("HSC-G", "HSC-R", "HSC-Z") if hsc else seen.image.bands
    return replace(
        seen, survey=survey, image=replace(seen.image, bands=bands), xp=xp, ellipses=sources,
        object_mask=Field(rng.random((96, 96), dtype=np.float32)),
    )  # fmt: skip


def subsets() -> list[Observation]:
    """Objects of which each was seen otherwise."""
    objects = [full(0), full(1, survey="sdss", hsc=True)]
    few = {"tok_flux_r": 0.5, "tok_parallax": 0.2}
    for number in range(2, 9):
        seen = full(number)
        image = number % 2 == 0
        objects.append(
            replace(
                seen,
                image=seen.image if image else None,
                object_mask=seen.object_mask if image and number % 4 else None,
                ellipses=seen.ellipses if image else None,
                spectrum=seen.spectrum if number % 3 == 0 else None,
                xp=seen.xp if number % 3 != 0 else None,
                scalars=few if number % 5 else {},
            )
        )
    return objects


def test_every_stream_gets_its_tokens(parts: Artifact) -> None:
    objects = [full(0), full(1, survey="sdss", hsc=True)]
    domains = parts.transformer.config.domains_in

    tokens = tokenize(objects, parts.codecs, tuple(STREAM))

    assert set(tokens) == set(STREAM)
    for key, rows in tokens.items():
        for row, codes in rows.items():
            sources = objects[row].ellipses
            assert sources is not None
            expected = 5 * len(sources.x) if key == "catalog" else domains[key].num_tokens
            assert codes.shape == (expected,)
            assert codes.min() >= 0
            assert codes.max() < domains[key].vocabulary
    assert set(tokens["tok_image"]) == set(tokens["tok_spectrum_desi"]) == {0}
    assert set(tokens["tok_image_hsc"]) == set(tokens["tok_spectrum_sdss"]) == {1}


def test_a_joint_view_reads_all_but_redshift_position_and_extinction(whole: Encoder) -> None:
    seen = full(0)
    other = replace(seen, scalars={**seen.scalars, **dict.fromkeys(NEVER_READ, 0.987)})
    read = set(streams_of(tuple(STREAM), seen)) - NEVER_READ
    lengths = {key: whole.transformer.layout.num_tokens[key] for key in read - {"catalog"}}
    (packed,) = [
        {key: codes[0] for key, codes in tokenize([seen], whole.codecs, sorted(read)).items()}
    ]
    encoded = whole.transformer.encode_packed([packed])

    vector = whole.embed([seen], views=("joint",)).vectors

    assert whole.views(seen) == ("image", "spectrum", "xp", "joint")
    assert len(encoded.positions) == sum(lengths.values()) + 10  # all tokens: 2 sources of 5
    np.testing.assert_allclose(vector, whole.transformer.pool(encoded).numpy(), atol=1e-5)
    np.testing.assert_array_equal(vector, whole.embed([other], views=("joint",)).vectors)


def test_neither_company_nor_batch_size_changes_a_vector(parts: Artifact) -> None:
    objects = subsets()
    encoder = Encoder(parts)
    together = encoder.embed(objects)
    encoder.max_objects = 1

    turned = encoder.embed(objects[::-1])

    assert {"image", "spectrum", "xp", "joint"} == set(together.views)
    rows = (len(objects) - 1 - turned.rows).tolist()
    place = {pair: n for n, pair in enumerate(zip(rows, turned.views, strict=True))}
    order = [place[pair] for pair in zip(together.rows.tolist(), together.views, strict=True)]
    np.testing.assert_allclose(turned.vectors[order], together.vectors, atol=1e-5)


def test_an_object_without_anything_to_read_is_named(whole: Encoder) -> None:
    bare = replace(
        full(3), image=None, object_mask=None, ellipses=None, spectrum=None, xp=None,
        object_id="M 31",
    )  # fmt: skip

    assert whole.views(bare) == ()
    with pytest.raises(NothingToRead, match=r"desi M 31: nothing .* streams tok_image, tok_image_"):
        whole.embed([full(0), bare])


def test_values_below_all_bins_are_told(whole: Encoder) -> None:
    seen = full(0)
    behind = replace(seen, scalars={**seen.scalars, "tok_parallax": -0.3})

    assert whole.embed([seen, behind]).below_range["tok_parallax"] == 1


def test_mask_and_ellipses_stay_with_their_image() -> None:
    image = replace(full(0), spectrum=None)
    spectrum = replace(full(0), image=None, object_mask=None, ellipses=None)

    both = merge([spectrum, image])

    assert both.image is image.image
    assert both.object_mask is image.object_mask
    assert both.ellipses is image.ellipses


# --- memory


def test_what_does_not_fit_is_halved_and_told(caplog: pytest.LogCaptureFixture) -> None:
    def doubled(items: Sequence[int]) -> list[int]:
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * item for item in items]

    with caplog.at_level(logging.WARNING):
        made, fits = in_halves(doubled, range(10))

    assert [value for part in made for value in part] == [2 * n for n in range(10)]
    assert fits == 3
    assert "10 objects do not fit into memory at once: taking 5 at a time" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(lambda items: doubled([*items] * 9), range(2))
    with pytest.raises(RuntimeError, match="shape"):
        in_halves(lambda items: torch.zeros(2).reshape(3), range(4))


# --- pooling


def test_attentive_pooling_equals_its_formula() -> None:
    torch.manual_seed(0)
    pooling = Pooling(PoolingConfig(dim=8, attentive=True)).requires_grad_(False)
    objects = [torch.randn(5, 8), torch.randn(3, 8)]

    pooled = pooling.attend(torch.cat(objects), (5, 3))

    for tokens, vector in zip(objects, pooled, strict=True):
        keys, values = tokens @ pooling.key.weight.T, tokens @ pooling.value.weight.T
        weights = (pooling.query @ keys.T / 8**0.5).softmax(dim=0)
        torch.testing.assert_close(vector, weights @ values)


def test_centres_take_the_mean_off_every_view_of_a_survey(parts: Artifact, tmp_path: Path) -> None:
    objects = [full(number, survey=("desi", "sdss")[number % 2]) for number in range(4)]
    plain = Encoder(parts).embed(objects)
    surveys = [objects[row].survey for row in plain.rows]
    names = [f"{view}/{s}" for view, s in zip(plain.views, surveys, strict=True)]
    groups = {
        name: torch.from_numpy(plain.vectors[[n == name for n in names]])
        for name in sorted(set(names))
    }
    artifact.save(tmp_path / "plain", transformer=parts.transformer, codecs=parts.codecs)
    artifact.save(
        tmp_path / "centred", transformer=parts.transformer, codecs=parts.codecs,
        pooling=centring(groups),
    )  # fmt: skip
    loaded = artifact.load(tmp_path / "centred")
    encoder = Encoder(loaded)

    centred = encoder.embed(objects)

    assert loaded.encoder_hash != artifact.load(tmp_path / "plain").encoder_hash
    for name, vectors in groups.items():
        mine = centred.vectors[[n == name for n in names]]
        np.testing.assert_allclose(mine.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(mine + vectors.mean(dim=0).numpy(), vectors, atol=1e-5)
    with pytest.raises(ValueError, match="no centre for image/hsc, it has image/desi, image/sdss"):
        encoder.embed([replace(objects[0], survey="hsc")])


def test_a_simulated_sky_is_tokenized_as_it_is_drawn(parts: Artifact) -> None:
    """Every stream of AION-1 but HSC's, which no instrument of the simulation observes."""
    found: set[str] = set()
    for spectrograph in ("sdss", "desi"):
        sky = SkyConfig(num_objects=24, seed=3, star=0.3, spectrograph=spectrograph)
        seen = list(draw(sky))
        tokens = tokenize(seen, parts.codecs, tuple(STREAM))
        for key, made in tokens.items():
            assert all(int(codes.min()) >= 0 for codes in made.values())
            assert all(
                int(codes.max()) < parts.codecs[STREAM[key].codec].num_codes
                for codes in made.values()
            )
        assert len(tokens["tok_image"]) == len(seen)
        found |= set(tokens)
    assert {key for key in STREAM if STREAM[key].survey != "hsc"} == found
