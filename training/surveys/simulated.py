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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy.spatial import cKDTree

from training.observations import (
    IMAGE_SIZE,
    PIXEL_SCALE_ARCSEC,
    CatalogueValue,
    Image,
    Observation,
    ObservationBatch,
    Skipped,
    Spectrum,
    fingerprint,
)
from training.surveys.population import KINDS, draw_object
from training.surveys.scene import BANDS, draw_conditions, observe, spectrum_of
from training.surveys.scene import draw as draw_scene
from training.surveys.simulated_spectra import SPECTRUM_PIXELS
from training.surveys.simulated_spectra import observe as observe_spectrum

SURVEY = "simulated"
LABELS = ("spiral", "merger", "lens", "elliptical", "edge_on", "star")
_LETTERS = tuple(band[-1] for band in BANDS)  # G R I Z
_FORMAT = 1  # of the files and of what is drawn: a change makes old caches stale


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyConfig:
    """What sky to simulate. Counts of each class are exact; what is left over is elliptical.

    Raises:
        ValueError: a number or fraction is out of range, or the fractions add up to more than 1.
    """

    num_objects: int = 2000
    seed: int = 0
    spiral: float = 0.25
    merger: float = 0.02
    lens: float = 0.01
    edge_on: float = 0.14
    star: float = 0.10
    irregular: float = 0.08
    lenticular: float = 0.12
    spectrum_fraction: float = 0.4
    i_band_fraction: float = 0.7  # the rest is seen in g, r, z only
    ra_deg: float = 150.0
    dec_deg: float = 2.0
    half_width_deg: float = 3.0
    min_separation_arcsec: float = 5.0
    shard_objects: int = 100

    def __post_init__(self) -> None:
        if self.num_objects < 1:
            raise ValueError(f"num_objects must be 1 or more, got {self.num_objects}")
        if self.shard_objects < 1:
            raise ValueError(f"shard_objects must be 1 or more, got {self.shard_objects}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        fractions = {kind: getattr(self, kind) for kind in KINDS if kind != "elliptical"}
        shares = {
            **fractions,
            "spectrum_fraction": self.spectrum_fraction,
            "i_band_fraction": self.i_band_fraction,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0 to 1, got {value}")
        if sum(fractions.values()) > 1 + 1e-9:
            raise ValueError(
                f"class fractions add up to {sum(fractions.values()):.3f}, more than 1"
            )
        if not 0 < self.half_width_deg <= 30 or abs(self.dec_deg) + self.half_width_deg > 80:
            raise ValueError(
                "the patch must lie within 80 degrees of the equator and be at most 60 wide, got "
                f"dec_deg {self.dec_deg}, half_width_deg {self.half_width_deg}"
            )
        if self.min_separation_arcsec < 0:
            raise ValueError(
                f"min_separation_arcsec must be 0 or more: {self.min_separation_arcsec}"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decided for the sky as a whole: one entry an object."""

    kinds: tuple[str, ...]
    has_spectrum: Bool[ndarray, " object"]
    has_i: Bool[ndarray, " object"]
    ra_deg: Float64[ndarray, " object"]
    dec_deg: Float64[ndarray, " object"]


def plan(config: SkyConfig) -> Plan:
    """Deal out classes, spectra, bands and positions."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    num = config.num_objects
    counts = {kind: round(getattr(config, kind) * num) for kind in KINDS if kind != "elliptical"}
    kinds = [kind for kind, count in counts.items() for _ in range(count)][:num]
    kinds += ["elliptical"] * (num - len(kinds))
    order = rng.permutation(num)
    ra_deg, dec_deg = _positions(config, rng)
    return Plan(
        kinds=tuple(kinds[k] for k in order),
        has_spectrum=_exact_share(rng, num, config.spectrum_fraction),
        has_i=_exact_share(rng, num, config.i_band_fraction),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
    )


def _exact_share(rng: np.random.Generator, num: int, share: float) -> Bool[ndarray, " object"]:
    chosen = np.zeros(num, dtype=bool)
    chosen[: round(share * num)] = True
    return rng.permutation(chosen)


def _positions(
    config: SkyConfig, rng: np.random.Generator
) -> tuple[Float64[ndarray, " object"], Float64[ndarray, " object"]]:
    """Uniform on the sphere within the patch, no two closer than the least separation."""
    num, half = config.num_objects, config.half_width_deg
    south, north = np.sin(np.deg2rad([config.dec_deg - half, config.dec_deg + half]))
    half_ra = half / np.cos(np.deg2rad(config.dec_deg))

    def draw_some(count: int) -> Float64[ndarray, "two object"]:
        ra = config.ra_deg + rng.uniform(-half_ra, half_ra, size=count)
        dec = np.rad2deg(np.arcsin(rng.uniform(south, north, size=count)))
        return np.stack([ra % 360, dec])

    places = draw_some(num)
    chord = 2 * math.sin(math.radians(config.min_separation_arcsec / 3600) / 2)
    for _ in range(200):
        ra, dec = np.deg2rad(places)
        points = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
        close = cKDTree(points).query_pairs(chord, output_type="ndarray")
        if len(close) == 0:
            return places[0], places[1]
        again = np.unique(close[:, 1])
        places[:, again] = draw_some(len(again))
    raise ValueError(
        f"{num:,} objects do not fit {config.min_separation_arcsec} arcsec apart into a patch of "
        f"{2 * half} degrees"
    )


def draw(config: SkyConfig, indices: Iterable[int] | None = None) -> Iterator[Observation]:
    """Objects of that sky by number, all of them by default, without touching the disk.

    Raises:
        ValueError: a number is not in [0, num_objects).
    """
    layout = plan(config)
    for index in range(config.num_objects) if indices is None else indices:
        yield _draw_one(config, layout, index)


def kinds(config: SkyConfig) -> tuple[str, ...]:
    """The class of every object of that sky, one of population.KINDS."""
    return plan(config).kinds


def _draw_one(config: SkyConfig, layout: Plan, index: int) -> Observation:
    if not 0 <= index < config.num_objects:
        raise ValueError(f"object number must lie in 0 to {config.num_objects - 1}, got {index}")
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(1, index)))
    thing = draw_object(layout.kinds[index], rng)
    conditions = draw_conditions(rng)
    drawn = draw_scene(thing, conditions, rng)
    image = observe(drawn, conditions, with_i=bool(layout.has_i[index]), rng=rng)
    spectrum = None
    if layout.has_spectrum[index]:
        quality = float(np.exp(rng.normal(0.1, 0.2)))
        spectrum = observe_spectrum(spectrum_of(drawn), quality=quality, rng=rng)
    # catalogues measure bright things to a few per cent, faint ones to their noise
    point_sigma = 9 * np.array(conditions.sky_sigma_nmgy)
    blur = 1 + drawn.radius_arcsec**2
    measured = drawn.total_flux_nmgy * np.exp(rng.normal(0, 0.03, size=len(BANDS)))
    measured += rng.normal(0, 1, size=len(BANDS)) * point_sigma * np.sqrt(blur)
    radius = drawn.radius_arcsec * float(np.exp(rng.normal(0, 0.06)))
    return _observation(
        object_id=f"sim-{config.seed}-{index:06d}",
        seed=config.seed,
        ra_deg=float(layout.ra_deg[index]),
        dec_deg=float(layout.dec_deg[index]),
        image=image,
        flux_nmgy={
            band: float(np.float32(flux))
            for band, flux in zip(BANDS, measured, strict=True)
            if band in image.bands
        },
        radius_arcsec=float(np.float32(radius)),
        spectrum=spectrum,
        redshift=float(np.float32(thing.redshift)) if spectrum is not None else None,
        is_star=thing.star is not None,
        source=f"{SURVEY}:{config.seed}",
    )


def _observation(
    *,
    object_id: str,
    seed: int,
    ra_deg: float,
    dec_deg: float,
    image: Image,
    flux_nmgy: dict[str, float],
    radius_arcsec: float,
    spectrum: Spectrum | None,
    redshift: float | None,
    is_star: bool,
    source: str,
) -> Observation:
    scalars: dict[str, float] = {}
    catalogue: dict[str, CatalogueValue] = {}
    for band, flux in flux_nmgy.items():
        letter = band[-1].lower()
        scalars[f"tok_flux_{letter}"] = flux
        catalogue[f"flux_{letter}_nmgy"] = flux
        if flux > 0:
            catalogue[f"mag_{letter}"] = 22.5 - 2.5 * math.log10(flux)
    if radius_arcsec > 0:  # stars have no size, and sizes are tokenized by their logarithm
        scalars["tok_shape_r"] = radius_arcsec
        catalogue["radius_arcsec"] = radius_arcsec
    if redshift is not None:
        scalars["tok_z"] = redshift
        catalogue["redshift"] = redshift
        catalogue["redshift_source"] = SURVEY
        catalogue["spectrum_class"] = "STAR" if is_star else "GALAXY"
    spectrum_content = (spectrum.flux, spectrum.ivar, spectrum.mask) if spectrum else (None,)
    numbers = np.array([ra_deg, dec_deg, *flux_nmgy.values(), radius_arcsec, redshift or 0.0])
    return Observation(
        survey=SURVEY,
        release=f"seed-{seed}",
        source_id=object_id,
        object_id=object_id,
        fingerprint=fingerprint(
            object_id, "".join(image.bands), image.flux, image.ivar, image.mask, numbers,
            *spectrum_content,
        ),
        source=source,
        source_part=object_id,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        image=image,
        spectrum=spectrum,
        scalars=scalars,
        catalogue=catalogue,
    )  # fmt: skip


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
    layout = plan(config)
    num, num_bands = len(indices), len(BANDS)
    image_shape = (num_bands, IMAGE_SIZE, IMAGE_SIZE)
    file = folder / f"shard-{indices.start // config.shard_objects:04d}.hdf5"
    with h5py.File(file, "w") as shard:
        shard.attrs["survey"] = SURVEY
        shard.attrs["seed"] = config.seed

        def column(name: str, shape: tuple[int, ...], dtype: Any, fill: Any = 0) -> Any:
            if not shape:
                return shard.create_dataset(name, (num,), dtype, fillvalue=fill)
            return shard.create_dataset(
                name, (num, *shape), dtype, chunks=(1, *shape), compression="lzf", shuffle=True,
                fillvalue=fill,
            )  # fmt: skip

        for name in ("ra", "dec"):
            column(name, (), np.float64)
        column("object_id", (), "S24", None)
        column("type", (), "S6", None)
        for letter in _LETTERS:
            column(f"FLUX_{letter}", (), np.float32, np.nan)
        column("SHAPE_R", (), np.float32)
        column("Z", (), np.float32, np.nan)
        column("image_array", image_shape, np.float32)
        column("image_ivar", image_shape, np.float32)
        column("image_mask", image_shape, bool, True)
        shard.create_dataset("image_band", (num, num_bands), "S8")  # "" = not observed
        scale = np.full((num, num_bands), PIXEL_SCALE_ARCSEC, dtype=np.float32)
        shard.create_dataset("image_scale", data=scale)
        column("spectrum_flux", (SPECTRUM_PIXELS,), np.float32)
        column("spectrum_ivar", (SPECTRUM_PIXELS,), np.float32)
        column("spectrum_mask", (SPECTRUM_PIXELS,), bool, True)
        column("spectrum_lambda", (SPECTRUM_PIXELS,), np.float32)
        for row, index in enumerate(indices):
            _write_row(shard, row, _draw_one(config, layout, index))
    return num


def _write_row(shard: Any, row: int, observation: Observation) -> None:
    image, spectrum = observation.image, observation.spectrum
    assert image is not None
    shard["object_id"][row] = observation.object_id.encode()
    shard["ra"][row] = observation.ra_deg
    shard["dec"][row] = observation.dec_deg
    planes = [BANDS.index(band) for band in image.bands]
    for name, values in (
        ("image_array", image.flux),
        ("image_ivar", image.ivar),
        ("image_mask", image.mask),
    ):
        full = np.full((len(BANDS), *values.shape[1:]), values.dtype == bool, dtype=values.dtype)
        full[planes] = values
        shard[name][row] = full
    shard["image_band"][row] = [b.encode() if b in image.bands else b"" for b in BANDS]
    for letter in _LETTERS:
        flux = observation.scalars.get(f"tok_flux_{letter.lower()}")
        if flux is not None:
            shard[f"FLUX_{letter}"][row] = flux
    shard["SHAPE_R"][row] = observation.scalars.get("tok_shape_r", 0.0)
    if spectrum is not None:
        shard["Z"][row] = observation.scalars["tok_z"]
        shard["type"][row] = str(observation.catalogue["spectrum_class"]).encode()
        shard["spectrum_flux"][row] = spectrum.flux
        shard["spectrum_ivar"][row] = spectrum.ivar
        shard["spectrum_mask"][row] = spectrum.mask
        shard["spectrum_lambda"][row] = spectrum.wavelength_angstrom


def _write_labels(config: SkyConfig, file: Path) -> None:
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["object_id", *LABELS])
        for index, kind in enumerate(plan(config).kinds):
            truth = [int(kind == label) for label in LABELS]
            table.writerow([f"sim-{config.seed}-{index:06d}", *truth])


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
            num = len(shard["object_id"])
            for start in range(0, num, batch_size):
                yield _read_rows(shard, file, range(start, min(start + batch_size, num)))
    except (OSError, KeyError) as error:
        reason = f"not a readable shard of a simulated sky: {error}"
        yield ObservationBatch((), (Skipped(str(file), reason),))


def read_one(source: Path, source_part: str) -> Observation:
    """One object of a shard by its object id.

    Raises:
        ValueError: the file cannot be read, or the object is not in it.
    """
    try:
        with h5py.File(source, "r") as shard:
            rows = np.flatnonzero(shard["object_id"][:] == source_part.encode())
            if len(rows) == 0:
                raise ValueError(f"no object {source_part!r} in {source}")
            return _read_row(shard, source, int(rows[0]))
    except (OSError, KeyError) as error:
        raise ValueError(f"{source} is not a readable shard of a simulated sky: {error}") from error


def _read_rows(shard: Any, file: Path, rows: Sequence[int]) -> ObservationBatch:
    observations, skipped = [], []
    for row in rows:
        try:
            observations.append(_read_row(shard, file, row))
        except ValueError as error:
            skipped.append(Skipped(str(file), f"row {row}: {error}"))
    return ObservationBatch(tuple(observations), tuple(skipped))


def _read_row(shard: Any, file: Path, row: int) -> Observation:
    names = [name.decode() for name in shard["image_band"][row]]
    planes = [plane for plane, name in enumerate(names) if name]
    image = Image(
        flux=shard["image_array"][row][planes],
        ivar=shard["image_ivar"][row][planes],
        mask=shard["image_mask"][row][planes],
        bands=tuple(names[plane] for plane in planes),
        pixel_scale_arcsec=round(float(shard["image_scale"][row][0]), 6),
    )
    redshift = float(shard["Z"][row])
    spectrum = None
    if math.isfinite(redshift):
        spectrum = Spectrum(
            flux=shard["spectrum_flux"][row],
            ivar=shard["spectrum_ivar"][row],
            mask=shard["spectrum_mask"][row],
            wavelength_angstrom=shard["spectrum_lambda"][row].astype(np.float64),
        )
    return _observation(
        object_id=shard["object_id"][row].decode(),
        seed=int(shard.attrs["seed"]),
        ra_deg=float(shard["ra"][row]),
        dec_deg=float(shard["dec"][row]),
        image=image,
        flux_nmgy={band: float(shard[f"FLUX_{band[-1]}"][row]) for band in image.bands},
        radius_arcsec=float(shard["SHAPE_R"][row]),
        spectrum=spectrum,
        redshift=redshift if spectrum is not None else None,
        is_star=shard["type"][row] == b"STAR",
        source=str(file.resolve()),
    )
