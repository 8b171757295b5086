"""Rows of a segment on a device of torch, a GPU as a rule: searched by the calls of probing.Lists.

Where a codec of bytes (sq8) has listed the rows, FAISS's lists are searched there, as far as the
effort says, and the candidates ranked by their vectors. All else is an exact scan: rows without
lists or with one-bit codes (which FAISS does not have on a GPU), an effort that a GPU does not take
(k or nprobe above 2048), searches of every row, filters that leave few, and queries that end short.
What is found is found as on a CPU, at the recall that was measured there or above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray
from torch import Tensor

from index import gpu
from index.errors import GpuUnavailable
from index.exact_scan import exact_search, ranked, torch_device
from index.overfetch import search_allowed
from index.probing import Allowed, Effort

# Vectors that lists do without are kept on the device where they take less of what is free.
SPARE_SHARE = 0.25


class DeviceRows:
    """The rows of one segment on a device. Safe to share between threads."""

    def __init__(self, stored: ndarray, *, device: str, index: Any = None) -> None:
        """Copy to the device.

        Args:
            stored: float16 (row, dim) vectors, of unit length but for rounding; mapped as a rule.
            device: Of torch, such as cuda, cuda:1 or cpu.
            index: From `codec.fill` with an sq8 codec; not used afterwards. None: every search is
                an exact scan.

        Raises:
            GpuUnavailable: no such device, a FAISS without GPU code, or too little memory.
            ValueError: another type of index.
        """
        where = torch_device(device)
        self.device = device
        self.lists: gpu.DeviceIndex | None = None
        if index is not None and where.type == "cpu":
            self.lists = gpu.on_cpu(index)
        elif index is not None:
            self.lists = gpu.to_gpu(index, gpu=where.index or 0)
        self.vectors = _placed(stored, where, needed=index is None)

    def allow(self, rows: Bool[ndarray, " row"]) -> Allowed:
        """What `candidates` needs to know of a filter."""
        nowhere = np.zeros(0, np.int64)  # on a device lists are not chosen by what they hold
        bits = np.packbits(rows, bitorder="little")
        return Allowed(rows, int(np.count_nonzero(rows)), nowhere, bits)

    def candidates(
        self,
        queries: Float32[ndarray, "query dim"],
        *,
        num: int,
        effort: Effort | None,
        allowed: Allowed | None = None,
    ) -> Int64[ndarray, "query num"]:
        """The rows of highest cosine, best first, ties by row, -1 where there are no more.

        Args:
            queries: Unit length.
            num: Rows a query.
            effort: How far to look; None: at every row.
            allowed: Only these rows; None: all.
        """
        mask = None if allowed is None else allowed.rows
        if self.lists is None or effort is None:
            return exact_search(queries, self.vectors, k=num, allowed=mask, device=self.device).rows
        rows = search_allowed(
            self.lists,
            queries,
            self.vectors,
            k=min(num * effort.depth, len(self.vectors)),
            nprobe=effort.num_probes,
            allowed=mask,
        )
        return ranked(queries, self.vectors, rows, k=num, device=self.device).rows


def _placed(stored: ndarray, where: torch.device, *, needed: bool) -> ndarray | Tensor:
    """The vectors on the device, or where they were if that is slower only for some searches."""
    if where.type != "cuda":
        return stored
    free = torch.cuda.mem_get_info(where)[0]
    if needed and stored.nbytes > free:
        raise GpuUnavailable(
            f"{len(stored):,} vectors take {stored.nbytes / 2**30:.1f} GiB of {where}, which has "
            f"{free / 2**30:.1f} GiB free; as sq8 codes they take half (docs/gpu.md)"
        )
    if not needed and stored.nbytes > SPARE_SHARE * free:
        return stored
    placed = torch.empty(stored.shape, dtype=torch.float16, device=where)
    for start in range(0, len(stored), 1 << 20):  # mapped, and never whole in memory
        placed[start : start + (1 << 20)] = torch.from_numpy(
            np.array(stored[start : start + (1 << 20)], np.float16)
        )
    return placed
