"""Training that begins from an encoder that was trained before."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small_encoder import make_parts, save_encoder
from tests.training.token_data import FAST, MODEL, shard
from training import artifact
from training.devices import build
from training.kinship import KinshipConfig
from training.pretraining import pretrain
from training.shards import TokenSet
from training.start import Start, drawn_from, read_start
from training.transformer import Transformer, initialise
from training.transformer_config import Domain, TransformerConfig

STILL = replace(FAST, steps=1, learning_rate=1e-12, begin="the first")


def sets() -> list[TokenSet]:
    return [TokenSet(name="one", shards=(shard(),))]


def start_of(transformer: Transformer) -> Start:
    weights = {name: each.detach() for name, each in transformer.named_parameters()}
    return Start(weights, digest="of the first")


def small(**changes: object) -> TransformerConfig:
    return replace(make_parts()[0].config, **changes)  # type: ignore[arg-type]


def test_a_run_goes_on_where_another_ended(tmp_path: Path) -> None:
    first, report = pretrain(MODEL, sets(), FAST, tmp_path / "first")
    again, after = pretrain(MODEL, sets(), STILL, tmp_path / "again", start=start_of(first))

    expected = dict(first.named_parameters())
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-9)
    assert after.loss == pytest.approx(report.loss, rel=1e-5)


def test_an_encoder_on_disk_gives_its_weights(tmp_path: Path) -> None:
    transformer, _, _ = make_parts(3)
    folder = save_encoder(tmp_path / "first", seed=3)
    start = read_start(str(folder), small(), folder)
    module = build(small(), seed=7, draw=drawn_from(start))
    assert module.prepare is not None
    module.prepare(module)

    expected = dict(transformer.named_parameters())
    for name, parameter in module.transformer.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_stream_that_the_start_lacks_is_drawn_fresh(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "first")
    streams = small().domains_in
    fewer = {key: each for key, each in streams.items() if key != "tok_z"}
    more = streams | {"tok_flux_i": Domain(vocabulary=64, grid=(1, 1))}
    of_more = build(
        small(domains_in=more),
        seed=7,
        draw=drawn_from(read_start(str(folder), small(domains_in=more), folder)),
    )
    fresh = build(small(domains_in=more), seed=7, draw=initialise)
    for module in (of_more, fresh):
        assert module.prepare is not None
        module.prepare(module)
    begun, alone = (dict(each.transformer.named_parameters()) for each in (of_more, fresh))
    new = {name for name in begun if ".tok_flux_i." in name}

    assert new
    assert {name for name in begun if torch.equal(begun[name], alone[name])} >= new
    weights = read_start(str(folder), small(domains_in=fewer), folder).weights
    assert all(torch.equal(begun[name], weights[name]) for name in begun if name not in new)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder, out = save_encoder(tmp_path / "first"), save_encoder(tmp_path / "out")
    read_start(str(folder), small(), out)
    shutil.rmtree(out / "codecs" / "image")
    artifact.save_codec(out, "image", make_parts(1)[1]["image"])
    with pytest.raises(ValueError, match=r"tokenizer of tok_image .* would mean something else"):
        read_start(str(folder), small(), out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_depth": 1}, "encoder_depth is to be 2 or more, got 1"),
        ({"dim": 48}, "first cannot grow .*: dim is to be a multiple of 32, got 48"),
        ({"qk_norm": False}, "qk_norm is True in .*, False in the model"),
        (
            {"domains_in": {"tok_z": Domain(vocabulary=65, grid=(1, 1))}},
            "tok_z is .*vocabulary=64.* in .*vocabulary=65",
        ),
    ],
)
def test_another_model_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = save_encoder(tmp_path / "first")
    with pytest.raises(ValueError, match=message):
        read_start(str(folder), small(**changes), folder)


def test_a_start_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        read_start(str(tmp_path / "nowhere"), small(), save_encoder(tmp_path / "out"))


def test_a_resumed_run_has_the_same_start(tmp_path: Path) -> None:
    first, _ = pretrain(MODEL, sets(), STILL, tmp_path, start=start_of(Transformer(MODEL)))
    elsewhere = replace(STILL, begin="the same, moved")
    pretrain(MODEL, sets(), elsewhere, tmp_path, start=replace(start_of(first), weights={}))
    with pytest.raises(ValueError, match=r"training.begin was 'of the first', is 'another'"):
        pretrain(MODEL, sets(), STILL, tmp_path, start=replace(start_of(first), digest="another"))


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begin and value_share"):
        replace(FAST, begin="nano", value_share=0.5)
    with pytest.raises(ValueError, match="begin is 'the first', and there is no start"):
        pretrain(MODEL, sets(), STILL, tmp_path)
    with pytest.raises(ValueError, match="begin is None, and a start"):
        pretrain(MODEL, sets(), FAST, tmp_path, start=start_of(Transformer(MODEL)))


def test_training_the_decoder_alone_leaves_the_encoder_as_it_began(tmp_path: Path) -> None:
    first, _ = pretrain(MODEL, sets(), FAST, tmp_path / "first")
    settings = replace(FAST, begin="the first", train_only="decoder")
    after, _ = pretrain(MODEL, sets(), settings, tmp_path / "again", start=start_of(first))
    before = dict(first.named_parameters())
    changed = {name for name, each in after.named_parameters() if not each.equal(before[name])}

    assert changed
    assert all(name.startswith(("decoder", "mask_token")) for name in changed)
    assert not any(name.endswith("mod_emb") for name in changed)  # the encoder has it too


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({}, "name the encoder with begin"),
        ({"begin": "first", "kinship": KinshipConfig()}, "kinship teaches the encoder"),
    ],
)
def test_training_the_decoder_alone_needs_an_encoder_and_no_kinship(
    changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        replace(FAST, train_only="decoder", **changes)
