"""Small files in the layouts of the Multimodal Universe, and reading them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from numpy import ndarray
from PIL import Image as Picture
from pyarrow import parquet

from training.observations import Observation, ObservationBatch
from training.surveys import multimodal_universe

GRIZ = ("DES-G", "DES-R", "DES-I", "DES-Z")
LEGACY_FLUXES = ("FLUX_G", "FLUX_R", "FLUX_I", "FLUX_Z", *(f"FLUX_W{n}" for n in range(1, 5)))
HSC_PER_NMGY = 63.0957344

Columns = dict[str, Any]


def legacy(num: int = 3, side: int = 100, seed: int = 0) -> Columns:
    """Columns of the legacysurvey data set, as HDF5 names them."""
    rng = np.random.default_rng(seed)
    shape = (num, 4, side, side)
    mask = rng.uniform(size=(num, side, side)) > 0.02
    mask[:, side // 2 - 3 : side // 2 + 3, side // 2 - 3 : side // 2 + 3] = True
    return {
        "object_id": np.array([f"0421p022-{7410 + row}".encode() for row in range(num)]),
        "ra": rng.uniform(0, 360, num),
        "dec": rng.uniform(-90, 90, num),
        "image_array": rng.normal(0.1, 0.01, shape).astype(np.float32),
        "image_ivar": rng.uniform(1e3, 1e4, shape).astype(np.float32),
        "image_mask": mask,  # True = good
        "image_band": np.array([[band.lower().encode() for band in GRIZ]] * num),
        "image_psf_fwhm": np.full((num, 4), 1.2, np.float32),
        "image_scale": np.full((num, 4), 0.262, np.float32),
        "object_mask": rng.integers(0, 7, (num, side, side)).astype(np.uint8),
        **{f"catalog_{name}": rng.integers(0, side, (num, 20)).astype(np.int16) for name in "XY"},
        "catalog_TYPE": np.array([[1, 2, 3, 4, 5] + [0] * 15] * num, np.float32),
        "catalog_SHAPE_R": rng.uniform(0, 5, (num, 20)).astype(np.float32),
        **{
            f"catalog_SHAPE_{e}": rng.uniform(-0.5, 0.5, (num, 20)).astype(np.float32)
            for e in ("E1", "E2")
        },
        "TYPE": np.array([b"SER"] * num),
        **{name: rng.uniform(1, 9, num).astype(np.float32) for name in LEGACY_FLUXES},
        **{
            name: rng.uniform(0.1, 0.9, num).astype(np.float32)
            for name in ("EBV", "SHAPE_R", "SHAPE_E1", "SHAPE_E2")
        },
    }


def spectra(num: int = 3, num_pixels: int = 50, *, step: float = 2.0, zwarn: str) -> Columns:
    """Columns of the sdss or desi data set, by the name of the column of warnings."""
    rng = np.random.default_rng(1)
    shape = (num, num_pixels)
    return {
        "object_id": np.arange(39627000000000001, 39627000000000001 + num),
        "ra": rng.uniform(0, 360, num),
        "dec": rng.uniform(-90, 90, num),
        "spectrum_flux": rng.normal(5, 1, shape).astype(np.float32),
        "spectrum_ivar": rng.uniform(1, 2, shape).astype(np.float32),
        "spectrum_mask": rng.uniform(size=shape) < 0.05,  # True = bad
        "spectrum_lambda": np.tile(3800 + step * np.arange(num_pixels), (num, 1)).astype("f4"),
        "Z": rng.uniform(0, 1, num).astype(np.float32),
        zwarn: np.array([0, 4, 0])[:num],
    }


def write_hdf5(file: Path, columns: Columns, **packing: Any) -> Path:
    """HDF5 with a data set a column; a dot in a name makes a group."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        for name, values in columns.items():
            out.create_dataset(name.replace(".", "/"), data=values, **packing)
    return file


def write_parquet(
    file: Path, columns: Columns, *, list_of_structs: bool = False, hub: bool = False, **how: Any
) -> Path:
    """Parquet with the structs `image`, `spectrum` and `catalog` in place of their columns."""
    top: dict[str, pa.Array] = {}
    structs: dict[str, dict[str, pa.Array]] = {}
    for name, values in columns.items():
        group, _, field = name.replace("image_array", "image_flux").partition("_")
        values = np.asarray(values)
        if name == "image_mask" and values.ndim == 3:
            values = np.repeat(values[:, None], columns["image_array"].shape[1], axis=1)
        if name in ("object_mask", "rgb_image"):
            top[name] = pa.array([{"bytes": png(each), "path": None} for each in values])
        elif group in ("image", "spectrum", "catalog"):
            structs.setdefault(group, {})[field] = nested(values)
        else:
            top[name] = nested(values)
    for group, fields in structs.items():
        if list_of_structs:
            flat = {field: values.flatten() for field, values in fields.items()}
            inner = pa.StructArray.from_arrays(list(flat.values()), list(flat))
            (offsets,) = {tuple(values.offsets.to_pylist()) for values in fields.values()}
            top[group] = pa.ListArray.from_arrays(offsets, inner)
        else:
            top[group] = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    table = pa.table(top)
    if hub:
        table = table.replace_schema_metadata({"huggingface": "{}"})
    else:
        table = table.append_column("_healpix_29", pa.array(np.arange(len(table))))
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, **how)
    return file


def nested(values: ndarray) -> pa.Array:
    """Lists of lists, of the type that the array has."""
    if values.dtype.kind == "S":
        values = np.char.decode(values)
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.ListArray.from_arrays(np.arange(0, len(array) + 1, size), array)
    return array


def png(pixels: ndarray) -> bytes:
    stream = io.BytesIO()
    Picture.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def batches(file: Path, **how: Any) -> list[ObservationBatch]:
    return list(multimodal_universe.read(file, **how))


def seen(file: Path, **how: Any) -> list[Observation]:
    found = batches(file, **how)
    assert [skipped for batch in found for skipped in batch.skipped] == []
    return [each for batch in found for each in batch.observations]


def reasons(file: Path) -> list[str]:
    found = batches(file)
    assert all(skipped.file == str(file) for batch in found for skipped in batch.skipped)
    return [skipped.reason for batch in found for skipped in batch.skipped]


def differing(one: Observation, other: Observation) -> set[str]:
    """Names of the fields in which two observations differ; spectra to float32 wavelengths."""
    found = set()
    for name in Observation.__slots__:
        a, b = getattr(one, name), getattr(other, name)
        if hasattr(a, "__slots__") and type(a) is type(b):
            for field in type(a).__slots__:
                x, y = getattr(a, field), getattr(b, field)
                if field == "wavelength_angstrom":
                    same = x.shape == y.shape and np.allclose(x, y, rtol=1e-7, atol=0)
                else:
                    same = np.array_equal(x, y)
                if not same:
                    found.add(f"{name}.{field}")
        elif isinstance(a, dict) and isinstance(b, dict):
            for key in a.keys() | b.keys():
                if key not in a or key not in b or a[key] != b[key]:
                    found.add(f"{name}[{key}]")
        elif a != b:
            found.add(name)
    return found
