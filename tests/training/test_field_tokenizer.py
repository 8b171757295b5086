"""Maps to tokens and back: sizes, range, the caller's tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.observations import Field
from training.tokenizers.field import FieldTokenizer, FieldTokenizerConfig, stack


@torch.inference_mode()
@pytest.mark.parametrize("compressions", [2, 3])
def test_maps_become_a_grid_of_codes_and_stay_between_0_and_1(compressions: int) -> None:
    torch.manual_seed(0)
    config = FieldTokenizerConfig(hidden=16, num_compressions=compressions, residual_hidden=8)
    tokenizer = FieldTokenizer(config).eval()
    fields = torch.rand(3, 96, 96)
    before = fields.clone()

    tokens = tokenizer.encode(fields)
    decoded = tokenizer.decode(torch.randint(0, 1000, tokens.shape))

    assert torch.equal(fields, before)
    assert tokens.shape == (3, (96 // 2**compressions) ** 2)
    assert tokenizer.num_codes == 1000
    assert decoded.shape == (3, 96, 96)
    assert 0 <= float(decoded.min()) < float(decoded.max()) <= 1


def test_fields_of_any_size_keep_their_centre() -> None:
    small, large = np.ones((80, 90), np.float32), np.zeros((160, 160), np.float32)
    large[80, 80] = 1

    batch = stack([Field(small), Field(large)])

    assert batch.shape == (2, 96, 96)
    assert float(batch[0].sum()) == 80 * 90
    assert float(batch[0, 8:88, 3:93].sum()) == 80 * 90
    assert batch[1].nonzero().tolist() == [[48, 48]]


def test_sizes_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden must be divisible by 4, got 10"):
        FieldTokenizerConfig(hidden=10)
    with pytest.raises(ValueError, match="2\\^num_compressions divide 96, got 6"):
        FieldTokenizerConfig(hidden=64, num_compressions=6)
