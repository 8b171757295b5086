"""Search on a device: exactly by torch, and by FAISS indexes that are moved to a GPU.

Plain arrays and FAISS indexes in memory come in, row numbers go out. Nothing of FAISS is imported
before it is needed, nothing of its GPU code before a GPU is asked for.

Exact search runs on any device of torch and is the truth that the others are measured against.
FAISS's inverted lists (IVF,SQ8) move to a GPU and back. Three things there are unlike a CPU: k and
nprobe end at 2048, an index must not be searched by two threads at once (so all indexes of a GPU
share one lock), and its own kernels take a selector of rows without a word and may not obey it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray
from torch import Tensor

from index.errors import GpuUnavailable
from index.faiss_distributions import check_one_faiss

MAX_K = 2048  # of k and of nprobe: GPU_MAX_SELECTION_K of FAISS
OVERFETCH = 2.0  # rows fetched for each that a filter lets through, where filters come afterwards
EXACT_ROWS = 20_000  # so few allowed rows are scanned
_NOTHING = torch.iinfo(torch.int64).min  # of a packed score and row: no row
# Of a product of unit vectors, twice its error: float32, TF32, bfloat16.
_SLACK = {"highest": 5e-5, "high": 2e-3, "medium": 2e-2}
_OPENING = Lock()


@dataclass(frozen=True, slots=True)
class NearRows:
    """Best-first rows. A query with fewer than k ends in row -1, score -inf."""

    rows: Int64[ndarray, "query k"]
    scores: Float32[ndarray, "query k"]  # cosine


def torch_device(name: str) -> torch.device:
    """The device of torch of that name, such as cpu or cuda:0.

    Raises:
        GpuUnavailable: it is a CUDA device, and torch finds none or not as many.
    """
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GpuUnavailable(
            f"device {name} is asked for, and torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA devices here"
        )
    return device


class ExactScan:
    """The k rows of highest cosine to each query, of vectors that come block by block.

    A product in single precision finds the candidates; their cosines are then taken in double
    precision and rounded to float32, so neither the blocks nor the device change an answer, and
    equal vectors tie exactly. Ties go to the lower row.
    """

    def __init__(
        self, queries: Float32[ndarray, "query dim"], *, k: int, device: str = "cpu"
    ) -> None:
        if k < 1:
            raise ValueError(f"expected k of at least 1, got {k}")
        length = np.linalg.norm(queries.astype(np.float64), axis=1)
        if not (np.abs(length - 1) < 1e-3).all():
            bad = int(np.argmin(np.abs(length - 1) < 1e-3))
            raise ValueError(f"expected queries of unit length, query {bad} has {length[bad]}")
        self.k = k
        self.device = torch_device(device)
        on_cpu = self.device.type == "cpu"
        self.block_rows = 1 << (16 if on_cpu else 20)  # rows that a block had best have
        self._product_size = 1 << (24 if on_cpu else 28)  # numbers held at a time
        self._queries = torch.from_numpy(np.array(queries)).to(self.device)
        self._best = torch.full((len(queries), k), _NOTHING, device=self.device)

    def add(self, vectors: ndarray | Tensor, rows: Int64[ndarray, " row"] | Tensor) -> None:
        """Look at a block.

        Args:
            vectors: (row, dim), of any float type, about unit length.
            rows: Number of each, below 2**32; in any order, each once in all blocks together.

        Raises:
            ValueError: a vector is not finite.
        """
        if not len(rows):
            return
        stored = self._here(vectors)
        numbers = self._here(rows)
        length = torch.linalg.vector_norm(stored, dim=1, dtype=torch.float64)
        length = length.clamp_min(torch.finfo(torch.float32).tiny)
        unit = stored.float() / length[:, None].float()
        step = max(1, self._product_size // len(numbers))
        for start in range(0, len(self._queries), step):
            part = slice(start, start + step)
            self._add(part, unit, stored, length, numbers)

    def found(self) -> NearRows:
        """The best rows of all blocks so far."""
        best = self._best.cpu().numpy()
        none = best == _NOTHING
        rows = np.where(none, -1, 0xFFFFFFFF - (best & 0xFFFFFFFF))
        ordered = (best >> 32).astype(np.int32)
        scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)
        return NearRows(rows, np.where(none, np.float32(-np.inf), scores))

    def _here(self, array: ndarray | Tensor) -> Tensor:
        # a copy, since torch warns of read-only arrays, such as mapped files
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
        return tensor.to(self.device)

    def _add(
        self, part: slice, unit: Tensor, stored: Tensor, length: Tensor, numbers: Tensor
    ) -> None:
        queries, best = self._queries[part], self._best[part]
        product = queries @ unit.T  # (query, row)
        top = product.topk(min(self.k, len(numbers)), dim=1).values
        if not torch.isfinite(top[:, 0]).all():  # NaN comes first
            raise ValueError("expected finite vectors, got NaN or infinity")
        floor = _scores(best[:, -1])
        if len(numbers) >= self.k:
            floor = torch.maximum(floor, top[:, -1])
        floor = floor - _SLACK[torch.get_float32_matmul_precision()]
        num_near = int((product >= floor[:, None]).sum(dim=1).max())
        if not num_near:
            return
        near = product.topk(num_near, dim=1).indices  # (query, near)
        del product
        step = max(1, self._product_size // (num_near * unit.shape[1]))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            chosen = near[some]
            exact = (stored[chosen].double() * queries[some, None].double()).sum(dim=2)
            packed = _packed((exact / length[chosen]).float(), numbers[chosen])
            both = torch.cat([best[some], packed], dim=1)
            best[some] = both.topk(self.k, dim=1).values


def exact_search(
    queries: Float32[ndarray, "query dim"],
    vectors: ndarray | Tensor,
    *,
    k: int,
    allowed: Bool[ndarray, " row"] | None = None,
    device: str = "cpu",
) -> NearRows:
    """The k rows of highest cosine to each query, by looking at all that are allowed.

    Args:
        queries: Unit vectors.
        vectors: (row, dim), float16 as a rule: in memory, mapped from a file, or on the device.
        k: At least 1.
        allowed: By row; None allows all.
        device: Of torch, where the products are taken.

    Raises:
        ValueError: a query is not of unit length, a vector is not finite.
        GpuUnavailable: there is no such device.
    """
    scan = ExactScan(queries, k=k, device=device)
    if allowed is not None and allowed.shape != (len(vectors),):
        raise ValueError(f"expected {len(vectors)} flags, one a row, got {allowed.shape}")
    for rows in _pieces(len(vectors), allowed, scan.block_rows):
        whole = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
        if whole:
            scan.add(vectors[int(rows[0]) : int(rows[-1]) + 1], rows)
        elif isinstance(vectors, Tensor):
            scan.add(vectors[torch.from_numpy(rows).to(vectors.device)], rows)
        else:
            scan.add(vectors[rows], rows)
    return scan.found()


def _pieces(
    num_rows: int, allowed: Bool[ndarray, " row"] | None, step: int
) -> Iterator[Int64[ndarray, " n"]]:
    if allowed is not None:
        rows = np.flatnonzero(allowed)
        yield from (rows[start : start + step] for start in range(0, len(rows), step))
        return
    for start in range(0, num_rows, step):
        yield np.arange(start, min(start + step, num_rows))


def _packed(scores: Tensor, rows: Tensor) -> Tensor:
    """Score and row as one integer: higher is better, then the lower row. No two are equal."""
    bits = (scores + 0.0).contiguous().view(torch.int32)  # + 0.0: there are two zeros
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - rows)


def _scores(packed: Tensor) -> Tensor:
    ordered = (packed >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return torch.where(packed == _NOTHING, -torch.inf, scores)


@dataclass(frozen=True, slots=True)
class DeviceIndex:
    """An IVF index of FAISS, and what its device asks for. Rows are numbered from 0."""

    index: Any
    lock: Lock  # held by whoever searches or adds; one for all indexes of a GPU
    obeys_selectors: bool
    device: str  # the same for torch

    def add(self, vectors: Tensor, *, first_row: int) -> None:
        """Add vectors where they lie: float32 (row, dim), on the device of the index."""
        faiss = _faiss()
        vectors = vectors.float().contiguous()
        if vectors.shape[1] != self.index.d:
            raise ValueError(f"expected dim {self.index.d}, got {vectors.shape[1]}")
        rows = torch.arange(first_row, first_row + len(vectors), device=vectors.device)
        with self.lock:
            self.index.add_with_ids_c(
                len(vectors),
                faiss.cast_integer_to_float_ptr(vectors.data_ptr()),
                faiss.cast_integer_to_idx_t_ptr(rows.data_ptr()),
            )

    def list_lengths(self) -> Int64[ndarray, " list"]:
        """Rows in each list."""
        lists = getattr(self.index, "invlists", None)  # only of an index in memory
        length = self.index.getListLength if lists is None else lists.list_size
        with self.lock:
            return np.array([length(i) for i in range(self.index.nlist)], np.int64)

    def search(
        self,
        queries: Float32[ndarray, "query dim"],
        *,
        k: int,
        nprobe: int,
        allowed: Bool[ndarray, " row"] | None = None,
    ) -> Int64[ndarray, "query k"]:
        """The k nearest rows of the nprobe nearest lists, best first as the codes tell, then -1.

        Args:
            queries: Unit vectors.
            k: At most 2048.
            nprobe: At most 2048.
            allowed: By row, given to FAISS as a selector; see `search_allowed`, which holds for
                indexes that do not obey one.

        Raises:
            ValueError: k or nprobe is out of range, or the index does not obey selectors.
        """
        faiss = _faiss()
        for name, value in (("k", k), ("nprobe", nprobe)):
            if not 1 <= value <= MAX_K:
                raise ValueError(f"expected {name} from 1 to {MAX_K}, got {value}")
        settings = {"nprobe": min(nprobe, self.index.nlist)}
        if allowed is not None:
            if not self.obeys_selectors:
                raise ValueError("this index does not obey selectors: use search_allowed")
            settings["sel"] = _selector(allowed)
        parameters = faiss.SearchParametersIVF(**settings)
        with self.lock:
            return self.index.search(np.ascontiguousarray(queries), k, params=parameters)[1]


def search_allowed(
    index: DeviceIndex,
    queries: Float32[ndarray, "query dim"],
    vectors: ndarray | Tensor,
    *,
    k: int,
    nprobe: int,
    allowed: Bool[ndarray, " row"],
) -> Int64[ndarray, "query k"]:
    """The k nearest allowed rows, whether or not the index obeys selectors.

    More lists are probed the fewer rows are allowed. An index that does not obey is asked for more
    rows than k and what is not allowed is taken out; the first k that are left are then the k
    nearest allowed ones. Few allowed rows are scanned exactly, and so are they all for queries that
    end with fewer than k.

    Args:
        index: It holds the codes of `vectors`.
        queries: Unit vectors.
        vectors: (row, dim), for exact scans.
        k: At most 2048.
        nprobe: Lists that are enough without a filter.
        allowed: By row.

    Returns:
        Rows, best first, then -1 where fewer than k are allowed.
    """
    rows = np.full((len(queries), k), -1, np.int64)
    num_allowed = int(np.count_nonzero(allowed))
    if not num_allowed:
        return rows
    share = num_allowed / len(allowed)
    depth = k if index.obeys_selectors else math.ceil(OVERFETCH * k / share)
    if num_allowed > EXACT_ROWS and depth <= MAX_K:
        lists = min(math.ceil(nprobe / share), MAX_K)
        if index.obeys_selectors:
            rows = index.search(queries, k=k, nprobe=lists, allowed=allowed)
        else:
            rows = _first_allowed(index.search(queries, k=depth, nprobe=lists), allowed, k)
    short = (rows >= 0).sum(axis=1) < min(k, num_allowed)
    if short.any():
        exact = exact_search(queries[short], vectors, k=k, allowed=allowed, device=index.device)
        rows[short] = exact.rows
    return rows


def _first_allowed(
    found: Int64[ndarray, "query n"], allowed: Bool[ndarray, " row"], k: int
) -> Int64[ndarray, "query k"]:
    keep = (found >= 0) & allowed[found]  # row -1 is the last, and masked before
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    rows = np.take_along_axis(found, order, axis=1)
    return np.where(np.take_along_axis(keep, order, axis=1), rows, -1)


def on_cpu(index: Any) -> DeviceIndex:
    """An IVF index where it is: the same calls as on a GPU."""
    return DeviceIndex(index, Lock(), obeys_selectors=True, device="cpu")


def to_gpu(
    index: Any, *, gpu: int = 0, num_rows: int = 0, half_centroids: bool = False
) -> DeviceIndex:
    """Copy an IVF,SQ8 index in memory to a GPU. The index is left as it is.

    Args:
        index: IndexIVFScalarQuantizer; a coarse quantizer that is not flat (HNSW) is flattened.
        gpu: Number of the GPU.
        num_rows: To be added later; memory is set aside for them.
        half_centroids: Centroids in float16: faster to build, and lists may differ from a CPU's.

    Raises:
        GpuUnavailable: no GPU, a FAISS without GPU code, or too little memory on it.
        ValueError: another type of index.
    """
    moved = _moved(index, gpu, half_centroids=half_centroids, num_rows=num_rows)
    lock = _resources(gpu).lock
    return DeviceIndex(moved, lock, obeys_selectors=gpu_obeys_selectors(gpu), device=f"cuda:{gpu}")


def to_cpu(index: DeviceIndex) -> Any:
    """Copy an index from the GPU into memory, as one that is written and searched as any other."""
    with index.lock:
        return _faiss().index_gpu_to_cpu(index.index)


def train(sample: Float32[ndarray, "row dim"], *, num_lists: int, gpu: int = 0) -> Any:
    """Train an empty IVF,SQ8 index (L2) on a GPU.

    Args:
        sample: Unit vectors, 39 a list or more.
        num_lists: Of the index.
        gpu: Number of the GPU.

    Returns:
        An empty index in memory; `to_gpu` moves it.
    """
    faiss = require_gpu(gpu)
    resources = _resources(gpu)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(sample.shape[1]),
        sample.shape[1],
        num_lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_L2,
    )
    with resources.lock:
        moved = faiss.index_cpu_to_gpu(resources.faiss, gpu, index)
        moved.train(np.ascontiguousarray(sample))
        return faiss.index_gpu_to_cpu(moved)


def require_gpu(gpu: int = 0) -> Any:
    """FAISS with its GPU code, where that GPU is.

    Raises:
        GpuUnavailable: FAISS has no GPU code, or finds no such GPU.
    """
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise GpuUnavailable(
            f"FAISS {faiss.__version__} here has no GPU code: run `make gpu` (docs/gpu.md)"
        )
    if gpu >= faiss.get_num_gpus():
        raise GpuUnavailable(f"GPU {gpu} is asked for, and FAISS finds {faiss.get_num_gpus()}")
    return faiss


@cache
def gpu_obeys_selectors(gpu: int = 0) -> bool:
    """Whether an IVF,SQ8 index on this GPU searches allowed rows only: asked of a small one."""
    index = _small_index()
    moved = _moved(index, gpu, half_centroids=False, num_rows=0)
    with _resources(gpu).lock:
        return obeys_selectors(moved)


def obeys_selectors(index: Any) -> bool:
    """Whether a search in all lists of this index keeps to the even rows when told to.

    False where it gives others, fewer than there are, or refuses.
    """
    faiss = _faiss()
    even = np.arange(index.ntotal) % 2 == 0
    k = min(int(even.sum()), MAX_K)
    parameters = faiss.SearchParametersIVF(nprobe=index.nlist, sel=_selector(even))
    try:
        rows = index.search(np.full((1, index.d), index.d**-0.5, np.float32), k, params=parameters)
    except RuntimeError:  # FAISS's own "not implemented"
        return False
    return bool((rows[1] >= 0).all() and (rows[1] % 2 == 0).all())


@dataclass(frozen=True, slots=True)
class _Resources:
    faiss: Any  # streams and scratch memory of one GPU
    lock: Lock


_OPEN: dict[int, _Resources] = {}


def _resources(gpu: int) -> _Resources:
    """Shared by all indexes of a GPU: each set of its own would take 1.5 GiB of scratch memory."""
    with _OPENING:
        if gpu not in _OPEN:
            resources = require_gpu(gpu).StandardGpuResources()
            # torch's default stream, so that FAISS sees what torch has written, and in order
            resources.setDefaultNullStreamAllDevices()
            _OPEN[gpu] = _Resources(resources, Lock())
        return _OPEN[gpu]


def _moved(index: Any, gpu: int, *, half_centroids: bool, num_rows: int) -> Any:
    faiss = require_gpu(gpu)
    resources = _resources(gpu)
    flat = flattened(index)
    options = faiss.GpuClonerOptions()
    options.indicesOptions = faiss.INDICES_32_BIT
    options.useFloat16CoarseQuantizer = half_centroids
    num_bytes = gpu_bytes(max(index.ntotal, num_rows), index.sq.code_size, index.nlist, index.d)
    free = torch.cuda.mem_get_info(gpu)[0] if torch.cuda.is_available() else num_bytes
    if free < num_bytes:
        raise GpuUnavailable(
            f"the index takes {num_bytes / 2**30:.1f} GiB of GPU {gpu}, which has "
            f"{free / 2**30:.1f} GiB free"
        )
    with resources.lock:
        moved = faiss.index_cpu_to_gpu(resources.faiss, gpu, flat, options)
        if num_rows:
            moved.reserveMemory(num_rows)
        return moved


def gpu_bytes(num_rows: int, code_size: int, num_lists: int, dim: int) -> int:
    """Bytes that an IVF index of so many rows takes on a GPU: codes, 32-bit ids, centroids."""
    return num_rows * (code_size + 4) + num_lists * dim * 4


def flattened(index: Any) -> Any:
    """The same IVF,SQ8 index with a flat coarse quantizer, sharing its lists.

    It must not outlive `index`.

    Raises:
        ValueError: another type of index.
    """
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexIVFScalarQuantizer):
        raise ValueError(f"expected an IVF,SQ8 index in memory, got {type(index).__name__}")
    coarse = faiss.IndexFlat(index.d, index.metric_type)
    if index.quantizer.ntotal:
        coarse.add(index.quantizer.reconstruct_n(0, index.quantizer.ntotal))
    flat = faiss.IndexIVFScalarQuantizer(
        coarse, index.d, index.nlist, index.sq.qtype, index.metric_type, index.by_residual
    )
    flat.sq = index.sq
    flat.code_size = index.code_size
    flat.is_trained = index.is_trained
    flat.ntotal = index.ntotal
    flat.nprobe = min(index.nprobe, MAX_K)
    flat.replace_invlists(index.invlists, False)
    return flat


def _small_index() -> Any:
    faiss = _faiss()
    vectors = np.random.default_rng(0).standard_normal((512, 32), dtype=np.float32)
    index = faiss.index_factory(32, "IVF4,SQ8")
    index.train(vectors)
    index.add(vectors)
    return index


def _selector(allowed: Bool[ndarray, " row"]) -> Any:
    return _faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _faiss() -> Any:
    check_one_faiss()
    import faiss

    return faiss
