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
import tomllib
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
from training.artifact import read_config

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


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class IndexConfig:
    """What a sky asks of its codecs; sky.json keeps it, so that nightlies follow the build."""

    kind: Kind | None = None  # None: by the rule of `choose`
    exact_rows: int = Field(default=EXACT_ROWS, ge=0)  # of a view: above, it has a codec
    indexed_rows: int = Field(default=4_000, ge=1)  # a smaller segment is faster scanned exactly
    memory_gib: float | None = Field(default=None, gt=0)  # what the codes of a view may take


BY_THE_RULE = IndexConfig()


@dataclass(frozen=True, slots=True)
class Codec:
    """A trained codec."""

    config: CodecConfig
    digest: str  # of settings and trained index
    trained: bytes  # the index without rows, as FAISS writes it

    def empty(self) -> faiss.Index:
        """A new index without rows."""
        return faiss.deserialize_index(np.frombuffer(self.trained, np.uint8))


def read_index_config(file: Path) -> IndexConfig:
    """Read and check a TOML; a wrong or unknown key is named in the error.

    Raises:
        ValueError: it cannot be read, is not TOML, or a key is wrong.
    """
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as TOML ({error})") from error
    return read_config(IndexConfig, values, where=file)


def choose(num_rows: int, dim: int, config: IndexConfig = BY_THE_RULE) -> CodecConfig | None:
    """The codec of a view of so many rows; None where an exact scan is fast enough.

    The rule: up to `exact_rows` none; above, RaBitQ, which is both smaller and faster than SQ8 at
    the same recall (benchmarks/RESULTS.md), with four lists for the root of the number of rows, as
    a power of two.

    Args:
        num_rows: Of the view, in all segments.
        dim: Of its vectors.
        config: What overrides the rule.

    Raises:
        ValueError: the codes do not fit into the memory that is allowed.
    """
    if num_rows <= config.exact_rows:
        return None
    num_lists = min(MAX_LISTS, 2 ** round(math.log2(4 * math.sqrt(num_rows))))
    num_lists = max(1, min(num_lists, num_rows // 2))  # of a view that is told to have a codec
    chosen = CodecConfig(kind=config.kind or "rabitq", dim=dim, num_lists=num_lists)
    needed_gib = num_rows * chosen.bytes_a_row / 2**30
    if config.memory_gib is not None and needed_gib > config.memory_gib:
        raise ValueError(
            f"{chosen.kind} codes of {num_rows:,} vectors take {needed_gib:.2f} GiB, and "
            f"memory_gib allows {config.memory_gib:.2f}"
        )
    return chosen


def serves(known: CodecConfig, wanted: CodecConfig) -> bool:
    """Whether a codec that was trained for fewer or more rows still does.

    Half or twice the lists cost little; beyond that segments are coded again.
    """
    ratio = known.num_lists / wanted.num_lists
    return (known.kind, known.dim) == (wanted.kind, wanted.dim) and 0.5 <= ratio <= 2


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
    disk.check(path, sha256)
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
