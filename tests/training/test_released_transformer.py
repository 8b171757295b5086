"""Our transformer against the reference model of AION-1, with the same random weights in both.

Inputs and weights are fresh in every run with --fresh-seeds; a failure prints its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import seed_of
from training.modalities import STREAM
from training.transformer import Encoded, Transformer, is_sequence
from training.transformer_config import Domain, TransformerConfig, released_values

aion = pytest.importorskip("aion")

KEYS = tuple(sorted(STREAM))
NUM_TOKENS = {key: STREAM[key].num_tokens for key in KEYS}
TOLERANCE = 1e-4  # relative, per token, float32

Codes = dict[str, Tensor]


Models = tuple[Any, Transformer]  # the reference and ours


@pytest.fixture(autouse=True)
def sown(seed: int) -> None:
    torch.manual_seed(seed)


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest) -> Models:
    """Base at full width, two encoder blocks and one decoder block deep."""
    torch.manual_seed(seed_of(request))
    return both(replace(TransformerConfig.base(), encoder_depth=2, decoder_depth=1))


def both(config: TransformerConfig) -> Models:
    """The reference and ours with the same weights, large enough for outputs to vary by input.

    What both would compute when they are made is random too: saved buffers are to be trusted.
    """
    reference, ours = on_meta(config)
    reference.to_empty(device="cpu")
    reference.share_modality_embeddings()
    for name, tensor in reference.state_dict().items():
        width = 12**0.5  # of a uniform distribution of unit variance
        if not name.endswith(("token_emb.weight", "mod_emb", "mask_token", "pos_emb")):
            width *= 0.2 if "norm" in name else tensor.shape[-1] ** -0.5
        middle = float("norm" in name and name.endswith("weight"))
        tensor.uniform_(middle - width / 2, middle + width / 2)
    ours.load_state_dict(reference.state_dict(), assign=True)
    ours.stream_of_position = ours.layout.stream_of_position()
    return reference, ours


def on_meta(config: TransformerConfig) -> Models:
    # the reference reads the values of its drop-path rates, which the meta device does not have
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
        reference = aion.AION(config=released_values(config))
        ours = Transformer(config)
    return reference.eval().requires_grad_(False), ours.eval().requires_grad_(False)


def random_codes(batch: int, keys: tuple[str, ...] = KEYS) -> Codes:
    return {key: torch.randint(STREAM[key].vocabulary, (batch, NUM_TOKENS[key])) for key in keys}


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest error of a token (last axis) relative to that token."""
    assert ours.shape == reference.shape
    difference = (ours - reference).norm(dim=-1) / reference.norm(dim=-1)
    assert difference.isfinite().all()
    return float(difference.max())


def centred(tokens: Tensor) -> Tensor:
    """Tokens of a batch (first axis) less the mean over the batch at their place."""
    return tokens - tokens.mean(dim=0, keepdim=True)


def assert_same(ours: Tensor, reference: Tensor, tolerance: float = TOLERANCE) -> None:
    assert relative_error(ours, reference) < tolerance


# --- names, shapes and sizes


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (TransformerConfig.base(), 314),
        (TransformerConfig.large(), 858),
        (TransformerConfig.xl(), 3130),
    ],
    ids=["base", "large", "xl"],
)
def test_names_shapes_and_sizes_are_the_released_ones(
    config: TransformerConfig, millions: int
) -> None:
    reference, ours = on_meta(config)

    def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    def count(model: torch.nn.Module) -> int:
        return sum(tensor.numel() for tensor in model.parameters())

    assert shapes(ours) == shapes(reference)
    assert count(ours) == count(reference)
    assert count(ours) / 1e6 == pytest.approx(millions, rel=0.003)


def test_computed_positions_are_the_released_ones() -> None:
    config = replace(TransformerConfig.base(), dim=64, num_heads=1, encoder_depth=1)
    reference = aion.AION(config=released_values(config)).state_dict()
    ours = Transformer(config).state_dict()

    names = [name for name in reference if name.endswith("pos_emb")]
    assert len(names) == 80
    for name in names:  # the reference rounds its angles to float32
        torch.testing.assert_close(ours[name], reference[name], rtol=0, atol=1e-4)


# --- encoder


def reference_outputs(
    reference: Any, codes: Codes, hidden: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder outputs, the context (what AION.encode returns), and which rows are padding."""
    total = sum(mine.shape[1] for mine in codes.values())
    if hidden is not None:
        total = longest(hidden)
    tokens, places, mask, _ = reference.embed_inputs(codes, mask=hidden, num_encoder_tokens=total)
    outputs = reference.forward_encoder(tokens + places, encoder_mask=mask)
    context = reference.encode(codes, input_mask=hidden, num_encoder_tokens=total)
    return outputs, context, mask[:, 0]


def longest(hidden: Mapping[str, Tensor]) -> int:
    """Tokens that are not hidden, of the object that has most of them."""
    return int((~torch.cat(list(hidden.values()), dim=1)).sum(dim=1).max())


def check_all_streams(models: Models) -> None:
    reference, ours = models
    codes = random_codes(2)
    # most long streams show a part, scalars are there or not
    shown = {key: torch.rand(2, n) < (0.1 if n > 1 else 0.7) for key, n in NUM_TOKENS.items()}
    hidden = {key: ~mine for key, mine in shown.items()}
    expected, context, padding = reference_outputs(reference, codes, hidden)

    encoded = encode_shown(ours, codes, shown)

    assert encoded.valid is not None
    for row in range(2):
        mine, seen = encoded.valid[row], ~padding[row]
        assert_same(encoded.outputs[row, mine], expected[row, seen])
        assert_same(ours.context(encoded)[row, mine], context[row, seen])


def check_images(models: Models, num: int, *, batch: int) -> None:
    reference, ours = models
    codes = varied_images(num)
    found, expected = [], []
    for start in range(0, num, batch):
        some = {"tok_image": codes[start : start + batch]}
        found.append(ours.encode(some).outputs)
        expected.append(reference_outputs(reference, some)[0])
    outputs, wanted = torch.cat(found), torch.cat(expected)

    assert_same(outputs, wanted)
    assert_same(centred(outputs), centred(wanted))
    assert_same(centred(outputs.mean(dim=1)), centred(wanted.mean(dim=1)))
    # what this test must be able to tell apart: another object's tokens, and one vector for all
    constant = wanted[:1].mean(dim=1, keepdim=True).expand_as(wanted)
    for wrong in (outputs.roll(1, dims=0), constant + 1e-3 * torch.randn(())):
        assert relative_error(centred(wrong), centred(wanted)) > 0.1


def varied_images(num: int) -> Tensor:
    """Tokens of pretended images: of each only some of the codes, and not all equally often."""
    rows = []
    for _ in range(num):
        palette = torch.randint(4375, (int(torch.randint(20, 500, ())),))
        rows.append(palette[(torch.rand(576) ** 2 * len(palette)).long()])
    return torch.stack(rows)


def test_base_encodes_all_streams_as_the_reference(base: Models) -> None:
    check_all_streams(base)


def test_base_encodes_images_as_the_reference(base: Models) -> None:
    check_images(base, 4, batch=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num"),
    [(TransformerConfig.base(), 256), (TransformerConfig.large(), 16)],
    ids=["base", "large"],
)
def test_full_depth_equals_the_reference(config: TransformerConfig, num: int) -> None:
    models = both(config)

    check_all_streams(models)
    check_training_mask(models)
    check_release_mask(models)
    check_images(models, num, batch=8)


def test_packed_objects_of_different_streams_encode_as_the_reference() -> None:
    reference, ours = both(small(released=True))
    keys = tuple(ours.config.domains_in)
    objects = []
    for number in range(7):
        chosen = [key for key in keys if torch.rand(()) < 0.5] or [keys[number % len(keys)]]
        codes = random_codes(1, tuple(chosen))
        if "catalog" in codes:
            codes["catalog"] = codes["catalog"][:, : 5 * int(torch.randint(1, 11, ()))]
        objects.append(codes)
    packed = ours.encode_packed([{key: c[0] for key, c in codes.items()} for codes in objects])
    assert packed.packing is not None

    parts = torch.split(packed.outputs, list(packed.packing.lengths))
    contexts = torch.split(ours.context(packed), list(packed.packing.lengths))
    pooled = ours.pool(packed)
    for number, codes in enumerate(objects):
        expected, context, _ = reference_outputs(reference, codes)
        assert_same(parts[number], expected[0])
        assert_same(contexts[number], context[0])
        assert_same(pooled[number], expected[0].mean(dim=0))


# --- decoder


def check_training_mask(models: Models) -> None:
    """Every stream shows some of its tokens and is asked for others, as in masked modelling."""
    reference, ours = models
    codes = random_codes(2, tuple(ours.config.domains_in))
    shown, asked = draw(codes)
    rows = {}
    for key, mine in asked.items():
        first = mine & (mine.cumsum(dim=1) == 1)
        count = torch.where(first, mine.sum(dim=1, keepdim=True), 0)
        rows[key] = {
            "tensor": codes[key], "input_mask": ~shown[key], "target_mask": ~mine,
            "decoder_attention_mask": mine.long() if is_sequence(key) else count,
        }  # fmt: skip

    expected = reference_training_logits(reference, rows)

    positions, valid, previous = queries(ours, codes, asked)
    states = ours.decode(encode_shown(ours, codes, shown), positions, valid, previous=previous)
    compare_logits(ours, states, positions, valid, expected)


def check_release_mask(models: Models) -> None:
    """As AION.forward asks: of all objects for the same tokens, without any code."""
    reference, ours = models
    codes = random_codes(2, tuple(ours.config.domains_in))
    shown, asked = draw(codes)
    asked = {key: mine[:1].expand(2, -1) for key, mine in asked.items()}
    nothing = {key: torch.zeros_like(mine) for key, mine in codes.items()}
    positions, valid, previous = queries(ours, nothing, asked)

    expected = reference._forward(
        codes,
        target_mask={key: ~mine for key, mine in asked.items()},
        input_mask={key: ~mine for key, mine in shown.items()},
        num_decoder_tokens=positions.shape[1],
        num_encoder_tokens=longest({key: ~mine for key, mine in shown.items()}),
    )

    encoded = encode_shown(ours, codes, shown)
    states = ours.decode(encoded, positions, valid, previous=previous, mask="release")
    compare_logits(ours, states, positions, valid, expected)


def draw(codes: Codes) -> tuple[Codes, Codes]:
    """Which tokens are shown and which are asked for; of a sequence its head and its tail."""
    shown, asked = {}, {}
    for key, mine in codes.items():
        lot = torch.rand(mine.shape)
        if is_sequence(key):
            lot = (torch.arange(mine.shape[1]) / mine.shape[1]).expand_as(mine)
        few = 0.1 if mine.shape[1] > 55 else 0.4
        shown[key], asked[key] = lot < few, lot > 1 - few
    return shown, asked


def queries(ours: Transformer, codes: Codes, asked: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, which are valid, and codes to feed; the last of a sequence asks for nothing."""
    positions, valid, previous = [], [], []
    for key, mine in asked.items():
        last = is_sequence(key)
        valid.append(mine[:, :-1] & mine[:, 1:] if last else mine)
        positions.append(places(ours, key, mine)[:, : valid[-1].shape[1]])
        previous.append(codes[key][:, : valid[-1].shape[1]])
    some = [torch.cat(parts, dim=1) for parts in (positions, valid, previous)]
    return to_the_front(some[1], some[0], some[1], some[2])


def places(ours: Transformer, key: str, mine: Tensor) -> Tensor:
    """Positions of the tokens of a stream; a sequence counts only those that are meant."""
    at = torch.arange(mine.shape[1]).expand_as(mine)
    if is_sequence(key):
        at = mine.cumsum(dim=1).sub(1).clamp_min(0)
    return ours.layout.start[key] + at


def to_the_front(valid: Tensor, *parts: Tensor) -> Any:
    """Columns of each row, the valid ones first, as few as hold all valid ones."""
    order = (~valid).int().argsort(dim=1, stable=True)[:, : int(valid.sum(dim=1).max())]
    return tuple(part.gather(1, order) for part in parts)


def reference_training_logits(reference: Any, rows: dict[str, dict[str, Tensor]]) -> Codes:
    """What FM.forward computes for its loss, logits of each stream's targets row by row."""
    num_shown = longest({key: row["input_mask"] for key, row in rows.items()})
    num_asked = longest({key: row["target_mask"] for key, row in rows.items()})
    shown = {key: reference.encoder_embeddings[key](dict(row)) for key, row in rows.items()}
    asked = {
        key: reference.decoder_embeddings[key].forward_embed(dict(row)) for key, row in rows.items()
    }
    tokens, places, mask, _ = reference.forward_mask_encoder(shown, num_shown)
    queries, query_places, _, _, seen, stream = reference.forward_mask_decoder(asked, num_asked)
    outputs = reference.forward_encoder(tokens + places, encoder_mask=mask)
    context = reference.decoder_proj_context(outputs) + places
    states = reference.forward_decoder(
        queries + query_places, context, encoder_mask=mask, decoder_attention_mask=seen
    )
    logits: Codes = reference.forward_logits(states, asked, stream)
    return logits


def encode_shown(ours: Transformer, codes: Codes, shown: Codes) -> Encoded:
    ids = torch.cat([mine + ours.layout.id_start[key] for key, mine in codes.items()], dim=1)
    where = torch.cat([places(ours, key, mine) for key, mine in shown.items()], dim=1)
    valid = torch.cat(list(shown.values()), dim=1)
    return ours.encode_selected(*to_the_front(valid, ids, where, valid))


def compare_logits(
    ours: Transformer, states: Tensor, positions: Tensor, valid: Tensor, expected: Codes
) -> None:
    num_compared = 0
    for number, key in enumerate(ours.layout.keys):
        mine = states[valid & (ours.stream_of_position[positions] == number)]
        logits = ours.logits(key, mine)
        assert logits.shape == expected[key].shape, key
        if len(logits):
            assert_same(logits, expected[key])
            num_compared += 1
    assert num_compared > len(ours.layout.keys) / 4


Check = Callable[[Models], None]


@pytest.mark.parametrize("check", [check_training_mask, check_release_mask])
def test_base_decodes_all_streams_as_the_reference(base: Models, check: Check) -> None:
    check(base)


def small(*, released: bool) -> TransformerConfig:
    """A small model of eight released streams, with the switches of AION-1 or all the others."""
    keys = (
        "catalog", "tok_image", "tok_segmap", "tok_spectrum_desi", "tok_xp_bp", "tok_z",
        "tok_flux_r", "tok_mag_g",
    )  # fmt: skip
    return TransformerConfig(
        domains_in={key: Domain.released(key) for key in keys}, released_layout=True,
        dim=64, num_heads=4, encoder_depth=3, decoder_depth=2, qk_norm=released,
        qkv_bias=not released, proj_bias=not released, mlp_bias=not released,
        norm_bias=not released,
    )  # fmt: skip


@pytest.mark.parametrize("check", [check_training_mask, check_release_mask])
@pytest.mark.parametrize("released", [True, False])
def test_every_switch_decodes_as_the_reference(check: Check, released: bool) -> None:
    check(both(small(released=released)))


def test_the_two_masks_differ() -> None:
    _, ours = both(small(released=True))
    encoded = ours.encode({"tok_z": torch.tensor([[7]])})
    image = ours.layout.slice("tok_image")
    queries = torch.arange(image.start, image.stop)[None]
    asked = torch.ones_like(queries, dtype=torch.bool)

    training = ours.decode(encoded, queries, asked)
    release = ours.decode(encoded, queries, asked, mask="release")
    one = queries[:, :1], asked[:, :1]

    assert relative_error(release, training) > 0.01
    assert_same(ours.decode(encoded, *one, mask="release"), ours.decode(encoded, *one))
