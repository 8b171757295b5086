"""A larger model that begins by computing what a smaller one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.token_data import DOMAINS, MODEL
from training import encoder, growth
from training.growth import grown
from training.recipe import read_recipe
from training.transformer import StreamEmbedding, Transformer
from training.transformer_config import Domain, TransformerConfig

OLD = replace(MODEL, dim=48, num_heads=3)
SIZES = pytest.mark.parametrize(
    "new",
    [
        pytest.param(replace(OLD, encoder_depth=4, decoder_depth=3), id="deeper"),
        pytest.param(replace(OLD, dim=96, num_heads=6), id="wider"),
        pytest.param(
            replace(OLD, dim=144, num_heads=9, encoder_depth=3, decoder_depth=3), id="both"
        ),
    ],
)


def old_model(config: TransformerConfig = OLD) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config).eval()


def new_model(old: Transformer, config: TransformerConfig) -> Transformer:
    torch.manual_seed(1)  # what is drawn fresh is as in no old model
    model = Transformer(config).eval()
    weights = grown(dict(old.named_parameters()), old.config, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return model


def copy_positions(old: Transformer, new: Transformer) -> None:
    """Give each copy of a channel the position of its original, as no model has them."""
    factor = new.config.dim // old.config.dim
    pairs = zip(embeddings(old), embeddings(new), strict=True)
    for mine, theirs in pairs:
        theirs.pos_emb = mine.pos_emb.repeat_interleave(factor, dim=-1)


def embeddings(model: Transformer) -> list[StreamEmbedding]:
    return [each for each in model.modules() if isinstance(each, StreamEmbedding)]


@torch.no_grad()
def answers(
    model: Transformer, config: TransformerConfig = OLD
) -> tuple[Tensor, dict[str, Tensor]]:
    """Encoder outputs of some objects, and scores of each stream, asked for with all shown."""
    rng = torch.Generator().manual_seed(2)
    tokens = {
        key: torch.randint(domain.vocabulary, (5, domain.num_tokens), generator=rng)
        for key, domain in config.domains_in.items()
    }
    encoded = model.encode(tokens)
    total = model.layout.total
    where = torch.arange(total).expand(5, -1)
    states = model.decode(encoded, where, torch.ones(5, total, dtype=torch.bool))
    scores = {key: model.logits(key, states[:, model.layout.slice(key)]) for key in tokens}
    return encoded.outputs, scores


@SIZES
def test_it_computes_the_same_where_positions_are_copied(new: TransformerConfig) -> None:
    old = old_model()
    model = new_model(old, new)
    if new.dim > OLD.dim:
        copy_positions(old, model)
    outputs, scores = answers(old)
    made, of_new = answers(model)
    factor = new.dim // OLD.dim
    torch.testing.assert_close(made, outputs.repeat_interleave(factor, dim=-1), rtol=0, atol=2e-5)
    for key, expected in scores.items():
        torch.testing.assert_close(of_new[key], expected, rtol=0, atol=5e-5)


@SIZES
def test_its_own_positions_change_little(new: TransformerConfig) -> None:
    old = old_model()
    _, scores = answers(old)
    _, of_new = answers(new_model(old, new))
    for key, expected in scores.items():
        rest = (of_new[key] - expected).square().mean() / expected.square().mean()
        assert rest < 0.02, key


@SIZES
def test_every_copy_learns_something_else(new: TransformerConfig) -> None:
    old = old_model()
    model = new_model(old, new).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(3):
        rng = torch.Generator().manual_seed(step)
        tokens = {
            key: torch.randint(domain.vocabulary, (8, domain.num_tokens), generator=rng)
            for key, domain in DOMAINS.items()
        }
        where = torch.tensor([[model.layout.start["tok_z"]]]).expand(8, -1)
        shown = {key: each for key, each in tokens.items() if key != "tok_z"}
        states = model.decode(model.encode(shown), where, torch.ones(8, 1, dtype=torch.bool))
        loss = torch.nn.functional.cross_entropy(
            model.logits("tok_z", states[:, 0]), tokens["tok_z"][:, 0]
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    for name in (
        "encoder.0.mlp.fc1.weight",
        "encoder.1.attn.qkv.weight",
        "decoder.0.mlp.fc3.weight",
    ):
        rows = dict(model.named_parameters())[name].detach()
        apart = torch.cdist(rows, rows) + torch.eye(len(rows)) * 9
        assert apart.min() > 1e-4, name
    for number in range(new.encoder_depth):
        added = dict(model.named_parameters())[f"encoder.{number}.mlp.fc2.weight"]
        assert added.abs().max() > 0, number


def test_streams_that_only_one_has_are_left_alone() -> None:
    more = DOMAINS | {"tok_flux_r": Domain(vocabulary=8, grid=(1, 1))}
    made = grown(
        dict(old_model().named_parameters()),
        OLD,
        replace(OLD, dim=96, num_heads=6, domains_in=more),
    )
    assert not any("tok_flux_r" in name for name in made)


def test_the_same_weights_grow_the_same_everywhere() -> None:
    weights, new = dict(old_model().named_parameters()), replace(OLD, dim=96, num_heads=6)
    once, again = grown(weights, OLD, new), grown(weights, OLD, new)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_nano_grows_to_a_tiny_of_the_same_vectors() -> None:
    recipe = read_recipe(Path(growth.__file__).parent / "recipes" / "tiny_grown.toml")
    assert recipe.encoder.training.begin == "training/nano"
    nano = encoder.load("nano").transformer.float()
    tiny = new_model(nano, recipe.encoder.model)
    rng = torch.Generator().manual_seed(0)
    tokens = {
        key: torch.randint(domain.vocabulary, (4, domain.num_tokens), generator=rng)
        for key, domain in nano.config.domains_in.items()
    }
    with torch.no_grad():
        expected = nano.pool(nano.encode(tokens)).repeat_interleave(2, dim=1)
        made = tiny.pool(tiny.encode(tokens))
    assert float((made - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 24, "num_heads": 3}, "dim is to be a multiple of 48, got 24"),
        ({"dim": 72, "num_heads": 3}, "dim is to be a multiple of 48, got 72"),
        ({"dim": 96, "num_heads": 3}, "heads are to stay 16 wide: num_heads is to be 6, got 3"),
        ({"mlp_ratio": 2.0}, "MLPs are to be 128 wide, 1 times 128, got 64: choose another"),
        ({"encoder_depth": 1}, "encoder_depth is to be 2 or more, got 1"),
        ({"decoder_depth": 1}, "decoder_depth is to be 2 or more, got 1"),
    ],
)
def test_what_cannot_grow_is_refused(changes: dict[str, object], message: str) -> None:
    new = replace(OLD, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        grown(dict(old_model().named_parameters()), OLD, new)
