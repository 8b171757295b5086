"""What an encoder is measured on, as its vectors: skies it never saw, and labelled real pictures.

Vectors are made once and kept in a folder by the encoder's hash, so that only a new encoder makes
them again. Skies have seeds far above those of any recipe; `check_unseen` makes sure.
"""

from __future__ import annotations

import csv
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

from training import encoder as encoders
from training.encoder import Encoder
from training.precision import quick_precision
from training.sky.objects import KINDS
from training.surveys import reader
from training.surveys.simulated import LABEL_KINDS, SkyConfig, draw, kinds
from training.surveys.simulating_processes import in_processes

FIRST_SEED = 10_000  # of held-out skies
LENSES = 5_000  # added to a seed gives that of the sky its lenses are from
NUM_LENS_SETS = 10
LENS_SHARE = 0.001
VIEWS = ("image", "spectrum")
BANDS, WISE = "griz", ("w1", "w2", "w3", "w4")
PRECISION = quick_precision()  # bfloat16 turns nano's vectors by 0.4 degrees at most
SHARD = 500  # objects that a killed run may have to draw again

Show = Callable[[str, float], None]
Arrays = dict[str, ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Objects with the vectors of each view and what is known of them."""

    vectors: Mapping[str, Float32[ndarray, "n dim"]]
    labels: Mapping[str, Bool[ndarray, " n"]]
    survey: str
    known: Mapping[str, Float64[ndarray, "n _"]]  # flux, sigma, radius, redshift, galaxy; or none

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutSky:
    """A sky without lenses, and lenses to put into it, a set at a time."""

    background: HeldOut
    lenses: HeldOut
    set_size: int


def check_unseen(folder: Path, seeds: range) -> None:
    """Raise ValueError where a recipe beside the encoder trained on one of these skies."""
    for file in sorted(folder.glob("*.toml")):
        seed = tomllib.loads(file.read_text()).get("data", {}).get("sky", {}).get("seed", 0)
        if {seed, seed - LENSES} & set(seeds):
            raise ValueError(f"{file} trained on the sky of seed {seed}, which is held out here")


def size_of_set(num_objects: int) -> int:
    """How many lenses a sky of so many objects has."""
    return max(2, round(LENS_SHARE * num_objects))


def sky_config(seed: int, num_objects: int) -> SkyConfig:
    """The background of a sky: everything but the lenses."""
    return SkyConfig(
        num_objects=num_objects - size_of_set(num_objects),
        seed=seed,
        spectrum_fraction=1.0,
        lens=0.0,
        group_lens=0.0,
    )


def sky(
    encoder: str,
    seed: int,
    num_objects: int,
    cache: Path,
    *,
    num_workers: int | None,
    show: Show,
) -> HeldOutSky:
    """A sky at the paper's prevalence, its lenses as ten disjoint sets in one background."""
    set_size = size_of_set(num_objects)
    background = sky_config(seed, num_objects)
    alone: dict[str, Any] = dict.fromkeys((kind for kind in KINDS if kind != "elliptical"), 0.0)
    alone |= {"lens": 0.8, "group_lens": 0.2, "spectrum_fraction": 0.0}
    lenses = replace(background, num_objects=NUM_LENS_SETS * set_size, seed=seed + LENSES, **alone)
    return HeldOutSky(
        background=_drawn(encoder, background, cache, num_workers=num_workers, show=show),
        lenses=_drawn(encoder, lenses, cache, num_workers=num_workers, show=show),
        set_size=set_size,
    )


def _drawn(
    encoder: str, config: SkyConfig, cache: Path, *, num_workers: int | None, show: Show
) -> HeldOut:
    folder = cache / f"sky-{config.seed}-{config.num_objects}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, config.num_objects, SHARD)
    files = [folder / f"{start:07d}.npz" for start in starts]
    tasks = [
        (encoder, config, range(start, min(start + SHARD, config.num_objects)), file)
        for start, file in zip(starts, files, strict=True)
        if not file.is_file()
    ]
    for done, _ in enumerate(in_processes(_draw_shard, tasks, num_workers=num_workers), start=1):
        show(f"drawing and embedding sky {config.seed}", done / len(tasks))
    shards = [_read(file) for file in files]
    joined = {name: np.concatenate([each[name] for each in shards]) for name in shards[0]}
    dealt = np.array(kinds(config))
    return HeldOut(
        vectors={
            view: joined[view].astype(np.float32)
            for view in VIEWS
            if view in joined and len(joined[view]) == config.num_objects
        },
        labels={label: np.isin(dealt, of) for label, of in LABEL_KINDS.items()},
        survey="simulated",
        known={name: joined[name] for name in ("flux", "sigma", "radius", "redshift", "galaxy")},
    )


_loaded: dict[str, Encoder] = {}  # in a process of its own


def _draw_shard(encoder: str, config: SkyConfig, indices: range, file: Path) -> None:
    torch.set_num_threads(1)
    if encoder not in _loaded:
        _loaded[encoder] = encoders.load(encoder, precision=PRECISION)
    observations = list(draw(config, indices))
    embedded = _loaded[encoder].embed(observations, VIEWS)
    given = np.array(embedded.views)
    arrays: Arrays = {
        view: embedded.vectors[given == view].astype(np.float16)
        for view in VIEWS
        if (given == view).any()
    }
    names = [*BANDS, *WISE]
    flux = np.full((len(observations), len(names)), np.nan)
    sigma = np.full((len(observations), len(BANDS)), np.nan)
    for row, seen in enumerate(observations):
        for column, name in enumerate(names):
            flux[row, column] = seen.scalars.get(f"tok_flux_{name}", np.nan)
        radius = seen.scalars.get("tok_shape_r", 0.0)
        assert seen.image is not None
        for name, ivar in zip(seen.image.bands, seen.image.ivar, strict=True):
            # the noise that simulated_drawing gives to catalogue fluxes
            pixel = np.median(ivar[ivar > 0]) ** -0.5 if (ivar > 0).any() else np.nan
            sigma[row, BANDS.index(name[-1].lower())] = 9 * pixel * np.sqrt(1 + radius**2)
    arrays["flux"], arrays["sigma"] = flux, sigma
    for name, key in (("radius", "tok_shape_r"), ("redshift", "tok_z")):
        arrays[name] = np.array([[seen.scalars.get(key, np.nan)] for seen in observations])
    classes = [[float(seen.catalogue.get("spectrum_class") == "GALAXY")] for seen in observations]
    arrays["galaxy"] = np.array(classes)
    _write(file, arrays)


def pictures(encoder: str, name: str, data: Path, cache: Path, *, show: Show) -> HeldOut:
    """Labelled real pictures: "gz2" (label spiral), "spacewarps" (lens), "galaxyzoo" (merging).

    Raises:
        FileNotFoundError: they are not there.
    """
    files = _PICTURES[name](data)
    kept = cache / f"{name}.npz"
    if not kept.is_file():
        loaded = encoders.load(encoder, precision=PRECISION)
        vectors = []
        for done, (file, parts) in enumerate(files.items(), start=1):
            for batch in reader("composite").read(file):
                if batch.skipped:
                    raise ValueError(f"{batch.skipped[0].file}: {batch.skipped[0].reason}")
                wanted = [seen for seen in batch.observations if seen.source_part in parts]
                if wanted:
                    vectors.append(loaded.embed(wanted, ("image",)).vectors)
            show(f"embedding {name}", done / len(files))
        kept.parent.mkdir(parents=True, exist_ok=True)
        _write(kept, {"image": np.concatenate(vectors).astype(np.float16)})
    labels = [label for parts in files.values() for label in parts.values()]
    (label,) = {"gz2": ["spiral"], "spacewarps": ["lens"], "galaxyzoo": ["merging"]}[name]
    return HeldOut(
        vectors={"image": _read(kept)["image"].astype(np.float32)},
        labels={label: np.array(labels)},
        survey="composite",
        known={},
    )


Files = dict[Path, dict[str, bool]]  # file -> part of it -> whether it is of the class


def _gz2(data: Path) -> Files:
    folder = data / "gz2_spiral_nonspiral"
    return {
        folder / row["file"]: {"": row["label"] == "spirals"}
        for row in _rows(folder / "labels.csv")
    }


def _spacewarps(data: Path) -> Files:
    """Lens = expert grade 2 and above; the others are hard negatives, grade below 0.5."""
    folder = data / "spacewarps_cfhtls"
    rows = _rows(folder / "candidates.csv")
    grades = {row["file"]: float(row["grade"]) for row in rows}
    with np.load(folder / "center_crops_128.npz", allow_pickle=False) as crops:
        named = [grades[name] for name in crops["name"].tolist()]
    chosen = {str(row): grade >= 2 for row, grade in enumerate(named) if grade >= 2 or grade < 0.5}
    return {folder / "center_crops_128.npz": chosen}


def _galaxyzoo(data: Path) -> Files:
    """DECaLS pictures, byte-identical ones once; of the class: merging, tidal debris, or both."""
    folder = data / "galaxyzoo_examples"
    return {
        folder / row["file"]: {
            "": row["key"].startswith("9_") and row["answer"] in ("Merging", "Tidal debris", "Both")
        }
        for row in _rows(folder / "labels.csv")
        if row["survey"] == "decals" and not row["duplicate_of"]
    }


_PICTURES: dict[str, Callable[[Path], Files]] = {
    "gz2": _gz2, "spacewarps": _spacewarps, "galaxyzoo": _galaxyzoo,
}  # fmt: skip


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _write(file: Path, arrays: Arrays) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    os.replace(partial, file)


def _read(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    return arrays
