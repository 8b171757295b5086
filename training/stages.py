"""The stages that make an encoder from a recipe, each resting on the files of the last.

    tokenizers    <out>/codecs/, tokenizers.json
    encoder       <out>/tokens.npz, config.json, model.safetensors, curve.csv, encoder.json
    search head   <out>/vectors.npz, head/, search_head.json

Files of observations are read by several processes; what they make does not depend on how many.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from training import artifact, pretraining, tokenizer_fitting
from training.artifact import write_text
from training.augmentation import turn
from training.observations import ObservationBatch
from training.recipe import Recipe, sky_config
from training.surveys import reader
from training.tokens import TokenShard, concatenate, pack
from training.transformer import Transformer
from training.transformer_config import Domain

Progress = Callable[[str, float], None]  # what is being done, share of it done
Figures = dict[str, Any]

SKY = "sky"
TOKENS = "tokens.npz"
Task = TypeVar("Task")
Result = TypeVar("Result")


def prepare_data(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> list[Path]:
    """The files to train on; a sky that the recipe asks for is simulated once."""
    sources = list(recipe.data.sources)
    survey = reader(recipe.data.survey)
    if not sources:
        from training.surveys import simulated

        folder = simulated.simulate(
            sky_config(recipe, where=out),
            out / SKY,
            num_workers=num_workers,
            progress=lambda done, total: progress("simulating the sky", done / total),
        )
        sources = [folder]
    return [file for source in sources for file in survey.list_files(source)]


def fit_tokenizers(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Fit image, spectrum and scalar tokenizers on the recipe's data.

    Returns:
        Reconstruction figures on held-out objects, also written to tokenizers.json.
    """
    files = prepare_data(recipe, out, progress, num_workers=num_workers)
    data = tokenizer_fitting.collect(
        _batches(recipe.data.survey, files, progress),
        max_images=recipe.image_tokenizer.max_images,
        max_spectra=recipe.spectrum_tokenizer.max_spectra,
    )
    tokenizer_fitting.fit_scalars(
        {
            key: values
            for key, values in data.scalars.items()
            if key in recipe.encoder.model.domains_in
        },
        num_bins=recipe.scalars.num_bins,
        redshift=recipe.scalars.redshift,
        folder=out,
    )
    image = tokenizer_fitting.fit_image_tokenizer(
        data.images,
        recipe.image_tokenizer.model,
        recipe.image_tokenizer.training,
        folder=out,
        progress=lambda step, steps, _: progress("fitting the image tokenizer", step / steps),
    )
    spectrum = tokenizer_fitting.fit_spectrum_tokenizer(
        data.spectra,
        recipe.spectrum_tokenizer.model,
        recipe.spectrum_tokenizer.training,
        folder=out,
        progress=lambda step, steps, _: progress("fitting the spectrum tokenizer", step / steps),
    )
    return report(out, "tokenizers", {"image": image.figures, "spectrum": spectrum.figures})


def train_encoder(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Tokenize the data with the tokenizers in `out`, and train the transformer on the tokens.

    Tokens of the same tokenizers and settings are used again; a checkpoint is resumed.

    Raises:
        ValueError: a tokenizer is missing or does not fit the model's streams.
    """
    model, training = recipe.encoder.model, recipe.encoder.training
    read: artifact.Read = {}
    codecs = artifact.load_codecs(out, tuple(model.domains_in), read=read)
    artifact.check_vocabularies(model, codecs, where=out)
    files = prepare_data(recipe, out, progress, num_workers=num_workers)
    origin = made_from(
        files,
        recipe,
        codecs=artifact.hash_of(read),
        copies=recipe.encoder.copies,
        seed=training.seed,
    )
    shard = TokenShard.read(out / TOKENS) if (out / TOKENS).is_file() else None
    if shard is None or shard.made_from != origin:
        tasks = [
            _TokenTask(number, file, recipe.data.survey, recipe.encoder.copies, training.seed)
            for number, file in enumerate(files)
        ]
        state = (out, dict(model.domains_in))
        shards = in_processes(
            _tokenize_file, tasks, _load_codecs, state, num_workers, progress, "tokenizing"
        )
        shard = concatenate(shards, made_from=origin)
        shard.write(out / TOKENS)
    torch.manual_seed(training.seed)
    transformer = Transformer(model)
    trained = pretraining.pretrain(
        transformer,
        shard,
        training,
        out,
        progress=lambda done, step, loss: progress(
            f"training the encoder, step {step:,}, loss {loss:.2f}", done
        ),
    )
    artifact.save(out, transformer=transformer, codecs=codecs, half=recipe.encoder.half)
    return report(
        out,
        "encoder",
        {
            "parameters": sum(tensor.numel() for tensor in transformer.parameters()),
            "rows": len(shard),
            "steps": trained.steps,
            "seconds": trained.seconds,
            "objects_per_second": trained.objects_per_second,
            "loss": dict(trained.loss),
            "perplexity": trained.perplexity(),
        },
    )


@dataclass(frozen=True, slots=True)
class _TokenTask:
    number: int  # of the file
    file: Path
    survey: str
    copies: int
    seed: int


MAX_OBJECTS_A_FILE = 1_000_000  # object numbers are file number times this, plus a row

# What a worker process loads once for all its tasks.
_codecs: dict[str, artifact.Codec] = {}
_domains: dict[str, Domain] = {}


def _load_codecs(folder: Path, domains: dict[str, Domain]) -> None:
    torch.set_num_threads(1)
    _codecs.update(artifact.load_codecs(folder, tuple(domains)))
    _domains.update(domains)


def _tokenize_file(task: _TokenTask) -> TokenShard:
    rng = np.random.default_rng([task.seed, task.number])
    shards = []
    start = task.number * MAX_OBJECTS_A_FILE
    for batch in reader(task.survey).read(task.file):
        seen = batch.observations
        copies = [turn(one, rng) for one in seen for _ in range(task.copies)]
        objects = [start + row for row in range(len(seen)) for _ in range(task.copies)]
        shards.append(pack(copies, objects, _codecs, _domains))
        start += len(seen)
    return concatenate(shards)


def made_from(files: Sequence[Path], recipe: Recipe, **settings: object) -> str:
    """One line that changes when anything does that tokens or vectors are made from."""
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([recipe.data.survey, seen, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def in_processes(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    load: Callable[..., None],
    state: tuple[Any, ...],
    num_workers: int | None,
    progress: Progress,
    what: str,
) -> list[Result]:
    """Results in the order of the tasks, from processes that each load the models once."""
    results = []
    with ProcessPoolExecutor(
        max_workers=min(num_workers or os.cpu_count() or 1, max(len(tasks), 1)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=load,
        initargs=state,
    ) as pool:
        for done, result in enumerate(pool.map(work, tasks), start=1):
            results.append(result)
            progress(what, done / len(tasks))
    return results


def _batches(survey: str, files: Sequence[Path], progress: Progress) -> Iterator[ObservationBatch]:
    for number, file in enumerate(files, start=1):
        yield from reader(survey).read(file)
        progress("reading", number / len(files))


def report(out: Path, name: str, figures: Figures) -> Figures:
    """Write what a stage reached beside what it made, with the revision of the code."""
    text = json.dumps({"revision": _revision(), **figures}, indent=2)
    write_text(out / f"{name}.json", text + "\n")
    return figures


def _revision() -> str:
    """Git revision of the running code, "" where it is not a checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:  # no git on this machine
        return ""
    return found.stdout.strip()
