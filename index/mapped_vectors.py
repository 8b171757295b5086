"""Vectors of a segment as they lie in the file, float16, scanned by FAISS without a copy.

FAISS reads the mapped file itself, so a scan takes no memory but the page cache. Products are those
of the stored numbers, whose length differs from 1 by their rounding: what comes out are candidates,
which search.py scores again.

The file is mapped twice. Through one map it is read from end to end, and the kernel reads ahead;
through the other single rows are read, and it does not: what it would read around each of them is
hundreds of times as much, and takes the place of what others need where the file is larger than
memory.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float16, Float32, Int64
from numpy import ndarray

SLACK = 1e-3  # a product of float16 numbers over the cosine: 2 x 2^-11, rounded up
_MORE = 16  # rows that are asked for beside the best, so that one scan is enough as a rule
# Of all rows: a page each takes less time than all of them in order, at 100 us and 1.5 GB/s.
_SCATTERED_SHARE = 1 / 256
_GATHERED_SHARE = 0.02  # of all rows: fewer are cheaper to gather than to look for in a bitmap


class MappedVectors:
    """The vectors of one segment. Safe to share between threads.

    Attributes:
        stored: float16 (row, dim), of unit length but for rounding.
        scattered: The same, mapped for reading here and there (disk.read_array).
        index: What is stored as FAISS sees it, to be scanned.
        scattered_index: The same, to look at some rows.
    """

    def __init__(self, stored: ndarray, scattered: ndarray | None = None) -> None:
        self.stored: ndarray = np.asarray(stored)  # the file stays mapped; slices are cheaper
        self.scattered: ndarray = self.stored if scattered is None else np.asarray(scattered)
        self.index = _view_of(self.stored)
        self.scattered_index = _view_of(self.scattered)

    @cached_property
    def fits_in_memory(self) -> bool:
        """Whether all of the file can be expected there, in half of what the machine has."""
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 2 * self.stored.nbytes <= memory_bytes

    def rows(
        self, rows: Int64[ndarray, " some"], *, of: int | None = None
    ) -> Float16[ndarray, "some dim"]:
        """Some rows, through the map that suits their number.

        Args:
            rows: To read.
            of: How many are to be read in all; None: these.
        """
        few = (of or len(rows)) < _SCATTERED_SHARE * len(self.stored)
        found: ndarray = (self.scattered if few else self.stored)[rows]
        return found

    def candidates(
        self,
        queries: Float32[ndarray, "query dim"],
        num: int,
        *,
        rows: Int64[ndarray, " some"] | None = None,
    ) -> Int64[ndarray, "query n"]:
        """Rows among which the `num` of highest cosine are, and all that tie with them; -1 pads.

        Args:
            queries: Unit length.
            num: At least 1, unless there are no rows.
            rows: Only these, ascending; None: all.
        """
        total = len(self.stored) if rows is None else len(rows)
        if not total:
            return np.empty((len(queries), 0), np.int64)
        index, parameters, gathered = self.index, None, rows is not None
        if rows is not None and total > _GATHERED_SHARE * len(self.stored):
            bits = np.zeros(len(self.stored), bool)
            bits[rows] = True
            packed = np.packbits(bits, bitorder="little")
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(packed))
            gathered = False
        elif rows is not None:
            some = self.rows(rows)
            index = _view_of(some)
        asked = min(total, num + _MORE)
        while True:
            scores, found = index.search(queries, asked, params=parameters)
            if asked == total or (scores[:, num - 1] - scores[:, -1] > SLACK).all():
                break
            asked = min(total, 4 * asked)
        return np.where(found >= 0, rows[found], -1) if gathered and rows is not None else found


def _view_of(stored: ndarray) -> Any:
    """An index over float16 vectors that are in memory or mapped; they must outlive it."""
    if not stored.flags.c_contiguous or stored.dtype != np.float16:
        raise ValueError(f"expected float16 vectors in C order, got {stored.dtype}")
    index = faiss.IndexScalarQuantizer(
        stored.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    flat = stored.reshape(-1).view(np.uint8)
    nobody = index.codes.owner
    index.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(flat), flat.nbytes, nobody)
    index.ntotal = len(stored)
    return index
