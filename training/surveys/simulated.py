"""The simulated survey: a sky with known classes, written to disk and read like any other.

Every object depends only on the seed and its number, so that a sky is the same whatever the
number of processes. Shards have the column names of the Multimodal Universe; labels.csv holds
the truth.
"""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from training.observations import (
    IMAGE_SIZE,
    PIXEL_SCALE_ARCSEC,
    Image,
    Observation,
    ObservationBatch,
    Skipped,
    Spectrum,
)
from training.surveys.simulated_catalogue import SURVEY, observation
from training.surveys.simulated_sky import SkyConfig, kinds, object_id, plan
from training.surveys.simulated_spectra import BANDS, SPECTRUM_PIXELS

__all__ = ["SkyConfig", "draw", "kinds", "list_files", "read", "read_one", "simulate"]

LABELS = ("spiral", "merger", "lens", "elliptical", "edge_on", "star")
_FLUXES = tuple(f"FLUX_{band[-1]}" for band in BANDS)
_FORMAT = 1  # of the files and of what is drawn: a change makes old caches stale
_IMAGE_SHAPE = (len(BANDS), IMAGE_SIZE, IMAGE_SIZE)
# Columns: type, shape of one row, what an empty row holds.
_COLUMNS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "object_id": ("S24", (), None),
    "ra": (np.float64, (), 0),
    "dec": (np.float64, (), 0),
    "type": ("S6", (), None),  # GALAXY or STAR where there is a spectrum
    **{name: (np.float32, (), np.nan) for name in _FLUXES},
    "SHAPE_R": (np.float32, (), 0),
    "Z": (np.float32, (), np.nan),
    "image_band": ("S8", (len(BANDS),), None),  # "" = not observed
    "image_scale": (np.float32, (len(BANDS),), PIXEL_SCALE_ARCSEC),
    "image_array": (np.float32, _IMAGE_SHAPE, 0),
    "image_ivar": (np.float32, _IMAGE_SHAPE, 0),
    "image_mask": (bool, _IMAGE_SHAPE, True),
    "spectrum_flux": (np.float32, (SPECTRUM_PIXELS,), 0),
    "spectrum_ivar": (np.float32, (SPECTRUM_PIXELS,), 0),
    "spectrum_mask": (bool, (SPECTRUM_PIXELS,), True),
    "spectrum_lambda": (np.float32, (SPECTRUM_PIXELS,), 0),
}


def draw(config: SkyConfig, indices: Iterable[int] | None = None) -> Iterator[Observation]:
    """Objects of that sky by number, all of them by default, without touching the disk.

    Raises:
        ValueError: a number is not in [0, num_objects).
    """
    # reading a sky needs neither GalSim nor lenstronomy, which are slow to import
    from training.surveys.simulated_drawing import draw_one

    layout = plan(config)
    for index in range(config.num_objects) if indices is None else indices:
        yield draw_one(config, layout, index)


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
    written = {"format": _FORMAT, **asdict(config)}
    if _config_of(folder) == written:
        if progress is not None:
            progress(config.num_objects, config.num_objects)
        return folder
    _check_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_shards(config, partial, num_workers, progress)
        _write_labels(config, partial / "labels.csv")
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
) -> None:
    starts = range(0, config.num_objects, config.shard_objects)
    tasks = [
        (config, range(start, min(start + config.shard_objects, config.num_objects)), folder)
        for start in starts
    ]
    workers = min(num_workers or os.cpu_count() or 1, len(tasks))
    done = 0
    if workers <= 1:
        for task in tasks:
            done += _write_shard(*task)
            if progress is not None:
                progress(done, config.num_objects)
        return
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(_write_shard, *task) for task in tasks]):
                done += future.result()
                if progress is not None:
                    progress(done, config.num_objects)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile use one thread each, so that cores are not oversubscribed."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _write_shard(config: SkyConfig, indices: range, folder: Path) -> int:
    """Draw a run of objects into one HDF5 file; how many there are."""
    # reading a sky needs neither GalSim nor lenstronomy, which are slow to import
    from training.surveys.simulated_drawing import draw_one

    layout = plan(config)
    file = folder / f"shard-{indices.start // config.shard_objects:04d}.hdf5"
    with h5py.File(file, "w") as shard:
        shard.attrs["survey"] = SURVEY
        shard.attrs["seed"] = config.seed
        for name, (dtype, shape, fill) in _COLUMNS.items():
            # one object a chunk, so that one can be read alone
            packing = {"chunks": (1, *shape), "compression": "lzf", "shuffle": True}
            shard.create_dataset(
                name,
                (len(indices), *shape),
                dtype,
                fillvalue=fill,
                **(packing if np.prod(shape) > 100 else {}),
            )
        for row, index in enumerate(indices):
            _write_row(shard, row, draw_one(config, layout, index))
    return len(indices)


def _write_row(shard: Any, row: int, observed: Observation) -> None:
    image, spectrum = observed.image, observed.spectrum
    assert image is not None
    values: dict[str, Any] = {
        "object_id": observed.object_id.encode(),
        "ra": observed.ra_deg,
        "dec": observed.dec_deg,
        "SHAPE_R": observed.scalars.get("tok_shape_r", 0.0),
        "image_band": [b.encode() if b in image.bands else b"" for b in BANDS],
    }
    for band, name in zip(BANDS, _FLUXES, strict=True):
        if band in image.bands:
            values[name] = observed.scalars[f"tok_flux_{band[-1].lower()}"]
    planes = [BANDS.index(band) for band in image.bands]
    for name, pixels in (
        ("image_array", image.flux),
        ("image_ivar", image.ivar),
        ("image_mask", image.mask),
    ):
        full = np.full(_IMAGE_SHAPE, _COLUMNS[name][2], dtype=pixels.dtype)
        full[planes] = pixels
        values[name] = full
    if spectrum is not None:
        values |= {
            "Z": observed.scalars["tok_z"],
            "type": str(observed.catalogue["spectrum_class"]).encode(),
            "spectrum_flux": spectrum.flux,
            "spectrum_ivar": spectrum.ivar,
            "spectrum_mask": spectrum.mask,
            "spectrum_lambda": spectrum.wavelength_angstrom,
        }
    for name, value in values.items():
        shard[name][row] = value


def _write_labels(config: SkyConfig, file: Path) -> None:
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["object_id", *LABELS])
        for index, kind in enumerate(kinds(config)):
            table.writerow([object_id(config, index), *(int(kind == label) for label in LABELS)])


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
        with h5py.File(file, "r") as shard:
            num = _check_columns(shard)
            for start in range(0, num, batch_size):
                yield _read_rows(shard, file, start, min(start + batch_size, num))
    except (OSError, ValueError) as error:
        yield ObservationBatch((), (Skipped(str(file), _unreadable(error)),))


def read_one(source: Path, source_part: str) -> Observation:
    """One object of a shard by its object id.

    Raises:
        ValueError: the file cannot be read, or the object is not in it.
    """
    try:
        with h5py.File(source, "r") as shard:
            _check_columns(shard)
            found = np.flatnonzero(shard["object_id"][:] == source_part.encode())
            if len(found) > 0:
                row = int(found[0])
                return _observation_at(_columns_of(shard, row, row + 1), source, 0)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {_unreadable(error)}") from error
    raise ValueError(f"no object {source_part!r} in {source}")


def _unreadable(error: Exception) -> str:
    return f"not a readable shard of a simulated sky: {error}"


def _check_columns(shard: Any) -> int:
    """How many objects there are; ValueError if it is not one of our files."""
    num = None
    for name, (_, shape, _) in _COLUMNS.items():
        column = shard.get(name)
        if not isinstance(column, h5py.Dataset) or column.shape[1:] != shape:
            raise ValueError(f"expected a column {name!r} with rows of shape {shape}")
        if num is not None and len(column) != num:
            raise ValueError(f"column {name!r} has {len(column)} rows, the first one has {num}")
        num = len(column)
    if "seed" not in shard.attrs:
        raise ValueError("expected an attribute 'seed'")
    return int(num or 0)


def _columns_of(shard: Any, start: int, stop: int) -> dict[str, Any]:
    columns = {name: shard[name][start:stop] for name in _COLUMNS}
    columns["seed"] = int(shard.attrs["seed"])
    return columns


def _read_rows(shard: Any, file: Path, start: int, stop: int) -> ObservationBatch:
    observations, skipped = [], []
    columns = _columns_of(shard, start, stop)
    for row in range(stop - start):
        try:
            observations.append(_observation_at(columns, file, row))
        except ValueError as error:
            skipped.append(Skipped(str(file), f"row {start + row}: {error}"))
    return ObservationBatch(tuple(observations), tuple(skipped))


def _observation_at(columns: dict[str, Any], file: Path, row: int) -> Observation:
    names = [name.decode() for name in columns["image_band"][row]]
    planes = [plane for plane, name in enumerate(names) if name]
    image = Image(
        flux=columns["image_array"][row][planes],
        ivar=columns["image_ivar"][row][planes],
        mask=columns["image_mask"][row][planes],
        bands=tuple(names[plane] for plane in planes),
    )
    redshift = float(columns["Z"][row])
    spectrum = None
    if math.isfinite(redshift):
        spectrum = Spectrum(
            flux=columns["spectrum_flux"][row].copy(),  # not a view that keeps the batch alive
            ivar=columns["spectrum_ivar"][row].copy(),
            mask=columns["spectrum_mask"][row].copy(),
            wavelength_angstrom=columns["spectrum_lambda"][row].astype(np.float64),
        )
    return observation(
        object_id=columns["object_id"][row].decode(),
        seed=columns["seed"],
        ra_deg=float(columns["ra"][row]),
        dec_deg=float(columns["dec"][row]),
        image=image,
        flux_nmgy={band: float(columns[f"FLUX_{band[-1]}"][row]) for band in image.bands},
        radius_arcsec=float(columns["SHAPE_R"][row]),
        spectrum=spectrum,
        redshift=redshift if spectrum is not None else None,
        is_star=columns["type"][row] == b"STAR",
        source=str(file.resolve()),
    )
