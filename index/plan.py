"""What a sky of so many objects takes: disk, memory, GPU memory and hours.

Bytes follow from the layout of the files; what has no fixed size, and every hour, from the rates
below, which somebody measured. A rate that nobody measured is None, and so is what follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from index.codec import HNSW_LINKS, CodecConfig, Kind, choose
from index.gpu import gpu_bytes
from training.modalities import VIEWS

MAX_OBJECTS = 10**12
MAX_DIM = 100_000
SEARCH_DIM = 256  # of the search head
CORES = 2  # that hours on a CPU are given for
FASTSCAN_BLOCK = 32  # rows that a RaBitQ list is padded to
SCRATCH_BYTES = 3 << 29  # 1.5 GiB that FAISS takes of every GPU
CODES: dict[Kind, str] = {"sq8": "SQ8", "rabitq": "RaBitQ"}


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
_ONE_CORE = "2026-11-22, CPU time of one core of an Intel Xeon"
_FILES = "2026-11-22, Intel Xeon"
_MAPPED = "2026-11-28, Intel Xeon"
_RESULTS = "benchmarks/RESULTS.md"
_PLAN = f"{_RESULTS}, Plan"
RATES: dict[str, Rate] = {
    "embed_nano_cpu": Rate(
        72.0, "images/s", "build with nano, start-up included", _EPYC, f"{_RESULTS}, First light"
    ),
    "embed_base_cpu": Rate(
        2.45, "images/s", "AION-1 Base in bfloat16", _XEON, f"{_RESULTS}, Encoder"
    ),
    "embed_base_gpu": Rate(None, "images/s", "AION-1 Base, one H200", "", ""),
    "kmeans_cpu": Rate(8.55e10, "flop/s", "k-means, 1,024 lists, 256 dimensions", _ONE_CORE, _PLAN),
    "graph_cpu": Rate(4360.0, "centroids/s", "graph over 16,384 centroids", _ONE_CORE, _PLAN),
    "fill_rabitq_cpu": Rate(
        10_290.0, "rows/s", "coded by RaBitQ into 16,384 lists", _ONE_CORE, _PLAN
    ),
    "fill_sq8_cpu": Rate(13_150.0, "rows/s", "coded by SQ8 into 16,384 lists", _ONE_CORE, _PLAN),
    "build_gpu": Rate(None, "rows/s", "train and fill IVF,SQ8 on one H200", "", ""),
    "row_bytes": Rate(122.6, "bytes/row", "rows.parquet of the demo's 2,000 images", _FILES, _PLAN),
    "object_bytes": Rate(
        97.0, "bytes/object", "object table of the demo's 2,000 objects", _FILES, _PLAN
    ),
    "object_mapped": Rate(
        176.6, "bytes/object", "the same, mapped, of a synthetic sky of 1,000,000", _MAPPED, _PLAN
    ),
    "object_memory": Rate(
        20.5,
        "bytes/object",
        "held of an open version of 1,000,000, ids and positions used",
        _MAPPED,
        _PLAN,
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by what takes them and hours by what takes them; None is not measured.

    `disk`, `ram` and `gpu` are bytes. In `disk` and `ram` the codes that were not chosen stand
    apart, in `other_codes`; in `gpu` the layouts exclude each other.
    """

    num_objects: int
    views: tuple[str, ...]
    dim: int
    codec: Kind | None  # of each view, as index/codec.py chooses; None: scanned, no FAISS index
    code_dim: int | None  # dimensions that sq8 is taken to need, before a vector was seen
    num_lists: int  # of each view
    disk: dict[str, int]
    ram: dict[str, int]
    other_codes: dict[str, int]
    gpu: dict[str, int]
    hours: dict[str, float | None]


def plan(num_objects: float | int, *, dim: int = 768, views: Sequence[str] = ("image",)) -> Plan:
    """What a sky takes in which every object has one row of each view, in one segment a view.

    Args:
        num_objects: A whole number from 1 to MAX_OBJECTS.
        dim: Of the encoder's vectors, from 1 to MAX_DIM.
        views: Those that are kept.

    Raises:
        ValueError: a number is out of range, or a view is unknown or named twice.
    """
    if not 1 <= num_objects <= MAX_OBJECTS or num_objects != int(num_objects):  # NaN too
        raise ValueError(
            f"expected a whole number of objects from 1 to {MAX_OBJECTS:,}, got {num_objects:,}"
        )
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"expected a dimension from 1 to {MAX_DIM:,}, got {dim:,}")
    unknown = [view for view in views if view not in VIEWS]
    if not views or unknown or len(set(views)) < len(views):
        raise ValueError(f"expected different views of {', '.join(VIEWS)}, got {', '.join(views)}")
    num_objects = int(num_objects)
    config = choose(num_objects, SEARCH_DIM)
    rows = num_objects * len(views)
    disk = {
        "store, float16 encoder vectors": rows * (dim * 2 + 32),
        "vectors.npy, float16": rows * SEARCH_DIM * 2,
        "object_key.npy": rows * 8,
        "rows.parquet": _times(rows, "row_bytes"),
        "object table": _times(num_objects, "object_bytes"),
        "object table, mapped": _times(num_objects, "object_mapped"),
    }
    ram: dict[str, int] = {
        "object table": _times(num_objects, "object_memory"),
        "object_key.npy, mapped": rows * 8,
        "deleted rows, a byte each": rows,
    }
    other: dict[str, int] = {}
    if config is None:
        ram["vectors.npy, mapped, scanned"] = rows * SEARCH_DIM * 2
    else:
        for kind, name in CODES.items():
            width = config.code_dim if kind == "sq8" else None
            size = index_bytes(replace(config, kind=kind, code_dim=width), num_objects)
            size *= len(views)
            if kind == config.kind:
                disk[f"index, {name}"] = ram[f"index, {name}"] = size
            else:
                other[f"index, {name}"] = size
        disk["codec"] = coarse_bytes(config) * len(views)
        ram["list of each row, for filters"] = rows * 4
        ram["one filter, by object and row"] = num_objects + rows + rows // 8
    return Plan(
        num_objects=num_objects,
        views=tuple(views),
        dim=dim,
        codec=None if config is None else config.kind,
        code_dim=None if config is None else config.code_dim,
        num_lists=0 if config is None else config.num_lists,
        disk=disk,
        ram=ram,
        other_codes=other,
        gpu=_gpu(config, rows, len(views)),
        hours=_hours(config, num_objects, views),
    )


def index_bytes(config: CodecConfig, num_rows: int) -> int:
    """Of index.faiss, on disk and in memory alike, to a few per cent."""
    lists = config.num_lists
    padded = num_rows  # a list of n rows is rounded up, by half a block on average
    if config.kind == "rabitq":
        padded += lists * (FASTSCAN_BLOCK - 1) // 2
    code = config.bytes_a_row - 8
    return padded * code + num_rows * 8 + coarse_bytes(config)


def coarse_bytes(config: CodecConfig) -> int:
    """Of the rotation, the centroids and the graph over them."""
    # and upper levels, offset and level of a node
    links = 4 * (2 * HNSW_LINKS + 2) + 12 if config.has_graph else 0
    return config.dim * config.width * 4 + config.num_lists * (config.width * 4 + links)


def _gpu(config: CodecConfig | None, rows: int, num_views: int) -> dict[str, int]:
    gpu = {"exact, float16 on the device": rows * SEARCH_DIM * 2}
    if config is not None:
        size = gpu_bytes(rows, SEARCH_DIM, config.num_lists * num_views, SEARCH_DIM)
        gpu["IVF,SQ8"] = size + SCRATCH_BYTES
        gpu["IVF,SQ8, two versions at once"] = 2 * size + SCRATCH_BYTES
    return gpu


def _hours(
    config: CodecConfig | None, num_objects: int, views: Sequence[str]
) -> dict[str, float | None]:
    """Of one pass over everything, by step and machine."""
    hours: dict[str, float | None] = {}
    for view in views:
        for name, where in (
            ("embed_nano_cpu", f"nano on {CORES} cores"),
            ("embed_base_cpu", f"AION-1 Base on {CORES} cores"),
            ("embed_base_gpu", "AION-1 Base on one H200"),
        ):
            # only images were measured
            rate = RATES[name].value if view == "image" else None
            hours[f"embed {view}, {where}"] = None if rate is None else num_objects / rate / 3600
    if config is None:
        return hours
    lists = config.num_lists
    flop = 2.0 * min(num_objects, config.num_train) * lists * config.width * config.num_iterations
    seconds = flop / _rate("kmeans_cpu") + lists / _rate("graph_cpu")
    hours[f"train the codec on {CORES} cores"] = seconds * len(views) / CORES / 3600
    for kind, name in CODES.items():
        seconds = num_objects * len(views) / _rate(f"fill_{kind}_cpu") / CORES
        hours[f"code all rows, {name}, on {CORES} cores"] = seconds / 3600
    on_gpu = RATES["build_gpu"].value
    hours["train and code, SQ8, on one H200"] = (
        None if on_gpu is None else num_objects * len(views) / on_gpu / 3600
    )
    return hours


def total(parts: Mapping[str, int]) -> int:
    """Bytes of all parts together."""
    return sum(parts.values())


def _rate(name: str) -> float:
    value = RATES[name].value
    assert value is not None
    return value


def _times(num: int, rate: str) -> int:
    return round(num * _rate(rate))
