"""Candidates of a query among the coded rows of a segment, by looking into some of its lists.

How far to look is an `Effort`: from how many rows codes are compared, and how many of the best are
compared again by their vectors. Where only some rows are allowed, lists without one are passed over
and the others are looked into until as many *allowed* rows have been compared: a filter that
follows the clusters of the data, as filters in astronomy do, then costs no recall. Where that means
to pass far more rows than are allowed, each allowed row is looked at instead, unless the vectors
are larger than memory: a row of them takes as long to read as ten thousand codes to pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numpy import ndarray

from index.codec import CodecConfig
from index.mapped_vectors import MappedVectors

GRAPH_PROBES = 48  # up to here lists are looked for in the graph where there is one
LOOK_COST = 4  # codes that are passed in the time that one allowed row is looked at
READ_COST = 10_000  # the same where the row has to be read from a disk, at 50 us and 5 ns
SURE = 8  # allowed rows compared for each that an unfiltered search would compare


@dataclass(frozen=True, slots=True)
class Effort:
    """How far a search looks."""

    num_probes: int  # lists
    depth: int  # candidates compared by their vectors, for each result asked for


@dataclass(frozen=True)
class Allowed:
    """Rows that may be found, and how many of them each list has; made once for many queries."""

    rows: Bool[ndarray, " row"]
    num_rows: int
    num_in_list: Int64[ndarray, " list"]
    bits: ndarray  # packed, as FAISS reads them

    @cached_property
    def numbers(self) -> Int64[ndarray, " allowed"]:
        """Of the rows that may be found."""
        return np.flatnonzero(self.rows)


class Lists:
    """The coded rows of one segment, in memory, beside their vectors, mapped."""

    def __init__(
        self,
        index: faiss.IndexPreTransform,
        config: CodecConfig,
        vectors: MappedVectors,
    ) -> None:
        """Open.

        Args:
            index: From `codec.fill`.
            config: Of its codec.
            vectors: Of the same rows.
        """
        self.config = config
        self.rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        self.ivf = faiss.downcast_index(index.index)
        self.vectors = vectors
        self._base = index
        self._refined = faiss.IndexRefine(index, vectors.scattered_index)
        self._parameters: dict[Effort, faiss.SearchParameters] = {}

    @cached_property
    def centroids(self) -> Float32[ndarray, "list dim"]:
        """Of each list, rotated as vectors are; unit length."""
        centroids: ndarray = self.ivf.quantizer.reconstruct_n(0, self.config.num_lists)
        return centroids

    @cached_property
    def list_of_row(self) -> Int32[ndarray, " row"]:
        """In which list each row is."""
        lists = np.empty(self.ivf.ntotal, np.int32)
        for number in range(self.config.num_lists):
            size = self.ivf.invlists.list_size(number)
            if size:
                rows = faiss.rev_swig_ptr(self.ivf.invlists.get_ids(number), size)
                lists[rows] = number
        return lists

    @cached_property
    def _list_sizes(self) -> Int64[ndarray, " list"]:
        return np.bincount(self.list_of_row, minlength=self.config.num_lists)

    def allow(self, rows: Bool[ndarray, " row"]) -> Allowed:
        """What `candidates` needs to know of a filter."""
        of_lists = np.bincount(self.list_of_row[rows], minlength=self.config.num_lists)
        bits = np.packbits(rows, bitorder="little")
        return Allowed(rows, int(of_lists.sum()), of_lists, bits)

    def candidates(
        self,
        queries: Float32[ndarray, "query dim"],
        *,
        num: int,
        effort: Effort | None,
        allowed: Allowed | None = None,
    ) -> Int64[ndarray, "query num"]:
        """The rows of highest cosine, best first, -1 where there are no more.

        Args:
            queries: Unit length.
            num: Rows a query.
            effort: How far to look; not None, for here every row is looked at without lists.
            allowed: Only these rows; None: all.
        """
        assert effort is not None
        if allowed is not None:
            return self._among(queries, num, effort, allowed)
        if self.config.has_graph and effort.num_probes > GRAPH_PROBES:
            return self._around(queries, num, effort)
        queries = np.ascontiguousarray(queries)
        shape = (len(queries), num)
        scores, found = np.empty(shape, np.float32), np.empty(shape, np.int64)
        pointer = faiss.swig_ptr  # FAISS's Python method takes as long as a tenth of the search
        self._refined.search_c(
            len(queries), pointer(queries), num, pointer(scores), pointer(found),
            self._asked(effort),
        )  # fmt: skip
        return found

    def _around(
        self, queries: Float32[ndarray, "query dim"], num: int, effort: Effort
    ) -> Int64[ndarray, "query num"]:
        """Through the lists of highest score, told by all centroids instead of a graph."""
        found = np.full((len(queries), num), -1, np.int64)
        turned = self.rotation.apply(np.ascontiguousarray(queries))
        num_probes = min(effort.num_probes, self.config.num_lists)
        depth = min(effort.depth * num, self.ivf.ntotal)
        for i, one in enumerate(turned):
            scores = self.centroids @ one
            lists = np.argpartition(-scores, num_probes - 1)[:num_probes]
            rows = self._probe(one, lists, scores[lists], depth, None)
            self._rank(queries[i], rows, found[i])
        return found

    def _asked(self, effort: Effort) -> faiss.SearchParameters:
        """An effort as FAISS takes it; made once, for making it takes as long as searching."""
        if effort not in self._parameters:
            num_probes = min(effort.num_probes, self.config.num_lists)
            in_lists = faiss.IVFSearchParameters(nprobe=num_probes)
            self._parameters[effort] = faiss.IndexRefineSearchParameters(
                k_factor=effort.depth,
                base_index_params=faiss.SearchParametersPreTransform(index_params=in_lists),
            )
        return self._parameters[effort]

    def _among(
        self,
        queries: Float32[ndarray, "query dim"],
        num: int,
        effort: Effort,
        allowed: Allowed,
    ) -> Int64[ndarray, "query num"]:
        found = np.full((len(queries), num), -1, np.int64)
        if not allowed.num_rows:
            return found
        turned = self.rotation.apply(np.ascontiguousarray(queries))
        there = np.flatnonzero(allowed.num_in_list)
        scores = turned @ self.centroids[there].T  # (query, list)
        mean_in_list = self.ivf.ntotal / self.config.num_lists
        enough = max(SURE * effort.num_probes * mean_in_list, SURE * num)
        depth = min(effort.depth * num * 2, allowed.num_rows)
        selector = faiss.IDSelectorBitmap(allowed.bits)
        look_cost = LOOK_COST if self.vectors.fits_in_memory else READ_COST
        most = look_cost * allowed.num_rows
        for i, score in enumerate(scores):
            order = np.argsort(-score)
            reached = np.cumsum(allowed.num_in_list[there[order]])
            order = order[: 1 + int(np.searchsorted(reached, enough))]
            if depth == allowed.num_rows or self._list_sizes[there[order]].sum() > most:
                rows = self.vectors.candidates(queries[i : i + 1], num, rows=allowed.numbers)[0]
                self._rank(queries[i], rows, found[i])
                continue
            rows = self._probe(turned[i], there[order], score[order], depth, selector)
            self._rank(queries[i], rows, found[i])
        return found

    def _rank(
        self,
        query: Float32[ndarray, " dim"],
        rows: Int64[ndarray, " n"],
        best: Int64[ndarray, " num"],
    ) -> None:
        """Put into `best` the rows of highest score by their vectors."""
        rows = rows[rows >= 0]
        scores = self.vectors.rows(rows).astype(np.float32) @ query
        order = np.argsort(-scores, kind="stable")[: len(best)]
        best[: len(order)] = rows[order]

    def _probe(
        self,
        turned: Float32[ndarray, " dim"],
        lists: Int64[ndarray, " probe"],
        scores: Float32[ndarray, " probe"],
        num: int,
        selector: faiss.IDSelector | None,
    ) -> Int64[ndarray, " num"]:
        """Rows of some lists by their codes. FAISS's Python method takes no selector here."""
        parameters = faiss.IVFSearchParameters(sel=selector, nprobe=len(lists))
        lists = np.ascontiguousarray(lists, np.int64)
        scores = np.ascontiguousarray(scores, np.float32)
        distances, rows = np.empty(num, np.float32), np.empty(num, np.int64)
        pointer = faiss.swig_ptr
        self.ivf.search_preassigned_c(
            1, pointer(turned), num, pointer(lists), pointer(scores), pointer(distances),
            pointer(rows), False, parameters,
        )  # fmt: skip
        return rows
