"""One process of a small training run; tests start several, as torchrun would."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.training.token_data import FAST, MODEL
from training.pretraining import pretrain
from training.pretraining_config import PretrainingConfig, Strategy
from training.shards import TokenSet

FIFTY = replace(
    FAST, steps=50, batch_size=16, log_steps=1, checkpoint_steps=25, validation_share=0.05
)


def run(rank: int, world_size: int, port: int, folder: Path, out: str, strategy: Strategy) -> None:
    """Train in one of several processes (a target for torch.multiprocessing)."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    train(folder, out, replace(FIFTY, strategy=strategy))


def train(folder: Path, out: str, config: PretrainingConfig) -> None:
    """Train on the shards in a folder."""
    torch.set_num_threads(1)
    pretrain(MODEL, [TokenSet.open(folder / "tokens", name="one")], config, folder / out)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], FIFTY)
