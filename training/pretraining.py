"""Masked modelling: from some tokens of an object, of any modality, predict some of the others.

Source: arXiv 2510.17960 (AdamW with betas 0.9 and 0.95, weight decay 0.05, linear warm-up, then a
cosine to zero). Every step draws its objects and its masks from (seed, step) alone, whatever the
number of processes, so a run that was interrupted goes on exactly where its last checkpoint stood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from training import checkpoint
from training.artifact import dump_config
from training.checkpoint import State
from training.code_values import Values, drawn_by_value
from training.devices import build, launch, set_up
from training.labels import NO_LABELS, Labels
from training.loader import Loader, LoaderConfig, Step
from training.not_finite import LossNotFinite, save_batch
from training.objective import losses, token_weights
from training.pretraining_config import MAY_CHANGE, PretrainingConfig
from training.pretraining_report import PretrainingReport, Progress
from training.schedule import rate_share, share_done
from training.shards import TokenSet
from training.start import Start, drawn_from
from training.throughput import Meter, Work, peak_flops, work_of
from training.transformer import Transformer, initialise
from training.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule

KINSHIP = "kinship"  # the name of its loss, beside those of streams


def pretrain(
    model: TransformerConfig,
    sets: Sequence[TokenSet],
    config: PretrainingConfig,
    folder: Path,
    *,
    labels: Labels = NO_LABELS,
    values: Mapping[str, Values] | None = None,
    start: Start | None = None,
    fabric: Fabric | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Transformer, PretrainingReport]:
    """Train a transformer on token shards.

    Args:
        model: Its sizes and streams.
        sets: Tokens of all objects; several sets are mixed by their weights.
        config: How long and how fast.
        folder: Receives the curves and checkpoints; a checkpoint found there is resumed.
        labels: What is known of objects, for kinship.
        values: Places of codes, from `code_values`, for a value_share.
        start: From `read_start`, where the configuration says what to begin from.
        fabric: From `devices.launch`; None launches one as the configuration says.
        progress: Called after each step, in the first process alone.

    Returns:
        The transformer in evaluation mode on the CPU (in the first process of several; others get
        one without weights), and what the run reached.

    Raises:
        ValueError: the shards do not fit the model or leave no row to train on, kinship asks for
            labels, value_share for values or begin for a start and there are none, or a checkpoint
            is of another configuration.
        LossNotFinite: names the file that holds the batch.
    """
    torch.set_num_threads(config.num_threads)
    folder.mkdir(parents=True, exist_ok=True)
    if fabric is None:
        fabric = launch(device=config.device, strategy=config.strategy, precision=config.precision)
    run = _Run.begin(model, sets, config, folder, fabric, labels, values or {}, start)
    report = run.train(progress)
    return run.result(), report


class _Run:
    """One process's share of a run."""

    def __init__(
        self,
        fabric: Fabric,
        wrapped: _FabricModule,
        transformer: Transformer,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        config: PretrainingConfig,
        folder: Path,
        settings: Mapping[str, Any],
    ) -> None:
        self.fabric, self.wrapped, self.transformer = fabric, wrapped, transformer
        self.optimizer, self.loader, self.config = optimizer, loader, config
        self.folder, self.settings = folder, settings
        self.step, self.spent, self.position = 0, 0.0, loader.start()
        self.keys = (*loader.layout.keys, *([KINSHIP] if config.kinship is not None else []))
        zeros = torch.zeros(len(self.keys), dtype=torch.float64, device=fabric.device)
        self.sums, self.counts = zeros, zeros.clone()  # since the curve's last line
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.meter = Meter(peak_flops(fabric.device, dtype=dtype))
        self.rates: dict[str, float] = {}
        self.streams: dict[str, float] = {}

    @classmethod
    def begin(
        cls,
        model: TransformerConfig,
        sets: Sequence[TokenSet],
        config: PretrainingConfig,
        folder: Path,
        fabric: Fabric,
        labels: Labels,
        values: Mapping[str, Values],
        start: Start | None,
    ) -> _Run:
        """Set up a run, and put it where its newest checkpoint stands."""
        kinship = config.kinship
        if _reads_labels(config):
            of_shards = (labels.of(part) for each in sets for part in each.objects())
            if not any(known.any() for known in of_shards):
                raise ValueError(
                    f"kinship.label_share asks for labels, and of {sum(map(len, sets)):,} rows "
                    f"none has one: the {len(labels):,} labelled objects have other ids"
                )
        loader = Loader(
            sets,
            model,
            LoaderConfig(
                masking=config.masking,
                batch_size=config.batch_size,
                micro_batch_size=config.micro_batch_size,
                validation_share=config.validation_share,
                max_validation_rows=config.max_validation_rows,
                seed=config.seed,
                fixed_shape=config.compile,
                rows_per_object=1 if kinship is None else kinship.rows_per_object,
                kinship=kinship is not None,
            ),
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            labels=labels,
        )
        settings = _describe(model, sets, config, labels, start)
        resumed = checkpoint.newest(folder)
        if resumed is not None:
            checkpoint.check_same_run(*resumed, settings)
        if config.value_share and not values:
            raise ValueError(
                f"value_share {config.value_share} asks for values of codes, and there are none"
            )
        if (start is None) != (config.begin is None):
            came = "there is no start" if start is None else f"a start, {start.digest}, came"
            raise ValueError(f"begin is {config.begin!r}, and {came}")
        draw = drawn_by_value(values, config.value_share) if config.value_share else initialise
        if start is not None:
            draw = drawn_from(start)
        module = build(
            model, seed=config.seed, kinship=kinship, draw=draw,
            decoder_only=config.train_only == "decoder",
        )  # fmt: skip
        wrapped, optimizer = set_up(
            fabric, module,
            learning_rate=config.learning_rate, weight_decay=config.weight_decay,
            compiled=config.compile, checkpointed=config.checkpoint_activations,
        )  # fmt: skip
        run = cls(fabric, wrapped, module.transformer, optimizer, loader, config, folder, settings)
        if resumed is not None:
            place, state = resumed
            checkpoint.restore(place, module.transformer, optimizer)
            run.step, run.spent, run.position = state.step, state.seconds, dict(state.position)
            if fabric.global_rank == 0:
                run.sums += run.sums.new_tensor(state.sums["sums"])
                run.counts += run.counts.new_tensor(state.sums["counts"])
        return run

    def train(self, progress: Callable[[Progress], None] | None) -> PretrainingReport:
        """The loop."""
        from training.curves import Curves

        config, first = self.config, self.fabric.global_rank == 0
        curves = Curves(self.folder, self.keys, step=self.step) if first else None
        begun, begun_at = time.monotonic(), self.step
        started = begun - self.spent
        done = self._done(self.spent)
        steps = self.loader.steps(self.step + 1, self.position, last=config.steps)
        self.wrapped.train()
        held_out: dict[str, float] | None = None
        try:
            while done < 1:
                asked_at = time.perf_counter()
                step = next(steps)
                wait = time.perf_counter() - asked_at
                rate = config.learning_rate * rate_share(done, config.warmup_share)
                seconds, loss, norm = self._step(step, rate, wait, time.monotonic() - started)
                done = self._done(seconds)
                if self.step % config.log_steps == 0 or done >= 1:
                    numbers = {"seconds": seconds, "learning_rate": rate, "gradient_norm": norm}
                    self._log(curves, numbers)
                if self.step % config.checkpoint_steps == 0 or done >= 1:
                    held_out = self._evaluate()
                    if curves is not None and held_out:
                        curves.write(self.step, "held out", {"seconds": seconds} | held_out)
                    self._checkpoint(seconds)
                if first and progress is not None:
                    progress(self._progress(done, loss, time.monotonic() - begun, begun_at))
        finally:
            steps.close()
            if curves is not None:
                curves.close()
        seconds = time.monotonic() - begun
        return PretrainingReport(
            steps=self.step,
            seconds=self.spent + seconds,
            objects_per_second=(self.step - begun_at) * self.loader.num_objects / seconds,
            tokens_per_second=self.rates.get("tokens_per_second", 0.0),
            mfu=self.rates.get("mfu", 0.0),
            data_wait=self.rates.get("data_wait", 0.0),
            world_size=self.fabric.world_size,
            loss=self._evaluate() if held_out is None else held_out,
        )

    def _step(
        self, step: Step, rate: float, wait: float, seconds: float
    ) -> tuple[float, float, float]:
        """One step of the optimizer; seconds as all processes agree on, loss, gradient norm."""
        config, device = self.config, self.fabric.device
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        counts = torch.tensor([batch.counts for batch in step.batches], dtype=torch.float64).sum(0)
        agreed = self._summed(torch.cat([counts, counts.new_tensor([seconds])]))
        seconds = float(agreed[-1]) / self.fabric.world_size
        # gradients are averaged over processes, the loss is summed over the whole batch
        weights = token_weights(agreed[:-1], config.loss)
        if config.kinship is not None:
            weights = torch.cat([weights, weights.new_tensor([config.kinship.weight])])
            counts = torch.cat([counts, counts.new_tensor([1 / self.fabric.world_size])])
        weights = weights.to(device) * self.fabric.world_size
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros_like(self.sums)
        total, work = torch.zeros((), device=device), Work(0, 0.0)
        for number, batch in enumerate(step.batches):
            last = number == len(step.batches) - 1
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                per_stream = losses(self.wrapped, batch.to(device))
                loss = (per_stream * weights).sum()
                self.fabric.backward(loss)
            sums += per_stream.detach()
            total += loss.detach()
            work += work_of(batch, self.transformer.config)
        norm = float(
            checkpoint.full(
                nn.utils.clip_grad_norm_(self.transformer.parameters(), config.max_gradient_norm)
            )
        )
        if not math.isfinite(norm):
            rank = self.fabric.global_rank
            file = self.folder / f"not-finite-step-{step.number:09d}-process-{rank}.safetensors"
            summed = dict(zip(self.keys, sums.tolist(), strict=True))
            saved = save_batch(step, summed, [each.name for each in self.loader.sets], file)
            raise LossNotFinite(
                f"{saved}, the last checkpoint in {self.folder / checkpoint.CHECKPOINTS}; try a "
                "lower learning_rate or a longer warmup_share"
            )
        self.optimizer.step()
        self.step, self.position = step.number, step.after
        self.sums += sums
        self.counts += counts.to(device)
        self.meter.add(work, wait)
        return seconds, float(total), norm

    def _log(self, curves: Any, numbers: Mapping[str, float]) -> None:
        """Write the means since the last line; all processes take part."""
        rates = self.meter.read()
        shared = self._summed(
            torch.cat([self.sums, self.counts, self.sums.new_tensor(list(rates.values()))])
        ).tolist()
        num = len(self.sums)
        sums, counts = shared[:num], shared[num : 2 * num]
        self.rates = dict(zip(rates, shared[2 * num :], strict=True))
        for name in ("mfu", "data_wait"):
            self.rates[name] /= self.fabric.world_size
        self.streams = _means(self.keys, sums, counts)
        num_streams = len(self.loader.layout.keys)
        loss = sum(sums[:num_streams]) / max(sum(counts[:num_streams]), 1)
        if self.config.loss == "modality":
            of_streams = [each for key, each in self.streams.items() if key != KINSHIP]
            loss = sum(of_streams) / max(len(of_streams), 1)
        if self.config.kinship is not None:
            loss += self.config.kinship.weight * self.streams[KINSHIP]
        if curves is not None:
            line = {**numbers, "loss": loss, **self.rates, **self.streams}
            curves.write(self.step, "train", line)
        self.sums.zero_()
        self.counts.zero_()

    def _evaluate(self) -> dict[str, float]:
        """Losses of the held-out rows by stream."""
        keys = self.loader.layout.keys
        sums = torch.zeros(len(keys), dtype=torch.float64, device=self.fabric.device)
        counts = torch.zeros_like(sums)
        self.wrapped.eval()
        with torch.no_grad():
            for batch in self.loader.held_out():
                sums += losses(self.wrapped, batch.to(self.fabric.device))
                counts += torch.tensor(batch.counts, device=counts.device)
        self.wrapped.train()
        shared = self._summed(torch.cat([sums, counts])).tolist()
        return _means(keys, shared[: len(sums)], shared[len(sums) :])

    def _checkpoint(self, seconds: float) -> None:
        first = self.fabric.global_rank == 0
        shared = self._summed(torch.stack([self.sums, self.counts])).tolist()
        tensors = checkpoint.gathered(self.transformer, self.optimizer, keep=first)
        if first:
            state = State(
                step=self.step, seconds=seconds, position=self.position,
                sums=dict(zip(("sums", "counts"), shared, strict=True)), run=self.settings,
            )  # fmt: skip
            checkpoint.write(self.folder, tensors, state)

    def _summed(self, numbers: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The sum over all processes."""
        if self.fabric.world_size == 1:
            return numbers
        there = numbers.to(self.fabric.device)
        summed = self.fabric.all_reduce(there, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed.to(numbers.device)

    def _done(self, seconds: float) -> float:
        return share_done(
            self.step, seconds, steps=self.config.steps, max_seconds=self.config.max_seconds
        )

    def _progress(self, done: float, loss: float, seconds: float, begun_at: int) -> Progress:
        left = [(self.config.steps - self.step) * seconds / max(self.step - begun_at, 1)]
        if self.config.max_seconds is not None:
            left.append(self.config.max_seconds - self.spent - seconds)
        return Progress(
            done=done, step=self.step, loss=loss, seconds_left=max(min(left), 0.0),
            streams=self.streams,
            tokens_per_second=self.rates.get("tokens_per_second", 0.0),
            mfu=self.rates.get("mfu", 0.0),
        )  # fmt: skip

    def result(self) -> Transformer:
        """The trained transformer whole and on the CPU, in the first process."""
        first = self.fabric.global_rank == 0
        weights = checkpoint.gathered(self.transformer, self.optimizer, keep=first)["weights"]
        whole = build(self.transformer.config, seed=self.config.seed)
        if first:
            assert whole.prepare is not None
            whole.prepare(whole)
            with torch.no_grad():
                for name, parameter in whole.transformer.named_parameters():
                    parameter.copy_(weights[name])
        return whole.transformer.eval()


def _means(keys: Sequence[str], sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    return {k: s / n for k, s, n in zip(keys, sums, counts, strict=True) if n}


def _reads_labels(config: PretrainingConfig) -> bool:
    return config.kinship is not None and config.kinship.label_share > 0


def _describe(
    model: TransformerConfig,
    sets: Sequence[TokenSet],
    config: PretrainingConfig,
    labels: Labels,
    start: Start | None,
) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that resumes it, as JSON values."""
    training = {k: v for k, v in dump_config(config).items() if k not in MAY_CHANGE}
    del training["begin"]  # known by its weights, wherever its folder lies now
    if start is not None:
        training["begin"] = start.digest
    return {
        "model": dump_config(model),
        "training": training,
        "data": {each.name: {"rows": len(each), "weight": each.weight} for each in sets},
        "labels": labels.digest if _reads_labels(config) else None,
    }
