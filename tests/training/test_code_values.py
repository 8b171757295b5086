"""Token tables drawn by value against what the quantizers say is near."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.small_encoder import make_parts
from tests.training.token_data import FAST, MODEL, shard
from training.code_values import code_values, drawn_by_value
from training.devices import build
from training.pretraining import pretrain
from training.shards import TokenSet
from training.transformer import initialise
from training.transformer_config import Domain

IMAGE_TABLES = (
    "encoder_embeddings.tok_image.token_emb.weight",
    "decoder_embeddings.tok_image.to_logits.weight",
)


def draw(name: str, share: float, *, seed: int, dim: int = 4096) -> torch.Tensor:
    transformer, codecs, _ = make_parts()
    values = code_values(transformer.config.domains_in, codecs)
    table = torch.empty(1000, dim)
    drawn_by_value(values, share)(name, table, torch.Generator().manual_seed(seed))
    return table


@pytest.mark.parametrize("name", IMAGE_TABLES)
def test_inner_products_of_a_table_are_those_of_the_values(name: str, seed: int) -> None:
    """A random map keeps inner products: their error falls with the root of its width."""
    transformer, codecs, _ = make_parts()
    values = code_values(transformer.config.domains_in, codecs)["tok_image"]
    expected = values @ values.T / values.shape[1]
    table = draw(name, 1.0, seed=seed)
    found = table @ table.T / table.square().sum(dim=1).mean()

    assert (found - expected).abs().max() < 0.2  # the largest is 2.6
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("name", IMAGE_TABLES)
def test_the_share_is_of_the_variance_and_the_size_stays(
    name: str, share: float, seed: int
) -> None:
    alone = torch.empty(1000, 4096)
    initialise(name, alone, torch.Generator().manual_seed(seed))
    table = draw(name, share, seed=seed)
    one, other = 0, 1  # neighbours in the first dimension
    cosine = torch.cosine_similarity(table[one], table[other], dim=0)
    placed = draw(name, 1.0, seed=seed)
    by_value = torch.cosine_similarity(placed[one], placed[other], dim=0)

    assert table.std() == pytest.approx(float(alone.std()), rel=0.03)
    # these codes lie at the edge of the grid, where places are longer than the mean
    assert 0 < cosine < by_value
    assert torch.cosine_similarity(alone[one], alone[other], dim=0).abs() < 0.1


def test_other_parameters_are_drawn_as_ever(seed: int) -> None:
    transformer, codecs, _ = make_parts()
    values = code_values(transformer.config.domains_in, codecs)
    drawing = drawn_by_value(values, 0.9)
    for name, parameter in transformer.named_parameters():
        alone, table = torch.empty(parameter.shape), torch.empty(parameter.shape)
        initialise(name, alone, torch.Generator().manual_seed(seed))
        drawing(name, table, torch.Generator().manual_seed(seed))
        is_table = name.endswith(("token_emb.weight", "to_logits.weight"))

        assert torch.equal(alone, table) != is_table, name


def test_numbers_of_near_rank_have_near_places() -> None:
    transformer, codecs, _ = make_parts()
    places = code_values(transformer.config.domains_in, codecs)["tok_flux_g"]
    apart = torch.cdist(places, places)
    nearest = (apart + 1e9 * torch.eye(64)).argmin(dim=1)

    assert ((nearest - torch.arange(64)).abs() == 1).all()
    assert (apart[0].diff()[:3] > 0).all()


def test_a_code_that_no_tokenizer_makes_has_no_place() -> None:
    _, codecs, _ = make_parts()
    places = code_values({"tok_z": Domain(vocabulary=65, grid=(1, 1))}, codecs)["tok_z"]

    assert not places[64].any()
    torch.testing.assert_close(places[:64].mean(0), torch.zeros(places.shape[1]))
    torch.testing.assert_close(places[:64].var(0, correction=0), torch.ones(places.shape[1]))


def test_a_model_is_the_same_however_it_is_divided() -> None:
    """FSDP draws block by block, one process all at once."""
    values = {"tok_image": torch.randn(MODEL.domains_in["tok_image"].vocabulary, 3)}
    whole, parts = (build(MODEL, seed=5, draw=drawn_by_value(values, 0.5)) for _ in range(2))
    for module, divided in ((whole, False), (parts, True)):
        assert module.prepare is not None
        for block in (*module.transformer.decoder, *module.transformer.encoder) if divided else ():
            module.prepare(block)
        module.prepare(module)

    expected = dict(whole.transformer.named_parameters())
    for name, parameter in parts.transformer.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_share_without_values_is_refused(tmp_path: Path) -> None:
    sets = [TokenSet(name="one", shards=(shard(),))]
    with pytest.raises(ValueError, match=r"value_share 0.5 asks for values of codes"):
        pretrain(MODEL, sets, replace(FAST, value_share=0.5), tmp_path)
    with pytest.raises(ValueError, match="value_share"):
        replace(FAST, value_share=1.5)
