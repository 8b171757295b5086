"""Speed of masked modelling beside a plain loop: tokens per second, MFU, waiting for data.

    python benchmarks/pretraining.py [--steps 40] [--batch-size 64] [--precision bfloat16]
                                  [--device auto] [--compile] [--quick] [--json]

All train a transformer of the size of nano (on a GPU: Base) on tokens drawn at random. Ours is
what `skykin train encoder` runs: shards mapped from disk, masks drawn anew, curves, Fabric. The
plain loop has its batches in memory beforehand, and does nothing but forward, backward, clip and
step: what it is faster by is the cost of ours. The reference is the same plain loop around the 4M
transformer inside polymathic-aion, with the same sizes and masks; it embeds all tokens of an object
and then picks those shown. Where that package is absent its figures are null. Rounds of all come
in turn, so that a busy machine slows all alike; the best round of each counts. Kinship and labels
are left out everywhere: the reference has none.

MFU counts the model's own FLOPs by formula against the peak of the device (training/throughput.py).
stdout with --json is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from training.devices import build, launch, set_up
from training.loader import Batch, Loader, LoaderConfig
from training.masking import MaskingConfig
from training.objective import losses, token_weights
from training.pretraining import pretrain
from training.pretraining_config import PretrainingConfig
from training.recipe import read_recipe
from training.shards import TokenSet, TokenShard
from training.throughput import Work, peak_flops, work_of
from training.transformer import Layout
from training.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

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
    theirs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = random_tokens(model, Path(folder) / "tokens")
        for number in range(rounds):
            mine.append(our_loop(model, tokens, config, Path(folder) / str(number)))
            plain.append(plain_loop(model, tokens, config))
            if find_spec("aion") is not None:
                theirs.append(reference_loop(model, tokens, config))
    ours, alone = best(mine), best(plain)
    reference = best(theirs) if theirs else None
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
        "plain": alone,
        "ratio": ours["tokens_per_second"] / alone["tokens_per_second"],
        "reference": reference,
        "ratio_to_reference": (
            ours["tokens_per_second"] / reference["tokens_per_second"] if reference else None
        ),
    }


def best(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The fastest of some rounds."""
    return max(rounds, key=lambda each: each["tokens_per_second"])


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
    fabric, batches = ready(model, tokens, config)
    module = build(model, seed=0)
    wrapped, optimizer = set_up(
        fabric, module,
        learning_rate=config.learning_rate, weight_decay=config.weight_decay,
        compiled=config.compile,
    )  # fmt: skip

    def loss_of(batch: Batch) -> Tensor:
        weights = token_weights(torch.tensor(batch.counts, dtype=torch.float64), config.loss)
        return (losses(wrapped, batch) * weights.to(fabric.device)).sum()

    works = [work_of(batch, model) for batch in batches]
    return timed(fabric, module, optimizer, loss_of, batches, works, config)


def reference_loop(
    model: TransformerConfig, tokens: TokenSet, config: PretrainingConfig
) -> dict[str, float]:
    """The same with the 4M transformer of polymathic-aion."""
    fabric, batches = ready(model, tokens, config)
    module = four_m(model).to(fabric.device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.learning_rate, fused=True)
    wrapped = fabric.setup_module(module)
    layout = Layout.of(model.domains_in)
    inputs = [of_reference(batch, layout, model) for batch in batches]
    budget = (config.masking.num_input_tokens, config.masking.num_target_tokens)
    kind = "mod" if config.loss == "modality" else "token"

    def loss_of(batch: dict[str, dict[str, Tensor]]) -> Tensor:
        # it adds keys to what it is given
        loss: Tensor = wrapped({key: dict(each) for key, each in batch.items()}, *budget, kind)[0]
        return loss

    works = [work_of(batch, model) for batch in batches]
    return timed(fabric, module, optimizer, loss_of, inputs, works, config)


def four_m(model: TransformerConfig) -> nn.Module:
    """The transformer of polymathic-aion in the sizes of a configuration."""
    from aion.fourm.decoder_embeddings import ImageTokenDecoderEmbedding
    from aion.fourm.encoder_embeddings import ImageTokenEncoderEmbedding
    from aion.fourm.fm import FourM
    from aion.fourm.fm_utils import LayerNorm

    def embeddings(kind: type[nn.Module], **more: bool) -> dict[str, nn.Module]:
        return {
            key: kind(vocab_size=each.vocabulary, patch_size=1, image_size=each.grid, **more)
            for key, each in model.domains_in.items()
        }

    made: nn.Module = FourM(
        embeddings(ImageTokenEncoderEmbedding),
        embeddings(ImageTokenDecoderEmbedding, share_embedding=False),
        {key: {"type": "img", "id": number} for number, key in enumerate(model.domains_in)},
        dim=model.dim, encoder_depth=model.encoder_depth, decoder_depth=model.decoder_depth,
        num_heads=model.num_heads, mlp_ratio=model.mlp_ratio, gated_mlp=True, qk_norm=True,
        qkv_bias=model.qkv_bias, proj_bias=model.proj_bias, mlp_bias=model.mlp_bias,
        act_layer=nn.SiLU, norm_layer=partial(LayerNorm, eps=1e-6, bias=model.norm_bias),
    )  # fmt: skip
    return made


def of_reference(
    batch: Batch, layout: Layout, model: TransformerConfig
) -> dict[str, dict[str, Tensor]]:
    """The masks of a batch as 4M has them; codes are drawn at random, as ours are."""
    rows = len(batch.shown)
    shown = torch.zeros(rows, len(layout.stream_of_position()), dtype=torch.bool)
    asked = shown.clone()
    valid = torch.ones_like(batch.positions, dtype=torch.bool)
    for mask, positions, there in (
        (shown, batch.positions, valid if batch.valid is None else batch.valid),
        (asked, batch.targets, batch.target_valid),
    ):
        row, column = torch.nonzero(there, as_tuple=True)
        mask[row, positions[row, column]] = True
    made = {}
    for key, each in model.domains_in.items():
        mine = layout.slice(key)
        made[key] = {
            "tensor": torch.randint(0, each.vocabulary, (rows, each.num_tokens)),
            "input_mask": ~shown[:, mine],
            "target_mask": ~asked[:, mine],
            "decoder_attention_mask": torch.zeros(rows, each.num_tokens, dtype=torch.int),
        }
        made[key] = {name: value.to(batch.shown.device) for name, value in made[key].items()}
    return made


def ready(
    model: TransformerConfig, tokens: TokenSet, config: PretrainingConfig
) -> tuple[Fabric, list[Batch]]:
    """Where to compute, and batches there."""
    torch.set_num_threads(config.num_threads)
    fabric = launch(device=config.device, precision=config.precision)
    loader = Loader(
        [tokens], model,
        LoaderConfig(
            masking=config.masking, batch_size=config.batch_size, fixed_shape=config.compile
        ),
    )  # fmt: skip
    return fabric, [
        step.batches[0].to(fabric.device)
        for step in loader.steps(1, loader.start(), last=min(config.steps, 8))
    ]


def timed(
    fabric: Fabric,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Any], Tensor],
    batches: Sequence[Any],
    works: Sequence[Work],
    config: PretrainingConfig,
) -> dict[str, float]:
    """Speed of the second half of some steps; `works` is what each batch takes by our formula."""
    done, flops, started = 0, 0.0, 0.0
    for number in range(config.steps):
        if number == config.steps // 2:
            synchronize(fabric.device)
            started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss_of(batches[number % len(batches)]))
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.max_gradient_norm)
        optimizer.step()
        if number >= config.steps // 2:
            work = works[number % len(batches)]
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
