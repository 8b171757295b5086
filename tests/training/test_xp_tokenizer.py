"""XP coefficients to tokens: each number by its own table, ten decades, no NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.tokenizers.xp import MultiScalarTokenizer, MultiScalarTokenizerConfig


def test_each_coefficient_is_read_by_its_own_quantiles() -> None:
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-2, 6, 55)
    values = torch.from_numpy(rng.normal(0, scale, (4000, 55))).float()
    tokenizer = MultiScalarTokenizer(MultiScalarTokenizerConfig(num_bins=64, reservoir_size=500))
    tokenizer.fit(values)

    tokens = tokenizer.encode(values)
    decoded = tokenizer.decode(tokens)

    for column in range(55):
        counts = torch.bincount(tokens[:, column], minlength=64)[1:]
        assert 55 <= int(counts.min()) <= int(counts.max()) <= 72  # 4000 / 63 each
    assert bool((values <= decoded * (1 + 1e-4 * decoded.sign())).all())  # upper edges
    below = tokenizer.decode((tokens - 1).clamp_min(0))
    assert bool((values >= below * (1 - 1e-4 * below.sign())).all())


def test_nan_is_refused() -> None:
    tokenizer = MultiScalarTokenizer(MultiScalarTokenizerConfig(num_scalars=2, num_bins=4))
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.encode(torch.tensor([[0.0, torch.nan]]))
