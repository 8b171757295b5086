"""The stages that make an encoder from a recipe, each resting on the files of the last.

    tokenizers    <out>/codecs/, tokenizers.json
    encoder       <out>/tokens/, config.json, model.safetensors, curve.csv, encoder.json
    pooling       <out>/pooling/, pooling.json
    decoder       <out>/model.safetensors, decoder.json
    search head   <out>/vectors.npz, head/, search_head.json

Each has a module of its own, tokenizer_stage.py, encoder_stage.py, pooling_stage.py,
decoder_stage.py and head_stage.py.

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
from pathlib import Path
from typing import Any, TypeVar

from training.artifact import write_text
from training.labels import NO_LABELS, Labels, read_labels
from training.observations import ObservationBatch
from training.processes import end_with_parent
from training.recipe import DataSetRecipe, Recipe, sky_config
from training.surveys import reader

Progress = Callable[[str, float], None]  # what is being done, share of it done
Figures = dict[str, Any]

SKY = "sky"
Task = TypeVar("Task")
Result = TypeVar("Result")


def prepare_data(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> list[Path]:
    """The files to train on; a sky that the recipe asks for is simulated once.

    Raises:
        ValueError: there is no such file, or the recipe's labels cannot be read.
    """
    if not any(single.sources for single in recipe.data.singles):
        from training.surveys import simulated

        simulated.simulate(
            sky_config(recipe, where=out),
            out / SKY,
            num_workers=num_workers,
            progress=lambda done, total: progress("simulating the sky", done / total),
        )
    open_labels(recipe, out)  # what is wrong with them is better said now than in hours
    return [file for single in recipe.data.singles for file in files_of(recipe, single, out)]


def files_of(recipe: Recipe, single: DataSetRecipe, out: Path) -> list[Path]:
    """The files of one data set, once `prepare_data` was there."""
    survey = reader(recipe.data.survey)
    sources = single.sources or (out / SKY,)
    return [file for source in sources for file in survey.list_files(source)]


def open_labels(recipe: Recipe, out: Path) -> Labels:
    """The labels that a recipe names, once `prepare_data` was there; none where it names none.

    Raises:
        ValueError: as read_labels.
    """
    named = recipe.data.labels
    if named is None:
        return NO_LABELS
    return read_labels(named.file or out / SKY / "labels.csv", named.columns)


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
        initializer=_begin,
        initargs=(load, state),
    ) as pool:
        for done, result in enumerate(pool.map(work, tasks), start=1):
            results.append(result)
            progress(what, done / len(tasks))
    return results


def _begin(load: Callable[..., None], state: tuple[Any, ...]) -> None:
    end_with_parent()
    load(*state)


def batches(survey: str, files: Sequence[Path], progress: Progress) -> Iterator[ObservationBatch]:
    """All observations of some files, and how far their reading is."""
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
