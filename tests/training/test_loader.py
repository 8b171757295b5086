"""The loader: every row once an epoch, the same for any number of processes, resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.token_data import DOMAINS, MASKING, MODEL, shard, write_set
from training import row_order
from training.labels import Labels
from training.loader import START_CODE, Batch, Loader, LoaderConfig
from training.masking import MaskingConfig
from training.row_order import is_held_out
from training.shards import TokenSet, TokenShard
from training.transformer_config import Domain, TransformerConfig

CONFIG = LoaderConfig(masking=MASKING, batch_size=20, validation_share=0.1)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Three shards of a hundred rows."""
    return write_set(tmp_path_factory.mktemp("tokens"))


def batches(loader: Loader, num: int) -> list[Batch]:
    return [step.batches[0] for step in loader.steps(1, loader.start(), last=num)]


def origins(loader: Loader, num: int) -> np.ndarray:
    return np.concatenate([batch.origin for batch in batches(loader, num)])


def test_every_row_comes_once_an_epoch_in_a_new_order(
    tokens: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_order, "SHARDS_A_BLOCK", 2)
    loader = Loader([tokens], MODEL, replace(CONFIG, batch_size=10))
    held = np.concatenate([batch.origin for batch in loader.held_out()])
    rest = 300 - len(held)
    drawn = origins(loader, 2 * rest // 10 + 1)
    first, second = drawn[:rest], drawn[rest : 2 * rest]

    assert 10 <= len(held) <= 60
    everything = np.unique(np.concatenate([held, first]), axis=0)
    assert len(everything) == 300
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))
    assert (first != second).any()
    assert len(np.unique(first[:20, 1])) > 1  # shards are mixed


def test_place_is_kept(tokens: TokenSet) -> None:
    loader = Loader([tokens], MODEL, CONFIG)
    whole = list(loader.steps(1, loader.start(), last=30))
    fresh = Loader([tokens], MODEL, CONFIG)
    rest = list(fresh.steps(18, whole[16].after, last=30))

    assert [step.number for step in rest] == list(range(18, 31))
    for one, other in zip(whole[17:], rest, strict=True):
        assert one.after == other.after
        for name, tensor in one.batches[0].tensors().items():
            assert torch.equal(tensor, other.batches[0].tensors()[name])


def test_copies_of_an_object_follow_each_other(tokens: TokenSet) -> None:
    copied = shard(30)
    copied = copied.take(np.repeat(np.arange(30), 3))
    sets = [TokenSet(name="copied", shards=(copied,))]
    known = Labels(names=("seven",), numbers=np.array([7]), table=np.array([[True]]))
    config = replace(CONFIG, rows_per_object=2, kinship=True)
    whole = batches(Loader(sets, MODEL, config, labels=known), 12)
    for rank in (0, 1):
        half = Loader(sets, MODEL, config, rank=rank, world_size=2, labels=known)
        for batch, expected in zip(batches(half, 12), whole, strict=True):
            mine = slice(rank * 10, rank * 10 + 10)
            np.testing.assert_array_equal(batch.origin, expected.origin[mine])

    for batch in whole:
        first, second = batch.origin[::2, 2], batch.origin[1::2, 2]
        assert (first // 3 == second // 3).all()
        assert ((second - first) % 3 == 1).all()  # the next copy; after the third the first
        assert batch.objects is not None
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.objects, copied.objects[batch.origin[:, 2], 0])
        np.testing.assert_array_equal(batch.labels[:, 0], batch.objects == 7)
        assert (batch.shown[::2] != batch.shown[1::2]).any()  # each row has a mask of its own
    every_third = np.arange(90) % 3 == 1
    gaps = replace(
        copied,
        lengths={key: np.where(every_third, 0, there) for key, there in copied.lengths.items()},
    )
    sets = [TokenSet(name="gaps", shards=(gaps,))]
    rows = origins(Loader(sets, MODEL, replace(CONFIG, rows_per_object=4)), 3)[:, 2]
    assert not every_third[rows].any()
    assert (rows.reshape(-1, 4)[:, :2] == rows.reshape(-1, 4)[:, 2:]).all()  # two are left
    alone = Loader([tokens], MODEL, replace(CONFIG, rows_per_object=2))
    rows = origins(alone, 3)
    np.testing.assert_array_equal(rows[::2], rows[1::2])  # an object of one row
    with pytest.raises(ValueError, match="20 cannot be shared evenly by 1 processes, 3 rows"):
        Loader([tokens], MODEL, replace(CONFIG, rows_per_object=3))


def test_processes_and_micro_batches_share_out_one_batch(tokens: TokenSet) -> None:
    fixed = replace(CONFIG, fixed_shape=True)  # else each part pads to its own longest row
    whole = batches(Loader([tokens], MODEL, fixed), 3)
    for rank in (0, 1):
        half = Loader([tokens], MODEL, fixed, rank=rank, world_size=2)
        for batch, expected in zip(batches(half, 3), whole, strict=True):
            mine = slice(rank * 10, rank * 10 + 10)
            np.testing.assert_array_equal(batch.origin, expected.origin[mine])
            assert torch.equal(batch.shown, expected.shown[mine])
            assert torch.equal(batch.targets, expected.targets[mine])
    small = Loader([tokens], MODEL, replace(fixed, micro_batch_size=8))
    parts = next(small.steps(1, small.start(), last=1)).batches

    assert [len(part.shown) for part in parts] == [8, 8, 4]
    assert torch.equal(torch.cat([part.shown for part in parts]), whole[0].shown)
    with pytest.raises(ValueError, match="batch_size 20 cannot be shared evenly by 3 processes"):
        Loader([tokens], MODEL, CONFIG, world_size=3)


def test_batch_says_what_the_shards_hold(tokens: TokenSet) -> None:
    loader = Loader([tokens], MODEL, CONFIG)
    batch = batches(loader, 1)[0]
    targets = batch.targets.flatten()[batch.asked]
    rows = (batch.asked // batch.targets.shape[1]).tolist()
    stream = np.repeat(np.arange(3), batch.counts)
    for row, position, number, code in zip(
        rows, targets.tolist(), stream, batch.codes.tolist(), strict=True
    ):
        key = loader.layout.keys[number]
        _, index, line = batch.origin[row]
        there = tokens.shards[index].tokens[key][line]
        assert code == there[position - loader.layout.start[key]]
    valid = torch.ones_like(batch.shown, dtype=torch.bool) if batch.valid is None else batch.valid
    for row, (_, index, line) in enumerate(batch.origin):
        there = valid[row]
        for position, code in zip(
            batch.positions[row][there].tolist(), batch.shown[row][there].tolist(), strict=True
        ):
            key = loader.layout.keys[int(loader.layout.stream_of_position()[position])]
            true = tokens.shards[index].tokens[key][line][position - loader.layout.start[key]]
            assert code == true + loader.layout.id_start[key]


def test_sets_are_mixed_by_their_weights(tokens: TokenSet) -> None:
    other = TokenSet(name="other", shards=(shard(40, start=10_000),), weight=3.0)
    loader = Loader([tokens, other], MODEL, replace(CONFIG, batch_size=100))
    drawn = origins(loader, 40)

    assert np.mean(drawn[:, 0] == 1) == pytest.approx(0.75, abs=0.03)


def test_object_is_held_out_everywhere_or_nowhere() -> None:
    numbers = np.arange(20_000)
    held = is_held_out(numbers[:, None], 0.2)
    pairs = is_held_out(np.column_stack([numbers, np.roll(numbers, 1)]), 0.2)

    assert held.mean() == pytest.approx(0.2, abs=0.01)
    np.testing.assert_array_equal(pairs, held | np.roll(held, 1))


def test_fixed_shape_pads_to_the_budgets(tokens: TokenSet) -> None:
    masking = MaskingConfig(num_input_tokens=30, num_target_tokens=25)
    config = replace(CONFIG, masking=masking, fixed_shape=True)
    batch = batches(Loader([tokens], MODEL, config), 1)[0]

    assert batch.shown.shape == (20, 30)
    assert batch.targets.shape == (20, 25)
    assert batch.valid is not None
    assert batch.valid.any(dim=1).all()


def test_sequence_is_fed_the_code_before() -> None:
    codes = np.arange(1, 51, dtype=np.uint16)[None].repeat(8, axis=0) + 200
    sources = TokenShard(
        tokens={"catalog": codes},
        lengths={"catalog": np.array([50, 45, 40, 10, 5, 50, 50, 50], np.uint16)},
        schema={"catalog": (300, 50)},
        objects=np.arange(8)[:, None],
        ids=np.array([b"x"] * 8),
    )
    model = TransformerConfig(
        dim=16, num_heads=2, encoder_depth=1, decoder_depth=1,
        domains_in={"catalog": Domain(vocabulary=300, grid=(50, 1))},
    )  # fmt: skip
    config = LoaderConfig(
        masking=MaskingConfig(num_input_tokens=20, num_target_tokens=12), batch_size=8
    )
    loader = Loader([TokenSet(name="one", shards=(sources,))], model, config)
    batch = batches(loader, 1)[0]

    assert batch.previous is not None
    for row in range(8):
        valid = batch.target_valid[row]
        asked = torch.arange(valid.numel())[valid]
        assert batch.targets[row][valid].tolist() == list(range(len(asked)))  # ranks
        fed = batch.previous[row][valid].tolist()
        true = batch.codes[batch.asked // batch.targets.shape[1] == row].tolist()
        assert fed[0] == START_CODE
        assert fed[1:] == true[:-1]


def test_codes_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    tokens = write_set(tmp_path)
    file = tmp_path / "00001" / "tok_z.npy"
    codes = np.load(file)
    codes[:] = 8
    np.save(file, codes)
    loader = Loader([tokens], MODEL, CONFIG)

    with pytest.raises(ValueError, match="00001: tok_z has the code 8, its vocabulary 8 codes"):
        batches(loader, 15)


def test_rows_that_leave_nothing_to_train_on_are_refused(tokens: TokenSet) -> None:
    with pytest.raises(ValueError, match="300 rows of tokens leave none to train on"):
        Loader([tokens], MODEL, replace(CONFIG, validation_share=1.0))
    more = replace(MODEL, domains_in=DOMAINS | {"tok_ebv": Domain(vocabulary=8, grid=(1, 1))})
    with pytest.raises(ValueError, match="no data set has the stream 'tok_ebv'"):
        Loader([tokens], more, CONFIG)
