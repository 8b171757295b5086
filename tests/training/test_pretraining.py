"""The masked-modelling loop: it learns what there is to learn, and resumes where it stood."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from training.masking import MaskingConfig
from training.pretraining import (
    CHECKPOINT,
    CURVE,
    Precision,
    PretrainingConfig,
    PretrainingReport,
    pretrain,
)
from training.tokens import TokenShard
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

NUM = 300
MASKING = MaskingConfig(num_input_tokens=8, num_target_tokens=6)
FAST = PretrainingConfig(
    steps=20, batch_size=16, learning_rate=3e-3, masking=MASKING, precision="float32",
    log_steps=5, checkpoint_steps=10, num_threads=1,
)  # fmt: skip


def model(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(
        TransformerConfig(
            dim=32, num_heads=2, encoder_depth=2, decoder_depth=2,
            domains_in={
                "tok_image": Domain(vocabulary=16, grid=(4, 4)),
                "tok_z": Domain(vocabulary=8, grid=(1, 1)),
                "tok_flux_g": Domain(vocabulary=8, grid=(1, 1)),
            },
        )
    )  # fmt: skip


def shard() -> TokenShard:
    """Eight kinds: image tokens tell the kind up to one coin each, flux tells nothing."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 8, NUM)
    image = 2 * kind[:, None] + rng.integers(0, 2, (NUM, 16))
    return TokenShard(
        tokens={
            "tok_image": image.astype(np.uint16),
            "tok_z": kind[:, None].astype(np.uint16),
            "tok_flux_g": rng.integers(0, 8, (NUM, 1)).astype(np.uint16),
        },
        present={
            "tok_image": np.ones(NUM, dtype=bool),
            "tok_z": rng.random(NUM) < 0.7,
            "tok_flux_g": np.ones(NUM, dtype=bool),
        },
        objects=np.arange(NUM),
    )


def train(folder: Path, config: PretrainingConfig = FAST) -> tuple[Transformer, PretrainingReport]:
    transformer = model()
    return transformer, pretrain(transformer, shard(), config, folder)


def weights(transformer: Transformer) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in transformer.parameters()])


@pytest.mark.slow
def test_loss_falls_to_the_entropy_of_what_cannot_be_known(tmp_path: Path) -> None:
    config = PretrainingConfig(
        steps=900, batch_size=32, learning_rate=3e-3, masking=MASKING, precision="float32",
        checkpoint_steps=900, num_threads=1,
    )  # fmt: skip
    _, report = train(tmp_path, config)

    assert report.loss["tok_image"] == pytest.approx(math.log(2), abs=0.12)  # the coin
    assert report.loss["tok_z"] < 0.2  # follows from the image
    assert report.loss["tok_flux_g"] > math.log(8) - 0.3  # pure chance
    assert report.perplexity()["tok_image"] == pytest.approx(math.exp(report.loss["tok_image"]))


def test_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, _ = train(tmp_path / "a")
    second, _ = train(tmp_path / "b")

    assert torch.equal(weights(first), weights(second))


def test_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole")

    def stop(done: float, step: int, loss: float) -> None:
        if step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(model(), shard(), FAST, tmp_path / "cut", progress=stop)
    resumed = model(seed=1)
    report = pretrain(resumed, shard(), FAST, tmp_path / "cut")

    assert torch.equal(weights(resumed), weights(whole))
    assert report.steps == 20
    steps = [
        [line.split(",")[0] for line in (tmp_path / name / CURVE).read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


def test_curve_has_a_column_for_every_stream(tmp_path: Path) -> None:
    train(tmp_path)

    with (tmp_path / CURVE).open() as stream:
        lines = list(csv.DictReader(stream))

    assert {"tok_image", "tok_z", "tok_flux_g"} <= set(lines[0])
    assert {line["split"] for line in lines} == {"train", "held out"}
    assert all(0 < float(line["tok_image"]) < 5 for line in lines)


def test_time_budget_ends_the_run(tmp_path: Path) -> None:
    config = PretrainingConfig(
        steps=10**9, max_seconds=0.5, batch_size=16, masking=MASKING, precision="float32",
        num_threads=1,
    )  # fmt: skip
    _, report = train(tmp_path, config)

    assert 1 <= report.steps < 10**6
    assert report.seconds < 5


def test_bfloat16_learns_as_float32_does(tmp_path: Path) -> None:
    losses = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        config = PretrainingConfig(
            steps=60, batch_size=16, learning_rate=3e-3, masking=MASKING,
            precision=precision, num_threads=1,
        )  # fmt: skip
        losses.append(train(tmp_path / precision, config)[1].loss["tok_image"])

    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    other = PretrainingConfig(steps=20, batch_size=8, masking=MASKING, num_threads=1)

    with pytest.raises(ValueError, match=f"{CHECKPOINT} is of a run with another model"):
        train(tmp_path, other)


def test_shard_without_a_stream_is_refused(tmp_path: Path) -> None:
    full = shard()
    tokens = {key: codes for key, codes in full.tokens.items() if key != "tok_z"}
    cut = TokenShard(tokens=tokens, present=full.present, objects=full.objects)

    with pytest.raises(ValueError, match="no stream 'tok_z'"):
        pretrain(model(), cut, FAST, tmp_path)


def test_token_shard_survives_the_disk(tmp_path: Path) -> None:
    before = shard()
    before.write(tmp_path / "tokens.npz")

    after = TokenShard.read(tmp_path / "tokens.npz")

    assert len(after) == NUM
    for key, codes in before.tokens.items():
        np.testing.assert_array_equal(after.tokens[key], codes)
        np.testing.assert_array_equal(after.present[key], before.present[key])
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz: not a token shard"):
        TokenShard.read(tmp_path / "text.npz")
