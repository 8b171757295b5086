"""The three stages that make an encoder from a recipe, each resting on the files of the last.

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

from training import artifact, encoder, pretraining, search_head, tokenizer_fitting
from training.artifact import write_text
from training.augmentation import disturb, turn
from training.observations import Observation, ObservationBatch
from training.recipe import Recipe, sky_config
from training.search_head import ViewVectors
from training.surveys import reader
from training.tokens import TokenShard, concatenate, pack
from training.transformer import Transformer
from training.transformer_config import Domain

Progress = Callable[[str, float], None]  # what is being done, share of it done
Figures = dict[str, Any]

SKY = "sky"
TOKENS = "tokens.npz"
VECTORS = "vectors.npz"
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
    return _report(out, "tokenizers", {"image": image.figures, "spectrum": spectrum.figures})


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
    made_from = _made_from(
        files,
        recipe,
        codecs=artifact.hash_of(read),
        copies=recipe.encoder.copies,
        seed=training.seed,
    )
    shard = TokenShard.read(out / TOKENS) if (out / TOKENS).is_file() else None
    if shard is None or shard.made_from != made_from:
        tasks = [
            _TokenTask(number, file, recipe.data.survey, recipe.encoder.copies, training.seed)
            for number, file in enumerate(files)
        ]
        state = (out, dict(model.domains_in))
        shards = _in_processes(
            _tokenize_file, tasks, _load_codecs, state, num_workers, progress, "tokenizing"
        )
        shard = concatenate(shards, made_from=made_from)
        shard.write(out / TOKENS)
    torch.manual_seed(training.seed)
    transformer = Transformer(model)
    report = pretraining.pretrain(
        transformer,
        shard,
        training,
        out,
        progress=lambda done, step, loss: progress(
            f"training the encoder, step {step:,}, loss {loss:.2f}", done
        ),
    )
    artifact.save(out, transformer=transformer, codecs=codecs, half=recipe.encoder.half)
    return _report(
        out,
        "encoder",
        {
            "parameters": sum(tensor.numel() for tensor in transformer.parameters()),
            "rows": len(shard),
            "steps": report.steps,
            "seconds": report.seconds,
            "objects_per_second": report.objects_per_second,
            "loss": dict(report.loss),
            "perplexity": report.perplexity(),
        },
    )


def train_search_head(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Embed disturbed copies with the encoder in `out`, and train its search head on them.

    Raises:
        ValueError: the encoder is missing, or the data holds too little to learn from.
    """
    settings = recipe.search_head
    frozen = encoder.load(out)
    files = prepare_data(recipe, out, progress, num_workers=num_workers)
    made_from = _made_from(
        files,
        recipe,
        encoder=frozen.hash,
        augmentation=artifact.dump_config(settings.augmentation),
        copies=settings.copies,
        max_objects=settings.max_objects,
        seed=settings.seed,
    )
    data = _read_vectors(out / VECTORS, made_from)
    if data is None:
        tasks, left = [], settings.max_objects
        for number, file in enumerate(files):
            share = -(-left // (len(files) - number))  # spread over all files
            tasks.append(_VectorTask(number, file, recipe, share))
            left -= share
        parts = _in_processes(
            _embed_file, tasks, _load_encoder, (out,), num_workers, progress, "embedding copies"
        )
        data = _join(parts)
        _write_vectors(out / VECTORS, data, made_from)
    head, report = search_head.fit(
        data,
        settings.training,
        progress=lambda done, step, loss: progress(
            f"training the search head, step {step:,}, loss {loss:.2f}", done
        ),
    )
    artifact.save_head(out, head, half=recipe.encoder.half)
    return _report(
        out,
        "search_head",
        {
            "encoder": frozen.hash,
            "vectors": {view: len(part.objects) for view, part in data.items()},
            "steps": report.steps,
            "seconds": report.seconds,
            "loss": report.loss,
            "accuracy": report.accuracy,
        },
    )


@dataclass(frozen=True, slots=True)
class _TokenTask:
    number: int  # of the file
    file: Path
    survey: str
    copies: int
    seed: int


@dataclass(frozen=True, slots=True)
class _VectorTask:
    number: int
    file: Path
    recipe: Recipe
    max_objects: int


MAX_OBJECTS_A_FILE = 1_000_000  # object numbers are file number times this, plus a row

# What a worker process loads once for all its tasks.
_codecs: dict[str, artifact.Codec] = {}
_domains: dict[str, Domain] = {}
_encoders: list[encoder.Encoder] = []


def _load_codecs(folder: Path, domains: dict[str, Domain]) -> None:
    torch.set_num_threads(1)
    _codecs.update(artifact.load_codecs(folder, tuple(domains)))
    _domains.update(domains)


def _load_encoder(folder: Path) -> None:
    torch.set_num_threads(1)
    # Rounding is far below the disturbances that the head learns to ignore.
    _encoders[:] = [encoder.load(folder, precision="bfloat16")]


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


def _embed_file(task: _VectorTask) -> dict[str, ViewVectors]:
    settings = task.recipe.search_head
    rng = np.random.default_rng([settings.seed, task.number])
    objects: dict[str, list[int]] = {}
    vectors: dict[str, list[np.ndarray]] = {}
    start = task.number * MAX_OBJECTS_A_FILE
    left = task.max_objects
    for batch in reader(task.recipe.data.survey).read(task.file):
        seen: Sequence[Observation] = batch.observations[:left]
        left -= len(seen)
        read = [number for number, one in enumerate(seen) if _encoders[0].views(one)]
        copies = [
            disturb(seen[number], rng, settings.augmentation)
            for number in read
            for _ in range(settings.copies)
        ]
        embedded = _encoders[0].embed(copies)
        for row, view, vector in zip(
            embedded.rows.tolist(), embedded.views, embedded.vectors, strict=True
        ):
            objects.setdefault(view, []).append(start + read[row // settings.copies])
            vectors.setdefault(view, []).append(vector)
        start += len(seen)
        if not left:
            break
    return {
        view: ViewVectors(
            objects=np.array(objects[view], dtype=np.int64), vectors=np.stack(vectors[view])
        )
        for view in objects
    }


def _join(parts: Sequence[dict[str, ViewVectors]]) -> dict[str, ViewVectors]:
    views = sorted({view for part in parts for view in part}, key=encoder.VIEWS.index)
    return {
        view: ViewVectors(
            objects=np.concatenate([part[view].objects for part in parts if view in part]),
            vectors=np.concatenate([part[view].vectors for part in parts if view in part]),
        )
        for view in views
    }


def _write_vectors(file: Path, data: dict[str, ViewVectors], made_from: str) -> None:
    arrays: dict[str, np.ndarray] = {"made_from": np.array(made_from)}
    for view, part in data.items():
        arrays |= {f"objects/{view}": part.objects, f"vectors/{view}": part.vectors}
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    os.replace(partial, file)


def _read_vectors(file: Path, made_from: str) -> dict[str, ViewVectors] | None:
    """Vectors of an earlier run; None where there are none, or of other settings."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        if str(stored["made_from"]) != made_from:
            return None
        return {
            view: ViewVectors(objects=stored[f"objects/{view}"], vectors=stored[f"vectors/{view}"])
            for view in encoder.VIEWS
            if f"objects/{view}" in stored.files
        }


def _made_from(files: Sequence[Path], recipe: Recipe, **settings: object) -> str:
    """One line that changes when anything does that tokens or vectors are made from."""
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([recipe.data.survey, seen, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _in_processes(
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


def _report(out: Path, name: str, figures: Figures) -> Figures:
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
