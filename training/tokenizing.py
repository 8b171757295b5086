"""Files of observations to token shards, once; pairs of surveys are joined from their shards.

    <out>/tokens/<data set>/00012-000/    a shard: rows of file 12
    <out>/tokens/<data set>/00012.json    written when all shards of that file are there

A file whose record says that nothing has changed is not tokenized again, so work that was
interrupted goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import artifact
from training.artifact import write_text
from training.augmentation import turn
from training.paired_shards import write_pairs
from training.recipe import DataSetRecipe, Recipe
from training.shards import TokenSet, TokenShard, concatenate, pack
from training.stages import Progress, files_of, in_processes, made_from, prepare_data
from training.surveys import reader
from training.transformer_config import Domain

TOKENS = "tokens"
ROWS_A_SHARD = 65_536


def tokenize_data(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> int:
    """Tokenize all data sets of a recipe with the tokenizers in `out`.

    Returns:
        Rows that could not be read.

    Raises:
        ValueError: a tokenizer is missing or does not fit the model's streams, or a data set has
            no rows; names it.
    """
    model = recipe.encoder.model
    read: artifact.Read = {}
    codecs = artifact.load_codecs(out, tuple(model.domains_in), read=read)
    artifact.check_vocabularies(model, codecs, where=out)
    prepare_data(recipe, out, progress, num_workers=num_workers)
    seed = recipe.encoder.training.seed
    settings: dict[str, object] = {
        "codecs": artifact.hash_of(read),
        "streams": list(model.domains_in),
        "copies": recipe.encoder.copies,
        "seed": seed,
    }
    skipped = 0
    for single in recipe.data.singles:
        files = files_of(recipe, single, out)
        folder = out / TOKENS / single.name
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [
            _Task(
                number, file, recipe.data.survey, recipe.encoder.copies, seed, folder,
                made_from([file], recipe, number=number, **settings),
            )
            for number, file in enumerate(files)
        ]  # fmt: skip
        todo = [task for task in tasks if not task.is_done()]
        state = (out, dict(model.domains_in))
        if todo:
            what = f"tokenizing, {single.name}"
            in_processes(_tokenize_file, todo, _load_codecs, state, num_workers, progress, what)
        records = [json.loads(task.record.read_text()) for task in tasks]
        _keep_only(folder, tasks, [name for record in records for name in record["shards"]])
        skipped += sum(record["skipped"] for record in records)
        if not any(record["shards"] for record in records):
            raise ValueError(
                f"data set {single.name!r}: none of its {len(files):,} files gave a row of tokens"
            )
    for pair in recipe.data.pairs:
        _pair(recipe, pair, out, progress)
    return skipped


def open_data(recipe: Recipe, out: Path) -> list[TokenSet]:
    """The token sets of a recipe that its model can be trained on.

    Without Gaia (`gaia = false`) data sets that hold nothing else, and pairs with them, are left
    out.

    Raises:
        ValueError: shards are missing, empty, damaged or of different kinds; names them.
    """
    model = recipe.encoder.trained
    sets, left_out = [], set[str]()
    for each in recipe.data.mixture:
        opened = TokenSet.open(out / TOKENS / each.name, name=each.name, weight=each.weight)
        there = {key for shard in opened.shards for key in shard.tokens}
        if (not there & set(model.domains_in) and not recipe.encoder.gaia) or (
            each.pair is not None and left_out & set(each.pair)
        ):
            left_out.add(each.name)
        elif each.weight:
            sets.append(opened)
    return sets


@dataclass(frozen=True, slots=True)
class _Task:
    number: int  # of the file
    file: Path
    survey: str
    copies: int
    seed: int
    folder: Path
    made_from: str

    @property
    def record(self) -> Path:
        return self.folder / f"{self.number:05d}.json"

    def is_done(self) -> bool:
        if not self.record.is_file():
            return False
        try:
            known: object = json.loads(self.record.read_text())
        except ValueError:  # damaged: made again
            return False
        return isinstance(known, dict) and known.get("made_from") == self.made_from


# What a worker process loads once for all its tasks.
_codecs: dict[str, artifact.Codec] = {}
_domains: dict[str, Domain] = {}


def _load_codecs(folder: Path, domains: dict[str, Domain]) -> None:
    torch.set_num_threads(1)
    _codecs.update(artifact.load_codecs(folder, tuple(domains)))
    _domains.update(domains)


def _tokenize_file(task: _Task) -> None:
    task.record.unlink(missing_ok=True)
    record: dict[str, Any] = {"made_from": task.made_from, "skipped": 0, "shards": []}
    for part, shard in enumerate(_shards(task, record)):
        name = f"{task.number:05d}-{part:03d}"
        shard.write(task.folder / name)
        record["shards"].append(name)
    write_text(task.record, json.dumps(record) + "\n")


def _shards(task: _Task, record: dict[str, Any]) -> Iterator[TokenShard]:
    rng = np.random.default_rng([task.seed, task.number])
    parts: list[TokenShard] = []
    for batch in reader(task.survey).read(task.file):
        record["skipped"] += len(batch.skipped)
        copies = [turn(one, rng) for one in batch.observations for _ in range(task.copies)]
        if copies:
            parts.append(pack(copies, _codecs, _domains))
        if sum(map(len, parts)) >= ROWS_A_SHARD:
            yield concatenate(parts)
            parts = []
    if parts:
        yield concatenate(parts)


def _keep_only(folder: Path, tasks: Sequence[_Task], shards: Sequence[str]) -> None:
    """Remove what is of files that are no longer there."""
    records = {task.record.name for task in tasks}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in shards:
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name not in records:
            entry.unlink()


def _pair(recipe: Recipe, pair: DataSetRecipe, out: Path, progress: Progress) -> None:
    # Imported on demand: it needs pyarrow and scipy's trees.
    from training.surveys.crossmatch import read_matches

    assert pair.pair is not None
    assert pair.matches is not None
    folder = out / TOKENS / pair.name
    records = [sorted((out / TOKENS / name).glob("*.json")) for name in pair.pair]
    texts = [file.read_text() for each in records for file in each]
    settings: Mapping[str, object] = {"sides": pair.pair, "made_from": texts}
    origin = made_from([pair.matches], recipe, **settings)
    record = folder / "pairs.json"
    if record.is_file() and json.loads(record.read_text())["made_from"] == origin:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    matches = read_matches(pair.matches)
    left, right = (TokenSet.open(out / TOKENS / name, name=name) for name in pair.pair)
    num_rows = write_pairs(left, right, matches.left_id, matches.right_id, folder)
    write_text(record, json.dumps({"made_from": origin, "rows": num_rows}) + "\n")
    progress(f"pairing, {pair.name}", 1.0)
