"""The frozen encoder: vectors of every view, whatever the company they were computed in."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small_encoder import DIM, observe, save_encoder
from training import artifact, encoder
from training.encoder import Embedded, Encoder, EncoderNotFound
from training.observations import Observation, Spectrum, merge
from training.precision import Precision, quick_precision

FLUXES = {"tok_flux_g": 3.0, "tok_flux_r": 5.0, "tok_shape_r": 1.5}
MIXED = [
    observe(
        number,
        image=number % 3 != 1,
        spectrum=number % 3 != 0,
        scalars=FLUXES if number % 2 else {},
    )
    for number in range(12)
]


def vector(embedded: Embedded, row: int, view: str) -> np.ndarray:
    matches = [
        n
        for n, pair in enumerate(zip(embedded.rows, embedded.views, strict=True))
        if pair == (row, view)
    ]
    assert len(matches) == 1
    return np.asarray(embedded.vectors[matches[0]])


@pytest.mark.parametrize(
    ("parts", "views"),
    [
        ({"image": True}, ("image",)),
        ({"image": False, "spectrum": True}, ("spectrum",)),
        ({"image": True, "spectrum": True}, ("image", "spectrum", "joint")),
        ({"image": True, "scalars": FLUXES}, ("image", "joint")),
        ({"image": False, "spectrum": True, "scalars": FLUXES}, ("spectrum", "joint")),
        ({"image": True, "scalars": {"tok_z": 0.3}}, ("image",)),
        ({"image": True, "scalars": {"tok_flux_w1": 2.0}}, ("image",)),
    ],
)
def test_views_follow_what_was_observed(
    small_encoder: Encoder, parts: dict[str, object], views: tuple[str, ...]
) -> None:
    observation = observe(1, **parts)  # type: ignore[arg-type]

    assert small_encoder.views(observation) == views
    assert small_encoder.embed([observation]).views == views


def test_a_path_is_never_taken_for_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder(tmp_path / "nano")
    monkeypatch.chdir(tmp_path)

    assert encoder.load(Path("nano")).hash == encoder.load(tmp_path / "nano").hash
    assert encoder.load("nano").hash == encoder.load(encoder.SHIPPED / "nano").hash
    assert encoder.load("nano").hash != encoder.load(Path("nano")).hash


def test_bands_that_the_encoder_never_saw_give_no_view(small_encoder: Encoder) -> None:
    seen = observe(1, spectrum=True, scalars=FLUXES)
    assert seen.image is not None
    deep = replace(seen, image=replace(seen.image, bands=("HSC-G", "HSC-R", "HSC-Z")))

    assert small_encoder.views(seen) == ("image", "spectrum", "joint")
    assert small_encoder.views(deep) == ("spectrum", "joint")
    without = small_encoder.embed([replace(deep, image=None)])
    np.testing.assert_array_equal(small_encoder.embed([deep]).vectors, without.vectors)


def test_a_spectrum_of_another_survey_is_read_by_the_stream_there_is(
    small_encoder: Encoder,
) -> None:
    seen = observe(1, image=False, spectrum=True)

    np.testing.assert_array_equal(
        small_encoder.embed([replace(seen, survey="desi")]).vectors,
        small_encoder.embed([replace(seen, survey="sdss")]).vectors,
    )


def test_a_vector_is_the_mean_of_the_encoder_tokens(small_encoder: Encoder) -> None:
    from training.tokens import tokenize

    tokens = tokenize([MIXED[0]], small_encoder.codecs, ("tok_image",))["tok_image"][0]
    encoded = small_encoder.transformer.encode({"tok_image": tokens[None]})

    np.testing.assert_allclose(
        small_encoder.embed([MIXED[0]]).vectors[0], encoded.outputs[0].mean(dim=0), atol=1e-5
    )


@settings(deadline=None, max_examples=3)
@given(order=st.permutations(range(len(MIXED))), cut=st.integers(1, len(MIXED) - 1))
def test_order_and_company_change_nothing(
    small_encoder: Encoder, order: list[int], cut: int
) -> None:
    whole = small_encoder.embed(MIXED)
    shuffled = [MIXED[row] for row in order]
    parts = [small_encoder.embed(shuffled[:cut]), small_encoder.embed(shuffled[cut:])]

    assert whole.vectors.dtype == np.float32
    assert whole.vectors.shape == (len(whole.rows), DIM)
    for row, view in zip(whole.rows.tolist(), whole.views, strict=True):
        place = order.index(row)
        part, place = (parts[0], place) if place < cut else (parts[1], place - cut)
        np.testing.assert_allclose(vector(part, place, view), vector(whole, row, view), atol=1e-5)


def test_bfloat16_vectors_point_the_same_way(encoder_folder: Path) -> None:
    exact = encoder.load(encoder_folder).embed(MIXED)
    rough = encoder.load(encoder_folder, precision="bfloat16")

    found = rough.embed(MIXED)
    norms = np.linalg.norm(exact.vectors, axis=1) * np.linalg.norm(found.vectors, axis=1)
    cosine = (exact.vectors * found.vectors).sum(axis=1) / norms

    assert rough.precision == "bfloat16"
    assert cosine.min() > 1 - 1e-3


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16-all"])
def test_the_parts_of_an_encoder_serve_another_one_in_another_precision(
    encoder_folder: Path, precision: Precision
) -> None:
    parts = artifact.load(encoder_folder)
    exact = Encoder(parts)
    before = exact.embed(MIXED[:3]).vectors

    first = Encoder(parts, precision=precision).embed(MIXED[:3]).vectors
    second = Encoder(parts, precision=precision).embed(MIXED[:3]).vectors

    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(exact.embed(MIXED[:3]).vectors, before)
    assert not any(
        weight.dtype == torch.bfloat16 for weight in parts.transformer.state_dict().values()
    )


@pytest.mark.parametrize("device", ["gpu", "meta", ""])
def test_an_unknown_device_is_refused_before_anything_is_read(
    encoder_folder: Path, device: str
) -> None:
    with pytest.raises(ValueError, match=f"a device such as cpu, .*got '{device}'"):
        encoder.load("there/is/none", device=device)
    with pytest.raises(ValueError, match=f"a device such as cpu, .*got '{device}'"):
        Encoder(artifact.load(encoder_folder), device=device)


def test_an_unknown_precision_is_refused(encoder_folder: Path) -> None:
    # without the run-time checks of the suite, which refuse it before
    for make in (encoder.load, Encoder.__init__):
        unchecked = inspect.unwrap(make)
        given = (encoder_folder,) if make is encoder.load else (None, artifact.load(encoder_folder))
        with pytest.raises(ValueError, match=r"a precision of float32 or bfloat16 .*got 'float16'"):
            unchecked(*given, precision="float16")


@pytest.mark.parametrize(
    ("wavelength", "message"),
    [
        (np.array([5000.0]), "1 pixels from 5000.0 to 5000.0 Angstrom covers no stretch"),
        (np.linspace(11000, 20000, 50), "from 11000.0 to 20000.0 Angstrom .*3500.0 to 10462.4"),
    ],
)
def test_a_spectrum_that_the_encoder_cannot_see_is_refused(
    small_encoder: Encoder, wavelength: np.ndarray, message: str
) -> None:
    one = np.ones(len(wavelength), np.float32)
    seen = replace(observe(4, spectrum=True), spectrum=Spectrum(one, one, one == 0, wavelength))
    for views in (encoder.VIEWS, ("joint",)):
        with pytest.raises(ValueError, match=f"simulated 4: its spectrum of .*{message}"):
            small_encoder.embed([observe(3), seen], views)


def test_a_value_that_is_not_a_number_is_named(small_encoder: Encoder) -> None:
    seen = observe(5, scalars={"tok_flux_r": float("nan")})
    with pytest.raises(ValueError, match="tok_flux_r of simulated 5: expected numbers, got NaN"):
        small_encoder.embed([seen])


def test_redshift_is_never_read(small_encoder: Encoder) -> None:
    near = observe(2, spectrum=True, scalars=FLUXES | {"tok_z": 0.01})
    far = replace(near, scalars=FLUXES | {"tok_z": 1.4})

    np.testing.assert_array_equal(
        small_encoder.embed([near]).vectors, small_encoder.embed([far]).vectors
    )


def test_photometry_moves_the_joint_view_only(small_encoder: Encoder) -> None:
    faint = observe(2, scalars=FLUXES)
    bright = replace(faint, scalars=FLUXES | {"tok_flux_r": 500.0})
    a, b = small_encoder.embed([faint]), small_encoder.embed([bright])

    np.testing.assert_array_equal(vector(a, 0, "image"), vector(b, 0, "image"))
    assert not np.allclose(vector(a, 0, "joint"), vector(b, 0, "joint"), atol=1e-6)


def test_only_the_asked_views_are_made(small_encoder: Encoder) -> None:
    embedded = small_encoder.embed(MIXED, views=("joint",))

    assert set(embedded.views) == {"joint"}
    assert embedded.rows.tolist() == [
        row for row, seen in enumerate(MIXED) if "joint" in small_encoder.views(seen)
    ]
    with pytest.raises(ValueError, match="unknown view 'radio'"):
        small_encoder.embed(MIXED, views=("radio",))


def test_no_observations_give_no_vectors(small_encoder: Encoder) -> None:
    embedded = small_encoder.embed([])

    assert embedded.vectors.shape == (0, DIM)
    assert embedded.views == ()


def test_two_surveys_of_one_object_merge(small_encoder: Encoder) -> None:
    image = observe(4, scalars={"tok_flux_r": 5.0})
    spectrum = observe(4, image=False, spectrum=True, scalars={"tok_flux_r": 9.0, "tok_z": 0.2})
    both: Observation = merge([image, spectrum])

    assert both.image is image.image
    assert both.spectrum is spectrum.spectrum
    assert both.scalars == {"tok_flux_r": 5.0, "tok_z": 0.2}
    assert small_encoder.views(both) == ("image", "spectrum", "joint")
    with pytest.raises(ValueError, match=r"of one object, got \['1', '4'\]"):
        merge([image, observe(1)])


def test_search_vectors_are_unit_and_row_by_row(small_encoder: Encoder) -> None:
    vectors = small_encoder.embed(MIXED, views=("image",)).vectors
    found = small_encoder.search_vectors(vectors, "image")

    assert found.shape == (len(vectors), small_encoder.search_dim)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        small_encoder.search_vectors(vectors[3:4], "image"), found[3:4], atol=1e-5
    )
    with pytest.raises(ValueError, match="no view 'xp', it has image, spectrum, joint"):
        small_encoder.search_vectors(vectors, "xp")


def test_encoder_without_a_head_says_so(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    parts = artifact.load(tmp_path)
    headless = Encoder(replace(parts, head=None, head_hash=""))

    assert headless.head_hash == ""
    with pytest.raises(ValueError, match="no search head: its folder lacks head/"):
        headless.search_vectors(np.zeros((1, DIM), np.float32), "image")


def test_unknown_encoder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(EncoderNotFound, match="no encoder 'micro': expected a folder with config"):
        encoder.load("micro")
    with pytest.raises(EncoderNotFound):
        encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"avx2": True, "avx512_bf16": False}, "float32"), ({"amx_bf16": True}, "bfloat16")],
)
def test_what_is_quick_depends_on_the_products_of_a_processor(
    found: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)

    assert quick_precision() == expected
