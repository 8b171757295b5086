"""The largest model under FSDP2: it fits on paper at full depth, and steps at reduced depth."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.testing._internal.distributed.fake_pg import FakeStore

from training import checkpoint
from training.devices import build, launch, set_up, shard
from training.loader import Batch, Loader, LoaderConfig
from training.masking import MaskingConfig
from training.objective import losses
from training.recipe import read_recipe
from training.shards import TokenSet, TokenShard
from training.transformer_config import TransformerConfig

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
NUM_GPUS = 256
GPU_BYTES = 80e9


@pytest.fixture
def many_processes() -> Iterator[None]:
    """A process group of NUM_GPUS, of which this process is the first and the only real one."""
    distributed.init_process_group("fake", rank=0, world_size=NUM_GPUS, store=FakeStore())
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
def test_xl_fits_on_its_gpus(many_processes: None) -> None:
    recipe = read_recipe(RECIPES / "xl.toml")
    training = recipe.encoder.training
    module = build(recipe.encoder.model, seed=0)
    module.prepare = None  # stays without memory
    total = sum(weight.numel() for weight in module.parameters())
    mesh = init_device_mesh("cpu", (NUM_GPUS,))
    spread = shard(module, mesh, half=True)

    config = recipe.encoder.model
    own = sum(weight.to_local().numel() for weight in spread.parameters())  # type: ignore[attr-defined]
    largest = max(
        sum(weight.numel() for weight in block.parameters()) for block in spread.transformer.decoder
    )
    tables = total - sum(
        weight.numel()
        for block in (*spread.transformer.encoder, *spread.transformer.decoder)
        for weight in block.parameters()
    )
    rows = training.batch_size // NUM_GPUS
    tokens = rows * training.masking.num_input_tokens
    kept = tokens * config.dim * 4 * (config.encoder_depth + config.decoder_depth)
    inside = tokens * (8 * config.dim + 4 * 5461) * 4  # of the one block that is computed again
    needed = (
        own * 4 * 4  # weight, gradient, two moments
        + 2 * largest * (2 + 4)  # gathered in bfloat16, and its gradient; the next one too
        + tables * (4 + 4)  # the tables are gathered whole
        + kept + inside
    )  # fmt: skip

    assert total == pytest.approx(3.13e9, rel=0.01)
    assert own == pytest.approx(total / NUM_GPUS, rel=0.02)  # nothing is kept whole
    shapes = {name: tuple(weight.shape) for name, weight in spread.named_parameters()}
    assert shapes["transformer.encoder.0.mlp.fc1.weight"] == (5461, 2048)
    assert training.checkpoint_activations
    assert training.strategy == "fsdp"
    assert needed < 0.5 * GPU_BYTES


def reduced() -> TransformerConfig:
    """XL with one block of each kind and three of its streams, as wide as it is."""
    xl = TransformerConfig.xl()
    keys = ("tok_spectrum_sdss", "tok_z", "catalog")
    return replace(
        xl, encoder_depth=1, decoder_depth=1, domains_in={key: xl.domains_in[key] for key in keys}
    )


def batch_of_xl(rank: int, world_size: int) -> Batch:
    """One process's share of four objects, the same ones for any number of processes."""
    rng = np.random.default_rng(0)
    domains, num = reduced().domains_in, 16
    tokens = TokenShard(
        tokens={
            key: rng.integers(5, domain.vocabulary, (num, domain.num_tokens)).astype(np.uint16)
            for key, domain in domains.items()
        },
        lengths={
            key: np.full(num, domain.num_tokens, np.uint16) for key, domain in domains.items()
        },
        schema={key: (domain.vocabulary, domain.num_tokens) for key, domain in domains.items()},
        objects=np.arange(num)[:, None],
        ids=np.array([b"x"] * num),
    )
    masking = MaskingConfig(num_input_tokens=48, num_target_tokens=24)
    loader = Loader(
        [TokenSet(name="one", shards=(tokens,))],
        reduced(),
        LoaderConfig(masking=masking, batch_size=4),
        rank=rank,
        world_size=world_size,
    )
    return next(loader.steps(1, loader.start(), last=1)).batches[0]


def step_of_xl(rank: int, world_size: int, port: int, file: Path) -> None:
    """One step of the optimizer in one of several processes; the first writes what came of it."""
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
    torch.set_num_threads(1)
    fabric = launch(device="cpu", strategy="fsdp", precision="float32")
    module = build(reduced(), seed=0)
    wrapped, optimizer = set_up(
        fabric, module, learning_rate=1e-3, weight_decay=0.05, checkpointed=True
    )
    loss = losses(wrapped, batch_of_xl(rank, world_size)).sum() / 100
    fabric.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(module.transformer.parameters(), 1.0)
    optimizer.step()
    total = loss.detach()
    if world_size > 1:
        summed = fabric.all_reduce(total, reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        total = summed
    named = dict(module.transformer.named_parameters())
    weight = checkpoint.full(named["encoder.0.mlp.fc1.weight"])
    numbers = {
        "loss": float(total),
        "norm": float(checkpoint.full(norm)) * world_size,  # gradients are means over processes
        "weights": weight.flatten()[::999_983].tolist(),
        "own": sum(
            each.to_local().numel() if isinstance(each, DTensor) else each.numel()
            for each in module.parameters()
        ),
    }
    if rank == 0:
        file.write_text(json.dumps(numbers))


@pytest.mark.slow
def test_xl_steps_on_two_processes_at_reduced_depth(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    arguments = (2, port, tmp_path / "two")
    start_processes(step_of_xl, args=arguments, nprocs=2)  # type: ignore[no-untyped-call]
    step_of_xl(0, 1, 0, tmp_path / "one")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))

    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-3)
    assert two["weights"] == pytest.approx(one["weights"], abs=1e-5)
    assert two["own"] == pytest.approx(one["own"] / 2, rel=0.01)
