"""The encoder-decoder: what it is made of, and who may see whom in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from training.blocks import Attention, GatedMLP, Packing, attend_jagged, attend_within
from training.modalities import STREAM
from training.transformer import Transformer, sin_cos_positions
from training.transformer_config import (
    Domain,
    TransformerConfig,
    from_released,
    infer_qk_norm,
    released_values,
)

SMALL = TransformerConfig(
    dim=32,
    num_heads=2,
    encoder_depth=2,
    decoder_depth=2,
    domains_in={
        "tok_image": Domain(vocabulary=20, grid=(3, 3)),
        "tok_spectrum_sdss": Domain(vocabulary=16, grid=(5, 1)),
        "tok_flux_r": Domain(vocabulary=8, grid=(1, 1)),
    },
)
IMAGE_POSITIONS = torch.arange(9)[None]


def small(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(SMALL).eval()
    for parameter in model.parameters():  # larger than at initialisation, so that effects show
        parameter.data.mul_(5)
    return model


def test_base_has_the_number_of_parameters_of_the_released_checkpoint() -> None:
    config = TransformerConfig(
        dim=768, encoder_depth=12, decoder_depth=12, num_heads=12,
        domains_in={key: Domain.released(key) for key in STREAM}, released_layout=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = Transformer(config)

    parameters = sum(tensor.numel() for tensor in model.parameters())

    assert 313e6 < parameters < 315e6  # 314M: the released Base, 40 streams, untied embeddings


def test_released_names_are_all_there() -> None:
    config = TransformerConfig(
        dim=64, encoder_depth=1, decoder_depth=1, num_heads=1,
        domains_in={"tok_image": Domain.released("tok_image")}, released_layout=True,
    )  # fmt: skip
    attention = [f"{p}.weight" for p in ("proj", "q_norm", "k_norm")] + ["q_norm.bias"]
    expected = {
        "encoder_embeddings.tok_image.token_emb.weight",
        "encoder_embeddings.tok_image.mod_emb",
        "encoder_embeddings.tok_image.pos_emb",
        "decoder_embeddings.tok_image.token_emb.weight",
        "decoder_embeddings.tok_image.to_logits.weight",
        "decoder_embeddings.tok_image.mod_emb",
        "decoder_embeddings.tok_image.pos_emb",
        "encoder.0.norm1.weight",
        "encoder.0.norm2.bias",
        "encoder.0.attn.qkv.weight",
        *(f"encoder.0.attn.{name}" for name in attention),
        "encoder.0.mlp.fc1.weight",
        "encoder.0.mlp.fc2.weight",
        "encoder.0.mlp.fc3.weight",
        "encoder_norm.weight",
        "decoder_proj_context.weight",
        "decoder_proj_context.bias",
        *(f"decoder.0.{n}.weight" for n in ("norm1", "query_norm", "context_norm", "norm2")),
        "decoder.0.self_attn.qkv.weight",
        *(f"decoder.0.self_attn.{name}" for name in attention),
        "decoder.0.cross_attn.q.weight",
        "decoder.0.cross_attn.kv.weight",
        *(f"decoder.0.cross_attn.{name}" for name in attention),
        "decoder.0.mlp.fc2.weight",
        "decoder_norm.weight",
        "mask_token",
    }

    state = Transformer(config).state_dict()

    assert expected <= set(state)
    assert "encoder.0.attn.qkv.bias" not in state
    assert state["encoder.0.mlp.fc1.weight"].shape == (int(2 * 4 * 64 / 3), 64)
    assert state["encoder_embeddings.tok_image.token_emb.weight"].shape == (4375, 64)
    assert state["encoder_embeddings.tok_image.pos_emb"].shape == (1, 576, 64)


def test_modality_vector_is_one_tensor_for_encoder_and_decoder() -> None:
    model = small()
    encoder, decoder = model.encoder_embeddings, model.decoder_embeddings

    assert encoder["tok_image"].mod_emb is decoder["tok_image"].mod_emb
    assert encoder["tok_image"].mod_emb is not encoder["tok_flux_r"].mod_emb


def test_an_attention_layer_equals_its_formula() -> None:
    torch.manual_seed(0)
    layer = Attention(SMALL)
    x = torch.randn(2, 6, 32)
    scale = torch.rand(2, 16)
    layer.load_state_dict(
        layer.state_dict() | {"q_norm.weight": scale[0], "k_norm.weight": scale[1]}
    )

    q, k, v = (layer.qkv.weight @ x.mT).mT.chunk(3, dim=-1)  # each (batch, token, dim)
    expected = []
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        qh, kh = (F.layer_norm(t[..., part], (16,), eps=1e-6) for t in (q, k))
        qh, kh = qh * scale[0], kh * scale[1]
        weights = (qh @ kh.mT / math.sqrt(16)).softmax(dim=-1)
        expected.append(weights @ v[..., part])

    torch.testing.assert_close(
        layer(x), torch.cat(expected, dim=-1) @ layer.proj.weight.T, rtol=1e-4, atol=1e-5
    )


def test_mlp_equals_its_formula() -> None:
    torch.manual_seed(0)
    mlp = GatedMLP(SMALL)
    x = torch.randn(3, 32)

    inner = F.silu(x @ mlp.fc1.weight.T) * (x @ mlp.fc3.weight.T)

    torch.testing.assert_close(mlp(x), inner @ mlp.fc2.weight.T)


def test_positions_of_an_image_have_the_row_first() -> None:
    table = sin_cos_positions((3, 3), 8)[0]

    row, column = 2, 1
    frequencies = (1.0, 10000.0**-0.5)
    expected = [
        f(at * w) for at in (row, column) for f in (math.sin, math.cos) for w in frequencies
    ]
    torch.testing.assert_close(table[3 * row + column], torch.tensor(expected))


def test_padding_changes_nothing() -> None:
    model = small()
    ids, positions = torch.tensor([[3, 7, 30]]), torch.tensor([[0, 4, 10]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    padded = [F.pad(t, (0, 2)) for t in (ids, positions, valid)]
    asked = torch.ones(1, 9, dtype=torch.bool)

    exact = model.encode_selected(ids, positions, valid)
    longer = model.encode_selected(*padded)

    torch.testing.assert_close(longer.outputs[:, :3], exact.outputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.pool(longer), model.pool(exact), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        model.decode(longer, IMAGE_POSITIONS, asked),
        model.decode(exact, IMAGE_POSITIONS, asked),
        rtol=1e-3,
        atol=1e-3,
    )


def test_whole_streams_and_selected_tokens_encode_alike() -> None:
    model = small()
    image, flux = torch.randint(0, 20, (2, 9)), torch.randint(0, 8, (2, 1))
    ids = torch.cat([image, flux + 36], dim=1)  # 20 image codes and 16 spectrum codes come before
    positions = torch.cat([IMAGE_POSITIONS, torch.tensor([[14]])], dim=1).expand(2, -1)

    whole = model.encode({"tok_image": image, "tok_flux_r": flux})
    picked = model.encode_selected(ids, positions, torch.ones(2, 10, dtype=torch.bool))

    torch.testing.assert_close(whole.outputs, picked.outputs, rtol=1e-4, atol=1e-5)
    assert (whole.positions == positions).all()


def test_decoder_sees_only_its_own_stream_beside_the_context() -> None:
    model = small()
    encoded = model.encode({"tok_flux_r": torch.tensor([[2]])})
    image_only = torch.tensor([[0, 1]])
    with_spectrum = torch.tensor([[0, 1, 9, 10]])
    with_image = torch.tensor([[0, 1, 2, 3]])

    def decode(positions: torch.Tensor) -> torch.Tensor:
        return model.decode(encoded, positions, torch.ones_like(positions, dtype=torch.bool))

    alone = decode(image_only)

    torch.testing.assert_close(decode(with_spectrum)[:, :2], alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(decode(with_image)[:, :2], alone, atol=1e-2)


def test_pooling_of_the_context_adds_position_and_modality() -> None:
    model = small()
    tokens = {"tok_image": torch.randint(0, 20, (2, 9))}
    encoded = model.encode(tokens)
    place = model.encoder_embeddings["tok_image"].place()  # type: ignore[operator]

    context = model.context(encoded)

    torch.testing.assert_close(context - place, model.decoder_proj_context(encoded.outputs))


def test_wrong_tokens_are_refused() -> None:
    model = small()

    with pytest.raises(ValueError, match="no stream 'tok_z', it has tok_image"):
        model.encode({"tok_z": torch.zeros(1, 1, dtype=torch.long)})
    with pytest.raises(ValueError, match="tok_image has 9 tokens, got 4"):
        model.encode({"tok_image": torch.zeros(1, 4, dtype=torch.long)})
    with pytest.raises(ValueError, match="at least one stream"):
        model.encode({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains_in": ["tok_banana"]}, "unknown token stream 'tok_banana'"),
        ({"domains_in": {}}, "no token stream"),
        ({"dim": 30}, "not a multiple of num_heads 4"),
        ({"dim": 34, "num_heads": 2}, "multiple of 4"),
        ({"depth": 3}, "(?i)unexpected keyword"),
    ],
)
def test_wrong_sizes_are_refused(change: dict[str, object], message: str) -> None:
    settings = {"domains_in": ["tok_z"], "dim": 32, "num_heads": 4} | change

    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_packed_attention_is_the_same_by_runs_and_as_nested_tensors() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 20, 3, 8)
    packing = Packing((5, 5, 3, 7))

    with torch.no_grad():
        by_runs, nested = attend_within(q, k, v, packing), attend_jagged(q, k, v, packing)

    torch.testing.assert_close(by_runs, nested)
    alone = attend_within(q[10:13], k[10:13], v[10:13], Packing((3,)))
    torch.testing.assert_close(by_runs[10:13], alone)


def test_a_sequence_must_be_fed_and_has_room_for_so_many() -> None:
    config = TransformerConfig(domains_in={"catalog": Domain(vocabulary=300, grid=(50, 1))}, dim=12)
    model = Transformer(config).eval()
    encoded = model.encode({"catalog": torch.randint(300, (1, 15))})
    queries = torch.arange(5)[None]

    with pytest.raises(ValueError, match="catalog is a sequence: give the codes before"):
        model.decode(encoded, queries, torch.ones_like(queries, dtype=torch.bool))
    with pytest.raises(ValueError, match="catalog has 1 to 50 tokens, got 51"):
        model.encode({"catalog": torch.zeros(1, 51, dtype=torch.long)})


@pytest.mark.parametrize("config", [SMALL, TransformerConfig.base(), TransformerConfig.xl()])
def test_a_configuration_comes_back_from_its_file(config: TransformerConfig) -> None:
    values = released_values(config)

    assert from_released(values) == config
    assert ("domains" in values) == ("released_layout" in values) == (config is SMALL)


def test_an_absent_key_means_what_the_reference_takes_it_for() -> None:
    values = {
        "domains_in": ["tok_z"], "domains_out": ["tok_z"], "act_layer": "SiLU", "norm_bias": False,
        "gated_mlp": True,
    }  # fmt: skip
    config = from_released(values)

    assert (config.dim, config.encoder_depth, config.num_heads) == (768, 12, 12)
    assert config.qkv_bias
    assert not config.qk_norm
    assert infer_qk_norm(values, ["encoder.0.attn.q_norm.weight"]) == values | {"qk_norm": True}
    assert infer_qk_norm(values, ["encoder.0.attn.qkv.weight"]) == values | {"qk_norm": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "unknown key 'depth', expected one of act_layer"),
        ({"num_register_tokens": 4}, "num_register_tokens: only 0 is supported, got 4"),
        ({"gated_mlp": None}, "gated_mlp: only True is supported, got no key, which means False"),
        ({"act_layer": "GELU"}, "act_layer: only 'SiLU' is supported, got 'GELU'"),
        ({"norm_bias": None}, "no key 'norm_bias'"),
        ({"dim": "wide"}, "dim: .*valid integer"),
        ({"domains_in": "tok_z"}, "domains_in: expected a list of streams, got str"),
        ({"domains_out": ["tok_ra"]}, "domains_out has 'tok_ra', which domains_in lacks"),
        ({"domains": {"tok_ra": {}}}, "domains: 'tok_ra' is not in domains_in"),
    ],
)
def test_what_a_file_may_not_say_is_named(change: dict[str, object], message: str) -> None:
    values = {**released_values(TransformerConfig.base()), "domains_in": ["tok_z"],
              "domains_out": ["tok_z"]} | change  # fmt: skip
    values = {key: value for key, value in values.items() if value is not None}

    with pytest.raises(ValueError, match=message):
        from_released(values)
