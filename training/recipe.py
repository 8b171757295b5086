"""One TOML that makes one encoder: its data, its tokenizers, its transformer, its search head.

The file is read once and checked whole; a wrong or unknown key is named. A copy is kept beside
what it made, with the revision of the code.
"""

from __future__ import annotations

import importlib
import tomllib
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from training.artifact import fits, read_config
from training.augmentation import AugmentationConfig
from training.decoder_fitting import DecoderFitConfig
from training.head_fitting import HeadFitConfig
from training.kind_head import KindFitConfig
from training.modalities import STREAM, Kind
from training.pretraining_config import PretrainingConfig
from training.tokenizer_fitting import FitConfig
from training.tokenizers import released
from training.tokenizers.ellipses import EllipsesTokenizerConfig
from training.tokenizers.field import FieldTokenizerConfig
from training.tokenizers.image import ImageTokenizerConfig
from training.tokenizers.released import CodecConfig
from training.tokenizers.scalar import GridTokenizerConfig, ScalarTokenizerConfig
from training.tokenizers.spectrum import SpectrumTokenizerConfig
from training.tokenizers.xp import MultiScalarTokenizerConfig
from training.transformer_config import TransformerConfig
from training.weights import without_memory

_CHECKED = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class DataSetRecipe:
    """One part of a mixture: files of one survey, or the objects that two such parts share."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]*$")  # of a folder too
    weight: float = Field(default=1.0, ge=0)  # how often its rows are drawn, beside the others
    sources: tuple[Path, ...] = ()
    pair: tuple[str, str] | None = None  # names of two other data sets
    matches: Path | None = None  # of a pair: the table that crossmatching wrote

    @model_validator(mode="after")
    def _agrees(self) -> DataSetRecipe:
        if (self.pair is None) != (self.matches is None):
            raise ValueError(f"data set {self.name!r}: pair and matches are given together")
        if self.pair is not None and self.sources:
            raise ValueError(f"data set {self.name!r}: give sources, or pair and matches, not both")
        return self


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class LabelsRecipe:
    """A table of what is known of objects, for the losses that ask for labels."""

    file: Path | None = None  # CSV with object_id and columns of 0 and 1; None: the simulated sky's
    columns: tuple[str, ...] = ()  # empty: all


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class DataRecipe:
    """What to train on: files of a survey, a mixture of such, or a sky that is simulated first.

    All files are read by one reader; that of the Multimodal Universe knows every survey.
    """

    survey: str = "simulated"
    sources: tuple[Path, ...] = ()  # empty, and no sets: simulate `sky` into <out>/sky
    sky: dict[str, Any] = field(default_factory=dict)  # settings of the simulated sky (SkyConfig)
    sets: tuple[DataSetRecipe, ...] = ()  # the mixture, instead of `sources`
    labels: LabelsRecipe | None = None

    @model_validator(mode="after")
    def _agrees(self) -> DataRecipe:
        if self.sets and (self.sources or self.sky):
            raise ValueError("sets: give sources or a sky, or sets, not both")
        if self.labels is not None and self.labels.file is None and (self.sets or self.sources):
            raise ValueError("labels: name their file, for no sky is simulated")
        names = [each.name for each in self.sets]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"sets: two data sets are called {twice[0]!r}")
        singles = [each.name for each in self.sets if each.pair is None]
        empty = [each.name for each in self.sets if each.pair is None and not each.sources]
        if empty:
            raise ValueError(f"sets: {empty[0]!r} has no sources, and is no pair")
        for each in self.sets:
            for name in each.pair or ():
                if name not in singles:
                    raise ValueError(
                        f"sets: {each.name!r} pairs {name!r}, which is no data set with sources"
                    )
        if self.sets and not any(each.weight for each in self.sets):
            raise ValueError("sets: every weight is 0")
        return self

    @property
    def mixture(self) -> tuple[DataSetRecipe, ...]:
        """All data sets; without `sets` the survey alone."""
        return (*self.singles, *self.pairs)

    @property
    def singles(self) -> tuple[DataSetRecipe, ...]:
        """Data sets that are read from files."""
        if self.sets:
            return tuple(each for each in self.sets if each.pair is None)
        return (DataSetRecipe(name=self.survey, sources=self.sources),)

    @property
    def pairs(self) -> tuple[DataSetRecipe, ...]:
        """Data sets that join two others."""
        return tuple(each for each in self.sets if each.pair is not None)


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class ImageRecipe:
    """The image tokenizer and how it is fitted."""

    model: ImageTokenizerConfig
    training: FitConfig
    max_images: int = Field(default=50_000, gt=1)


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class SpectrumRecipe:
    """The spectrum tokenizer and how it is fitted."""

    model: SpectrumTokenizerConfig
    training: FitConfig
    max_spectra: int = Field(default=50_000, gt=1)


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class FieldRecipe:
    """The tokenizer of object masks and how it is fitted."""

    model: FieldTokenizerConfig
    training: FitConfig
    max_fields: int = Field(default=50_000, gt=1)


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class ScalarsRecipe:
    """Quantile bins of fluxes, sizes, coefficients and ellipses, and the grid of redshift."""

    num_bins: int = Field(default=1024, gt=1)
    reservoir_size: int = Field(default=0, ge=0)  # kept beside each table; 100,000 as released
    redshift: GridTokenizerConfig = GridTokenizerConfig()
    ellipses: EllipsesTokenizerConfig = EllipsesTokenizerConfig()


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class EncoderRecipe:
    """The transformer and its masked modelling."""

    model: TransformerConfig
    training: PretrainingConfig
    copies: int = Field(default=1, gt=0)  # of each object, turned and mirrored, to tokenize
    half: bool = False  # store matrices as float16
    light: bool = False  # vectors have the light in a fibre (pooling.py)
    latents: int = Field(default=0, ge=0)  # numbers of images before they are codes, at their end
    picture_turns: bool = False  # vectors of pictures are means over their eight turns (turns.py)
    gaia: bool = True  # False: train without the streams of Gaia (the paper's ablation)

    @property
    def pools(self) -> bool:
        """Whether a vector is more than the mean of the transformer's outputs."""
        return self.light or self.latents > 0 or self.picture_turns

    @property
    def trained(self) -> TransformerConfig:
        """The model that is trained: with `gaia` false it has no streams of Gaia."""
        if self.gaia:
            return self.model
        kept = [key for key in self.model.domains_in if STREAM[key].survey != "gaia"]
        asked = self.model.domains_out
        return replace(
            self.model,
            domains_in={key: self.model.domains_in[key] for key in kept},
            domains_out=None if asked is None else tuple(key for key in asked if key in kept),
        )


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class SearchHeadRecipe:
    """The search head: disturbed copies of some objects, and the fit on their vectors."""

    training: HeadFitConfig
    augmentation: AugmentationConfig
    # Folder or Hub repository of an encoder whose head is kept, and given light_share or kinds,
    # instead of one that is trained; its encoder must give the same vectors but for the light.
    begin: str | None = None
    kinds: KindFitConfig | None = None  # None: it is not told to know any
    copies: int = Field(default=3, gt=0)  # of each object, by each survey that saw it
    plain_copies: int = Field(default=0, ge=0)  # more of it, turned by right angles and no more
    picture_copies: int = Field(default=0, ge=0)  # more of each image, as colour pictures of it
    max_objects: int = Field(default=10_000, gt=1)
    seed: int = Field(default=0, ge=0)


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Recipe:
    """Everything that makes one encoder."""

    data: DataRecipe
    scalars: ScalarsRecipe
    encoder: EncoderRecipe
    search_head: SearchHeadRecipe
    decoder: DecoderFitConfig | None = None  # None: it is trained with the encoder alone
    # Each is needed where the model has streams of its kind.
    image_tokenizer: ImageRecipe | None = None
    spectrum_tokenizer: SpectrumRecipe | None = None
    field_tokenizer: FieldRecipe | None = None

    @model_validator(mode="after")
    def _labels_are_named(self) -> Recipe:
        kinship, image = self.encoder.training.kinship, self.image_tokenizer
        asking = {
            "image_tokenizer.training.label_weight": image and image.training.label_weight,
            "encoder.training.kinship.label_share": kinship and kinship.label_share,
            "search_head.training.label_share": self.search_head.training.label_share,
            "search_head.kinds": self.search_head.kinds,
        }
        head = self.search_head
        if head.begin is not None and not head.training.light_share and head.kinds is None:
            raise ValueError(
                "search_head.begin keeps a head as it is: give training.light_share or kinds"
            )
        if head.training.light_share and not self.encoder.light:
            raise ValueError("search_head.training.light_share asks for encoder.light = true")
        keys = [key for key, value in asking.items() if value]
        if keys and self.data.labels is None:
            raise ValueError(f"{keys[0]} asks for labels: name them under data.labels")
        return self


def read_recipe(file: Path) -> Recipe:
    """Read and check a recipe; paths in it are relative to where the command is run.

    Raises:
        ValueError: not TOML, or a key is wrong, unknown or missing; names file and key.
    """
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as TOML ({error})") from error
    recipe = read_config(Recipe, values, where=file)
    sky_config(recipe, where=file)
    _check_tokenizers(recipe, where=file)
    return recipe


def _check_tokenizers(recipe: Recipe, *, where: Path) -> None:
    """Raise ValueError unless each tokenizer can be made and gives what its streams hold.

    Found here, it is found before a sky is simulated and tokenizers are fitted for hours.
    """
    num_bins = recipe.scalars.num_bins
    image, spectrum = recipe.image_tokenizer, recipe.spectrum_tokenizer
    mask = recipe.field_tokenizer
    of_kind: dict[Kind, tuple[str, CodecConfig | None]] = {
        "image": ("image_tokenizer", None if image is None else image.model),
        "spectrum": ("spectrum_tokenizer", None if spectrum is None else spectrum.model),
        "field": ("field_tokenizer", None if mask is None else mask.model),
        "scalar": ("scalars", ScalarTokenizerConfig(num_bins=num_bins)),
        "multi_scalar": ("scalars", MultiScalarTokenizerConfig(num_bins=num_bins)),
        "grid": ("scalars.redshift", recipe.scalars.redshift),
        "ellipses": ("scalars.ellipses", recipe.scalars.ellipses),
    }
    streams = recipe.encoder.model.domains_in
    for kind, (table, config) in of_kind.items():
        keys = [key for key in streams if STREAM[key].kind == kind]
        if config is None:
            if keys:
                raise ValueError(
                    f"{where}: the model has the stream {keys[0]}, and the recipe no [{table}]"
                )
            continue
        try:
            with without_memory():
                codec = released.build(config)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{where}: {table}: no tokenizer has these sizes ({error})") from error
        for key in keys:
            if not fits(key, streams[key], codec):
                raise ValueError(
                    f"{where}: {key} has {streams[key].vocabulary} codes and "
                    f"{streams[key].num_tokens} tokens under encoder.model.domains_in, and "
                    f"{table} makes {codec.num_codes} and {codec.num_tokens}"
                )


def sky_config(recipe: Recipe, *, where: Path) -> Any:
    """The simulated sky that a recipe asks for, a SkyConfig."""
    # Imported on demand: only those who simulate need h5py.
    simulated = importlib.import_module("training.surveys.simulated")
    return read_config(simulated.SkyConfig, recipe.data.sky, where=where)
