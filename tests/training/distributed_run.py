"""One process of a small training run; tests start several, as torchrun would."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.training.token_data import FAST, MODEL, NUM
from training.kinship import KinshipConfig
from training.labels import Labels
from training.pretraining import pretrain
from training.pretraining_config import PretrainingConfig, Strategy
from training.shards import TokenSet

FIFTY = replace(
    FAST, steps=50, batch_size=16, log_steps=1, checkpoint_steps=25, validation_share=0.05,
    kinship=KinshipConfig(weight=0.5, label_share=0.5), value_share=0.5,
)  # fmt: skip
HALVES = Labels(
    names=("even",), numbers=np.arange(NUM), table=np.arange(NUM)[:, None] % 2 == 0
)  # half of the objects are known to be alike, of the others nothing is known

# of the image's codes, as a tokenizer would place them
VALUES = {"tok_image": torch.eye(MODEL.domains_in["tok_image"].vocabulary)[:, :3]}


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
    sets = [TokenSet.open(folder / "tokens", name="one")]
    pretrain(MODEL, sets, config, folder / out, labels=HALVES, values=VALUES)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], FIFTY)
