"""Drawing missing streams, by models that have learnt tokens of a known joint distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Int64
from scipy.stats import chisquare
from torch import Tensor

from tests.training import known_joint
from tests.training.known_joint import A_GIVEN_B, C_GIVEN_B, M_GIVEN_B, NUM, b_given, draw_joint
from training import generation, token_values
from training.densities import flatness
from training.encoder import Encoder
from training.generation import code_scores, generate, observed, posterior
from training.sampling import SamplingConfig
from training.tokenizers.scalar import GridTokenizer, GridTokenizerConfig
from training.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerConfig
from training.tokenizers.xp import MultiScalarTokenizer, MultiScalarTokenizerConfig
from training.transformer import Transformer
from training.transformer_config import Domain

Objects = list[dict[str, Int64[Tensor, " _"]]]
GRID = GridTokenizer(GridTokenizerConfig(num_bins=NUM, lowest=0.0, highest=float(NUM - 1)))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return known_joint.learnt()


def objects_of(codes: dict[str, Tensor], keys: Sequence[str]) -> Objects:
    num = len(codes["tok_z"])
    return [{key: codes[key][row] for key in keys} for row in range(num)]


def code(value: int, num: int = 1) -> Tensor:
    return torch.full((num,), value)


# --- what is drawn


def test_samples_follow_the_model_and_the_model_the_truth(model: Transformer) -> None:
    given: Objects = [{"tok_flux_r": code(a)} for a in range(NUM)]
    config = SamplingConfig(num_samples=1500, seed=4)

    drawn = generate(model, given, ["tok_z"], config, batch_size=1000)["tok_z"]

    chances = code_scores(model, given, "tok_z").double().softmax(dim=1).numpy()
    for a in range(NUM):
        counts = np.bincount(drawn[a, :, 0], minlength=NUM)
        assert chisquare(counts, 1500 * chances[a]).pvalue > 1e-3
        truth = b_given((A_GIVEN_B, a))
        assert np.abs(counts / 1500 - truth).sum() / 2 < 0.1
        other = b_given((A_GIVEN_B, (a + 2) % NUM))
        assert np.abs(counts / 1500 - other).sum() / 2 > 0.3


def test_tokens_of_later_steps_know_those_of_earlier_ones(model: Transformer) -> None:
    given: Objects = [{"tok_z": code(2)}]

    def drawn(config: SamplingConfig) -> Tensor:
        return generate(model, given, ["tok_image"], config, batch_size=500)["tok_image"][0]

    def share_equal(codes: Tensor) -> float:
        return float((codes == codes[:, :1]).all(dim=1).float().mean())

    some = SamplingConfig(num_samples=1000, schedule="linear", num_steps=4)
    one_by_one = drawn(some)
    at_once = drawn(replace(some, schedule="at-once", num_steps=None))

    # all four are one code: drawn together, each by itself, they agree by chance alone
    assert share_equal(one_by_one) > 0.97
    assert share_equal(at_once) == pytest.approx(0.85**4 + 0.15**4, abs=0.1)
    for codes in (one_by_one, at_once):
        assert float((codes == 1).float().mean()) == pytest.approx(M_GIVEN_B[2, 1], abs=0.06)


def test_streams_of_several_kinds_are_drawn_jointly(model: Transformer) -> None:
    config = SamplingConfig(num_samples=2000, num_steps=6, schedule="linear", seed=1)

    drawn = generate(
        model, [{"tok_flux_r": code(1)}], ["tok_image", "tok_z"], config, batch_size=1000
    )

    assert {key: tuple(codes.shape) for key, codes in drawn.items()} == {
        "tok_image": (1, 2000, 4),
        "tok_z": (1, 2000, 1),
    }
    pairs = np.zeros((NUM, 2))
    np.add.at(pairs, (drawn["tok_z"][0, :, 0], drawn["tok_image"][0, :, 0]), 1 / 2000)
    truth = b_given((A_GIVEN_B, 1))[:, None] * M_GIVEN_B
    independent = truth.sum(axis=1, keepdims=True) * truth.sum(axis=0, keepdims=True)
    assert np.abs(pairs - truth).sum() / 2 < 0.1
    assert np.abs(pairs - truth).sum() < np.abs(pairs - independent).sum() / 2


def test_low_temperature_and_a_small_nucleus_give_the_likeliest_code(model: Transformer) -> None:
    given: Objects = [{"tok_flux_r": code(a)} for a in range(NUM)]
    likeliest = code_scores(model, given, "tok_z").argmax(dim=1)
    for config in (
        SamplingConfig(temperature=1e-3, num_samples=20),
        SamplingConfig(top_p=1e-3, num_samples=20),
    ):
        drawn = generate(model, given, ["tok_z"], config)["tok_z"][..., 0]
        assert (drawn == likeliest[:, None]).all()


# --- the same sample wherever it is drawn


def test_neither_batch_nor_order_nor_company_changes_a_sample(model: Transformer) -> None:
    codes = draw_joint(12, np.random.default_rng(8))
    objects = objects_of(codes, ["tok_flux_r"])
    objects[3:8] = objects_of(codes, ["tok_flux_r", "tok_flux_g"])[3:8]
    names = [f"object {number}" for number in range(12)]
    asked = ["tok_image", "tok_z"]

    def drawn(rows: Sequence[int], num: int, batch_size: int, asked: list[str]) -> Tensor:
        made = generate(
            model, [objects[row] for row in rows], asked,
            SamplingConfig(num_samples=num, num_steps=3, seed=2),
            names=[names[row] for row in rows], batch_size=batch_size,
        )  # fmt: skip
        return torch.cat([made["tok_image"], made["tok_z"]], dim=2)

    whole = drawn(range(12), 6, 32, asked)
    assert (drawn(range(12), 6, 5, asked) == whole).all()
    assert (drawn(range(11, -1, -1), 6, 7, asked) == whole.flip(0)).all()
    assert (drawn([4], 2, 1, asked[::-1]) == whole[4:5, :2]).all()
    assert len(torch.unique(whole.flatten(0, 1), dim=0)) > 6  # they do differ from each other


def test_samples_differ_by_seed_and_name_and_else_by_tokens(model: Transformer) -> None:
    same: Objects = [{"tok_flux_r": code(1)}, {"tok_flux_r": code(1)}]

    def drawn(seed: int, names: list[str] | None) -> Tensor:
        config = SamplingConfig(num_samples=40, seed=seed)
        return generate(model, same, ["tok_z"], config, names=names)["tok_z"]

    unnamed = drawn(0, None)
    assert (unnamed[0] == unnamed[1]).all()
    assert (unnamed == drawn(0, None)).all()
    assert (unnamed != drawn(1, None)).any()
    named = drawn(0, ["one", "two"])
    assert (named[0] != named[1]).any()


# --- posteriors


@pytest.fixture(scope="module")
def sky() -> dict[str, Tensor]:
    return draw_joint(1000, np.random.default_rng(77))


def test_a_posterior_is_that_of_bayes(model: Transformer) -> None:
    given: Objects = []
    truth = []
    for a in range(NUM):
        for c in range(NUM):
            given.append({"tok_flux_r": code(a), "tok_flux_g": code(c)})
            truth.append(b_given((A_GIVEN_B, a), (C_GIVEN_B, c)))
    densities = posterior(model, given, "tok_z", GRID)
    weight = np.array(
        [(A_GIVEN_B[:, a] * C_GIVEN_B[:, c]).sum() for a in range(4) for c in range(4)]
    )
    distance = np.abs(densities.mass - np.array(truth)).sum(axis=1) / 2
    assert float(distance @ weight / weight.sum()) < 0.1
    assert float(np.abs(densities.mass.mean(axis=0) - np.array(truth)).sum(axis=1).mean()) > 0.4


def test_posteriors_are_calibrated_and_tighten(model: Transformer, sky: dict[str, Tensor]) -> None:
    codes = sky["tok_z"][:, 0].numpy()
    truth = np.where(codes > 0, codes - np.random.default_rng(0).random(len(codes)), 0.0)
    spread, gain = [], []
    for keys in (
        ["tok_flux_r"],
        ["tok_flux_r", "tok_flux_g"],
        ["tok_flux_r", "tok_flux_g", "tok_image"],
    ):
        densities = posterior(model, objects_of(sky, keys), "tok_z", GRID, batch_size=500)
        # a model trained for seconds is off by some per cent: few bins, and not the strictest p
        assert flatness(densities.pit(truth), num_bins=5).p_value > 1e-3
        assert flatness(densities.pit(truth[::-1].copy()), num_bins=5).p_value < 1e-6
        spread.append(densities.deviation().mean())
        gain.append(1 - np.var(truth - densities.mean()) / np.var(truth))
    assert spread[0] > 1.04 * spread[1] > 1.04 * 1.02 * spread[2]
    assert gain[0] + 0.02 < gain[1] < gain[2] - 0.02


def test_scores_are_those_of_the_decoder_called_by_hand(model: Transformer) -> None:
    codes = draw_joint(6, np.random.default_rng(9))
    keys = ["tok_flux_g", "tok_image"]
    where = torch.full((6, 1), model.layout.start["tok_z"])
    encoded = model.encode({key: codes[key] for key in keys})
    for mask in ("training", "release"):
        states = model.decode(encoded, where, torch.ones_like(where, dtype=torch.bool), mask=mask)
        by_hand = model.logits("tok_z", states)[:, 0]
        found = code_scores(model, objects_of(codes, keys), "tok_z", mask=mask, batch_size=4)
        torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)
    assert float((by_hand - by_hand.mean(dim=0)).abs().max()) > 0.5  # by object they differ


def test_objects_of_different_streams_do_not_disturb_each_other(model: Transformer) -> None:
    codes = draw_joint(3, np.random.default_rng(10))
    mixed = [
        objects_of(codes, ["tok_flux_g", "tok_flux_r", "tok_image"])[0],
        objects_of(codes, ["tok_flux_r"])[1],
        objects_of(codes, ["tok_image"])[2],
    ]
    together = code_scores(model, mixed, "tok_z")
    for row, alone in enumerate(mixed):
        torch.testing.assert_close(
            together[row : row + 1], code_scores(model, [alone], "tok_z"), rtol=1e-3, atol=1e-3
        )


def test_a_spare_code_of_the_model_is_never_drawn_nor_counted() -> None:
    # released transformers have one redshift code more than the grid has steps
    model = known_joint.tiny(
        {
            "tok_flux_r": Domain(vocabulary=4, grid=(1, 1)),
            "tok_z": Domain(vocabulary=3, grid=(1, 1)),
        }
    )
    with torch.no_grad():  # the spare code is by far the likeliest
        head = model.decoder_embeddings["tok_z"].to_logits.weight  # type: ignore[union-attr]
        head.copy_(torch.tensor([[0.0], [0.0], [1.0]]) * torch.ones(32))  # type: ignore[operator]
    codec = GridTokenizer(GridTokenizerConfig(num_bins=2, highest=1.0))
    given: Objects = [{"tok_flux_r": code(number)} for number in range(4)]
    config = SamplingConfig(num_samples=50)
    drawn = generate(model, given, ["tok_z"], config, codecs={"Z": codec})["tok_z"]
    assert int(drawn.max()) == 1
    assert posterior(model, given, "tok_z", codec).mass.shape == (4, 2)


# --- Gaia XP to a DESI spectrum


NUM_KINDS = 4


def test_a_spectrum_from_xp_coefficients_decodes_to_that_of_its_kind() -> None:
    torch.manual_seed(0)
    spectrum = SpectrumTokenizer(
        SpectrumTokenizerConfig(
            encoder_depths=(1, 1, 1, 1), encoder_dims=(4, 4, 8, 8), decoder_depths=(1, 1, 1, 1),
            decoder_dims=(8, 4, 4, 2), num_wavelengths=128, normalisation_bins=16, embedding=4,
        )
    ).eval()  # fmt: skip
    xp = MultiScalarTokenizer(MultiScalarTokenizerConfig(num_scalars=3, num_bins=8))
    model = known_joint.tiny(
        {
            "tok_xp_bp": Domain(vocabulary=8, grid=(3, 1)),
            "tok_spectrum_desi": Domain(vocabulary=16, grid=(5, 1)),
        }
    )
    kinds = torch.arange(2000) % NUM_KINDS
    coefficients, codes = torch.randint(8, (NUM_KINDS, 3)), torch.randint(16, (NUM_KINDS, 5))
    tokens = {"tok_xp_bp": coefficients[kinds], "tok_spectrum_desi": codes[kinds]}
    known_joint.train(model, tokens, steps=120, batch=64)

    drawn = generate(
        model, [{"tok_xp_bp": mine} for mine in coefficients], ["tok_spectrum_desi"],
        SamplingConfig(num_samples=5, num_steps=3),
        codecs={"spectrum": spectrum, "bp_coefficients": xp},
    )["tok_spectrum_desi"]  # fmt: skip
    wavelength = np.linspace(3480.0, 3600.0, 50)  # begins before the tokenizer's grid
    flux = token_values.spectra(drawn, spectrum, wavelength)

    at = torch.from_numpy(wavelength).expand(NUM_KINDS, -1)
    expected = spectrum.decode(codes, at).flux.detach().numpy()
    inside = wavelength >= 3500
    assert flux.shape == (NUM_KINDS, 5, 50)
    assert np.isnan(flux[..., ~inside]).all()
    close = np.abs(flux - expected[:, None])[..., inside].max(axis=-1) < 1e-4
    assert close.mean() > 0.8
    assert np.abs(expected[0] - expected[1])[inside].max() > 1e-2


def test_the_way_from_observations_to_values(small_encoder: Encoder) -> None:
    from tests.training.small_encoder import observe

    seen = [observe(1, scalars={"tok_flux_r": 3.0}), observe(2, scalars={"tok_flux_g": 9.0})]
    keys = ("tok_image", "tok_flux_g", "tok_flux_r")
    given = observed(seen, small_encoder.codecs, keys)
    assert [tuple(each) for each in given] == [
        ("tok_image", "tok_flux_r"),
        ("tok_image", "tok_flux_g"),
    ]
    scalars_only = [{key: mine[key] for key in mine if key != "tok_image"} for mine in given]
    drawn = generate(
        small_encoder.transformer, scalars_only, ["tok_image", "tok_z", "tok_shape_r"],
        SamplingConfig(num_steps=2, num_samples=2), codecs=small_encoder.codecs,
    )  # fmt: skip
    codecs: Any = small_encoder.codecs

    images = token_values.images(drawn["tok_image"], codecs["image"], ["DES-R", "DES-G"])
    channels = torch.zeros(4, 9, dtype=torch.bool)
    channels[:, 5:7] = True
    with torch.no_grad():
        whole = codecs["image"].decode(drawn["tok_image"].flatten(0, 1), channels)
    assert images.shape == (2, 2, 2, 96, 96)
    np.testing.assert_allclose(images[1, 0, 0], whole[2, 6], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(images[1, 0, 1], whole[2, 5], rtol=1e-4, atol=1e-6)

    redshift = token_values.numbers(drawn["tok_z"], codecs["Z"])
    np.testing.assert_allclose(redshift, drawn["tok_z"][..., 0] * 1.5 / 63, rtol=1e-5)
    assert token_values.numbers(drawn["tok_shape_r"], codecs["SHAPE_R"]).shape == (2, 2)
    with pytest.raises(ValueError, match="got DES-U"):
        token_values.images(drawn["tok_image"], codecs["image"], ["DES-U"])


# --- what cannot be done


@pytest.mark.parametrize(
    ("objects", "asked", "message"),
    [
        ([{"tok_z": [1]}], ["tok_spectrum_sdss"], "cannot be asked for 'tok_spectrum_sdss', only"),
        ([{"tok_z": [1]}], ["tok_nonsense"], "cannot be asked for 'tok_nonsense'"),
        ([{"tok_z": [1]}], [], "expected streams to draw, got none"),
        ([{"tok_z": [1]}], ["tok_image", "tok_image"], "asked for twice"),
        ([], ["tok_z"], "expected objects, got none"),
        ([{"tok_flux_r": [1]}, {}], ["tok_z"], "object 1 has no stream to start from"),
        ([{"tok_z": [1]}], ["tok_z"], "tok_z is asked for, but object 0 has it already"),
        ([{"tok_spectrum_sdss": [1]}], ["tok_z"], "no stream 'tok_spectrum_sdss'"),
        ([{"tok_image": [1]}], ["tok_z"], "tok_image has 4 tokens, got 1"),
        ([{"tok_flux_r": [7]}], ["tok_z"], "codes 7 to 7 of tok_flux_r, the model 4"),
        ([{"tok_flux_r": [-1]}], ["tok_z"], "codes -1 to -1 of tok_flux_r"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    model: Transformer, objects: list[dict[str, list[int]]], asked: list[str], message: str
) -> None:
    given = [{key: torch.tensor(codes) for key, codes in each.items()} for each in objects]
    with pytest.raises(ValueError, match=message):
        generate(model, given, asked)


def test_another_tokenizer_than_the_models_is_refused(model: Transformer) -> None:
    given: Objects = [{"tok_flux_r": code(1)}]
    foreign = GridTokenizer(GridTokenizerConfig(num_bins=16))
    with pytest.raises(ValueError, match="of tok_z has 16 codes and 1 tokens, the model 4 and 1"):
        posterior(model, given, "tok_z", foreign)
    with pytest.raises(ValueError, match="of tok_z has 16 codes"):
        generate(model, given, ["tok_z"], codecs={"Z": foreign})
    with pytest.raises(ValueError, match="no tokenizer 'image' for tok_image, there are Z"):
        generate(model, given, ["tok_image"], codecs={"Z": GRID})


def test_a_posterior_is_of_one_number_alone(model: Transformer) -> None:
    with pytest.raises(ValueError, match="tok_image has 4 tokens"):
        code_scores(model, [{"tok_z": code(1)}], "tok_image")
    xp = MultiScalarTokenizer(MultiScalarTokenizerConfig(num_scalars=1, num_bins=4))
    with pytest.raises(ValueError, match="tok_flux_r is not one number"):
        posterior(model, [{"tok_z": code(1)}], "tok_flux_r", xp)


def test_other_refusals(model: Transformer) -> None:
    given: Objects = [{"tok_flux_r": code(1)}]
    with pytest.raises(ValueError, match="expected 1 names, one an object, got 2"):
        generate(model, given, ["tok_z"], names=["a", "b"])
    sequence = known_joint.tiny(
        {
            "catalog": Domain(vocabulary=3468, grid=(50, 1)),
            "tok_z": Domain(vocabulary=4, grid=(1, 1)),
        }
    )
    with pytest.raises(ValueError, match="catalog cannot be drawn"):
        generate(sequence, [{"tok_z": code(1)}], ["catalog"])
    broken = known_joint.tiny(
        {key: Domain(vocabulary=4, grid=(1, 1)) for key in ("tok_z", "tok_flux_r")}
    )
    with torch.no_grad():
        broken.mask_token.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        generate(broken, given, ["tok_z"])
    with pytest.raises(ValueError, match="NaN or infinite scores of tok_z"):
        generation.posterior(broken, given, "tok_z", GRID)
