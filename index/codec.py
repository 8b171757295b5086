"""The codec of a view: a coarse quantizer and a vector code, trained once, shared by its segments.

    codecs/<view>-<digest>/
        codec.json       settings, and the checksum of the other file
        trained.faiss    the index without rows that every segment's index begins as

Unit vectors are turned, put into the list of their nearest centroid, and coded: by one byte a
dimension (SQ8) of the few principal dimensions that tell neighbours apart, or by one bit of every
dimension (RaBitQ, Gao & Long 2024, arXiv 2405.12497, in FAISS's fast-scan layout). Codes find
candidates; scores come from `vectors.npy`.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
TRAIN_ROWS_A_LIST = 40
MAX_LISTS = 65_536
GRAPH_SIZE = 1 << 18  # lists x dimensions: over more centroids there is a graph
HNSW_LINKS, HNSW_BUILD = 32, 200  # of it
HNSW_SEARCH = 64  # nodes kept; with half of them one row in a thousand is led astray
FLAT_SIZE = 1 << 21  # lists x dimensions: up to here a row is compared with all of them
ASSUMED_SHARE = 4  # of the dimensions one in so many is coded, as long as no vector was seen
_NEIGHBOURS, _CANDIDATES = 10, 40  # that dimensions are judged by
_TELLS_APART = 0.99  # share of the former that must be among the latter
_BLOCK_ROWS = 65_536  # in double precision at a time
_MAX_JUDGED = 1 << 18  # rows of the sample
_NUM_JUDGED = 256  # rows that look for their neighbours in the sample


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CodecConfig:
    """What a codec is."""

    kind: Kind = "sq8"
    dim: int = Field(gt=0)
    code_dim: int | None = Field(default=None, gt=0)  # principal dimensions coded; None: all
    num_lists: int = Field(gt=0)
    num_iterations: int = Field(default=10, gt=0)  # of k-means
    seed: int = Field(default=0, ge=0)

    @property
    def num_train(self) -> int:
        """Vectors that training takes at most."""
        return TRAIN_ROWS_A_LIST * self.num_lists

    def __post_init__(self) -> None:
        if self.code_dim is not None and self.code_dim > self.dim:
            raise ValueError(f"expected code_dim up to {self.dim}, got {self.code_dim}")
        if self.code_dim is not None and self.kind == "rabitq":
            raise ValueError("code_dim is for sq8: rabitq codes every dimension")

    @property
    def width(self) -> int:
        """Dimensions that are coded."""
        return self.code_dim or self.dim

    @property
    def has_graph(self) -> bool:
        """Whether the lists nearest to a query are looked for in a graph over the centroids.

        Which takes a third of the time for 16,384 of them, a sixth for 32,768, but misleads queries
        unlike all that it was made of (probing.py).
        """
        return self.num_lists * self.width > GRAPH_SIZE

    @property
    def is_assigned_flat(self) -> bool:
        """Whether `fill` compares a row with all centroids; else FAISS finds its list.

        RaBitQ's lists take no row whose list was found elsewhere.
        """
        return self.kind == "sq8" and self.num_lists * self.width <= FLAT_SIZE

    @property
    def bytes_a_row(self) -> int:
        """In memory, with the row's number."""
        return (self.dim // 8 + 8 if self.kind == "rabitq" else self.width) + 8


@checked_dataclass(
    frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
)
class IndexConfig:
    """What a sky asks of its codecs; sky.json keeps it, so that nightlies follow the build."""

    kind: Kind | None = None  # None: by the rule of `choose`
    code_dim: int | None = Field(default=None, gt=0)  # of sq8; None: as many as the vectors need
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
    config = read_config(IndexConfig, values, where=file)
    if config.kind == "rabitq" and config.code_dim is not None:
        raise ValueError(
            f"{file}: expected code_dim with kind sq8 or none, got it with rabitq, which codes "
            "every dimension"
        )
    return config


def choose(
    num_rows: int,
    dim: int,
    config: IndexConfig = BY_THE_RULE,
    *,
    sample: Float32[ndarray, "row dim"] | None = None,
) -> CodecConfig | None:
    """The codec of a view of so many rows; None where an exact scan is fast enough.

    The rule: up to `exact_rows` none. Above, SQ8 of as many principal dimensions as neighbours are
    told apart by (`needed_dim`), as long as that is at most half of all and the codes fit into
    `memory_gib`: candidates come quicker than from RaBitQ, at less memory where a sixth of the
    dimensions will do (benchmarks/RESULTS.md). Else RaBitQ. Lists are four for the root of the
    number of rows, as a power of two.

    Args:
        num_rows: Of the view, in all segments.
        dim: Of its vectors.
        config: What overrides the rule.
        sample: Some of the vectors; None: before they were seen, a quarter of the dimensions is
            taken to be needed.

    Raises:
        ValueError: no codes fit into the memory that is allowed, or code_dim is more than `dim`.
    """
    if num_rows <= config.exact_rows:
        return None
    if config.code_dim is not None and config.code_dim > dim:
        raise ValueError(f"expected code_dim up to {dim}, got {config.code_dim}")
    num_lists = min(MAX_LISTS, 2 ** round(math.log2(4 * math.sqrt(num_rows))))
    num_lists = max(1, min(num_lists, num_rows // 2))  # of a view that is told to have a codec
    width = config.code_dim
    if width is None and config.kind != "rabitq":
        width = max(1, dim // ASSUMED_SHARE) if sample is None else needed_dim(sample)
    few = width is not None and (config.code_dim is not None or 2 * width <= dim)
    allowed: list[CodecConfig] = []
    if config.kind == "sq8" or (config.kind is None and few):
        allowed.append(CodecConfig(kind="sq8", dim=dim, code_dim=width, num_lists=num_lists))
    if config.kind == "rabitq" or (config.kind is None and config.code_dim is None):
        allowed.append(CodecConfig(kind="rabitq", dim=dim, num_lists=num_lists))
    for each in allowed:
        needed_gib = num_rows * each.bytes_a_row / 2**30
        if config.memory_gib is None or needed_gib <= config.memory_gib:
            return each
    raise ValueError(
        f"{each.kind} codes of {num_rows:,} vectors take {needed_gib:.2f} GiB, and memory_gib "
        f"allows {config.memory_gib:.2f}"
    )


def needed_dim(sample: Float32[ndarray, "row dim"]) -> int:
    """Principal dimensions by which neighbours in a sample are told apart.

    The fewest of 16, 32, 48, 64, 96, 128, 192 ... in which of the ten nearest 99 % are among the 40
    nearest, on average over 256 rows of the sample (of 262,144 rows of it at most); all dimensions
    where fewer do not.
    """
    sample = sample[:: -(-len(sample) // _MAX_JUDGED)] if len(sample) else sample
    dim = sample.shape[1]
    widths = [base << i for i in range(16) for base in (16, 24) if base << i != 24]
    widths = [width for width in widths if width < dim]
    chosen = np.linspace(0, len(sample) - 1, min(_NUM_JUDGED, len(sample))).astype(np.int64)
    if not widths or len(sample) <= _CANDIDATES:
        return dim
    turned = sample @ principal_axes(sample).T  # (row, dim), the widest axes first
    true = _nearest(turned, chosen, _NEIGHBOURS)
    for width in widths:
        found = _nearest(np.ascontiguousarray(turned[:, :width]), chosen, _CANDIDATES)
        among = (true[:, :, None] == found[:, None, :]).any(axis=2)
        if among.mean() >= _TELLS_APART:
            return width
    return dim


def _nearest(vectors: Float32[ndarray, "row dim"], chosen: ndarray, num: int) -> ndarray:
    """The rows of highest product with some, without themselves; in no order."""
    products = vectors[chosen] @ vectors.T
    products[np.arange(len(chosen)), chosen] = -np.inf
    nearest: ndarray = np.argpartition(-products, num - 1, axis=1)[:, :num]
    return nearest


def principal_axes(sample: Float32[ndarray, "row dim"]) -> Float32[ndarray, "dim dim"]:
    """Unit axes, that of most light first: eigenvectors of the second moments about zero.

    About zero, so that products of projected vectors come near to those of the vectors.
    """
    moments = np.zeros((sample.shape[1],) * 2)
    for start in range(0, len(sample), _BLOCK_ROWS):
        some = sample[start : start + _BLOCK_ROWS].astype(np.float64)
        moments += some.T @ some
    axes = np.linalg.eigh(moments)[1].T[::-1]
    # a sign for each, so that the same sample gives the same axes
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.ascontiguousarray(axes * signs[:, None], np.float32)


def serves(known: CodecConfig, wanted: CodecConfig, config: IndexConfig = BY_THE_RULE) -> bool:
    """Whether a codec that was trained for fewer or more rows still does.

    Half or twice the lists cost little; beyond that segments are coded again. Kind and code_dim
    count where they are told.
    """
    told = (config.kind or known.kind, config.code_dim or known.code_dim)
    ratio = known.num_lists / wanted.num_lists
    return (known.kind, known.code_dim, known.dim) == (*told, wanted.dim) and 0.5 <= ratio <= 2


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
    rotation = _rotation(sample, config)
    turned = rotation.apply(sample)
    clustering = faiss.Clustering(config.width, config.num_lists)
    clustering.niter = config.num_iterations
    clustering.seed = config.seed
    clustering.spherical = True
    clustering.max_points_per_centroid = TRAIN_ROWS_A_LIST
    clustering.min_points_per_centroid = 1
    nearest = faiss.IndexFlatL2(config.width)
    clustering.train(turned, nearest)
    coarse = faiss.IndexFlatIP(config.width)
    if config.has_graph:
        coarse = faiss.IndexHNSWFlat(config.width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        coarse.hnsw.efConstruction, coarse.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    coarse.add(nearest.reconstruct_n(0, config.num_lists))
    lists = _lists(coarse, config)
    lists.train(turned)
    index = faiss.IndexPreTransform(rotation, lists)
    content = faiss.serialize_index(index).tobytes()
    digest = hashlib.sha256(repr(config).encode() + content).hexdigest()
    return Codec(config, digest, content)


def _rotation(sample: Float32[ndarray, "row dim"], config: CodecConfig) -> Any:
    """A rotation, or a projection onto the principal dimensions that are coded."""
    if config.code_dim is None:
        rotation = faiss.RandomRotationMatrix(config.dim, config.dim)
        rotation.init(config.seed)
        return rotation
    axes = principal_axes(sample)[: config.code_dim]
    projection = faiss.LinearTransform(config.dim, config.code_dim, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(axes).reshape(-1), projection.A)
    projection.is_trained = True
    projection.set_is_orthonormal()
    return projection


def _lists(coarse: faiss.Index, config: CodecConfig) -> faiss.IndexIVF:
    metric = faiss.METRIC_INNER_PRODUCT
    if config.kind == "rabitq":
        lists = faiss.IndexIVFRaBitQFastScan(coarse, config.dim, config.num_lists, metric)
    else:
        lists = faiss.IndexIVFScalarQuantizer(
            coarse, config.width, config.num_lists, faiss.ScalarQuantizer.QT_8bit, metric
        )
    lists.quantizer_trains_alone = 1  # it has its centroids
    return lists


def fill(codec: Codec, blocks: Iterable[Float32[ndarray, "row dim"]]) -> faiss.Index:
    """An index of some rows in their order; FAISS's ids are the numbers of rows.

    Centroids are of unit length, so that of the highest product is the nearest, which FAISS finds
    four times as quickly in up to 32 dimensions.
    """
    index = codec.empty()
    if not codec.config.is_assigned_flat:
        for block in blocks:
            index.add(np.ascontiguousarray(block, np.float32))
        return index
    rotation, lists = index.chain.at(0), faiss.downcast_index(index.index)
    nearest = faiss.IndexFlatL2(codec.config.width)
    nearest.add(lists.quantizer.reconstruct_n(0, codec.config.num_lists))
    for block in blocks:
        turned = rotation.apply(np.ascontiguousarray(block, np.float32))
        of_row = np.ascontiguousarray(nearest.search(turned, 1)[1][:, 0])
        lists.add_core(len(turned), faiss.swig_ptr(turned), None, faiss.swig_ptr(of_row))
        index.ntotal = lists.ntotal
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


_FIELDS = ("kind", "dim", "code_dim", "num_lists", "num_iterations", "seed")


def read_codec(folder: Path) -> Codec:
    """Read a codec; VersionCorrupt names what is wrong with it."""
    head = disk.read_json(folder / "codec.json")
    values, files = head["config"], head["files"]
    assert isinstance(values, dict)
    assert isinstance(files, dict)
    path = folder / "trained.faiss"
    read_index(path, files[path.name]["sha256"])
    return Codec(CodecConfig(**values), str(head["digest"]), path.read_bytes())
