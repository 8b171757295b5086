"""Kinship against its formulas, and what it does to the vectors of a small encoder."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn import functional as F

from tests.training.token_data import FAST, MODEL, NUM, shard
from training.kinship import KinshipConfig, kinship_loss, shared_out
from training.labels import NO_LABELS, Labels
from training.pretraining import pretrain
from training.pretraining_config import PretrainingConfig
from training.row_order import is_held_out
from training.shards import TokenSet, TokenShard
from training.transformer import Transformer

NOTHING_KNOWN = torch.zeros((6, 0), dtype=torch.bool)


def unit_vectors(num: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, 5, generator=generator), dim=-1)


def test_without_labels_it_is_info_nce(seed: int) -> None:
    vectors, objects = unit_vectors(6, seed), torch.tensor([4, 4, 9, 9, 7, 7])
    config = KinshipConfig(temperature=0.2)
    expected = []
    for row, other in enumerate([1, 0, 3, 2, 5, 4]):
        weights = [math.exp(float(vectors[row] @ vectors[k]) / 0.2) for k in range(6)]
        expected.append(-math.log(weights[other] / (sum(weights) - weights[row])))

    found = kinship_loss(vectors, objects, NOTHING_KNOWN, config)

    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_kin_by_label_alone_is_supervised_contrast(seed: int) -> None:
    vectors, objects = unit_vectors(6, seed), torch.arange(6)
    labels = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0]], dtype=torch.bool)
    kin = {0: [1, 3], 1: [0, 3], 2: [3], 3: [0, 1, 2]}  # 4 and 5 are not known: no kin
    config = KinshipConfig(temperature=0.5, label_share=0.3)  # no row has kin of its object
    expected = []
    for row, mine in kin.items():
        weights = [math.exp(float(vectors[row] @ vectors[k]) / 0.5) for k in range(6)]
        others = sum(weights) - weights[row]
        expected.append(-np.mean([math.log(weights[k] / others) for k in mine]))

    found = kinship_loss(vectors, objects, labels, config)

    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_rows_of_an_object_stay_kin_beside_those_of_its_label() -> None:
    objects = torch.tensor([0, 0, 1, 1])
    same = objects[:, None] == objects[None]
    oneself = torch.eye(4, dtype=torch.bool)
    shares = shared_out(same & ~oneself, ~same, 0.9)

    torch.testing.assert_close(shares[0], torch.tensor([0, 0.1, 0.45, 0.45]))


def test_where_nobody_has_kin_nothing_is_asked() -> None:
    vectors = unit_vectors(6, 0).requires_grad_()
    loss = kinship_loss(vectors, torch.arange(6), NOTHING_KNOWN, KinshipConfig())
    loss.backward()  # type: ignore[no-untyped-call]

    assert loss == 0
    assert vectors.grad is not None
    assert (vectors.grad == 0).all()


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=12),
    st.lists(st.integers(0, 2), min_size=12, max_size=12),
    st.floats(0, 0.9375, width=16),
)
def test_shares_are_whole_and_as_asked(
    objects: list[int], kinds: list[int], label_share: float
) -> None:
    number, kind = np.array(objects), np.array(kinds)[objects]
    oneself = np.eye(len(number), dtype=bool)
    same = (number[:, None] == number) & ~oneself
    alike = (kind[:, None] == kind) & (number[:, None] != number)
    shares = shared_out(torch.tensor(same), torch.tensor(alike), label_share).numpy()

    assert (shares[~(same | alike)] == 0).all()
    both = same.any(axis=1) & alike.any(axis=1)
    np.testing.assert_allclose((shares * alike).sum(axis=1)[both], label_share, atol=1e-6)
    only = same.any(axis=1) ^ alike.any(axis=1)
    asked = same.any(axis=1) | (label_share > 0)
    np.testing.assert_allclose(shares.sum(axis=1)[only & asked], 1, atol=1e-6)


def test_kin_come_together_in_training(tmp_path: Path) -> None:
    """Two families of kinds, told of objects that are trained on, show in those held out."""
    tokens = shard()
    kind = tokens.tokens["tok_image"][:, 0] // 2
    labels = Labels(
        names=("low", "high"),
        numbers=np.arange(NUM),
        table=np.stack([kind < 4, kind >= 4], axis=1),
    )
    config = replace(FAST, steps=60, batch_size=32, validation_share=0.3)
    found = {}
    for name, kinship in (
        ("masked modelling", None),
        ("kinship", KinshipConfig(label_share=0.8)),
    ):
        run = replace(config, kinship=kinship)
        sets = [TokenSet(name="one", shards=(tokens,))]
        transformer, _ = pretrain(MODEL, sets, run, tmp_path / name, labels=labels)
        rows = np.flatnonzero(is_held_out(tokens.objects, 0.3))
        found[name] = cosine_gap(transformer, tokens.take(rows), kind[rows] < 4)
    with (tmp_path / "kinship" / "curve.csv").open() as stream:
        assert "kinship" in stream.readline().strip().split(",")

    assert found["kinship"] > 0.5
    assert found["kinship"] > found["masked modelling"] + 0.3


@torch.no_grad()
def cosine_gap(transformer: Transformer, tokens: TokenShard, low: np.ndarray) -> float:
    """Mean cosine within a family, less that across; of objects by their images."""
    start = transformer.layout.slice("tok_image").start
    ids = torch.from_numpy(tokens.tokens["tok_image"].astype(np.int64))
    ids = ids + transformer.layout.id_start["tok_image"]
    positions = (start + torch.arange(16)).expand(len(ids), -1)
    encoded = transformer.encode_selected(ids, positions, None)
    vectors = F.normalize(transformer.pool(encoded), dim=-1)
    cosines = (vectors @ vectors.T).numpy()
    same = low[:, None] == low
    return float(cosines[same].mean() - cosines[~same].mean())


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    sets = [TokenSet(name="one", shards=(shard(),))]
    config = replace(FAST, kinship=KinshipConfig(label_share=0.5))
    others = Labels(names=("even",), numbers=np.array([-7, -5]), table=np.array([[True], [True]]))
    for labels, num in ((NO_LABELS, 0), (others, 2)):
        with pytest.raises(ValueError, match=f"300 rows none has one: the {num} labelled"):
            pretrain(MODEL, sets, config, tmp_path, labels=labels)
    with pytest.raises(ValueError, match="micro_batch_size 8"):
        PretrainingConfig(kinship=KinshipConfig(), micro_batch_size=8)
    with pytest.raises(ValueError, match=r"batch_size 64 is not divisible by .* 3"):
        PretrainingConfig(kinship=KinshipConfig(rows_per_object=3))
    with pytest.raises(ValueError, match="nothing has kin"):
        KinshipConfig(rows_per_object=1)
    for wrong in ({"weight": 0}, {"temperature": math.inf}, {"label_share": 1}, {"share": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            KinshipConfig(**wrong)
