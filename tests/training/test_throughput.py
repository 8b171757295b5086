"""Schedule and throughput: the FLOPs that torch itself counts, a warm-up, a cosine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.training.token_data import MODEL
from training.devices import build
from training.loader import Loader, LoaderConfig
from training.masking import MaskingConfig
from training.objective import losses, token_weights
from training.schedule import rate_share, share_done
from training.shards import TokenSet, TokenShard
from training.throughput import measured_flops, work_of
from training.transformer_config import Domain


def test_flops_are_those_that_torch_counts() -> None:
    images = {key: Domain(vocabulary=16, grid=(4, 4)) for key in ("tok_image", "tok_image_hsc")}
    model = replace(MODEL, domains_in=images)
    codes = np.random.default_rng(0).integers(0, 16, (64, 16)).astype(np.uint16)
    tokens = TokenShard(
        tokens=dict.fromkeys(images, codes),
        lengths=dict.fromkeys(images, np.full(64, 16, np.uint16)),
        schema=dict.fromkeys(images, (16, 16)),
        objects=np.arange(64)[:, None],
        ids=np.array([b"x"] * 64),
    )
    masking = MaskingConfig(num_input_tokens=5, num_target_tokens=3)  # always filled
    loader = Loader(
        [TokenSet(name="one", shards=(tokens,))],
        model,
        LoaderConfig(masking=masking, batch_size=64),
    )
    batch = next(loader.steps(1, loader.start(), last=1)).batches[0]
    module = build(model, seed=0)
    assert module.prepare is not None
    module.prepare(module)

    # torch counts products of matrices, which attention is in its plainest form alone
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        torch.autograd.backward(losses(module, batch).sum())
    work = work_of(batch, model)

    assert work.tokens == 64 * (5 + 3)
    assert work.flops == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_weights_make_the_mean_over_modalities_or_over_tokens() -> None:
    counts = torch.tensor([30.0, 0.0, 10.0], dtype=torch.float64)
    sums = torch.tensor([60.0, 0.0, 5.0])

    assert float(sums @ token_weights(counts, "token")) == pytest.approx(65 / 40)
    assert float(sums @ token_weights(counts, "modality")) == pytest.approx((2.0 + 0.5) / 2)


def test_rate_rises_in_a_line_and_falls_as_a_cosine() -> None:
    assert rate_share(0.05, 0.1) == pytest.approx(0.5)
    assert rate_share(0.1, 0.1) == pytest.approx(1.0)
    assert rate_share(0.55, 0.1) == pytest.approx(0.5)
    assert rate_share(1.0, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert rate_share(0.325, 0.1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < rate_share(0.0, 0.1) < 0.01


def test_run_ends_with_what_runs_out_first() -> None:
    assert share_done(5, 100.0, steps=10, max_seconds=None) == 0.5
    assert share_done(5, 90.0, steps=10, max_seconds=100.0) == 0.9
    assert share_done(10, 1.0, steps=10, max_seconds=100.0) == 1.0


def test_measured_peak_is_that_of_a_computer() -> None:
    peak = measured_flops(torch.device("cpu"), torch.float32, torch.get_num_threads())

    assert 1e8 < peak < 1e15
