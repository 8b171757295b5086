"""Vectors of a segment as they lie in the file, float16, scanned by FAISS without a copy.

FAISS reads the mapped file itself, so a scan takes no memory but the page cache. Products are those
of the stored numbers, whose length differs from 1 by their rounding: what comes out are candidates,
which search.py scores again.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

SLACK = 1e-3  # a product of float16 numbers over the cosine: 2 x 2^-11, rounded up
_MORE = 16  # rows that are asked for beside the best, so that one scan is enough as a rule
_GATHERED_SHARE = 0.02  # of all rows: fewer are cheaper to gather than to look for in a bitmap


class MappedVectors:
    """The vectors of one segment. Safe to share between threads.

    Attributes:
        stored: float16 (row, dim), of unit length but for rounding.
        index: The same as FAISS sees them.
    """

    def __init__(self, stored: ndarray) -> None:
        self.stored: ndarray = np.asarray(stored)  # the file stays mapped; slices are cheaper
        self.index = _view_of(self.stored)

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
            some = self.stored[rows]
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
