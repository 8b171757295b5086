"""Reading speed: cutouts from HDF5 and FITS, the simulated survey, and memory over many objects.

    python benchmarks/surveys.py [--quick] [--json]

Writes Multimodal Universe files and FITS cutouts of noise, four bands of 96 px with inverse
variance and mask, and reads them through the surveys' readers with a warm cache, two processes
side by side as `skykin build` does. Beside each rate stands that of the library alone (h5py or
astropy handing out the same arrays, without checks, ids or fingerprints), in the same way. HDF5
is measured as it is published (gzip, chunks of h5py's choice), at 96 px and cropped from 160 px,
and uncompressed. Simulated objects are written to disk, in two processes. Memory is the growth of
the resident set of one reading process from 10 % of the objects to their end.
stdout with --json is one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits

from training.surveys import legacysurvey, multimodal_universe
from training.surveys.simulated import clear_sky, simulate

BANDS = ("des-g", "des-r", "des-i", "des-z")
FLUXES = ("FLUX_G", "FLUX_R", "FLUX_I", "FLUX_Z", "EBV", "SHAPE_R", "SHAPE_E1", "SHAPE_E2")
MIB = 2**20
NUM_PROCESSES = 2
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def write_hdf5(file: Path, *, num: int, side: int, **packing: Any) -> Path:
    """A file of the legacysurvey data set, pixels as noisy and as compressible as real ones."""
    rng = np.random.default_rng(side)
    file.parent.mkdir(parents=True)
    with h5py.File(file, "w") as out:
        out["object_id"] = np.array([f"0421p022-{row}".encode() for row in range(num)])
        out["ra"], out["dec"] = rng.uniform(0, 360, num), rng.uniform(-90, 90, num)
        out["image_band"] = np.array([[band.encode() for band in BANDS]] * num)
        out["image_scale"] = np.full((num, len(BANDS)), 0.262, np.float32)
        for name in FLUXES:
            out[name] = rng.uniform(0.1, 0.9, num).astype(np.float32)
        # Exposures overlap in patches, so inverse variance is flat over many pixels.
        patches = rng.uniform(1e3, 2e3, (num, len(BANDS), side // 16 + 1, side // 16 + 1))
        ivar = patches.repeat(16, axis=2).repeat(16, axis=3)[:, :, :side, :side]
        flux = rng.normal(0, 1, ivar.shape) / np.sqrt(ivar)
        pixels = {
            "image_array": flux.astype(np.float32),
            "image_ivar": ivar.astype(np.float32),
            "image_mask": np.ones((num, side, side), bool),
        }
        for name, values in pixels.items():
            out.create_dataset(name, data=values, **packing)
    return file


def write_fits(folder: Path, *, num: int) -> list[Path]:
    """Cutouts as the Legacy Survey viewer gives them, with inverse variance."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    files = []
    for number in range(num):
        ivar = np.full((4, 96, 96), 1e3, np.float32)
        first = fits.PrimaryHDU(rng.normal(0.01, 0.03, ivar.shape).astype(np.float32))
        first.header.update(
            {
                **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 2.0},
                **{"CRPIX1": 48.5, "CRPIX2": 48.5, "CD1_1": -0.262 / 3600, "CD1_2": 0.0},
                **{"CD2_1": 0.0, "CD2_2": 0.262 / 3600, "BANDS": "griz", "VERSION": "DR10"},
            }
        )
        second = fits.ImageHDU(ivar, name="IVAR")
        file = folder / f"{number:05d}.fits"
        fits.HDUList([first, second]).writeto(file)
        files.append(file)
    return files


def read_hdf5(files: list[Path]) -> int:
    """Objects that the reader gives."""
    return sum(
        len(batch.observations) for file in files for batch in multimodal_universe.read(file)
    )


def read_fits(files: list[Path]) -> int:
    """Objects that the reader gives."""
    return sum(len(batch.observations) for file in files for batch in legacysurvey.read(file))


def h5py_alone(files: list[Path]) -> int:
    """The central pixels of the same objects, 64 at a time, by h5py."""
    num_read = 0
    for file in files:
        with h5py.File(file) as opened:
            for start in range(0, len(opened["object_id"]), 64):
                first = (opened["image_array"].shape[-1] - 96) // 2
                crop = (slice(start, start + 64), ..., *[slice(first, first + 96)] * 2)
                arrays = [opened[f"image_{name}"][crop] for name in ("array", "ivar", "mask")]
                num_read += len(arrays[0])
    return num_read


def astropy_alone(files: list[Path]) -> int:
    """The pixels of the same objects, by astropy."""
    for file in files:
        with fits.open(file, memmap=False) as hdus:
            for hdu in hdus:
                np.ascontiguousarray(hdu.data, np.float32)
    return len(files)


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast two processes are side by side, and one of them when nothing else runs."""

    per_s: float
    per_cpu_s: float  # of a process; on a busy machine the one that says something


def timed(work: Callable[[list[Path]], int], files: list[Path]) -> tuple[int, float]:
    """Objects read, and the seconds of processor time that they took."""
    started = time.process_time()
    num_read = work(files)
    return num_read, time.process_time() - started


def measure(
    pool: ProcessPoolExecutor, work: Callable[[list[Path]], int], shares: list[list[Path]]
) -> Rate:
    """The better of two runs, after a first that warms up."""
    list(pool.map(work, [share[:2] for share in shares]))
    runs = []
    for _ in range(2):
        started = time.perf_counter()
        done = list(pool.map(partial(timed, work), shares))
        num_read = sum(num for num, _ in done)
        elapsed = time.perf_counter() - started
        runs.append(Rate(num_read / elapsed, num_read / sum(seconds for _, seconds in done)))
    return Rate(max(run.per_s for run in runs), max(run.per_cpu_s for run in runs))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_growth_mib(file: Path, num_objects: int) -> float:
    """Growth of this process while it reads a file again and again."""
    num_read, at_tenth = 0, 0
    while num_read < num_objects:
        num_read += read_hdf5([file])
        if not at_tenth and num_read >= num_objects / 10:
            gc.collect()
            at_tenth = resident_bytes()
    gc.collect()
    return (resident_bytes() - at_tenth) / MIB


def add(figures: dict[str, Any], name: str, rate: Rate) -> None:
    """Put a rate among the figures."""
    figures[f"{name}_per_s"], figures[f"{name}_per_cpu_s"] = rate.per_s, rate.per_cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, for a look")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    quick = arguments.quick
    os.environ.update(dict.fromkeys(THREADS, "1"))  # of each process, as in `skykin build`
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    published = {"compression": "gzip", "chunks": True}
    layouts: dict[str, tuple[int, dict[str, Any]]] = {
        "hdf5": (96, published),
        "hdf5_160px": (160, published),
        "hdf5_unpacked": (96, {}),
    }
    num = 192 if quick else 1024
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(NUM_PROCESSES, mp_context=get_context("spawn")) as pool,
    ):
        root = Path(scratch)
        compared = [("", read_hdf5), ("_h5py_alone", h5py_alone)]
        for name, (side, packing) in layouts.items():
            shares = [
                [write_hdf5(root / name / f"healpix={n}" / "a.hdf5", num=num, side=side, **packing)]
                for n in range(NUM_PROCESSES)
            ]
            for suffix, work in compared:
                add(figures, f"{name}{suffix}", measure(pool, work, shares))
        files = write_fits(root / "fits", num=100 if quick else 600)
        shares = [files[number::NUM_PROCESSES] for number in range(NUM_PROCESSES)]
        for suffix, work in (("", read_fits), ("_astropy_alone", astropy_alone)):
            add(figures, f"fits{suffix}", measure(pool, work, shares))
        num_objects = 2_000 if quick else 100_000
        figures["memory_objects"] = num_objects
        figures["memory_growth_mib"] = pool.submit(
            memory_growth_mib, root / "hdf5_unpacked" / "healpix=0" / "a.hdf5", num_objects
        ).result()
        config = clear_sky(num_objects=40 if quick else 800, shard_objects=20 if quick else 100)
        started = time.perf_counter()
        simulate(config, root / "sky", num_workers=NUM_PROCESSES)
        figures["simulated_per_s"] = config.num_objects / (time.perf_counter() - started)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
