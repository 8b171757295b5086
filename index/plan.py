"""What a sky of so many objects takes: disk, memory, GPU memory and hours.

Bytes follow from the layout of the files; what has no fixed size, and every hour, from the rates
below, which somebody measured. A rate that nobody measured is None, and so is what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from index.gpu import gpu_bytes
from training.modalities import VIEWS

SEARCH_DIM = 256  # of the search head
EXACT_ROWS = 200_000  # up to here vectors are scanned, and there is no FAISS index
MAX_LISTS = 65_536
TRAIN_PER_LIST = 50  # vectors that k-means sees of each list
KMEANS_ROUNDS = 10
FASTSCAN_BLOCK = 32  # rows that a RaBitQ list is padded to
SCRATCH_BYTES = 3 << 29  # 1.5 GiB that FAISS takes of every GPU


@dataclass(frozen=True, slots=True)
class Rate:
    """One measured figure."""

    value: float | None  # None: nobody measured it
    unit: str
    what: str
    measured_on: str  # date and machine
    source: str


_XEON = "2026-11-21, 2 cores of an Intel Xeon"
_EPYC = "2026-11-21, 2 cores of an AMD EPYC"
_RESULTS = "benchmarks/RESULTS.md"
RATES: dict[str, Rate] = {
    "embed_nano_cpu": Rate(
        72.0, "images/s", "build with nano, start-up included", _EPYC, f"{_RESULTS}, First light"
    ),
    "embed_base_cpu": Rate(
        2.45, "images/s", "AION-1 Base in bfloat16", _XEON, f"{_RESULTS}, Encoder"
    ),
    "embed_base_gpu": Rate(None, "images/s", "AION-1 Base, one H200", "", ""),
    "kmeans_cpu": Rate(
        186e9,
        "flop/s",
        "4,096 lists on 200,000 x 768 in 67.5 s, some other load",
        "2026-11, 2 cores of an AMD EPYC",
        "vector_index.md, section 3",
    ),
    "fill_cpu": Rate(
        210e9,
        "flop/s",
        "1M x 768 into 4,096 lists, flat coarse quantizer, SQ8, 31 s",
        "2026-11, 2 cores of an AMD EPYC",
        "vector_index.md, section 2",
    ),
    "build_gpu": Rate(None, "flop/s", "train and fill IVF,SQ8 on one H200", "", ""),
    "row_bytes": Rate(
        122.5, "bytes/row", "rows.parquet of the demo's 2,000 images", _XEON, "skykin demo"
    ),
    "object_bytes": Rate(
        97.0, "bytes/object", "object table of the demo's 2,000 objects", _XEON, "skykin demo"
    ),
    "object_memory": Rate(None, "bytes/object", "object table in memory, at 10M and more", "", ""),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by what takes them and hours by what takes them; None is not measured.

    `disk`, `ram` and `gpu` are bytes. In `disk` and `ram` the two codes exclude each other, in
    `gpu` the three layouts do.
    """

    num_objects: int
    views: tuple[str, ...]
    dim: int
    num_lists: int  # of each view; 0: scanned, no FAISS index
    disk: dict[str, int]
    ram: dict[str, int | None]
    gpu: dict[str, int]
    hours: dict[str, float | None]


def plan(num_objects: int, *, dim: int = 768, views: Sequence[str] = ("image",)) -> Plan:
    """What a sky takes in which every object has one row of each view.

    Args:
        num_objects: At least 1.
        dim: Of the encoder's vectors.
        views: Those that are kept.

    Raises:
        ValueError: a number is not positive, or a view is unknown or named twice.
    """
    if num_objects < 1 or dim < 1:
        raise ValueError(f"expected at least one object and dimension, got {num_objects}, {dim}")
    unknown = [view for view in views if view not in VIEWS]
    if not views or unknown or len(set(views)) < len(views):
        raise ValueError(f"expected different views of {', '.join(VIEWS)}, got {', '.join(views)}")
    num_rows = num_objects * len(views)
    lists = _num_lists(num_objects)
    centroids = lists * SEARCH_DIM * 4 * len(views)
    # RaBitQ: a bit a dimension and two numbers; SQ8: a byte a dimension; both: an id of 8 bytes
    padded = num_rows + lists * len(views) * (FASTSCAN_BLOCK - 1) // 2
    rabitq = padded * (SEARCH_DIM // 8 + 8 + 8) + centroids if lists else 0
    sq8 = num_rows * (SEARCH_DIM + 8) + centroids if lists else 0
    disk = {
        "store, float16 encoder vectors": num_rows * (dim * 2 + 32),
        "vectors.npy, float16": num_rows * SEARCH_DIM * 2,
        "object_key.npy": num_rows * 8,
        "rows.parquet": _times(num_rows, "row_bytes"),
        "object table": _times(num_objects, "object_bytes"),
        "index, RaBitQ": rabitq,
        "index, SQ8": sq8,
    }
    object_memory = RATES["object_memory"].value
    ram: dict[str, int | None] = {
        "vectors, float32, scanned": 0 if lists else num_rows * SEARCH_DIM * 4,
        "index, RaBitQ, vectors.npy mapped": rabitq,
        "index, SQ8": sq8,
        "object_key.npy": num_rows * 8,
        "one filter and deleted rows, bits": num_rows // 4,
        "object table": None if object_memory is None else round(num_objects * object_memory),
    }
    gpu = {
        "IVF,SQ8": gpu_bytes(num_rows, SEARCH_DIM, lists * len(views), SEARCH_DIM) + SCRATCH_BYTES,
        "IVF,SQ8, two versions at once": 2
        * gpu_bytes(num_rows, SEARCH_DIM, lists * len(views), SEARCH_DIM)
        + SCRATCH_BYTES,
        "exact, float16 on the device": num_rows * SEARCH_DIM * 2,
    }
    return Plan(
        num_objects=num_objects,
        views=tuple(views),
        dim=dim,
        num_lists=lists,
        disk=disk,
        ram=ram,
        gpu=gpu,
        hours=_hours(num_objects, lists, views),
    )


def total(parts: dict[str, int], *, without: str) -> int:
    """Sum of all parts but one, for codes that exclude each other."""
    return sum(value for name, value in parts.items() if name != without)


def _num_lists(num_rows: int) -> int:
    """The power of two next to 4 sqrt(n), at most 65,536; 0 where all rows are scanned."""
    if num_rows <= EXACT_ROWS:
        return 0
    return min(MAX_LISTS, 1 << round(math.log2(4 * math.sqrt(num_rows))))


def _hours(num_objects: int, lists: int, views: Sequence[str]) -> dict[str, float | None]:
    """Of one pass over everything, by step and machine."""
    hours: dict[str, float | None] = {}
    for view in views:
        for name, where in (
            ("embed_nano_cpu", "nano on 2 cores"),
            ("embed_base_cpu", "AION-1 Base on 2 cores"),
            ("embed_base_gpu", "AION-1 Base on one H200"),
        ):
            # only images were measured
            rate = RATES[name].value if view == "image" else None
            hours[f"embed {view}, {where}"] = None if rate is None else num_objects / rate / 3600
    train = min(num_objects, TRAIN_PER_LIST * lists) * lists * SEARCH_DIM * 2.0 * KMEANS_ROUNDS
    fill = float(num_objects) * lists * SEARCH_DIM * 2.0
    kmeans_rate, fill_rate = RATES["kmeans_cpu"].value, RATES["fill_cpu"].value
    on_cpu = None
    if kmeans_rate is not None and fill_rate is not None:
        on_cpu = (train / kmeans_rate + fill / fill_rate) * len(views) / 3600
    gpu_rate = RATES["build_gpu"].value
    hours["index, SQ8, flat coarse quantizer, on 2 cores"] = on_cpu
    hours["index, SQ8, on one H200"] = (
        None if gpu_rate is None else (train + fill) * len(views) / gpu_rate / 3600
    )
    return hours


def _times(num: int, rate: str) -> int:
    value = RATES[rate].value
    assert value is not None
    return round(num * value)
