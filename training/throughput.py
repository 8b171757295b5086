"""How fast a run is: tokens a second, and the share of the machine's arithmetic that it uses.

Model FLOPs utilisation (MFU) counts the multiplications and additions that the model needs, by
formula: forward, and twice that for the backward pass; what is computed again to save memory does
not count. Source of the definition: Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, appendix B.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

from training.loader import Batch
from training.transformer_config import TransformerConfig

# Dense bfloat16 tensor-core peaks in FLOP/s, from the makers' data sheets; the first name that
# the device's own name contains counts.
GPU_PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("A10", 125e12),
    ("L4", 121e12),
)
_BACKWARD = 2  # times the forward pass
_SIDE = 1024  # of the matrices that measure a peak
_MEASURE_SECONDS = 0.2
_LEAST_PRODUCTS = 10  # the first is slow, and on a busy machine one may take all of the time


@dataclass(frozen=True, slots=True)
class Work:
    """What some batches cost."""

    tokens: int  # shown and asked
    flops: float  # forward and backward

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops)


def work_of(batch: Batch, config: TransformerConfig) -> Work:
    """Tokens and FLOPs of one batch; padding counts as neither, save in attention."""
    rows, width = batch.shown.shape
    num_shown = rows * width if batch.valid is None else int(batch.valid.sum())
    num_asked = int(batch.target_valid.sum())
    queries = batch.targets.shape[1]
    dim = config.dim
    mlp = 3 * dim * config.mlp_hidden
    encoder = num_shown * (4 * dim**2 + mlp) + 2 * rows * width**2 * dim
    decoder = (
        num_asked * (6 * dim**2 + mlp)  # both attentions' own projections
        + num_shown * 2 * dim**2  # keys and values of the context
        + 2 * rows * queries * (queries + width) * dim
    )
    heads = sum(
        count * dim * domain.vocabulary
        for count, domain in zip(batch.counts, config.domains_in.values(), strict=True)
    )
    products = (
        config.encoder_depth * encoder
        + config.decoder_depth * decoder
        + num_shown * dim**2  # the projection of the context
        + heads
    )
    return Work(num_shown + num_asked, 2.0 * (1 + _BACKWARD) * products)


def peak_flops(device: torch.device, *, dtype: torch.dtype) -> float:
    """FLOP/s that one device can do: by its name for known GPUs, else measured.

    The table is for bfloat16; a GPU that computes in float32 is measured.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in GPU_PEAKS:
            if known in name:
                return peak
    return measured_flops(device, dtype, torch.get_num_threads())


@cache
def measured_flops(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    """The best FLOP/s that multiplying large matrices reaches, with the threads that are set."""
    assert num_threads == torch.get_num_threads()  # another number is another measurement
    a = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    b = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    best, done, ends = float("inf"), 0, time.perf_counter() + _MEASURE_SECONDS
    while done < _LEAST_PRODUCTS or time.perf_counter() < ends:
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, done = min(best, time.perf_counter() - started), done + 1
    return 2.0 * _SIDE**3 / best


class Meter:
    """Work and time since it was last read."""

    def __init__(self, peak: float) -> None:
        self._peak = peak
        self._since, self._work, self._wait = time.perf_counter(), Work(0, 0.0), 0.0

    def add(self, work: Work, wait_seconds: float) -> None:
        """Count work of this process, and how long it waited for its data."""
        self._work += work
        self._wait += wait_seconds

    def read(self) -> dict[str, float]:
        """Tokens a second, MFU and the share of time spent waiting for data; starts again."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        numbers = {
            "tokens_per_second": self._work.tokens / seconds,
            "mfu": self._work.flops / seconds / self._peak,
            "data_wait": self._wait / seconds,
        }
        self._since, self._work, self._wait = now, Work(0, 0.0), 0.0
        return numbers
