"""One reader a survey: files in, observations out, a bad file skipped with its reason."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from training.observations import Observation, ObservationBatch

# Imported on demand: some need h5py, which the others do without.
SURVEYS: dict[str, str] = {
    "composite": "training.surveys.composite",
    "desi": "training.surveys.desi",
    "gaia": "training.surveys.gaia",
    "hsc": "training.surveys.hsc",
    "legacysurvey": "training.surveys.legacysurvey",
    "multimodal_universe": "training.surveys.multimodal_universe",
    "sdss": "training.surveys.sdss",
    "simulated": "training.surveys.simulated",
}


@runtime_checkable
class Reader(Protocol):
    """What every survey module offers.

    A reader that opens other files with the one it is given also offers `companions`; see below.
    """

    def list_files(self, source: Path) -> list[Path]:
        """The survey's files under a folder, sorted, or the file itself.

        Raises:
            ValueError: nothing is there, or the folder holds no such file.
        """
        ...

    def read(self, file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
        """The objects of one file in order; what cannot be used is in `skipped` with a reason."""
        ...

    def read_one(self, source: Path, source_part: str) -> Observation:
        """One object again, exactly as `read` gave it.

        Raises:
            ValueError: the file or that part of it is not there, or cannot be used.
        """
        ...


def reader(survey: str) -> Reader:
    """The reader of a survey by its name.

    Raises:
        ValueError: the survey is unknown; the message lists the known ones.
    """
    if survey not in SURVEYS:
        raise ValueError(f"unknown survey {survey!r}: expected one of {', '.join(SURVEYS)}")
    module = importlib.import_module(SURVEYS[survey])
    if not isinstance(module, Reader):
        raise TypeError(f"{SURVEYS[survey]} lacks list_files, read or read_one")
    return module


def companions(survey: str, file: Path) -> tuple[Path, ...]:
    """Files beside this one that its reader opens too, sorted: redshifts, the other bands.

    When one of them changes, comes or goes, the file is to be read again.
    """
    find: Callable[[Path], tuple[Path, ...]] | None = getattr(reader(survey), "companions", None)
    return () if find is None else find(file)
