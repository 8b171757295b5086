"""The simulated survey: a sky with known classes, written to disk and read like any other.

Every object depends only on the seed and its number, so that a sky is the same whatever the
number of processes. Shards have the column names of the Multimodal Universe; labels.csv holds
the truth.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from training.observations import Observation, ObservationBatch, Skipped
from training.surveys import simulated_files
from training.surveys.files import open_regular, reason
from training.surveys.simulated_drawing import (
    BATCH_SIZE,
    as_observation,
    draw_observations,
    draw_seen,
)
from training.surveys.simulated_sky import SkyConfig, clear_sky, kinds, object_id, plan
from training.surveys.simulated_spectra import SPECTROGRAPHS
from training.surveys.simulating_processes import in_processes

__all__ = [
    "SkyConfig",
    "clear_sky",
    "draw",
    "kinds",
    "list_files",
    "read",
    "read_one",
    "simulate",
]

# What each column of labels.csv counts in; barred is true of whatever has a bar.
LABEL_KINDS: dict[str, tuple[str, ...]] = {
    "spiral": ("spiral", "barred"),
    "merger": ("merger", "shell"),
    "lens": ("lens", "group_lens"),
    "elliptical": ("elliptical",),
    "edge_on": ("edge_on",),
    "star": ("star",),
    "irregular": ("irregular",),
    "lenticular": ("lenticular",),
    "ring": ("ring",),
    "shell": ("shell",),
    "quasar": ("quasar",),
}
LABELS = (*LABEL_KINDS, "barred")


def draw(
    config: SkyConfig,
    indices: Iterable[int] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
) -> Iterator[Observation]:
    """Objects of that sky by number, all of them by default, without touching the disk.

    Args:
        config: Of the sky.
        indices: Numbers of objects.
        batch_size: Images drawn at once; a GPU wants hundreds. It changes no object.
        device: Where images are drawn.

    Raises:
        ValueError: a number is not in [0, num_objects).
    """
    wanted = range(config.num_objects) if indices is None else indices
    yield from draw_observations(config, plan(config), wanted, batch_size=batch_size, device=device)


def simulate(
    config: SkyConfig,
    folder: Path,
    *,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the sky of that config into the folder, unless it is there already.

    The folder appears only when complete: shard-*.hdf5, labels.csv and config.json. An earlier
    simulated sky of another config in its place is replaced.

    Args:
        config: What to simulate.
        folder: Where to.
        num_workers: Processes; all cores by default, 1 = this process.
        progress: Called with objects done and objects in all.

    Raises:
        ValueError: the folder holds something that is not a simulated sky.
    """
    folder = folder.resolve()
    written = {"format": simulated_files.FORMAT, **asdict(config)}
    if _config_of(folder) == written:
        if progress is not None:
            progress(config.num_objects, config.num_objects)
        return folder
    _check_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        barred = _write_shards(config, partial, num_workers, progress)
        _write_labels(config, barred, partial / "labels.csv")
        (partial / "config.json").write_text(json.dumps(written, indent=1) + "\n")
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _config_of(folder: Path) -> dict[str, Any] | None:
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"expected a folder for the simulated sky, {folder} is a file")
    foreign = [
        path.name
        for path in folder.iterdir()
        if path.name not in ("labels.csv", "config.json")
        and not (path.name.startswith("shard-") and path.suffix == ".hdf5")
    ]
    if foreign:
        raise ValueError(
            f"expected an empty folder or a simulated sky, {folder} holds {sorted(foreign)[0]!r}"
        )


def _put_in_place(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_shards(
    config: SkyConfig,
    folder: Path,
    num_workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[bool]:
    """Write all objects; which of them have a bar."""
    starts = range(0, config.num_objects, config.shard_objects)
    tasks = [
        (config, range(start, min(start + config.shard_objects, config.num_objects)), folder)
        for start in starts
    ]
    barred: dict[int, list[bool]] = {}
    # closed at once if progress raises, so that no process writes on
    with closing(in_processes(_write_shard, tasks, num_workers=num_workers)) as results:
        for done in results:
            barred[done.number] = done.result
            if progress is not None:
                progress(sum(len(some) for some in barred.values()), config.num_objects)
    return [flag for number in range(len(tasks)) for flag in barred[number]]


def _write_shard(config: SkyConfig, indices: range, folder: Path) -> list[bool]:
    """Draw a run of objects into one file; which of them have a bar."""
    layout = plan(config)
    spectrograph = SPECTROGRAPHS[config.spectrograph]
    file = folder / f"shard-{indices.start // config.shard_objects:04d}.hdf5"
    barred = []
    with simulated_files.create(
        file, num_rows=len(indices), seed=config.seed, spectrograph=spectrograph
    ) as shard:
        for row, seen in enumerate(draw_seen(config, layout, indices)):
            observed = as_observation(config, layout, seen)
            simulated_files.write_row(shard, row, seen, observed, spectrograph)
            barred.append(any(galaxy.bar is not None for galaxy in seen.thing.galaxies))
    return barred


def _write_labels(config: SkyConfig, barred: list[bool], file: Path) -> None:
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["object_id", *LABELS])
        for index, kind in enumerate(kinds(config)):
            truth = [int(kind in LABEL_KINDS[label]) for label in LABEL_KINDS]
            table.writerow([object_id(config, index), *truth, int(barred[index])])


def list_files(source: Path) -> list[Path]:
    """The shards under a folder, sorted; a file is itself.

    Raises:
        ValueError: there is nothing there, or no shard in the folder.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"expected a simulated sky, {source} does not exist")
    # a sky that is still being written lies in a hidden folder
    files = sorted(
        file
        for file in source.rglob("*.hdf5")
        if not any(part.startswith(".") for part in file.relative_to(source).parts)
    )
    if not files:
        raise ValueError(f"empty folder: no .hdf5 file under {source}")
    return files


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The objects of one shard in order; what is wrong with a file comes back as skipped."""
    try:
        open_regular(file).close()  # h5py would wait for a pipe for ever
        with h5py.File(file, "r") as shard:
            num = simulated_files.check_columns(shard)
            for start in range(0, num, batch_size):
                yield simulated_files.read_rows(shard, file, start, min(start + batch_size, num))
    except (OSError, ValueError) as error:
        yield ObservationBatch((), (Skipped(str(file), _unreadable(error)),))


def read_one(source: Path, source_part: str) -> Observation:
    """One object of a shard by its object id.

    Raises:
        ValueError: the file cannot be read, or the object is not in it.
    """
    try:
        open_regular(source).close()
        with h5py.File(source, "r") as shard:
            simulated_files.check_columns(shard)
            found = np.flatnonzero(shard["object_id"][:] == source_part.encode())
            if len(found) > 0:
                row = int(found[0])
                return simulated_files.read_row(shard, source, row)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {_unreadable(error)}") from error
    raise ValueError(f"no object {source_part!r} in {source}")


def _unreadable(error: OSError | ValueError) -> str:
    return f"not a readable shard of a simulated sky: {reason(error)}"
