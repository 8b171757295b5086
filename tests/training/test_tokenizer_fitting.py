"""Fitting the tokenizers: the loss falls, a seed repeats it, what is saved is what was made."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.artifact import load_codec
from training.compact_images import CompactImage, augment, compact, image_batch
from training.field_fitting import fit_field_tokenizer
from training.image_fitting import _chances, fit_image_tokenizer, image_loss, label_loss
from training.observations import Ellipses, Field, Image, Observation, ObservationBatch, Spectrum
from training.reconstruction import code_use
from training.scalar_fitting import fit_ellipses, fit_scalars
from training.spectrum_fitting import fit_spectrum_tokenizer
from training.tokenizer_fitting import FitConfig
from training.tokenizers import ellipses as ellipses_tokenizer
from training.tokenizers import image as image_tokenizer
from training.tokenizers import spectrum as spectrum_tokenizer
from training.tokenizers.ellipses import EllipsesTokenizer, EllipsesTokenizerConfig
from training.tokenizers.field import FieldTokenizer, FieldTokenizerConfig
from training.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.scalar import GridTokenizerConfig, ScalarTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerConfig
from training.tokenizers.xp import MultiScalarTokenizer
from training.training_data import Reservoir, collect

IMAGE = ImageTokenizerConfig(
    hidden=16,
    embedding=3,
    multisurvey=4,
    num_compressions=3,
    num_consecutive=1,
    levels=(8, 5, 5),
    gate_bias=0.0,
    compression_multiplier=100.0,
)
SPECTRUM = SpectrumTokenizerConfig(
    encoder_depths=(1, 1, 1, 1),
    encoder_dims=(4, 6, 8, 12),
    decoder_depths=(1, 1, 1, 0),
    decoder_dims=(8, 6, 4, 2),
    num_wavelengths=1024,
    wavelength_step_angstrom=6.0,
)
FIT = FitConfig(num_steps=40, batch_size=4, learning_rate=5e-3, warmup_steps=5)
GRID = GridTokenizerConfig(num_bins=16)
DES = ("DES-G", "DES-R", "DES-I", "DES-Z")


def galaxies(count: int, seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-48:48, -48:48]
    made = []
    for _ in range(count):
        light = np.exp(-np.hypot(x, y * rng.uniform(1, 3)) / rng.uniform(3, 12))
        flux = light * rng.uniform(0.1, 2) * np.array([0.5, 1, 1.4, 1.7])[:, None, None]
        flux = (flux + rng.normal(0, 0.01, flux.shape)).astype(np.float32)
        mask = rng.random(flux.shape) < 0.001
        ivar = np.where(mask, 0, 1e4).astype(np.float32)
        made.append(Image(np.where(mask, 0, flux).astype(np.float32), ivar, mask, DES))
    return made


def spectra(count: int, seed: int = 0) -> list[Spectrum]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        wavelength = 3800 + 5.0 * np.arange(1000)
        flux = rng.uniform(1, 20) * (wavelength / 6000) ** rng.uniform(-2, 2)
        sigma = 0.05 * flux
        mask = np.abs(wavelength - 5577) < 20
        return_flux = (flux + rng.normal(0, sigma)).astype(np.float32)
        ivar = np.where(mask, 0, sigma**-2).astype(np.float32)
        made.append(Spectrum(return_flux, ivar, mask, wavelength))
    return made


def observed(image: Image | None, spectrum: Spectrum | None, name: str) -> Observation:
    return Observation(
        survey="simulated",
        release="",
        source_id=name,
        object_id=name,
        fingerprint=name,
        source="/sky",
        image=image,
        spectrum=spectrum,
        scalars={"tok_flux_r": float(len(name))},
    )


def test_fitting_images_lowers_the_loss_and_is_repeatable() -> None:
    data = [compact(image) for image in galaxies(24)]

    fit = replace(FIT, crop_pixels=32, crop_until=0.9)
    first = fit_image_tokenizer(data, IMAGE, fit)
    again = fit_image_tokenizer(data, IMAGE, fit)
    other = fit_image_tokenizer(data, IMAGE, replace(fit, seed=1, num_steps=2))

    assert np.mean(first.losses[-5:]) < 0.6 * np.mean(first.losses[:5])
    assert first.losses == again.losses
    assert first.figures == again.figures
    assert first.losses[0] != other.losses[0]
    assert 0 < first.figures["codes_used"] <= 1
    assert first.figures["r2"] < 1
    assert not first.tokenizer.training


def test_codes_can_be_made_to_tell_labels() -> None:
    """Labels say which way a galaxy is drawn out; nobody knows every tenth."""
    rng = np.random.default_rng(0)
    upright = rng.random(80) < 0.5
    images = [
        turned_upright(image) if upright[row] else image for row, image in enumerate(galaxies(80))
    ]
    labels = np.stack([upright, ~upright], axis=1)
    labels[::10] = False
    data = [compact(image) for image in images]
    fit = replace(
        FIT, num_steps=60, batch_size=8, label_weight=2.0, decode_from=0.5, average=0.5,
        drop_band=0.0, as_hsc=0.0,
    )  # fmt: skip

    told = fit_image_tokenizer(data, IMAGE, fit, labels=labels)
    with pytest.raises(ValueError, match="label_weight is 2, and no image has a label"):
        fit_image_tokenizer(data, IMAGE, fit, labels=np.zeros_like(labels))

    assert np.mean(told.losses[22:30]) < 0.8 * np.mean(told.losses[:8])  # of the labels alone
    assert np.mean(told.losses[30:35]) > np.mean(told.losses[25:30])  # now with chi-square
    assert told.figures["label_accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)  # of four held out


def test_a_fit_to_labels_is_repeatable_and_not_taken_up_by_others(tmp_path: Path) -> None:
    data = [compact(image) for image in galaxies(8)]
    labels = np.eye(8, 2, dtype=bool)
    fit = replace(FIT, num_steps=4, label_weight=1.0, decode_from=0.5)
    told = fit_image_tokenizer(data, IMAGE, fit, labels=labels, folder=tmp_path)
    same = fit_image_tokenizer(data, IMAGE, fit, labels=labels)
    again = fit_image_tokenizer(data, IMAGE, fit, labels=labels, folder=tmp_path)
    with pytest.raises(ValueError, match="settings: labels was"):
        fit_image_tokenizer(data, IMAGE, fit, labels=~labels, folder=tmp_path)

    assert len(told.losses) == 4
    assert told.losses == same.losses
    assert again.losses == []  # it is complete


def test_label_loss_is_the_cross_entropy_of_those_that_are_known() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0], [9.0, 9.0, -9.0]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    log_shares = logits.double().log_softmax(dim=1)
    smooth = 0.02 / 3
    wanted = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]).double() * 0.98 + smooth
    expected = -(wanted * log_shares[:2]).sum(dim=1).mean()

    assert float(label_loss(logits, labels)) == pytest.approx(float(expected), rel=1e-5)
    assert label_loss(logits, torch.zeros_like(labels)) == 0


def turned_upright(image: Image) -> Image:
    """The image on its side."""
    return replace(image, flux=np.ascontiguousarray(image.flux.swapaxes(1, 2)))


def test_fitting_spectra_lowers_the_loss_and_is_repeatable() -> None:
    data = spectra(24)

    first = fit_spectrum_tokenizer(data, SPECTRUM, FIT)
    again = fit_spectrum_tokenizer(data, SPECTRUM, FIT)

    assert np.mean(first.losses[-5:]) < np.mean(first.losses[:5])
    assert first.losses == again.losses
    assert 0 <= first.figures["mask_auc"] <= 1


def test_what_is_saved_encodes_like_what_was_fitted(tmp_path: Path) -> None:
    images = galaxies(6)
    some = spectra(6)
    fit = replace(FIT, num_steps=3)
    steps: list[int] = []

    image = fit_image_tokenizer(
        [compact(one) for one in images], IMAGE, fit, folder=tmp_path,
        progress=lambda step, total, loss: steps.append(step),
    ).tokenizer  # fmt: skip
    spectrum = fit_spectrum_tokenizer(some, SPECTRUM, fit, folder=tmp_path).tokenizer
    loaded = load_codec(tmp_path, "image", key="tok_image")
    loaded_spectrum = load_codec(tmp_path, "spectrum", key="tok_spectrum_sdss")

    assert isinstance(loaded, ImageTokenizer)
    assert isinstance(loaded_spectrum, SpectrumTokenizer)
    batch = image_tokenizer.stack(images)
    assert torch.equal(
        loaded.encode(batch.flux_nmgy, batch.channels),
        image.encode(batch.flux_nmgy, batch.channels),
    )
    seen = spectrum_tokenizer.stack(some)
    arguments = (seen.flux, seen.ivar, seen.mask, seen.wavelength_angstrom)
    assert torch.equal(loaded_spectrum.encode(*arguments), spectrum.encode(*arguments))
    for parameter in image.parameters():  # storing matrices as float16 will lose nothing
        if parameter.ndim > 1:
            assert torch.equal(parameter, parameter.half().float())
    assert steps == [1, 2, 3]
    with (tmp_path / "image_loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    assert {"seconds", "learning_rate", "chi_square"} <= set(rows[0])


def test_a_fit_ends_when_its_time_is_up() -> None:
    data = [compact(image) for image in galaxies(3)]
    fit = replace(FIT, num_steps=100_000, max_seconds=0.5)
    assert 0 < len(fit_image_tokenizer(data, IMAGE, fit).losses) < 1000


def test_collecting_keeps_what_was_observed_up_to_the_limits() -> None:
    (image,), (spectrum,) = galaxies(1), spectra(1)
    batch = ObservationBatch(
        (observed(image, None, "a"), observed(image, spectrum, "bb"), observed(None, spectrum, "c"))
    )

    data = collect([batch, batch], max_images=3)

    assert (len(data.images), len(data.spectra)) == (3, 4)
    assert set(data.scalars) == {"tok_flux_r"}
    assert data.scalars["tok_flux_r"].rows()[:, 0].tolist() == [1.0, 2.0, 1.0, 1.0, 2.0, 1.0]


def test_half_precision_keeps_an_image_to_a_thousandth_and_its_bad_pixels() -> None:
    (image,) = galaxies(1)
    batch = image_batch([compact(image)])
    whole = image_tokenizer.stack([image])
    torch.testing.assert_close(batch.flux_nmgy, whole.flux_nmgy, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(batch.ivar, whole.ivar, rtol=2e-3, atol=0)
    assert torch.equal(batch.ivar == 0, whole.ivar == 0)
    assert torch.equal(batch.channels, whole.channels)


def test_augmentation_moves_flux_and_error_together() -> None:
    flux = np.random.default_rng(0).normal(size=(4, 96, 96)).astype(np.float16)
    image = CompactImage(flux, flux, DES)  # errors made equal to the flux: they must stay so
    rng = np.random.default_rng(1)
    names: set[str] = set()
    for _ in range(40):
        seen = augment(image, rng, drop_band=0.5, as_hsc=0.5, crop_pixels=64)
        assert seen.flux_nmgy.shape == (len(seen.bands), 64, 64)
        np.testing.assert_array_equal(seen.flux_nmgy, seen.inverse_sigma)
        assert 2 <= len(seen.bands) == len(set(seen.bands))
        names.update(seen.bands)
        for band, plane in zip(seen.bands, seen.flux_nmgy, strict=True):
            twin = "DES-Z" if band == "HSC-Y" else band.replace("HSC", "DES")
            assert set(plane.ravel()) <= set(flux[DES.index(twin)].ravel())
    assert {"HSC-G", "HSC-Y", "DES-G"} <= names
    np.testing.assert_array_equal(image.flux_nmgy, flux)


def test_without_the_additions_the_image_loss_is_the_papers() -> None:
    batch = image_tokenizer.stack(galaxies(2))
    tokenizer = ImageTokenizer(IMAGE).eval()
    fit = replace(FIT, fractional_error=0.0, robust_sigma=math.inf)

    with torch.no_grad():
        found = image_loss(tokenizer, batch, fit)[0]
        compressed = tokenizer(batch.flux_nmgy, batch.channels).compressed
        residual = (tokenizer.expand(compressed) - batch.flux_nmgy) * batch.ivar.sqrt()

    expected = 0.5 * residual.square().sum() / (batch.ivar > 0).sum()
    torch.testing.assert_close(found, expected)


def test_bad_pixels_do_not_enter_the_loss_as_a_target() -> None:
    batch = image_tokenizer.stack(galaxies(1))
    tokenizer = ImageTokenizer(IMAGE).eval()
    half = batch.ivar.clone()
    half[:, :, :48] = 0

    with torch.no_grad():
        bottom = image_loss(tokenizer, replace(batch, ivar=half), FIT)[0]
        other = batch.ivar - half
        top = image_loss(tokenizer, replace(batch, ivar=other), FIT)[0]
        both = image_loss(tokenizer, batch, FIT)[0]

    num_top, num_bottom = int((other > 0).sum()), int((half > 0).sum())
    mean = (top * num_top + bottom * num_bottom) / (num_top + num_bottom)
    torch.testing.assert_close(both, mean)  # each half counted its own good pixels only
    assert float(top) != float(bottom)


def reservoir(values: np.ndarray) -> Reservoir:
    made = Reservoir()
    for value in values:
        made.add(value)
    return made


def test_scalars_get_a_table_each_and_redshift_a_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flux, redshift = rng.lognormal(3, 1, 3000), rng.uniform(0, 1, 100)

    tokenizers, figures = fit_scalars(
        {
            "tok_flux_r": reservoir(flux),
            "tok_z": reservoir(redshift),
            "tok_xp_bp": reservoir(rng.normal(size=(300, 55)) * 10.0 ** -np.arange(55)),
        },
        num_bins=32,
        redshift=GridTokenizerConfig(num_bins=16, highest=1.0),
        reservoir_size=50,
        folder=tmp_path,
    )

    assert set(tokenizers) == set(figures) == {"tok_flux_r", "tok_z", "tok_xp_bp"}
    table = tokenizers["tok_flux_r"]
    assert isinstance(table, ScalarTokenizer)
    assert table.config.log  # as the table of streams says
    counts = torch.bincount(table.encode(torch.from_numpy(flux))[:, 0], minlength=32)
    assert int(counts[1:].min()) > 80
    assert len(table.quantizer.reservoir) == 50
    assert (tmp_path / "codecs" / "FLUX_R" / "model.safetensors").stat().st_size < 1200
    loaded = load_codec(tmp_path, "Z", key="tok_z")
    assert loaded.num_codes == 16
    assert isinstance(
        load_codec(tmp_path, "bp_coefficients", key="tok_xp_bp"), MultiScalarTokenizer
    )
    step = 1 / 15  # of the grid; a value comes back as the next step, half of one away in the mean
    rms = math.sqrt((1 - figures["tok_z"]["r2"]) / 12)
    assert rms == pytest.approx(step / math.sqrt(3), rel=0.5)
    assert min(one["r2"] for one in figures.values()) > 0.7  # the tails have one bin


def test_numbers_that_cannot_make_a_table_are_named() -> None:
    with pytest.raises(ValueError, match=r"tok_flux_r: expected two or more numbers .* got 1"):
        fit_scalars({"tok_flux_r": reservoir(np.ones(1))}, num_bins=8, redshift=GRID)
    with pytest.raises(ValueError, match=r"tok_flux_r: .*finite"):
        fit_scalars({"tok_flux_r": reservoir(np.full(9, np.nan))}, num_bins=8, redshift=GRID)


def test_a_reservoir_is_an_even_sample_of_all_that_came() -> None:
    few = Reservoir(400, seed=1)
    for value in range(4000):
        few.add(float(value))
    kept = few.rows()[:, 0]

    assert (few.num_seen, len(kept), len(set(kept))) == (4000, 400, 400)
    expected, error = 3999 / 2, 4000 / math.sqrt(12 * 400)
    assert abs(kept.mean() - expected) < 4 * error
    assert np.histogram(kept, bins=10, range=(0, 4000))[0].min() > 20


def test_shapes_of_sources_get_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources = []
    for _ in range(40):
        places = rng.uniform(0, 95, (5, 2)).astype(np.float32)
        x, y = places[np.argsort(np.hypot(*(places - 47.5).T))].T
        e1, e2 = rng.uniform(-0.5, 0.5, (2, 5)).astype(np.float32)
        r = rng.lognormal(size=5).astype(np.float32)
        sources.append(Ellipses(x=x, y=y, shape_e1=e1, shape_e2=e2, shape_r_arcsec=r))

    made = fit_ellipses(
        sources, EllipsesTokenizerConfig(num_bins=16, reservoir_size=0), folder=tmp_path
    )

    loaded = load_codec(tmp_path, "catalog", key="catalog")
    stacked = ellipses_tokenizer.stack(sources)
    back = made.decode(made.encode(stacked))
    assert isinstance(loaded, EllipsesTokenizer)
    assert torch.equal(loaded.encode(stacked), made.encode(stacked))
    assert (back.values[:, :5, 2:4] - stacked.values[..., 2:4]).abs().mean() < 0.1


def maps(count: int) -> list[Field]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-48:48, -48:48]
    radii = rng.uniform(5, 40, count)
    return [Field((np.hypot(x, y) < radius).astype(np.float32)) for radius in radii]


def test_fitting_maps_explains_them_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data, model = maps(12), FieldTokenizerConfig(hidden=16, residual_hidden=4)
    fit = replace(FIT, num_steps=24, average=0.5, learning_rate=1e-2, checkpoint_seconds=0.0)
    whole = fit_field_tokenizer(data, model, fit, folder=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 13:
            raise Stop

    with pytest.raises(Stop):
        fit_field_tokenizer(data, model, fit, folder=tmp_path / "two", progress=stop)
    assert not (tmp_path / "two" / "codecs").exists()
    second = fit_field_tokenizer(data, model, fit, folder=tmp_path / "two")

    assert np.mean(whole.losses[-5:]) < 0.6 * np.mean(whole.losses[:5])
    assert whole.figures["squared_error"] < 0.8 * whole.losses[0]
    assert second.losses == whole.losses[12:]  # the last checkpoint was after step 12
    assert second.figures == whole.figures
    for name, value in whole.tokenizer.state_dict().items():
        assert torch.equal(value, second.tokenizer.state_dict()[name]), name
    loaded = load_codec(tmp_path / "two", "segmentation_map", key="tok_segmap")
    assert isinstance(loaded, FieldTokenizer)
    curve = (tmp_path / "two" / "segmentation_map_loss.csv").read_text()
    steps = [line.split(",")[0] for line in curve.splitlines()]
    assert steps == ["step", *map(str, range(24))]
    with pytest.raises(ValueError, match=r"fit.seed was 0, is 5"):
        fit_field_tokenizer(data, model, replace(fit, seed=5), folder=tmp_path / "two")


def test_surveys_are_drawn_by_their_share() -> None:
    des = [compact(image) for image in galaxies(3)]
    hsc = replace(des[0], bands=("HSC-G", "HSC-R", "HSC-I", "HSC-Z"))

    chance = _chances([*des, hsc], 0.25)

    assert chance is not None
    assert chance.tolist() == pytest.approx([0.25, 0.25, 0.25, 0.25])
    with pytest.raises(ValueError, match=r"hsc_share is 0\.25, and 0 of 3 images are HSC's"):
        _chances(des, 0.25)


def test_code_use_counts_codes_and_their_evenness() -> None:
    even = code_use(torch.arange(4).repeat(10), num_codes=8)
    assert even["codes_used"] == 0.5
    assert math.isclose(even["perplexity"], 4.0)
    assert math.isclose(code_use(torch.zeros(9, dtype=torch.int64), num_codes=8)["perplexity"], 1)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more images"):
        fit_image_tokenizer([compact(galaxies(1)[0])], IMAGE, FIT)
    with pytest.raises(ValueError, match="two or more spectra"):
        fit_spectrum_tokenizer([], SPECTRUM, FIT)
    with pytest.raises(ValueError, match="must be positive"):
        FitConfig(num_steps=0)
