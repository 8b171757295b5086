"""One step of random-order decoding against the reference sampler, with the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.generation import code_scores
from training.transformer_config import TransformerConfig

pytest.importorskip("aion")
generate = pytest.importorskip("aion.fourm.generate")

from tests.training import test_released_transformer as released  # noqa: E402

CONFIG = replace(TransformerConfig.base(), dim=128, num_heads=2, encoder_depth=2, decoder_depth=2)
KEYS = ("tok_flux_r", "tok_xp_bp", "tok_spectrum_desi")


def test_scores_of_a_redshift_are_those_of_the_reference_sampler(seed: int) -> None:
    torch.manual_seed(seed)
    reference, ours = released.both(CONFIG)
    codes = released.random_codes(3, KEYS)
    shown = {
        key: {
            "tensor": mine,
            "input_mask": torch.zeros_like(mine, dtype=torch.bool),
            "target_mask": torch.ones_like(mine, dtype=torch.bool),
        }
        for key, mine in codes.items()
    }
    asked = {
        "tensor": torch.zeros(3, 1, dtype=torch.long),
        "input_mask": torch.ones(3, 1, dtype=torch.bool),
        "target_mask": torch.zeros(3, 1, dtype=torch.bool),
        "decoder_attention_mask": torch.zeros(3, 1, dtype=torch.long),
    }
    sampler = generate.GenerationSampler(reference)

    expected, _ = sampler.forward_enc_dec_roar_batched({**shown, "tok_z": asked}, "tok_z", 1)

    objects = [{key: mine[row] for key, mine in codes.items()} for row in range(3)]
    found = code_scores(ours, objects, "tok_z")
    released.assert_same(released.centred(found), released.centred(expected[:, 0]), 1e-3)
    released.assert_same(found, expected[:, 0])
