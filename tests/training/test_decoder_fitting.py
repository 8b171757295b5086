"""A decoder on kept outputs of a frozen encoder: what it learns, and what stays."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.token_data import DOMAINS, MODEL, NUM, shard
from training.decoder_fitting import (
    DecoderFitConfig,
    _others,
    _thinned,
    fit_decoder,
    ranked_probability_score,
)
from training.kept_outputs import Kept, Rows, keep, open_rows
from training.shards import TokenSet, TokenShard
from training.transformer import Transformer

FAST = DecoderFitConfig(
    steps=250, batch_size=32, num_others=4, learning_rate=3e-3, num_threads=1, validation_share=0.2
)


def _set(*shards: TokenShard) -> TokenSet:
    return TokenSet(name="one", shards=shards)


def _transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(MODEL).eval()


def _fitted(config: DecoderFitConfig) -> torch.Tensor:
    """A weight of the decoder, after a fit."""
    transformer = _transformer()
    fit_decoder(transformer, [_set(shard())], config)
    return transformer.mask_token.detach()


def _opened(transformer: Transformer, *, most: int = 1000) -> tuple[Rows, list[Kept]]:
    rows = open_rows(transformer, [_set(shard())], ["tok_z"], most=most, validation_share=0.2)
    kept = keep(transformer, rows, ["tok_z"], contexts=3, seed=0, progress=lambda *_: None)
    return rows, kept


def test_a_decoder_learns_what_a_stream_tells_and_knows_what_none_tells() -> None:
    transformer = _transformer()
    before = {name: each.clone() for name, each in transformer.named_parameters()}

    report = fit_decoder(
        transformer, [_set(shard(1500))], replace(FAST, max_left_out={"image": 0.3})
    )

    after = dict(transformer.named_parameters())
    frozen = [name for name in before if name.startswith("encoder")]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert {name.partition(".")[0] for name in changed} >= {"decoder", "decoder_proj_context"}
    assert not any(each.requires_grad for each in after.values())
    # the image tells one of eight kinds, the flux tells nothing of it
    held_out = report.held_out
    assert held_out["image"]["tok_z"] < 0.3
    assert held_out["image+scalar"]["tok_z"] < 0.3
    assert held_out["scalar"]["tok_z"] == pytest.approx(math.log(8), abs=0.25)
    assert (report.steps, len(held_out)) == (250, 3)
    assert 750 < report.rows < 950  # of 1,500 seven tenths have a redshift, a fifth is held out


def test_what_is_kept_is_what_the_encoder_makes() -> None:
    transformer = _transformer()
    rows, kept = _opened(transformer)

    assert {each.shown for each in kept} == {("image",), ("scalar",), ("image", "scalar")}
    assert sum(map(len, kept)) == 3 * len(rows)
    layout = transformer.layout
    asked = rows.there[:, layout.slice("tok_z")]
    assert bool(asked.all())
    for group in kept:
        row = int(group.rows[0])
        tokens = {
            key: rows.ids[row : row + 1, layout.slice(key)] - layout.id_start[key]
            for key in ("tok_image", "tok_flux_g")
            if {"tok_image": "image", "tok_flux_g": "scalar"}[key] in group.shown
        }
        with torch.no_grad():
            alone = transformer.encode(tokens)
        assert group.positions.tolist() == alone.positions[0].tolist()
        torch.testing.assert_close(group.outputs[0].float(), alone.outputs[0], atol=0.05, rtol=0.05)
        hidden = torch.nonzero(group.hidden[0])[:, 0].tolist()
        shown = group.positions.tolist()
        assert sorted(hidden + shown) == [*range(16), layout.start["tok_flux_g"]]


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_the_same_seed_gives_the_same_decoder(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16})
    config = replace(FAST, steps=5)
    made = []
    for _ in range(2):
        transformer = _transformer()
        fit_decoder(transformer, [_set(shard())], config)
        made.append(transformer.state_dict())

    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_tokens_are_left_out_for_a_share_of_the_steps() -> None:
    brief = replace(FAST, steps=4, learning_rate=1e-3)
    thin = replace(brief, max_left_out={"image": 0.9})
    whole, always = _fitted(brief), _fitted(thin)
    assert torch.equal(_fitted(replace(thin, left_out_until=0.0)), whole)
    at_first = _fitted(replace(thin, left_out_until=0.5))
    assert not torch.equal(at_first, whole)
    assert not torch.equal(at_first, always)


def test_the_ranked_probability_score_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(5, 7)), rng.integers(7, size=5)
    expected = []
    for row, code in zip(scores, truth, strict=True):
        mass = np.exp(row) / np.exp(row).sum()
        expected += [(mass[: n + 1].sum() - float(n >= code)) ** 2 for n in range(7)]
    made = ranked_probability_score(torch.from_numpy(scores), torch.from_numpy(truth))
    assert float(made) == pytest.approx(100 * np.mean(expected))


def test_the_ranked_probability_score_is_best_where_probabilities_are_true() -> None:
    true = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    told = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([told], max_iter=100, tolerance_grad=1e-12)

    def mean_score() -> torch.Tensor:
        optimizer.zero_grad()
        each = [ranked_probability_score(told[None], torch.tensor([code])) for code in range(4)]
        mean = (torch.stack(each) * true).sum()
        torch.autograd.backward(mean)
        return mean

    optimizer.step(mean_score)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(told.detach().softmax(dim=0), true, rtol=0, atol=1e-4)


def test_a_decoder_is_taught_distance_where_asked() -> None:
    brief = replace(FAST, steps=4)
    assert not torch.equal(_fitted(brief), _fitted(replace(brief, rank_weight=2.0)))


def test_rows_are_spread_over_all_sets_and_objects_that_are_held_out_stay_so() -> None:
    transformer = _transformer()
    sets = [_set(shard()), replace(_set(shard(seed=1, start=NUM)), name="two")]

    every = open_rows(transformer, sets, ["tok_z"], most=10_000, validation_share=0.2)
    some = open_rows(transformer, sets, ["tok_z"], most=50, validation_share=0.2)

    assert len(some) == 50
    of_every = [row.tolist() for row in every.ids]
    place = [of_every.index(row.tolist()) for row in some.ids]
    assert place[0] == 0
    assert place[-1] > 0.9 * len(every)
    assert some.held_out.tolist() == every.held_out[torch.tensor(place)].tolist()
    assert 0.1 < float(every.held_out.float().mean()) < 0.3


def test_a_hidden_number_is_asked_for_as_often_as_a_hidden_image() -> None:
    transformer = _transformer()
    group = _opened(transformer)[1][0]
    hidden = torch.ones(4000, transformer.layout.total, dtype=torch.bool)
    hidden[:, transformer.layout.slice("tok_z")] = False
    hidden[2000:, :15] = False  # of the image's sixteen tokens one
    batch = replace(group.take(torch.zeros(4000, dtype=torch.long)), hidden=hidden)

    where, there = _others(transformer, batch, 3, np.random.default_rng(0))

    flux = where == transformer.layout.start["tok_flux_g"]
    assert float(flux[:, 0].float().mean()) == pytest.approx(0.5, abs=0.04)
    assert bool(there[:2000].all())
    assert set(there[2000:].sum(dim=1).tolist()) == {2}  # there are no more
    assert bool(hidden.gather(1, where)[there].all())


def test_thinning_leaves_out_another_share_of_each_kind_and_keeps_what_is_there() -> None:
    transformer = _transformer()
    layout = transformer.layout
    group = max(_opened(transformer)[1], key=lambda each: len(each.positions))
    assert group.shown == ("image", "scalar")
    batch = group.take(torch.arange(8))
    image = torch.arange(layout.total)[layout.slice("tok_image")]

    rng = np.random.default_rng(0)
    left = []
    for _ in range(400):
        thin = _thinned(transformer, batch, {"image": 0.75}, rng)
        assert thin.valid is not None
        counts = torch.isin(thin.positions, image).sum(dim=1)
        assert len(set(counts.tolist())) == 1  # as many in every row
        assert thin.positions.shape[1] == int(counts[0]) + 1  # the flux is a kind of one token
        left.append(int(counts[0]))
        for row, positions in enumerate(thin.positions):
            where = torch.searchsorted(batch.positions, positions)
            assert torch.equal(batch.positions[where], positions)
            assert torch.equal(thin.outputs[row], batch.outputs[row, where].float())
            assert torch.equal(thin.valid[row], batch.valid[row, where])

    assert (min(left), max(left)) == (4, 16)  # of sixteen
    assert np.mean(left) == pytest.approx(16 * (1 - 0.75 / 2), abs=0.5)


def test_thinning_never_takes_the_last_token_of_a_row() -> None:
    transformer = _transformer()
    group = max(_opened(transformer)[1], key=lambda each: len(each.positions))
    whole = group.take(torch.zeros(500, dtype=torch.long))
    single = replace(whole, valid=torch.arange(17).expand(500, -1) == 3)

    shares = {"image": 0.99, "scalar": 0.99}
    thin = _thinned(transformer, single, shares, np.random.default_rng(0))
    every = _thinned(transformer, single, {}, np.random.default_rng(0))

    assert thin.positions.shape[1] < 17
    assert thin.valid is not None
    assert bool((thin.valid.sum(dim=1) == 1).all())
    assert every.valid is not None
    assert torch.equal(every.valid, single.valid)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked": ()}, "expected streams to ask a decoder for, got none"),
        ({"asked": ("tok_image",)}, "streams of one token to ask for, tok_image has 16"),
        ({"asked": ("tok_flux_r",)}, "cannot be asked for 'tok_flux_r', only for tok_image, tok_z"),
        ({"max_left_out": {"images": 0.5}}, "'images': this model has streams of"),
        ({"validation_share": 0.999999}, "rows are held out, none is left to learn from"),
    ],
)
def test_what_cannot_be_asked_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_decoder(_transformer(), [_set(shard())], replace(FAST, **change))


def test_rows_without_what_is_asked_or_shown_are_refused() -> None:
    whole = shard(20)
    nothing = np.zeros(20, np.uint16)
    blind = replace(whole, lengths={**whole.lengths, "tok_image": nothing, "tok_flux_g": nothing})
    silent = replace(whole, lengths={**whole.lengths, "tok_z": nothing})

    for each in (blind, silent):
        with pytest.raises(ValueError, match="none of 20 rows has tok_z, and something to show"):
            fit_decoder(_transformer(), [_set(each)], FAST)
    other = replace(whole, schema={**whole.schema, "tok_z": (9, 1)})
    with pytest.raises(ValueError, match="tok_z has 9 codes and 1 tokens in the token shards"):
        fit_decoder(_transformer(), [_set(other)], FAST)
    assert DOMAINS["tok_z"].vocabulary == 8
