"""Speed of masked modelling beside a plain loop: tokens per second, MFU, waiting for data.

    python benchmarks/pretraining.py [--steps 40] [--batch-size 64] [--precision bfloat16]
                                  [--device auto] [--compile] [--quick] [--json]

Both train a transformer of the size of nano (on a GPU: Base) on tokens drawn at random. Ours is
what `skykin train encoder` runs: shards mapped from disk, masks drawn anew, curves, Fabric. The
plain loop has its batches in memory beforehand, and does nothing but forward, backward, clip and
step: what it is faster by is the cost of ours. Rounds of both come in turn, so that a busy machine
slows both alike; the best round of each counts.

MFU counts the model's own FLOPs by formula against the peak of the device (training/throughput.py).
stdout with --json is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.devices import build, launch, set_up
from training.loader import Loader, LoaderConfig
from training.masking import MaskingConfig
from training.objective import losses, token_weights
from training.pretraining import pretrain
from training.pretraining_config import PretrainingConfig
from training.recipe import read_recipe
from training.shards import TokenSet, TokenShard
from training.throughput import peak_flops, work_of
from training.transformer_config import TransformerConfig

NANO = Path(__file__).parents[1] / "training" / "nano" / "nano.toml"
NUM_ROWS, NUM_SHARDS = 2048, 4
ROUNDS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=None, help="default: that of nano.toml")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    on_gpu = given.device != "cpu" and torch.cuda.is_available()
    model, config = sizes(on_gpu)
    config |= {
        "steps": 4 if given.quick else given.steps, "precision": given.precision,
        "device": given.device, "compile": given.compile, "num_threads": given.threads,
    }  # fmt: skip
    if given.batch_size is not None:
        config["batch_size"] = given.batch_size
    report = measure(model, PretrainingConfig(**config), rounds=1 if given.quick else ROUNDS)
    print(json.dumps(report, indent=None if given.json else 2))


def sizes(on_gpu: bool) -> tuple[TransformerConfig, dict[str, Any]]:
    """The model, and how it is trained."""
    recipe = read_recipe(NANO).encoder
    if on_gpu:
        masking = MaskingConfig()
        return TransformerConfig.base(), {"batch_size": 128, "masking": masking}
    return recipe.model, {
        "batch_size": recipe.training.batch_size, "masking": recipe.training.masking,
        "loss": recipe.training.loss,
    }  # fmt: skip


def measure(model: TransformerConfig, config: PretrainingConfig, *, rounds: int) -> dict[str, Any]:
    """All figures of one run."""
    mine: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = random_tokens(model, Path(folder) / "tokens")
        for number in range(rounds):
            mine.append(our_loop(model, tokens, config, Path(folder) / str(number)))
            plain.append(plain_loop(model, tokens, config))
    ours = max(mine, key=lambda each: each["tokens_per_second"])
    reference = max(plain, key=lambda each: each["tokens_per_second"])
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "threads": config.num_threads,
        "model": {"dim": model.dim, "blocks": [model.encoder_depth, model.decoder_depth]},
        "precision": config.precision,
        "compiled": config.compile,
        "batch_size": config.batch_size,
        "steps": config.steps,
        "ours": ours,
        "plain": reference,
        "ratio": ours["tokens_per_second"] / reference["tokens_per_second"],
    }


def random_tokens(model: TransformerConfig, folder: Path) -> TokenSet:
    """Shards of random codes; every object has all streams."""
    rng = np.random.default_rng(0)
    for number in range(NUM_SHARDS):
        TokenShard(
            tokens={
                key: rng.integers(0, each.vocabulary, (NUM_ROWS, each.num_tokens)).astype(np.uint16)
                for key, each in model.domains_in.items()
            },
            lengths={
                key: np.full(NUM_ROWS, each.num_tokens, np.uint16)
                for key, each in model.domains_in.items()
            },
            schema={
                key: (each.vocabulary, each.num_tokens) for key, each in model.domains_in.items()
            },
            objects=np.arange(NUM_ROWS)[:, None] + number * NUM_ROWS,
            ids=np.arange(NUM_ROWS).astype(np.bytes_),
        ).write(folder / f"{number:05d}")
    return TokenSet.open(folder, name="random")


def our_loop(
    model: TransformerConfig, tokens: TokenSet, config: PretrainingConfig, folder: Path
) -> dict[str, float]:
    """Speed of the second half of a run, as its own curve says."""
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    values |= {"log_steps": config.steps // 2, "checkpoint_steps": 10 * config.steps}
    values |= {"validation_share": 0.0}
    _, report = pretrain(model, [tokens], PretrainingConfig(**values), folder)
    each = config.masking.num_input_tokens + config.masking.num_target_tokens
    return {
        "tokens_per_second": report.tokens_per_second,
        "objects_per_second": report.tokens_per_second / each,
        "mfu": report.mfu,
        "data_wait": report.data_wait,
    }


def plain_loop(
    model: TransformerConfig, tokens: TokenSet, config: PretrainingConfig
) -> dict[str, float]:
    """Forward, backward, clip and step on batches in memory."""
    torch.set_num_threads(config.num_threads)
    fabric = launch(device=config.device, precision=config.precision)
    loader = Loader(
        [tokens], model,
        LoaderConfig(
            masking=config.masking, batch_size=config.batch_size, fixed_shape=config.compile
        ),
    )  # fmt: skip
    batches = [
        step.batches[0].to(fabric.device)
        for step in loader.steps(1, loader.start(), last=min(config.steps, 8))
    ]
    module = build(model, seed=0)
    wrapped, optimizer = set_up(
        fabric, module,
        learning_rate=config.learning_rate, weight_decay=config.weight_decay,
        compiled=config.compile,
    )  # fmt: skip
    done, flops, started = 0, 0.0, 0.0
    for number in range(config.steps):
        if number == config.steps // 2:
            synchronize(fabric.device)
            started = time.perf_counter()
        batch = batches[number % len(batches)]
        weights = token_weights(torch.tensor(batch.counts, dtype=torch.float64), config.loss)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward((losses(wrapped, batch) * weights.to(fabric.device)).sum())
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.max_gradient_norm)
        optimizer.step()
        if number >= config.steps // 2:
            work = work_of(batch, model)
            done, flops = done + work.tokens, flops + work.flops
    synchronize(fabric.device)
    seconds = time.perf_counter() - started
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    each = config.masking.num_input_tokens + config.masking.num_target_tokens
    return {
        "tokens_per_second": done / seconds,
        "objects_per_second": done / seconds / each,
        "mfu": flops / seconds / peak_flops(fabric.device, dtype=dtype),
    }


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
