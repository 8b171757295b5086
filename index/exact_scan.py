"""Exact search of vectors on any device of torch: the truth that other searches are measured by.

Rows come block by block, from memory, a mapped file or the device; row numbers and cosines go out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray
from torch import Tensor

from index.errors import GpuUnavailable

RANKED_SIZE = 1 << 24  # numbers of candidates' vectors held at a time
_NOTHING = torch.iinfo(torch.int64).min  # of a packed score and row: no row
# Of a product of unit vectors, twice its error: float32, TF32, bfloat16.
_SLACK = {"highest": 5e-5, "high": 2e-3, "medium": 2e-2}


@dataclass(frozen=True, slots=True)
class NearRows:
    """Best-first rows. A query with fewer than k ends in row -1, score -inf."""

    rows: Int64[ndarray, "query k"]
    scores: Float32[ndarray, "query k"]  # cosine


def torch_device(name: str) -> torch.device:
    """The device of torch of that name, such as cpu or cuda:0.

    Raises:
        GpuUnavailable: it is a CUDA device, and torch finds none or not as many.
        ValueError: torch knows no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected a device such as cpu, cuda or cuda:1, got {name!r}") from error
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
        return _unpacked(self._best)

    def _here(self, array: ndarray | Tensor) -> Tensor:
        return _tensor(array).to(self.device)

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
            exact = _cosines(queries[some], stored[chosen], length[chosen])
            packed = _packed(exact, numbers[chosen])
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


def ranked(
    queries: Float32[ndarray, "query dim"],
    vectors: ndarray | Tensor,
    rows: Int64[ndarray, "query n"],
    *,
    k: int,
    device: str = "cpu",
) -> NearRows:
    """The k best of some rows for each query, in the order and with the scores of `exact_search`.

    Args:
        queries: Unit vectors.
        vectors: (row, dim), float16 as a rule: in memory, mapped from a file, or on the device.
        rows: Candidates of each query, each once; -1 is none.
        k: At least 1.
        device: Of torch, where cosines are taken.

    Raises:
        GpuUnavailable: there is no such device.
    """
    where = torch_device(device)
    asked = _tensor(queries).to(where)
    best = torch.full((len(rows), k), _NOTHING, device=where)
    step = max(1, RANKED_SIZE // max(1, rows.shape[1] * queries.shape[1]))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        numbers = torch.from_numpy(np.ascontiguousarray(some)).to(where)
        if isinstance(vectors, Tensor):
            stored = vectors[numbers.to(vectors.device)].to(where)
        else:
            stored = torch.from_numpy(vectors[some]).to(where)
        length = torch.linalg.vector_norm(stored, dim=2, dtype=torch.float64)
        length = length.clamp_min(torch.finfo(torch.float32).tiny)
        scores = _cosines(asked[start : start + step], stored, length)
        packed = torch.where(numbers < 0, _NOTHING, _packed(scores, numbers))
        num = min(k, packed.shape[1])
        best[start : start + step, :num] = packed.topk(num, dim=1).values
    return _unpacked(best)


def _pieces(
    num_rows: int, allowed: Bool[ndarray, " row"] | None, step: int
) -> Iterator[Int64[ndarray, " n"]]:
    if allowed is not None:
        rows = np.flatnonzero(allowed)
        yield from (rows[start : start + step] for start in range(0, len(rows), step))
        return
    for start in range(0, num_rows, step):
        yield np.arange(start, min(start + step, num_rows))


def _tensor(array: ndarray | Tensor) -> Tensor:
    # a copy, since torch warns of read-only arrays, such as mapped files
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))


def _cosines(queries: Tensor, stored: Tensor, length: Tensor) -> Tensor:
    """Cosines of each query (query, dim) with rows of its own (query, n, dim), in float32."""
    product = (stored.double() * queries[:, None].double()).sum(dim=2)
    return (product / length).float()


def _packed(scores: Tensor, rows: Tensor) -> Tensor:
    """Score and row as one integer: higher is better, then the lower row. No two are equal."""
    bits = (scores + 0.0).contiguous().view(torch.int32)  # + 0.0: there are two zeros
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - rows)


def _scores(packed: Tensor) -> Tensor:
    ordered = (packed >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return torch.where(packed == _NOTHING, -torch.inf, scores)


def _unpacked(packed: Tensor) -> NearRows:
    none = (packed == _NOTHING).cpu().numpy()
    rows = (0xFFFFFFFF - (packed & 0xFFFFFFFF)).cpu().numpy()
    return NearRows(np.where(none, -1, rows), _scores(packed).cpu().numpy())
