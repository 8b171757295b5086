"""The settings of a nightly, read from TOML. Paths in it are relative to the file's folder."""

from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from pathlib import Path

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from index.comparison import Source
from index.saved_searches import SavedSearch
from training.artifact import read_config
from training.encoder import SHIPPED
from training.surveys import SURVEYS

_CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class SourceConfig:
    """Where files of a survey lie: a file, a folder, or a pattern with * ? [ ] and **."""

    survey: str
    path: str = Field(min_length=1)

    @model_validator(mode="after")
    def _is_known(self) -> SourceConfig:
        if self.survey not in SURVEYS:
            raise ValueError(
                f"unknown survey {self.survey!r}: expected one of {', '.join(SURVEYS)}"
            )
        return self


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class LabelGate:
    """nDCG@10 over a label file, of the new version and against the published one."""

    file: str  # CSV: object_id and one column a label, 0 to 1, blank = unknown
    label: str
    view: str | None = None  # None: the first that the sky has
    query_above: float = Field(default=0.9, ge=0, lt=1)
    min_ndcg: float = Field(default=0.0, ge=0, le=1)
    max_drop: float = Field(default=0.02, ge=0, le=1)  # below the published version


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class NightlyConfig:
    """One nightly."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)  # ALL there are: what is not here goes
    encoder: str | None = None  # None: the sky's own; "nano" for a new sky
    num_workers: int | None = Field(default=None, ge=0)  # None: one a core
    cluster: str | None = None  # address of a Ray cluster that reads and embeds; None: this machine
    max_removed_share: float = Field(
        default=0.05, ge=0, le=1
    )  # of the rows, and of the rows of each view
    min_recall: float = Field(default=0.95, ge=0, le=1)  # recall@10, where the version is not exact
    labels: LabelGate | None = None
    keep_versions: int = Field(default=3, ge=1)
    keep_days: float = Field(default=7.0, ge=0)
    saved_searches: tuple[SavedSearch, ...] = ()

    def places(self) -> tuple[Source, ...]:
        """The sources as they are compared."""
        return tuple(Source(survey=each.survey, path=each.path) for each in self.sources)


def read_nightly(file: Path) -> NightlyConfig:
    """Read and check a TOML; a wrong, unknown or missing key is named in the error.

    Raises:
        ValueError: it cannot be read, is not TOML, or a key is wrong.
    """
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as TOML ({error})") from error
    config = read_config(NightlyConfig, values, where=file)
    names = [each.name for each in config.saved_searches]
    if len(names) != len(set(names)):
        raise ValueError(f"{file}: two saved searches have the same name")
    beside = os.path.abspath(file.parent)
    sources = tuple(
        replace(each, path=os.path.normpath(os.path.join(beside, each.path)))
        for each in config.sources
    )
    labels = config.labels
    if labels is not None:
        labels = replace(labels, file=os.path.join(beside, labels.file))
    encoder = config.encoder
    if encoder is not None and not (SHIPPED / encoder).is_dir():
        folder = os.path.normpath(os.path.join(beside, encoder))
        encoder = folder if os.path.isdir(folder) else encoder  # an id on the Hub
    return replace(config, sources=sources, labels=labels, encoder=encoder)
