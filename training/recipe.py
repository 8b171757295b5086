"""One TOML that makes one encoder: its data, its tokenizers, its transformer, its search head.

The file is read once and checked whole; a wrong or unknown key is named. A copy is kept beside
what it made, with the revision of the code.
"""

from __future__ import annotations

import importlib
import tomllib
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from training.artifact import read_config
from training.augmentation import AugmentationConfig
from training.pretraining import PretrainingConfig
from training.search_head import HeadFitConfig
from training.tokenizer_fitting import FitConfig
from training.tokenizers.image import ImageTokenizerConfig
from training.tokenizers.scalar import GridTokenizerConfig
from training.tokenizers.spectrum import SpectrumTokenizerConfig
from training.transformer_config import TransformerConfig

_CHECKED = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class DataRecipe:
    """What to train on: files of a survey, or a sky that is simulated first."""

    survey: str = "simulated"
    sources: tuple[Path, ...] = ()  # empty: simulate `sky` into <out>/sky
    sky: dict[str, Any] = field(default_factory=dict)  # settings of the simulated sky (SkyConfig)


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
class ScalarsRecipe:
    """Quantile bins of fluxes and sizes, and the grid of redshift."""

    num_bins: int = Field(default=1024, gt=1)
    redshift: GridTokenizerConfig = GridTokenizerConfig()


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class EncoderRecipe:
    """The transformer and its masked modelling."""

    model: TransformerConfig
    training: PretrainingConfig
    copies: int = Field(default=1, gt=0)  # of each object, turned and mirrored, to tokenize
    half: bool = False  # store matrices as float16


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class SearchHeadRecipe:
    """The search head: disturbed copies of some objects, and the fit on their vectors."""

    training: HeadFitConfig
    augmentation: AugmentationConfig
    copies: int = Field(default=3, gt=0)  # of each object, by each survey that saw it
    max_objects: int = Field(default=10_000, gt=1)
    seed: int = 0


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Recipe:
    """Everything that makes one encoder."""

    data: DataRecipe
    image_tokenizer: ImageRecipe
    spectrum_tokenizer: SpectrumRecipe
    scalars: ScalarsRecipe
    encoder: EncoderRecipe
    search_head: SearchHeadRecipe


def read_recipe(file: Path) -> Recipe:
    """Read and check a recipe; paths in it are relative to its folder.

    Raises:
        ValueError: not TOML, or a key is wrong, unknown or missing; names file and key.
    """
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as TOML ({error})") from error
    recipe = read_config(Recipe, values, where=file)
    sky_config(recipe, where=file)
    return recipe


def sky_config(recipe: Recipe, *, where: Path) -> Any:
    """The simulated sky that a recipe asks for, a SkyConfig."""
    # Imported on demand: only those who simulate need h5py.
    simulated = importlib.import_module("training.surveys.simulated")
    return read_config(simulated.SkyConfig, recipe.data.sky, where=where)
