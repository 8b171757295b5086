"""The stage that makes an encoder from token shards, in one process or in many.

<out>/tokens/          token shards of every data set
<out>/checkpoints/     the last three; a run that was stopped goes on from the newest
<out>/curve.csv, <out>/tensorboard/
<out>/config.json, <out>/model.safetensors, <out>/encoder.json
"""

from __future__ import annotations

from pathlib import Path

from training import artifact, pretraining
from training.code_values import code_values
from training.devices import launch
from training.pooling_stage import make_pooling
from training.pretraining_report import Progress as TrainingProgress
from training.processes import is_first
from training.recipe import Recipe
from training.stages import Figures, Progress, open_labels, report
from training.start import read_start
from training.tokenizing import open_data, tokenize_data


def make_tokens(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Tokenize the data with the tokenizers in `out`; what is there already stays.

    Raises:
        ValueError: as tokenize_data.
    """
    skipped = tokenize_data(recipe, out, progress, num_workers=num_workers)
    return {
        "rows": {each.name: len(each) for each in open_data(recipe, out)},
        "skipped": skipped,
    }


def train_encoder(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Tokenize the data with the tokenizers in `out`, and train the transformer on the tokens.

    Of several processes the first tokenizes, while the others wait for it, and writes all files.

    Returns:
        What was reached, also written to encoder.json.

    Raises:
        ValueError: a tokenizer is missing or does not fit the model's streams; or as `pretrain`.
    """
    model, training = recipe.encoder.trained, recipe.encoder.training
    skipped = tokenize_data(recipe, out, progress, num_workers=num_workers) if is_first() else 0
    fabric = launch(
        device=training.device, strategy=training.strategy, precision=training.precision
    )
    fabric.barrier()
    sets = open_data(recipe, out)

    def show(now: TrainingProgress) -> None:
        streams = "".join(f", {key} {loss:.2f}" for key, loss in now.streams.items())
        speed = ""
        if now.tokens_per_second:
            speed = f", {now.tokens_per_second:,.0f} tokens/s, MFU {now.mfu:.0%}"
        minutes, seconds = divmod(round(now.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f", {hours}:{minutes:02d}:{seconds:02d} left"
        what = f"training the encoder, step {now.step:,}, loss {now.loss:.2f}"
        progress(what + streams + speed + left, now.done)

    values = {}
    if training.value_share:
        values = code_values(model.domains_in, artifact.load_codecs(out, tuple(model.domains_in)))
    start = None if training.begin is None else read_start(training.begin, model, out)
    transformer, trained = pretraining.pretrain(
        model, sets, training, out,
        labels=open_labels(recipe, out), values=values, start=start, fabric=fabric, progress=show,
    )  # fmt: skip
    figures: Figures = {
        "parameters": sum(tensor.numel() for tensor in transformer.parameters()),
        "rows": {each.name: len(each) for each in sets},
        "skipped": skipped,
        "gaia": recipe.encoder.gaia,
        "steps": trained.steps,
        "seconds": trained.seconds,
        "objects_per_second": trained.objects_per_second,
        "tokens_per_second": trained.tokens_per_second,
        "mfu": trained.mfu,
        "data_wait": trained.data_wait,
        "processes": trained.world_size,
        "loss": dict(trained.loss),
        "perplexity": trained.perplexity(),
    }
    if is_first():
        # the tokenizers stay as they are: tokens are known by the bytes of what made them
        artifact.save(out, transformer=transformer, codecs={}, half=recipe.encoder.half)
        if recipe.encoder.pools:
            make_pooling(recipe, out, progress, num_workers=num_workers)
        report(out, "encoder", figures)
    fabric.barrier()
    return figures
