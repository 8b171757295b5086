"""FAISS on a GPU: IVF,SQ8 indexes as codec.py makes them are copied there, filled and searched.

A rotation stands before the lists; it is taken here, the lists are FAISS's. Nothing of FAISS is
imported before it is needed, nothing of its GPU code before a GPU is asked for.

Three things there are unlike a CPU: k and nprobe end at 2048, an index must not be searched by two
threads at once (so all indexes of a GPU share one lock), and its own kernels take a selector of
rows without a word and may not obey it (see overfetch.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
_TRAIN_ROWS_A_LIST = 64
_OPENING = Lock()


@dataclass(frozen=True, slots=True)
class DeviceIndex:
    """An IVF index of FAISS, and what its device asks for. Rows are numbered from 0."""

    index: Any
    rotation: Float32[ndarray, "width dim"] | None  # or projection of vectors, before the lists
    lock: Lock  # held by whoever searches or adds; one for all indexes of a GPU
    obeys_selectors: bool
    device: str  # the same for torch
    owner: Any = None  # of `index`, where that does not own itself

    def add(self, vectors: ndarray | Tensor, *, first_row: int) -> None:
        """Add vectors of unit length (row, dim): arrays, or tensors that may be on the device."""
        faiss = _faiss()
        given = torch.from_numpy(vectors) if isinstance(vectors, ndarray) else vectors
        dim = self.index.d if self.rotation is None else self.rotation.shape[1]
        if given.shape[1] != dim:
            raise ValueError(f"expected dim {dim}, got {given.shape[1]}")
        wide = given.to(self.device).float()
        if self.rotation is not None:
            wide = wide @ torch.from_numpy(self.rotation).to(self.device).T
        wide = wide.contiguous()
        rows = torch.arange(first_row, first_row + len(wide), device=self.device)
        with self.lock:
            self.index.add_with_ids_c(
                len(wide),
                faiss.cast_integer_to_float_ptr(wide.data_ptr()),
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
            allowed: By row, given to FAISS as a selector; see overfetch.py, which holds for
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
        turned = queries if self.rotation is None else queries @ self.rotation.T
        with self.lock:
            return self.index.search(np.ascontiguousarray(turned), k, params=parameters)[1]


def on_cpu(index: Any) -> DeviceIndex:
    """An IVF index where it is: the same calls as on a GPU.

    Raises:
        ValueError: another type of index.
    """
    rotation, lists = parts(index)
    return DeviceIndex(lists, rotation, Lock(), obeys_selectors=True, device="cpu", owner=index)


def to_gpu(
    index: Any, *, gpu: int = 0, num_rows: int = 0, half_centroids: bool = False
) -> DeviceIndex:
    """Copy an IVF,SQ8 index in memory to a GPU. The index is left as it is.

    Args:
        index: IndexIVFScalarQuantizer, or a rotation before one; a coarse quantizer that is not
            flat (HNSW) is flattened.
        gpu: Number of the GPU.
        num_rows: To be added later; memory is set aside for them.
        half_centroids: Centroids in float16: faster to build, and lists may differ from a CPU's.

    Raises:
        GpuUnavailable: no GPU, a FAISS without GPU code, or too little memory on it.
        ValueError: another type of index.
    """
    rotation, lists = parts(index)
    moved = _moved(lists, gpu, half_centroids=half_centroids, num_rows=num_rows)
    return DeviceIndex(
        moved,
        rotation,
        _resources(gpu).lock,
        obeys_selectors=gpu_obeys_selectors(gpu),
        device=f"cuda:{gpu}",
    )


def to_cpu(index: DeviceIndex, empty: Any) -> Any:
    """Copy the lists of an index into an empty one in memory, which is then written as any other.

    Args:
        index: On a GPU as a rule.
        empty: What went to the GPU before rows were added; rows come into it.

    Returns:
        `empty`, filled.
    """
    faiss = _faiss()
    with index.lock:
        if index.device == "cpu":
            copied = faiss.clone_index(index.index)
        else:
            copied = faiss.index_gpu_to_cpu(index.index)
    lists = parts(empty)[1]
    copied.own_invlists = False
    lists.replace_invlists(copied.invlists, True)
    lists.ntotal = empty.ntotal = copied.ntotal
    return empty


def fill(
    empty: Any,
    blocks: Iterable[ndarray | Tensor],
    *,
    num_rows: int = 0,
    gpu: int | None = 0,
) -> Any:
    """Add rows in their order to an empty index, by a GPU; `codec.fill` does so without one.

    Args:
        empty: As `Codec.empty` gives it, of kind sq8.
        blocks: Unit vectors.
        num_rows: Of all blocks together, where that is known.
        gpu: Number of the GPU; None: on the CPU.

    Returns:
        `empty`, filled: it lies in memory, and CPUs and GPUs search it alike.

    Raises:
        GpuUnavailable: see `to_gpu`.
        ValueError: another type of index.
    """
    index = (
        on_cpu(_faiss().clone_index(empty))
        if gpu is None
        else to_gpu(empty, gpu=gpu, num_rows=num_rows)
    )
    first_row = 0
    for block in blocks:
        index.add(block, first_row=first_row)
        first_row += len(block)
    return to_cpu(index, empty)


def train(
    sample: Float32[ndarray, "row dim"],
    *,
    num_lists: int,
    num_iterations: int = 10,
    seed: int = 0,
    gpu: int | None = 0,
) -> Any:
    """Train an empty index: a random rotation, then IVF,SQ8 by inner product, k-means by a GPU.

    Args:
        sample: Unit vectors, 39 a list or more; 64 a list are used at most.
        num_lists: Of the index.
        num_iterations: Of k-means.
        seed: Of rotation and k-means.
        gpu: Number of the GPU; None: on the CPU.

    Returns:
        An empty index in memory with a flat coarse quantizer; `to_gpu` moves it.

    Raises:
        GpuUnavailable: no GPU, or a FAISS without GPU code.
        ValueError: fewer vectors than lists.
    """
    faiss = _faiss()
    if len(sample) < num_lists:
        raise ValueError(f"expected a vector a list or more, got {len(sample)} for {num_lists}")
    dim = sample.shape[1]
    rotation = faiss.RandomRotationMatrix(dim, dim)
    rotation.init(seed)
    turned = rotation.apply(np.ascontiguousarray(sample[: _TRAIN_ROWS_A_LIST * num_lists]))
    clustering = faiss.Clustering(dim, num_lists)
    clustering.niter, clustering.seed, clustering.spherical = num_iterations, seed, True
    clustering.max_points_per_centroid = _TRAIN_ROWS_A_LIST
    clustering.min_points_per_centroid = 1
    coarse = faiss.IndexFlatIP(dim)
    if gpu is None:
        clustering.train(turned, coarse)
    else:
        with flat(dim, gpu=gpu) as nearest:
            clustering.train(turned, nearest)
        coarse.add(faiss.vector_to_array(clustering.centroids).reshape(num_lists, dim))
    lists = faiss.IndexIVFScalarQuantizer(
        coarse, dim, num_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    lists.quantizer_trains_alone = 1  # it has its centroids
    lists.train(turned)
    return faiss.IndexPreTransform(rotation, lists)


@contextmanager
def flat(dim: int, *, gpu: int = 0) -> Iterator[Any]:
    """An empty index on a GPU that is searched exactly by inner product, as k-means asks for.

    The GPU is held meanwhile.

    Raises:
        GpuUnavailable: no GPU, or a FAISS without GPU code.
    """
    faiss = require_gpu(gpu)
    resources = _resources(gpu)
    with resources.lock:
        yield faiss.index_cpu_to_gpu(resources.faiss, gpu, faiss.IndexFlatIP(dim))


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
    vectors = np.random.default_rng(0).standard_normal((512, 32), dtype=np.float32)
    index = train(vectors, num_lists=4, num_iterations=1, gpu=None)
    index.add(vectors)
    moved = _moved(parts(index)[1], gpu, half_centroids=False, num_rows=0)
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


def gpu_bytes(num_rows: int, code_size: int, num_lists: int, dim: int) -> int:
    """Bytes that an IVF index of so many rows takes on a GPU: codes, 32-bit ids, centroids."""
    return num_rows * (code_size + 4) + num_lists * dim * 4


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


def _moved(lists: Any, gpu: int, *, half_centroids: bool, num_rows: int) -> Any:
    faiss = require_gpu(gpu)
    resources = _resources(gpu)
    flat_lists = flattened(lists)
    options = faiss.GpuClonerOptions()
    options.indicesOptions = faiss.INDICES_32_BIT
    options.useFloat16CoarseQuantizer = half_centroids
    num_bytes = gpu_bytes(max(lists.ntotal, num_rows), lists.sq.code_size, lists.nlist, lists.d)
    free = torch.cuda.mem_get_info(gpu)[0] if torch.cuda.is_available() else num_bytes
    if free < num_bytes:
        raise GpuUnavailable(
            f"the index takes {num_bytes / 2**30:.1f} GiB of GPU {gpu}, which has "
            f"{free / 2**30:.1f} GiB free"
        )
    with resources.lock:
        moved = faiss.index_cpu_to_gpu(resources.faiss, gpu, flat_lists, options)
        if num_rows:
            moved.reserveMemory(num_rows)
        return moved


def parts(index: Any) -> tuple[ndarray | None, Any]:
    """Rotation and IVF,SQ8 lists of an index, which share its memory and must not outlive it.

    Raises:
        ValueError: another type of index.
    """
    faiss = _faiss()
    lists, rotation = faiss.downcast_index(index), None
    if isinstance(lists, faiss.IndexPreTransform) and lists.chain.size() == 1:
        linear = faiss.downcast_VectorTransform(lists.chain.at(0))
        lists = faiss.downcast_index(lists.index)
        if isinstance(linear, faiss.LinearTransform) and not linear.have_bias:
            rotation = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in)
        else:
            raise ValueError(f"expected a rotation before lists, got {type(linear).__name__}")
    if not isinstance(lists, faiss.IndexIVFScalarQuantizer):
        raise ValueError(f"expected an IVF,SQ8 index in memory, got {type(lists).__name__}")
    return rotation, lists


def flattened(lists: Any) -> Any:
    """The same lists with a flat coarse quantizer, which must not outlive them."""
    faiss = _faiss()
    coarse = faiss.IndexFlat(lists.d, lists.metric_type)
    if lists.quantizer.ntotal:
        coarse.add(lists.quantizer.reconstruct_n(0, lists.quantizer.ntotal))
    flat_lists = faiss.IndexIVFScalarQuantizer(
        coarse, lists.d, lists.nlist, lists.sq.qtype, lists.metric_type, lists.by_residual
    )
    flat_lists.sq = lists.sq
    flat_lists.code_size = lists.code_size
    flat_lists.is_trained = lists.is_trained
    flat_lists.ntotal = lists.ntotal
    flat_lists.nprobe = min(lists.nprobe, MAX_K)
    flat_lists.replace_invlists(lists.invlists, False)
    return flat_lists


def _selector(allowed: Bool[ndarray, " row"]) -> Any:
    return _faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _faiss() -> Any:
    check_one_faiss()
    import faiss

    return faiss
