"""The codec of a view: a coarse quantizer and a vector code, trained once, shared by its segments.

    codecs/<view>-<digest>/
        codec.json       settings, and the checksum of the other file
        trained.faiss    the index without rows that every segment's index begins as

Unit vectors are turned by a random rotation, put into the list of their nearest centroid, and
coded: by one bit a dimension (RaBitQ, Gao & Long 2024, arXiv 2405.12497, in FAISS's fast-scan
layout) or by one byte a dimension (SQ8). Codes find candidates; scores come from `vectors.npy`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from index import disk
from index.errors import VersionCorrupt

Kind = Literal["rabitq", "sq8"]

EXACT_ROWS = 200_000  # of a view: up to here it is scanned exactly, and has no codec
TRAIN_ROWS_A_LIST = 64
MAX_LISTS = 65_536
HNSW_LINKS = 32  # of the graph over the centroids


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CodecConfig:
    """What a codec is."""

    kind: Kind = "rabitq"
    dim: int = Field(gt=0)
    num_lists: int = Field(gt=0)
    num_iterations: int = Field(default=10, gt=0)  # of k-means
    seed: int = Field(default=0, ge=0)

    @property
    def num_train(self) -> int:
        """Vectors that training takes at most."""
        return TRAIN_ROWS_A_LIST * self.num_lists

    @property
    def bytes_a_row(self) -> int:
        """In memory, with the row's number."""
        return (self.dim // 8 + 8 if self.kind == "rabitq" else self.dim) + 8


@dataclass(frozen=True, slots=True)
class Codec:
    """A trained codec."""

    config: CodecConfig
    digest: str  # of settings and trained index
    trained: bytes  # the index without rows, as FAISS writes it

    def empty(self) -> faiss.Index:
        """A new index without rows."""
        return faiss.deserialize_index(np.frombuffer(self.trained, np.uint8))


def choose(
    num_rows: int, dim: int, *, memory_bytes: float | None = None, kind: Kind | None = None
) -> CodecConfig | None:
    """The codec of a view of so many rows; None where an exact scan is fast enough.

    Args:
        num_rows: Of the view, in all segments.
        dim: Of its vectors.
        memory_bytes: What the codes may take in memory; None: whatever the faster kind takes.
        kind: Overrides the rule.

    Raises:
        ValueError: no kind fits into the memory.
    """
    if num_rows <= EXACT_ROWS:
        return None
    num_lists = min(MAX_LISTS, 2 ** round(math.log2(4 * math.sqrt(num_rows))))
    config = CodecConfig(kind=kind or "rabitq", dim=dim, num_lists=num_lists)
    needed = num_rows * config.bytes_a_row
    if memory_bytes is not None and needed > memory_bytes:
        raise ValueError(
            f"{config.kind} codes of {num_rows:,} vectors take {needed / 2**30:.2f} GiB, and "
            f"{memory_bytes / 2**30:.2f} GiB are allowed"
        )
    return config


def train(vectors: Float32[ndarray, "row dim"], config: CodecConfig) -> Codec:
    """Fit centroids and codes to a sample of unit vectors.

    The same vectors and settings give the same codec on the same machine.

    Raises:
        ValueError: fewer vectors than lists, or of another dimension.
    """
    if vectors.shape[1] != config.dim:
        raise ValueError(f"expected vectors of {config.dim} dimensions, got {vectors.shape[1]}")
    if len(vectors) < config.num_lists:
        raise ValueError(
            f"expected at least {config.num_lists:,} vectors to train as many lists, got "
            f"{len(vectors):,}"
        )
    sample = np.ascontiguousarray(vectors, np.float32)
    if len(sample) > config.num_train:
        chosen = np.random.default_rng(config.seed).choice(
            len(sample), config.num_train, replace=False
        )
        sample = sample[np.sort(chosen)]
    rotation = faiss.RandomRotationMatrix(config.dim, config.dim)
    rotation.init(config.seed)
    turned = rotation.apply(sample)
    clustering = faiss.Clustering(config.dim, config.num_lists)
    clustering.niter = config.num_iterations
    clustering.seed = config.seed
    clustering.spherical = True
    clustering.max_points_per_centroid = TRAIN_ROWS_A_LIST
    clustering.min_points_per_centroid = 1
    nearest = faiss.IndexFlatIP(config.dim)
    clustering.train(turned, nearest)
    coarse = faiss.IndexHNSWFlat(config.dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    coarse.add(nearest.reconstruct_n(0, config.num_lists))
    lists = _lists(coarse, config)
    lists.train(turned)
    index = faiss.IndexPreTransform(rotation, lists)
    content = faiss.serialize_index(index).tobytes()
    digest = hashlib.sha256(repr(config).encode() + content).hexdigest()
    return Codec(config, digest, content)


def _lists(coarse: faiss.Index, config: CodecConfig) -> faiss.IndexIVF:
    metric = faiss.METRIC_INNER_PRODUCT
    if config.kind == "rabitq":
        lists = faiss.IndexIVFRaBitQFastScan(coarse, config.dim, config.num_lists, metric)
    else:
        lists = faiss.IndexIVFScalarQuantizer(
            coarse, config.dim, config.num_lists, faiss.ScalarQuantizer.QT_8bit, metric
        )
    lists.quantizer_trains_alone = 1  # it has its centroids
    return lists


def fill(codec: Codec, blocks: Iterable[Float32[ndarray, "row dim"]]) -> faiss.Index:
    """An index of some rows in their order; FAISS's ids are the numbers of rows."""
    index = codec.empty()
    for block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
    return index


def write_index(path: Path, index: faiss.Index) -> None:
    """Write an index whole or not at all; OSError and DiskFull as disk.new_file."""
    with disk.new_file(path) as handle:
        faiss.write_index(index, faiss.PyCallbackIOWriter(handle.write))


def read_index(path: Path, sha256: str) -> faiss.Index:
    """Read an index into memory, if it is the one whose checksum is known.

    FAISS parses what it is given without mistrust: a file from elsewhere is never handed to it.

    Raises:
        VersionCorrupt: the file is missing, or its content is another.
    """
    try:
        found = disk.sha256_of(path)
    except FileNotFoundError as error:
        raise VersionCorrupt(f"{path} is missing") from error
    if found != sha256:
        raise VersionCorrupt(f"{path}: its content has changed: the checksum does not hold")
    return faiss.read_index(str(path))


def write_codec(parent: Path, view: str, codec: Codec) -> str:
    """Write a codec, and give the name of its folder, which tells its content."""
    name = f"{view}-{codec.digest[:16]}"
    with disk.new_folder(parent) as temporary:
        with disk.new_file(temporary / "trained.faiss") as handle:
            handle.write(codec.trained)
        disk.write_json(
            temporary / "codec.json",
            {
                "config": {key: getattr(codec.config, key) for key in _FIELDS},
                "digest": codec.digest,
                "files": {"trained.faiss": disk.described(temporary / "trained.faiss")},
            },
        )
        disk.seal(temporary, parent / name)
    return name


_FIELDS = ("kind", "dim", "num_lists", "num_iterations", "seed")


def read_codec(folder: Path) -> Codec:
    """Read a codec; VersionCorrupt names what is wrong with it."""
    head = disk.read_json(folder / "codec.json")
    values, files = head["config"], head["files"]
    assert isinstance(values, dict)
    assert isinstance(files, dict)
    path = folder / "trained.faiss"
    read_index(path, files[path.name]["sha256"])
    return Codec(CodecConfig(**values), str(head["digest"]), path.read_bytes())
