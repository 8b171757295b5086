"""Small token shards and a small model, for the tests of masked modelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.masking import MaskingConfig
from training.pretraining_config import PretrainingConfig
from training.shards import TokenSet, TokenShard
from training.transformer_config import Domain, TransformerConfig

NUM = 300
MASKING = MaskingConfig(num_input_tokens=8, num_target_tokens=6)
FAST = PretrainingConfig(
    steps=20, batch_size=16, learning_rate=3e-3, masking=MASKING, precision="float32",
    device="cpu", log_steps=5, checkpoint_steps=10, num_threads=1,
)  # fmt: skip
DOMAINS = {
    "tok_image": Domain(vocabulary=16, grid=(4, 4)),
    "tok_z": Domain(vocabulary=8, grid=(1, 1)),
    "tok_flux_g": Domain(vocabulary=8, grid=(1, 1)),
}
MODEL = TransformerConfig(dim=32, num_heads=2, encoder_depth=2, decoder_depth=2, domains_in=DOMAINS)


def shard(num: int = NUM, *, seed: int = 0, start: int = 0) -> TokenShard:
    """Eight kinds: image tokens tell the kind up to one coin each, flux tells nothing."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 8, num)
    image = 2 * kind[:, None] + rng.integers(0, 2, (num, 16))
    tokens = {
        "tok_image": image,
        "tok_z": kind[:, None],
        "tok_flux_g": rng.integers(0, 8, (num, 1)),
    }
    there = {key: np.ones(num, bool) for key in tokens}
    there["tok_z"] = rng.random(num) < 0.7
    return TokenShard(
        tokens={key: codes.astype(np.uint16) for key, codes in tokens.items()},
        lengths={
            key: np.where(there[key], codes.shape[1], 0).astype(np.uint16)
            for key, codes in tokens.items()
        },
        schema={key: (domain.vocabulary, domain.num_tokens) for key, domain in DOMAINS.items()},
        objects=np.arange(start, start + num, dtype=np.int64)[:, None],
        ids=np.array([str(start + row).encode() for row in range(num)]),
    )


def write_set(folder: Path, name: str = "one", *, shards: int = 3, num: int = 100) -> TokenSet:
    """A set of several shards on disk."""
    for number in range(shards):
        shard(num, seed=number, start=number * num).write(folder / f"{number:05d}")
    return TokenSet.open(folder, name=name)
