"""The stage that makes the search head of an encoder from files of observations.

Rows of any surveys that are one object are put together first (cohort.py), so that what two
surveys saw of it becomes a pair. Of each object some disturbed copies are embedded:

    <out>/vectors.npz    encoder vectors by view, with object and survey
    <out>/head/          the head: trained where objects have two vectors, else centred principal
                         components
    <out>/search_head.json

What is made does not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray
from threadpoolctl import threadpool_limits

from training import artifact, cohort, encoder, head_fitting
from training.augmentation import AugmentationConfig, disturb, turn
from training.cohort import Sighting
from training.fibre_light import light_of
from training.head_fitting import HeadFitConfig, NothingToLearn
from training.kind_head import adding_kinds
from training.labels import Labels, object_numbers
from training.light_head import adding_light
from training.observations import Observation, merge
from training.pairing import ViewVectors
from training.pictures import as_picture
from training.precision import quick_precision
from training.recipe import Recipe
from training.search_head import SearchHead, principal_components
from training.stages import (
    Figures,
    Progress,
    in_processes,
    made_from,
    open_labels,
    prepare_data,
    report,
)
from training.surveys import reader

VECTORS = "vectors.npz"
OBJECTS_A_TASK = 64

Place = tuple[Path, str]  # file, part of it
Ids = list[tuple[int, str]]  # number of an object, and one of its ids
Found = dict[str, tuple[list[int], list[np.ndarray], list[str]]]  # view: objects, vectors, surveys


def train_search_head(
    recipe: Recipe, out: Path, progress: Progress, *, num_workers: int | None = None
) -> Figures:
    """Embed disturbed copies with the encoder in `out`, and train its search head on them.

    Raises:
        ValueError: the encoder or the head to begin from is missing, or the encoder reads nothing
            of the data.
    """
    settings = recipe.search_head
    frozen = encoder.load(out)
    # what is wrong with it is better said now than when everything is embedded
    begun = (
        None if settings.begin is None else artifact.load_head(artifact.folder_of(settings.begin))
    )
    files = prepare_data(recipe, out, progress, num_workers=num_workers)
    origin = made_from(
        files,
        recipe,
        encoder=frozen.hash,
        augmentation=artifact.dump_config(settings.augmentation),
        copies=settings.copies,
        plain_copies=settings.plain_copies,
        picture_copies=settings.picture_copies,
        max_objects=settings.max_objects,
        seed=settings.seed,
    )
    embedded = _read_vectors(out / VECTORS, origin)
    if embedded is None:
        embedded = _embed(recipe, out, files, num_workers, progress)
        _write_vectors(out / VECTORS, *embedded, origin)
    data, ids = embedded
    if settings.training.light_share and not frozen.carries_light:
        raise ValueError(
            f"light_share gives light to {', '.join(settings.training.light_share)}, and vectors "
            f"of the encoder in {out} carry none"
        )
    if frozen.num_latents and settings.kinds is None:
        raise ValueError(
            f"vectors of the encoder in {out} end with {frozen.num_latents} latents, which a head "
            "reads to tell kinds: set [search_head.kinds]"
        )
    num_plain = frozen.dim - frozen.num_latents
    plain = {
        view: replace(part, vectors=part.vectors[:, :num_plain]) for view, part in data.items()
    }
    figures: Figures = {
        "encoder": frozen.hash,
        "vectors": {view: len(part.objects) for view, part in data.items()},
        "surveys": {
            view: {name: len(rows) for name, rows in part.by_survey().items()}
            for view, part in data.items()
        },
    }
    labels = open_labels(recipe, out)
    known = _labels_of(ids, labels)
    if begun is not None:
        head = begun
        figures |= {"method": "kept", "begin": settings.begin}
        if settings.training.light_share:
            head = adding_light(head, plain, light_share=settings.training.light_share)
            figures["method"] = "light added"
    else:
        head = _fitted(plain, settings.training, known, progress, figures)
    if settings.kinds is not None:
        head, told = adding_kinds(
            head, data, known, labels.names, settings.kinds, latents=frozen.num_latents
        )
        figures["kinds"] = {
            "names": head.config.kinds, "loss": told.loss, "accuracy": told.accuracy,
        }  # fmt: skip
    artifact.save_head(out, head, half=recipe.encoder.half)
    return report(out, "search_head", figures)


def _fitted(
    data: dict[str, ViewVectors],
    config: HeadFitConfig,
    labels: Bool[ndarray, "object label"],
    progress: Progress,
    figures: Figures,
) -> SearchHead:
    """A head trained where objects have two vectors, else centred principal components."""
    try:
        head, fitted = head_fitting.fit(
            data,
            config,
            labels=labels,
            progress=lambda done, step, loss: progress(
                f"training the search head, step {step:,}, loss {loss:.2f}", done
            ),
        )
    except NothingToLearn as error:
        figures |= {"method": "principal components", "reason": str(error)}
        return principal_components({view: part.vectors for view, part in data.items()})
    figures |= {
        "method": "contrastive",
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "loss": fitted.loss,
        "accuracy": fitted.accuracy,
    }
    return head


@dataclass(frozen=True, slots=True)
class _Task:
    """Some objects to embed, each with the places where surveys saw it."""

    survey: str  # whose reader reads them
    objects: tuple[tuple[int, tuple[Place, ...]], ...]
    augmentation: AugmentationConfig
    copies: int
    plain_copies: int
    picture_copies: int
    seed: int


def _embed(
    recipe: Recipe, out: Path, files: Sequence[Path], num_workers: int | None, progress: Progress
) -> tuple[dict[str, ViewVectors], Ids]:
    """Vectors of each view, and all ids that objects have."""
    survey, settings = recipe.data.survey, recipe.search_head
    looks = [(survey, file) for file in files]
    sightings = [
        sighting
        for some in in_processes(_look, looks, _nothing, (), num_workers, progress, "reading")
        for sighting in some
    ]
    if not sightings:
        raise ValueError(f"no object could be read from {len(files):,} files of {survey}")
    chosen = choose(cohort.put_together(sightings), settings.max_objects)
    places = [tuple((each.file, each.source_part) for each in mine) for mine in chosen]
    tasks = [
        _Task(
            survey,
            tuple(enumerate(places[start : start + OBJECTS_A_TASK], start=start)),
            settings.augmentation,
            settings.copies,
            settings.plain_copies,
            settings.picture_copies,
            settings.seed,
        )
        for start in range(0, len(chosen), OBJECTS_A_TASK)
    ]
    parts = in_processes(
        _embed_objects, tasks, _load_encoder, (out,), num_workers, progress, "embedding copies"
    )
    data = _join(parts)
    if not data:
        raise ValueError(f"the encoder in {out} reads nothing of {len(chosen):,} objects")
    return data, [(number, each.object_id) for number, mine in enumerate(chosen) for each in mine]


def choose(objects: Sequence[Sequence[Sighting]], num: int) -> list[Sequence[Sighting]]:
    """At most so many objects: first those of several surveys, the others spread over all.

    Only objects that two surveys saw can teach what is close across surveys.
    """
    across = [mine for mine in objects if len({each.survey for each in mine}) > 1]
    alone = [mine for mine in objects if len({each.survey for each in mine}) == 1]
    left = max(0, num - len(across))
    picked = np.unique(np.linspace(0, len(alone) - 1, min(left, len(alone))).round().astype(int))
    return [*across[:num], *(alone[number] for number in picked)]


_encoders: list[encoder.Encoder] = []  # what a worker process loads once for all its tasks


def _nothing() -> None:
    """What a process needs that only reads."""


def _load_encoder(folder: Path) -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy multiplies matrices in threads of its own
    # Rounding is far below the disturbances that the head learns to ignore.
    _encoders[:] = [encoder.load(folder, precision=quick_precision())]
    _encoders[0].turns_pictures = False  # each copy of a picture is a turn by itself


def _look(task: tuple[str, Path]) -> list[Sighting]:
    """Where the objects of a file are; what cannot be read is left out."""
    survey, file = task
    return [
        Sighting.of(file, seen)
        for batch in reader(survey).read(file)
        for seen in batch.observations
    ]


@dataclass(frozen=True, slots=True)
class _Copy:
    """One observation to embed."""

    number: int  # of the object
    seen: Observation
    undisturbed: Observation
    survey: str


def _embed_objects(task: _Task) -> dict[str, ViewVectors]:
    copies = [
        copy
        for number, places in task.objects
        for copy in _copies(number, places, task)
        if _encoders[0].views(copy.seen)
    ]
    if not copies:
        return {}
    embedded = _encoders[0].embed([copy.seen for copy in copies])
    rows = embedded.rows.tolist()
    if _encoders[0].carries_light:
        # a fibre stays on its object, however a copy is turned, moved or blurred
        assert _encoders[0].pooling is not None
        where = _encoders[0].pooling.config.light_at
        for row, view, vector in zip(rows, embedded.views, embedded.vectors, strict=True):
            vector[where] = light_of(copies[row].undisturbed, view)
    found: Found = {}
    for row, view, vector in zip(rows, embedded.views, embedded.vectors, strict=True):
        if "+" in copies[row].survey and view != "joint":
            continue  # the parts of a merged observation have their vectors already
        objects, vectors, named = found.setdefault(view, ([], [], []))
        objects.append(copies[row].number)
        vectors.append(vector)
        named.append(copies[row].survey)
    return {
        view: ViewVectors(
            objects=np.array(objects, dtype=np.int64),
            vectors=np.stack(vectors),
            surveys=tuple(named),
        )
        for view, (objects, vectors, named) in found.items()
    }


def _copies(number: int, places: Sequence[Place], task: _Task) -> Iterator[_Copy]:
    """An object as it is to be embedded: disturbed, plain, and as pictures."""
    rng = np.random.default_rng([task.seed, number])
    parts = sorted((reader(task.survey).read_one(file, part) for file, part in places), key=_rank)
    plain = list(_observations(parts))
    for copy in range(task.copies + task.plain_copies):
        made = [
            disturb(part, rng, task.augmentation) if copy < task.copies else turn(part, rng)
            for part in parts
        ]
        for (name, one), (_, undisturbed) in zip(_observations(made), plain, strict=True):
            yield _Copy(number, one, undisturbed, name)
    for part in [part for part in parts if part.image is not None]:
        for _ in range(task.picture_copies):
            picture = as_picture(disturb(part, rng, task.augmentation), rng)
            if picture is not None:
                yield _Copy(number, picture, picture, picture.survey)


def _rank(seen: Observation) -> tuple[bool, str, str, str]:
    """The order of an index's joint views, which name their surveys in it."""
    return (not seen.calibrated, seen.survey, seen.release, seen.source_id)


def _observations(parts: Sequence[Observation]) -> Iterator[tuple[str, Observation]]:
    """Each by itself, and merged where image and spectrum are of different surveys."""
    yield from ((part.survey, part) for part in parts)
    whole = any(part.image is not None and part.spectrum is not None for part in parts)
    seen_in = any(part.image is not None for part in parts)
    spectral = any(part.spectrum is not None for part in parts)
    if seen_in and spectral and not whole:
        name = "+".join(dict.fromkeys(part.survey for part in parts))
        same = [replace(part, object_id=parts[0].object_id) for part in parts]
        yield name, merge(same)


def _join(parts: Sequence[dict[str, ViewVectors]]) -> dict[str, ViewVectors]:
    views = sorted({view for part in parts for view in part}, key=encoder.VIEWS.index)
    return {
        view: ViewVectors(
            objects=np.concatenate([part[view].objects for part in parts if view in part]),
            vectors=np.concatenate([part[view].vectors for part in parts if view in part]),
            surveys=tuple(name for part in parts if view in part for name in part[view].surveys),
        )
        for view in views
    }


def _labels_of(ids: Ids, labels: Labels) -> Bool[ndarray, "object label"]:
    """Labels of objects by their numbers: those of all their ids."""
    numbers = np.array([number for number, _ in ids])
    known = np.zeros((numbers.max() + 1, len(labels.names)), dtype=bool)
    np.logical_or.at(known, numbers, labels.of(object_numbers([each for _, each in ids])))
    return known


def _write_vectors(file: Path, data: dict[str, ViewVectors], ids: Ids, origin: str) -> None:
    arrays: dict[str, np.ndarray] = {
        "made_from": np.array(origin),
        "id_objects": np.array([number for number, _ in ids]),
        "ids": np.array([each for _, each in ids]),
    }
    for view, part in data.items():
        arrays |= {
            f"objects/{view}": part.objects,
            f"vectors/{view}": part.vectors,
            f"surveys/{view}": np.array(part.surveys),
        }
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    os.replace(partial, file)


def _read_vectors(file: Path, origin: str) -> tuple[dict[str, ViewVectors], Ids] | None:
    """Vectors of an earlier run; None where there are none, or of other settings."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        views = [view for view in encoder.VIEWS if f"surveys/{view}" in stored.files]
        there = views and "ids" in stored.files
        if not there or str(stored["made_from"]) != origin:
            return None
        data = {
            view: ViewVectors(
                objects=stored[f"objects/{view}"],
                vectors=stored[f"vectors/{view}"],
                surveys=tuple(stored[f"surveys/{view}"].tolist()),
            )
            for view in views
        }
        ids = zip(stored["id_objects"].tolist(), stored["ids"].tolist(), strict=True)
        return data, list(ids)
