"""Masked modelling: from some tokens of an object, of any modality, predict some of the others.

Source: arXiv 2510.17960 (AdamW with betas 0.9 and 0.95, weight decay 0.05, linear warm-up, then a
cosine to zero). Every step draws its objects and its masks from (seed, step) alone, so a run that
was interrupted goes on exactly where its last checkpoint stood.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy import ndarray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from training.artifact import dump_config
from training.masking import MaskingConfig, sample_masks
from training.tensor_file import read_tensors, write_tensors
from training.tokens import TokenShard
from training.transformer import Layout, Transformer

Precision = Literal["float32", "bfloat16"]
BETAS = (0.9, 0.95)
CURVE = "curve.csv"
CHECKPOINT = "checkpoint.safetensors"


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PretrainingConfig:
    """How a transformer is trained."""

    masking: MaskingConfig = MaskingConfig()
    steps: int = Field(default=20_000, gt=0)
    max_seconds: float | None = Field(
        default=None, gt=0
    )  # the cosine ends with what runs out first
    batch_size: int = Field(default=64, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)  # at the peak
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    # "modality": the mean over the modalities' means; "token": the mean over all asked tokens.
    loss: Literal["modality", "token"] = "modality"
    precision: Precision = "bfloat16"
    validation_share: float = Field(default=0.05, ge=0, lt=1)  # of the objects, never trained on
    log_steps: int = Field(default=100, gt=0)
    checkpoint_steps: int = Field(default=500, gt=0)
    num_threads: int = Field(default=2, gt=0)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingReport:
    """What a run reached. Losses are cross-entropies in nats a token, on held-out objects."""

    steps: int
    seconds: float
    objects_per_second: float
    loss: Mapping[str, float]  # stream -> loss; streams that never came are absent

    def perplexity(self) -> dict[str, float]:
        """exp(loss): among how many equally likely codes the model is left to choose."""
        return {key: math.exp(value) for key, value in self.loss.items()}


def pretrain(
    transformer: Transformer,
    shard: TokenShard,
    config: PretrainingConfig,
    folder: Path,
    *,
    progress: Callable[[float, int, float], None] | None = None,
) -> PretrainingReport:
    """Train a transformer in place on one shard of tokens.

    Args:
        transformer: Trained in place, left in evaluation mode.
        shard: Tokens of all objects.
        config: How long and how fast.
        folder: Receives the loss curve and a checkpoint; a checkpoint found there is resumed.
        progress: Called after each step with (share of the run done, step, loss).

    Raises:
        ValueError: the shard lacks a stream of the model or holds no row to train on, or the
            checkpoint is of another configuration.
    """
    torch.set_num_threads(config.num_threads)
    folder.mkdir(parents=True, exist_ok=True)
    data = _Data.of(shard, transformer.layout)
    train_rows, held_rows = _split(shard.objects, config.validation_share)
    optimizer = torch.optim.AdamW(
        _parameter_groups(transformer, config.weight_decay),
        lr=config.learning_rate,
        betas=BETAS,
        fused=True,
    )
    run = _describe(transformer, shard, config)
    step, spent = _resume(folder / CHECKPOINT, transformer, optimizer, run)
    curve = _Curve(folder / CURVE, transformer.layout.keys, step)
    losses = _Mean()
    started = time.monotonic() - spent
    done = _share_done(step, time.monotonic() - started, config)
    transformer.train()
    while done < 1:
        step += 1
        rate = config.learning_rate * _schedule(done, config.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = _rows_of_step(train_rows, step, config)
        generator = torch.Generator().manual_seed(_seed(config.seed, step))
        per_stream = _losses(transformer, data, rows, config, generator)
        loss = _combine(per_stream, config.loss)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), config.max_gradient_norm)
        optimizer.step()
        losses.add({key: (value.item(), count) for key, (value, count) in per_stream.items()})
        seconds = time.monotonic() - started
        done = _share_done(step, seconds, config)
        if progress is not None:
            progress(done, step, loss.item())
        if step % config.log_steps == 0 or done >= 1:
            curve.write(step, seconds, rate, "train", losses.take())
        if step % config.checkpoint_steps == 0 or done >= 1:
            curve.write(
                step, seconds, rate, "held out", evaluate(transformer, data, held_rows, config)
            )
            _checkpoint(folder / CHECKPOINT, transformer, optimizer, step, seconds, run)
    transformer.eval()
    seconds = time.monotonic() - started
    return PretrainingReport(
        steps=step,
        seconds=seconds,
        objects_per_second=step * config.batch_size / seconds,
        loss=evaluate(transformer, data, held_rows, config),
    )


def evaluate(
    transformer: Transformer, data: _Data, rows: Int64[ndarray, " row"], config: PretrainingConfig
) -> dict[str, float]:
    """Loss of each stream on some rows, with the same masks every time."""
    generator = torch.Generator().manual_seed(_seed(config.seed, 0))
    mean = _Mean()
    training = transformer.training
    transformer.eval()
    with torch.no_grad():
        for start in range(0, len(rows), config.batch_size):
            some = rows[start : start + config.batch_size]
            per_stream = _losses(transformer, data, some, config, generator)
            mean.add({key: (value.item(), count) for key, (value, count) in per_stream.items()})
    transformer.train(training)
    return mean.take()


@dataclass(frozen=True, slots=True)
class _Data:
    """A shard as one line of tokens a row, in the order of the model's layout."""

    ids: Int[Tensor, "row position"]  # layout ids
    present: Bool[Tensor, "row stream"]

    @classmethod
    def of(cls, shard: TokenShard, layout: Layout) -> _Data:
        missing = [key for key in layout.keys if key not in shard.tokens]
        if missing:
            raise ValueError(f"the token shard has no stream {missing[0]!r}")
        parts = []
        for key in layout.keys:
            codes = shard.tokens[key]
            if codes.shape[1] != layout.num_tokens[key]:
                raise ValueError(
                    f"the token shard has {codes.shape[1]} tokens of {key}, "
                    f"the model {layout.num_tokens[key]}"
                )
            parts.append(codes.astype(np.int32) + np.int32(layout.id_start[key]))
        present = np.stack([shard.present[key] for key in layout.keys], axis=1)
        return cls(
            torch.from_numpy(np.concatenate(parts, axis=1)),
            torch.from_numpy(present),
        )


def _losses(
    transformer: Transformer,
    data: _Data,
    rows: Int64[ndarray, " row"],
    config: PretrainingConfig,
    generator: torch.Generator,
) -> dict[str, tuple[Float[Tensor, ""], int]]:
    """Mean cross-entropy and number of asked tokens of each stream that was asked for."""
    picked = torch.from_numpy(rows)
    ids = data.ids[picked]
    masks = sample_masks(
        data.present[picked], transformer.stream_of_position, config.masking, generator
    )
    shown = ids.gather(1, masks.inputs)
    truth = ids.gather(1, masks.targets)
    stream = torch.where(
        masks.target_valid, transformer.stream_of_position[masks.targets], -1
    )  # (row, target)
    layout = transformer.layout
    losses = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
        encoded = transformer.encode_selected(shown, masks.inputs, masks.input_valid)
        states = transformer.decode(encoded, masks.targets, masks.target_valid)
        for number, key in enumerate(layout.keys):
            asked = stream == number
            count = int(asked.sum())
            if count:
                logits = transformer.logits(key, states[asked]).float()
                codes = truth[asked].long() - layout.id_start[key]
                losses[key] = (F.cross_entropy(logits, codes), count)
    return losses


def _combine(
    losses: Mapping[str, tuple[Float[Tensor, ""], int]], how: Literal["modality", "token"]
) -> Float[Tensor, ""]:
    values = torch.stack([value for value, _ in losses.values()])
    if how == "modality":
        return values.mean()
    counts = torch.tensor([count for _, count in losses.values()], dtype=values.dtype)
    return (values * counts).sum() / counts.sum()


def _parameter_groups(transformer: Transformer, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; scales, biases, modality vectors and the mask token do not."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in transformer.named_parameters():
        plain = parameter.ndim < 2 or name.endswith(("mod_emb", "mask_token"))
        (free if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def _schedule(done: float, warmup_share: float) -> float:
    """Linear up to 1 during the warm-up, then a cosine to 0."""
    if done < warmup_share:
        return max(done, 1e-4) / warmup_share
    return 0.5 * (1 + math.cos(math.pi * (done - warmup_share) / (1 - warmup_share)))


def _share_done(step: int, seconds: float, config: PretrainingConfig) -> float:
    time_share = 0.0 if config.max_seconds is None else seconds / config.max_seconds
    return max(step / config.steps, time_share)


def _split(
    objects: Int64[ndarray, " row"], validation_share: float
) -> tuple[Int64[ndarray, " train"], Int64[ndarray, " held"]]:
    """Rows to train on and rows held out; all rows of one object fall on one side."""
    distinct = np.unique(objects)
    every = round(1 / validation_share) if validation_share else len(distinct) + 1
    held = np.isin(objects, distinct[every - 1 :: every])
    rows = np.arange(len(objects), dtype=np.int64)
    if held.all():
        raise ValueError(f"{len(distinct)} objects leave none to train on")
    return rows[~held], rows[held]


def _rows_of_step(
    rows: Int64[ndarray, " row"], step: int, config: PretrainingConfig
) -> Int64[ndarray, " batch"]:
    """The batch of a step: every epoch runs through all rows in a new order."""
    size = min(config.batch_size, len(rows))
    steps_an_epoch = len(rows) // size
    epoch, part = divmod(step - 1, steps_an_epoch)
    order = np.random.default_rng([config.seed, epoch]).permutation(rows)
    return order[part * size : (part + 1) * size]


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


class _Mean:
    """Running means of losses, weighted by how many tokens were asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, losses: Mapping[str, tuple[float, int]]) -> None:
        for key, (value, count) in losses.items():
            total, number = self._sums.get(key, (0.0, 0))
            self._sums[key] = (total + value * count, number + count)

    def take(self) -> dict[str, float]:
        """The means so far; starts again."""
        means = {key: total / number for key, (total, number) in self._sums.items()}
        self._sums = {}
        return means


class _Curve:
    """The loss curve as CSV; on resuming, lines after the checkpoint are dropped."""

    def __init__(self, file: Path, keys: tuple[str, ...], step: int) -> None:
        self._file, self._keys = file, keys
        kept = [line for line in _curve_lines(file) if int(line["step"]) <= step]
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self._columns())
            writer.writeheader()
            writer.writerows(kept)

    def write(
        self, step: int, seconds: float, rate: float, split: str, losses: Mapping[str, float]
    ) -> None:
        line = {"step": step, "seconds": f"{seconds:.1f}", "learning_rate": f"{rate:.3g}"}
        line |= {"split": split} | {key: f"{loss:.4f}" for key, loss in losses.items()}
        with self._file.open("a", newline="") as stream:
            csv.DictWriter(stream, self._columns()).writerow(line)

    def _columns(self) -> list[str]:
        return ["step", "seconds", "learning_rate", "split", *self._keys]


def _curve_lines(file: Path) -> Iterator[dict[str, str]]:
    if file.is_file():
        with file.open(newline="") as stream:
            yield from csv.DictReader(stream)


def _describe(
    transformer: Transformer, shard: TokenShard, config: PretrainingConfig
) -> dict[str, object]:
    """What a checkpoint must have in common with the run that resumes it, as JSON values."""
    return {
        "model": dump_config(transformer.config),
        "training": dump_config(config),
        "rows": len(shard),
        "made_from": shard.made_from,
    }


def _checkpoint(
    file: Path,
    transformer: Transformer,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    run: Mapping[str, object],
) -> None:
    """One file with weights, optimizer tensors and, as JSON in its header, the counters."""
    tensors = {f"model.{name}": value for name, value in transformer.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    counters = {"step": step, "seconds": seconds, "run": run}
    write_tensors(file, tensors, metadata={"counters": json.dumps(counters)})


def _resume(
    file: Path,
    transformer: Transformer,
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, object],
) -> tuple[int, float]:
    """Load a checkpoint if there is one; steps and seconds already spent."""
    if not file.is_file():
        return 0, 0.0
    tensors = read_tensors(file)
    with safe_open(file, framework="pt") as header:
        counters = json.loads(header.metadata()["counters"])
    if counters["run"] != run:
        raise ValueError(
            f"{file} is of a run with another model, other data or other settings: "
            "remove it, or train in another folder"
        )
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            number, _, field = rest.partition(".")
            state.setdefault(int(number), {})[field] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(counters["step"]), float(counters["seconds"])
