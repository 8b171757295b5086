"""The libraries that the index is measured beside, each used as its own documentation has it.

Runs in the environment of `make benchmark-peers`: nothing of ours and no torch is imported here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

K = 10
_GRAPH_DEGREE, _GRAPH_BUILD = 32, 100  # M and efConstruction, the same for every graph
_ADD_ROWS = 65_536
_TRAIN_ROWS = 64  # for each centroid of an IVF index

Effort = int | tuple[int, int]


class Peer(ABC):
    """One library.

    Attributes:
        needs: Module that must be importable.
        efforts: Settings to measure, from quick to thorough.
    """

    needs: ClassVar[str]
    efforts: ClassVar[tuple[Effort, ...]]

    @abstractmethod
    def build(self, vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        """Index float32 unit vectors (row, dim), which may be mapped from a file, into a folder."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Load what `build` left, to search with one thread."""

    @abstractmethod
    def search(self, query: np.ndarray, effort: Effort) -> np.ndarray:
        """Row numbers of the K nearest to one query (1, dim), best first."""


class _Faiss(Peer):
    needs = "faiss"
    _index: Any

    def _make(self, dim: int, num_rows: int) -> Any:
        raise NotImplementedError

    def build(self, vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        faiss = import_module("faiss")
        faiss.omp_set_num_threads(num_threads)
        num_rows, dim = vectors.shape
        index = self._make(dim, num_rows)
        if not index.is_trained:
            step = max(1, num_rows // (_TRAIN_ROWS * num_lists(num_rows)))
            index.train(np.ascontiguousarray(vectors[::step]))
        for start in range(0, num_rows, _ADD_ROWS):
            index.add(np.ascontiguousarray(vectors[start : start + _ADD_ROWS]))
        faiss.write_index(index, str(folder / "index.faiss"))

    def open(self, folder: Path) -> None:
        faiss = import_module("faiss")
        faiss.omp_set_num_threads(1)
        self._index = faiss.read_index(str(folder / "index.faiss"))

    def search(self, query: np.ndarray, effort: Effort) -> np.ndarray:
        self._set(effort)
        rows: np.ndarray = self._index.search(query, K)[1][0]
        return rows

    def _set(self, effort: Effort) -> None:
        raise NotImplementedError


class FaissHnsw(_Faiss):
    """HNSW32 over float32."""

    efforts = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)

    def _make(self, dim: int, num_rows: int) -> Any:
        index = import_module("faiss").IndexHNSWFlat(dim, _GRAPH_DEGREE)
        index.hnsw.efConstruction = _GRAPH_BUILD
        return index

    def _set(self, effort: Effort) -> None:
        self._index.hnsw.efSearch = effort


class FaissIvfSq8(_Faiss):
    """IVF with one byte a dimension; effort is nprobe."""

    efforts = (1, 2, 4, 8, 16, 32, 64)

    def _make(self, dim: int, num_rows: int) -> Any:
        return import_module("faiss").index_factory(dim, f"IVF{num_lists(num_rows)},SQ8")

    def _set(self, effort: Effort) -> None:
        self._index.nprobe = effort


class FaissIvfRabitq(_Faiss):
    """IVF with one bit a dimension in FastScan layout, re-ranked from float16 in memory.

    effort is (nprobe, candidates for each result).
    """

    efforts = ((1, 4), (2, 4), (4, 4), (4, 8), (8, 4), (8, 8), (16, 8), (16, 16), (32, 16),
               (64, 32))  # fmt: skip

    def _make(self, dim: int, num_rows: int) -> Any:
        lists = num_lists(num_rows)
        recipe = f"RR{dim},IVF{lists},RaBitQfs,Refine(SQfp16)"
        return import_module("faiss").index_factory(dim, recipe)

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._lists = import_module("faiss").extract_index_ivf(self._index)

    def _set(self, effort: Effort) -> None:
        assert isinstance(effort, tuple)
        self._lists.nprobe, self._index.k_factor = effort


class Hnswlib(Peer):
    """HNSW with float32; effort is ef."""

    needs = "hnswlib"
    efforts = FaissHnsw.efforts
    _index: Any

    def build(self, vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        index = import_module("hnswlib").Index("l2", vectors.shape[1])
        index.init_index(len(vectors), M=_GRAPH_DEGREE, ef_construction=_GRAPH_BUILD)
        for start in range(0, len(vectors), _ADD_ROWS):
            some = vectors[start : start + _ADD_ROWS]
            index.add_items(some, np.arange(start, start + len(some)), num_threads=num_threads)
        index.save_index(str(folder / "index.bin"))
        np.save(folder / "dim.npy", vectors.shape[1])  # its own file does not tell

    def open(self, folder: Path) -> None:
        dim = int(np.load(folder / "dim.npy"))
        self._index = import_module("hnswlib").Index("l2", dim)
        self._index.load_index(str(folder / "index.bin"))
        self._index.set_num_threads(1)

    def search(self, query: np.ndarray, effort: Effort) -> np.ndarray:
        self._index.set_ef(effort)
        rows: np.ndarray = self._index.knn_query(query, K, num_threads=1)[0][0]
        return rows.astype(np.int64)


class Usearch(Peer):
    """HNSW with float32; effort is expansion."""

    needs = "usearch.index"
    efforts = FaissHnsw.efforts
    _index: Any

    def build(self, vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        index = import_module("usearch.index").Index(
            ndim=vectors.shape[1], metric="l2sq", dtype="f32", connectivity=_GRAPH_DEGREE,
            expansion_add=_GRAPH_BUILD,
        )  # fmt: skip
        for start in range(0, len(vectors), _ADD_ROWS):
            some = np.ascontiguousarray(vectors[start : start + _ADD_ROWS])
            index.add(np.arange(start, start + len(some)), some, threads=num_threads)
        index.save(str(folder / "index.usearch"))

    def open(self, folder: Path) -> None:
        path = str(folder / "index.usearch")
        self._index = import_module("usearch.index").Index.restore(path, view=False)

    def search(self, query: np.ndarray, effort: Effort) -> np.ndarray:
        self._index.expansion_search = effort
        return np.asarray(self._index.search(query[0], K, threads=1).keys).astype(np.int64)


class Lancedb(Peer):
    """IVF_RQ, one bit a dimension, re-ranked from the table; effort is (nprobes, refine_factor)."""

    needs = "lancedb"
    efforts = ((2, 4), (4, 4), (8, 4), (8, 10), (16, 10), (32, 10), (64, 10))
    _table: Any

    def build(self, vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        pa = import_module("pyarrow")
        dim = vectors.shape[1]
        schema = pa.schema({"row": pa.int64(), "vector": pa.list_(pa.float32(), dim)})

        def batches() -> Any:
            for start in range(0, len(vectors), _ADD_ROWS):
                some = np.ascontiguousarray(vectors[start : start + _ADD_ROWS])
                flat = pa.array(some.reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, dim)
                rows = pa.array(np.arange(start, start + len(some)))
                yield pa.record_batch([rows, column], schema=schema)

        database = import_module("lancedb").connect(str(folder / "table"))
        table = database.create_table("vectors", batches(), schema=schema)
        # a thousand rows a partition: a thousand partitions at a million
        table.create_index(
            metric="l2", index_type="IVF_RQ", vector_column_name="vector",
            num_partitions=max(1, len(vectors) // 1_000),
        )  # fmt: skip

    def open(self, folder: Path) -> None:
        database = import_module("lancedb").connect(str(folder / "table"))
        self._table = database.open_table("vectors")

    def search(self, query: np.ndarray, effort: Effort) -> np.ndarray:
        assert isinstance(effort, tuple)
        ask = self._table.search(query[0]).select(["row", "_distance"]).limit(K)
        found = ask.nprobes(effort[0]).refine_factor(effort[1]).to_arrow()
        rows: np.ndarray = found["row"].to_numpy()
        return rows


PEERS: dict[str, type[Peer]] = {
    "faiss HNSW32": FaissHnsw,
    "hnswlib": Hnswlib,
    "usearch f32": Usearch,
    "LanceDB IVF_RQ": Lancedb,
    "faiss IVF,RaBitQfs + refine": FaissIvfRabitq,
    "faiss IVF,SQ8": FaissIvfSq8,
}


def num_lists(num_rows: int) -> int:
    """Lists of an IVF index: a power of two near 4 sqrt(rows), 4,096 at a million.

    Never so many that a list has fewer than 39 rows to be trained on, which FAISS asks for.
    """
    wanted = round(np.log2(4 * num_rows**0.5))
    return int(2 ** max(0, min(wanted, int(np.log2(max(num_rows / 39, 1))))))
