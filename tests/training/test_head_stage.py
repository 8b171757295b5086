"""The stage of the search head: who is who in several surveys, copies, and what comes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.mmu_files import legacy, spectra, write_hdf5
from tests.training.small_encoder import DIM, make_parts, save_encoder
from training import artifact, encoder, head_stage
from training.cohort import Sighting
from training.fibre_light import NUM_LIGHT
from training.kind_head import KindFitConfig
from training.observations import Observation
from training.pooling import Pooling, PoolingConfig
from training.precision import quick_precision
from training.recipe import DataRecipe, LabelsRecipe, Recipe, read_recipe
from training.surveys import reader
from training.turns import all_turns

NUM = 6
SHIPPED = encoder.SHIPPED / "nano" / "nano.toml"


@pytest.fixture(scope="module")
def survey_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of one survey and spectra of another at the same positions."""
    root = tmp_path_factory.mktemp("universe")
    images = legacy(NUM, side=96)
    seen = spectra(NUM, num_pixels=1000, step=5.0, zwarn="ZWARNING") | {
        "ra": images["ra"], "dec": images["dec"],
        "object_id": np.array([f"spectrum-{row}".encode() for row in range(NUM)]),
        "ZWARNING": np.zeros(NUM, np.int64),
    }  # fmt: skip
    return [
        write_hdf5(root / "legacysurvey" / "healpix=1" / "001.hdf5", images),
        write_hdf5(root / "sdss" / "healpix=1" / "001.hdf5", seen),
    ]


@pytest.fixture(scope="module")
def made(
    survey_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """What the stage makes of them in this process."""
    out = save_encoder(tmp_path_factory.mktemp("head"))
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        _in_this_process(context)
        figures = head_stage.train_search_head(_recipe(survey_files, copies=2), out, _silent)
    return out, figures


def _recipe(files: list[Path], *, copies: int) -> Recipe:
    recipe = read_recipe(SHIPPED)
    settings = recipe.search_head
    training = replace(settings.training, steps=4, batch_size=4, label_share=0.0)
    untold = replace(recipe.encoder.training, kinship=None)  # these files come without labels
    return replace(
        recipe,
        data=DataRecipe(survey="multimodal_universe", sources=tuple(files)),
        encoder=replace(recipe.encoder, training=untold),
        image_tokenizer=None,
        search_head=replace(settings, training=training, copies=copies, max_objects=5),
    )


def _silent(what: str, share: float) -> None:
    pass


def _in_this_process(patch: pytest.MonkeyPatch) -> None:
    def run(work: Any, tasks: Any, load: Any, state: Any, *_: Any) -> list[Any]:
        load(*state)
        return [work(task) for task in tasks]

    patch.setattr(head_stage, "in_processes", run)


def test_two_surveys_make_pairs_and_a_joint_view(made: tuple[Path, dict[str, Any]]) -> None:
    out, figures = made
    head = artifact.load_head(out)

    assert figures["method"] == "contrastive"
    assert figures["vectors"]["image"] == figures["vectors"]["spectrum"] == 10  # 5 objects, twice
    assert figures["surveys"]["joint"]["legacysurvey+sdss"] == 10
    assert {"image/legacysurvey", "spectrum/sdss", "joint/legacysurvey+sdss"} <= set(
        head.config.surveys
    )
    with np.load(out / head_stage.VECTORS) as stored:
        assert set(stored["objects/image"]) == set(stored["objects/spectrum"]) == set(range(5))
    assert json.loads((out / "search_head.json").read_text())["method"] == "contrastive"


def test_vectors_of_the_same_settings_are_used_again(
    made: tuple[Path, dict[str, Any]], survey_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, figures = made
    before = artifact.load_head(out).state_dict()

    def refuse(*_: Any) -> list[Any]:
        raise AssertionError("embedded again")

    monkeypatch.setattr(head_stage, "in_processes", refuse)
    again = head_stage.train_search_head(_recipe(survey_files, copies=2), out, _silent)
    after = artifact.load_head(out).state_dict()

    assert again["loss"] == figures["loss"]
    assert all((before[name] == after[name]).all() for name in before)


def test_components_stand_in_where_nothing_pairs(
    survey_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = save_encoder(tmp_path / "alone")
    _in_this_process(monkeypatch)
    files = survey_files[1:]  # spectra alone, once each

    figures = head_stage.train_search_head(_recipe(files, copies=1), out, _silent)
    found = encoder.load(out).search_vectors(
        np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32), "spectrum"
    )

    assert figures["method"] == "principal components"
    assert "no object has two vectors" in figures["reason"]
    assert artifact.load_head(out).config.hidden == 0
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_head_that_is_there_already_is_given_light(
    made: tuple[Path, dict[str, Any]], survey_files: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first, _ = made
    out = save_pooled(tmp_path / "lit", PoolingConfig(dim=DIM, light=True))
    _in_this_process(monkeypatch)
    recipe = _recipe(survey_files, copies=20)
    training = replace(recipe.search_head.training, light_share={"image": 0.2})
    settings = replace(recipe.search_head, training=training, begin=str(first))
    recipe = replace(recipe, encoder=replace(recipe.encoder, light=True), search_head=settings)

    figures = head_stage.train_search_head(recipe, out, _silent)
    with np.load(out / head_stage.VECTORS) as stored:
        images, objects = stored["vectors/image"], stored["objects/image"]
    head = encoder.load(out).head

    assert figures["method"] == "light added"
    assert head is not None
    assert head.config.light_share == {"image": 0.2}
    for number in range(5):  # copies are moved and blurred, and light is that of the object
        light = images[objects == number][:, DIM:]
        assert light.any()
        assert (light == light[0]).all()
        assert len(np.unique(images[objects == number][:, 0])) > 1


def test_light_is_not_given_a_share_where_vectors_carry_none(
    made: tuple[Path, dict[str, Any]], survey_files: list[Path]
) -> None:
    out, _ = made
    recipe = _recipe(survey_files, copies=2)
    training = replace(recipe.search_head.training, light_share={"image": 0.2})
    recipe = replace(
        recipe,
        encoder=replace(recipe.encoder, light=True),
        search_head=replace(recipe.search_head, training=training),
    )
    with pytest.raises(ValueError, match="carry none"):
        head_stage.train_search_head(recipe, out, _silent)


def test_objects_of_several_surveys_are_chosen_first() -> None:
    def sighting(number: int, survey: str) -> Sighting:
        return Sighting(
            file=Path(survey), source_part=str(number), survey=survey, object_id=str(number),
            ra_deg=0.0, dec_deg=0.0, streams=frozenset(), values={},
        )  # fmt: skip

    alone = [[sighting(number, "hsc")] for number in range(10)]
    both = [[sighting(99, "hsc"), sighting(99, "sdss")]]

    chosen = head_stage.choose([*alone, *both], 4)

    assert list(chosen[0]) == both[0]
    assert [mine[0].source_part for mine in chosen[1:]] == ["0", "4", "9"]
    assert len(head_stage.choose([*alone, *both], 100)) == 11


def test_a_head_that_is_kept_is_told_kinds(
    made: tuple[Path, dict[str, Any]], survey_files: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first, _ = made
    out = save_encoder(tmp_path / "told")
    labels = label_by_turns(ids_in(first), tmp_path / "labels.csv")
    _in_this_process(monkeypatch)
    recipe = _recipe(survey_files, copies=20)
    settings = replace(
        recipe.search_head, begin=str(first), kinds=KindFitConfig(steps=60, batch_size=8)
    )
    data = replace(recipe.data, labels=LabelsRecipe(file=labels))

    figures = head_stage.train_search_head(
        replace(recipe, data=data, search_head=settings), out, _silent
    )
    head = encoder.load(out).head

    assert figures["method"] == "kept"
    assert figures["kinds"]["names"] == ("merger", "spiral")
    assert figures["kinds"]["accuracy"] > 0.5
    assert head is not None
    assert head.config.kinds == ("merger", "spiral")


def test_a_head_that_is_not_there_is_missed_before_anything_is_embedded(
    survey_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = save_encoder(tmp_path / "without")

    def refuse(*_: Any) -> list[Any]:
        raise AssertionError("embedded")

    monkeypatch.setattr(head_stage, "in_processes", refuse)
    recipe = _recipe(survey_files, copies=1)
    training = replace(recipe.search_head.training, light_share={"image": 0.2})
    settings = replace(recipe.search_head, training=training, begin=str(tmp_path / "nowhere"))
    lit = replace(recipe.encoder, light=True)

    with pytest.raises(ValueError, match="nowhere"):
        head_stage.train_search_head(
            replace(recipe, encoder=lit, search_head=settings), out, _silent
        )


def test_pictures_of_images_teach_kinds_beside_latents(
    made: tuple[Path, dict[str, Any]], survey_files: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first, _ = made
    with_latents = PoolingConfig(dim=DIM, light=True, latents=8, latent_features=128)
    out = save_pooled(tmp_path / "more", with_latents)
    _in_this_process(monkeypatch)
    recipe = _recipe(survey_files, copies=20)
    training = replace(recipe.search_head.training, light_share={"image": 0.2})
    settings = replace(
        recipe.search_head, training=training, begin=str(first), picture_copies=3,
        kinds=KindFitConfig(steps=20, batch_size=8),
    )  # fmt: skip
    labels = label_by_turns(ids_in(first), tmp_path / "labels.csv")
    recipe = replace(
        recipe,
        data=replace(recipe.data, labels=LabelsRecipe(file=labels)),
        encoder=replace(recipe.encoder, light=True, latents=8),
        search_head=settings,
    )

    with pytest.raises(ValueError, match=r"end with 8 latents.*set \[search_head.kinds\]"):
        head_stage.train_search_head(
            replace(recipe, search_head=replace(settings, kinds=None)), out, _silent
        )
    figures = head_stage.train_search_head(recipe, out, _silent)
    with np.load(out / head_stage.VECTORS) as stored:
        images, surveys = stored["vectors/image"], stored["surveys/image"]
        objects = stored["objects/image"]
    head = encoder.load(out).head
    light, latents = images[:, DIM : DIM + NUM_LIGHT], images[:, DIM + NUM_LIGHT :]

    assert figures["surveys"]["image"] == {"composite": 15, "legacysurvey": 100}
    assert latents.shape == (115, 8)
    assert len(np.unique(latents[:, 0])) > 100  # copies differ in what the tokenizer sees
    drawn = surveys == "composite"
    assert not light[drawn].any()  # pictures tell no fluxes
    for number in range(5):
        mine = light[~drawn & (objects == number)]
        assert mine.any()
        assert (mine == mine[0]).all()
    assert head is not None
    assert (head.config.latents, head.config.dim) == (8, DIM + NUM_LIGHT + 8)


def test_plain_copies_are_as_surveys_gave_them_but_for_right_angles(
    survey_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = save_encoder(tmp_path / "plain")
    _in_this_process(monkeypatch)
    recipe = _recipe(survey_files, copies=1)
    head_stage.train_search_head(
        replace(recipe, search_head=replace(recipe.search_head, plain_copies=3)), out, _silent
    )
    frozen = encoder.load(out, precision=quick_precision())
    seen = {
        view: [
            frozen.embed([turned]).vectors[0]
            for batch in reader("multimodal_universe").read(file)
            for one in batch.observations
            for turned in _all_turns(one)
        ]
        for view, file in zip(("image", "spectrum"), survey_files, strict=True)
    }

    with np.load(out / head_stage.VECTORS) as stored:
        for view, known in seen.items():
            vectors, objects = stored[f"vectors/{view}"], stored[f"objects/{view}"]
            assert np.bincount(objects).tolist() == [4] * 5
            as_given = [any(np.allclose(one, each, atol=1e-5) for each in known) for one in vectors]
            assert as_given == [False, True, True, True] * 5


def _all_turns(seen: Observation) -> list[Observation]:
    """An object in the eight ways that right angles and a mirror make of it."""
    if seen.image is None:
        return [seen]
    return [replace(seen, image=each) for each in all_turns(seen.image)]


def save_pooled(folder: Path, config: PoolingConfig) -> Path:
    """The small encoder without a head, its vectors with what the config says."""
    transformer, codecs, _ = make_parts()
    pooling = Pooling(config)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter)
    artifact.save(folder, transformer=transformer, codecs=codecs, pooling=pooling)
    return folder


def label_by_turns(ids: list[str], file: Path) -> Path:
    """A table that calls every other object a spiral, and the rest mergers."""
    lines = [f"{each},{row % 2},{1 - row % 2}" for row, each in enumerate(ids)]
    file.write_text("\n".join(["object_id,spiral,merger", *lines]) + "\n")
    return file


def ids_in(folder: Path) -> list[str]:
    """Of the objects whose vectors the stage kept there, one each."""
    with np.load(folder / head_stage.VECTORS, allow_pickle=False) as stored:
        return [
            str(stored["ids"][stored["id_objects"] == number][0])
            for number in np.unique(stored["id_objects"])
        ]
