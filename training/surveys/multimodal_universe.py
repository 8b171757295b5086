"""The Multimodal Universe, which AION-1 was trained on: HDF5 and Parquet files of seven data sets.

HDF5 as `<dataset>/<config>/healpix=N/*.hdf5`, HATS as `dataset/Norder=K/Dir=D/Npix=N.parquet`, and
Parquet as the hub lays it out. Which data set a file belongs to its columns tell (`mmu_columns`).
An observation bears the name of the survey that observed (legacysurvey, hsc, sdss, desi, gaia,
gz10, provabgs); its release is the configuration (dr10_south_21) where the path tells it. Its ids
are those of the survey's native files where the columns for them are there, else the object_id of
the file, which is also its source_part.

Images of 160 px are cropped to their central 96 as AION-1 crops them. HSC comes in nanomaggies
(zero point 27 in the file) on its own pixels of 0.168 arcsec; the calexp's variance of 0 is not
information. Spectra lose their padding (wavelength -1 or 0); DESI's wavelengths, which the file
rounds to float32, are put back onto the grid that they come from.

A mask whose centre and most of whose pixels are bad is refused: every object is selected to have
a good centre, so that such a mask means the opposite of what the builders write. Galaxy10 has
display images only: their fluxes are approximate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from training.observations import (
    IMAGE_SIZE,
    Image,
    Observation,
    ObservationBatch,
    Skipped,
)
from training.surveys import mmu_columns as columns
from training.surveys import mmu_images, mmu_spectra
from training.surveys.files import list_by_suffix, reason
from training.surveys.gaia_source import EPOCH
from training.surveys.mmu_block import Block
from training.surveys.mmu_columns import Dataset, first_of, which_dataset
from training.surveys.mmu_files import SUFFIXES, Table, open_table
from training.surveys.mmu_parquet import HUB
from training.surveys.mmu_rows import (
    Row,
    fingerprint_of,
    ids,
    numbers,
    plain_text,
    position,
    redshift,
    refuse,
)

_PREVIEW = "data_thumbnail.parquet"  # some rows of a HATS catalogue once more


def list_files(source: Path) -> list[Path]:
    """HDF5 and Parquet files under a folder, sorted; a file is itself. See `Reader`.

    Margins of HATS catalogues are left out: their rows are in the catalogue.
    """
    files = list_by_suffix(source, SUFFIXES)
    if not source.is_dir():
        return files
    kept = [file for file in files if file.name != _PREVIEW and not _in_margin(file)]
    if not kept:
        raise ValueError(
            f"{source.absolute()}: a margin of a HATS catalogue: expected the catalogue"
        )
    return kept


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The objects of one file in order. See `Reader`."""
    file = file.absolute()
    try:
        with open_table(file, key=columns.OBJECT_ID) as table:
            source = _source(file, table)
            stored = _stored_ids(table)
            repeated = _repeated(stored)
            for block in table.blocks(
                source.names, cropped=source.cropped, size=IMAGE_SIZE, batch_size=batch_size
            ):
                yield _observe_block(source, block, stored, repeated)
    except (OSError, ValueError) as error:
        yield ObservationBatch((), (Skipped(str(file), reason(error)),))


def read_one(source: Path, source_part: str) -> Observation:
    """The object of one object_id again. See `Reader`."""
    file = source.absolute()
    try:
        with open_table(file, key=columns.OBJECT_ID) as table:
            opened = _source(file, table)
            found = np.flatnonzero(_stored_ids(table) == source_part)
            if not (source_part and len(found)):
                raise ValueError(f"no object {source_part!r} in it")
            block = table.row(opened.names, int(found[0]), cropped=opened.cropped, size=IMAGE_SIZE)
            if block.problem:
                raise ValueError(block.problem)
            return _observe(opened, _row_of(block, 0))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {reason(error)}") from error


@dataclass(frozen=True, slots=True)
class _Source:
    """An opened file: what it is, and what to read of it."""

    file: Path
    dataset: Dataset
    release: str
    of_hub: bool
    names: tuple[str, ...]  # columns to read
    cropped: frozenset[str]


def _source(file: Path, table: Table) -> _Source:
    if table.origin == "simulated":
        raise ValueError("a simulated sky, whose masks mean the opposite: read it as 'simulated'")
    dataset = which_dataset(table.names, file)
    groups = [columns.OBJECT_ID, columns.RA_DEG, columns.DEC_DEG, dataset.label]
    required: list[columns.Names] = [columns.OBJECT_ID]
    if dataset.image is not None:
        groups += [*columns.IMAGE.values(), *columns.SOURCES.values(), columns.OBJECT_MASK]
        required += columns.IMAGE.values()
    if dataset.spectrum:
        groups += columns.SPECTRUM.values()
        required += columns.SPECTRUM.values()
    if dataset.xp:
        groups += columns.XP.values()
    if dataset.picture:
        groups += columns.PICTURE.values()
    if dataset.redshift is not None:
        measured = dataset.redshift
        groups += [measured.columns, measured.warning, measured.error, measured.spectrum_class]
    groups += [scalar.columns for scalar in dataset.scalars]
    groups += [(name,) for name, *_ in (*dataset.refused, *dataset.texts)]
    groups += [(name,) for name in dataset.id_columns]
    missing = [" or ".join(names) for names in required if not first_of(names, table.names)]
    if missing:
        raise ValueError(f"{dataset.name}: expected columns {'; '.join(missing)}: not there")
    chosen = dict.fromkeys(first_of(names, table.names) for names in groups)
    names = tuple(name for name in chosen if name)
    pixels = [*(columns.IMAGE[key] for key in ("flux", "ivar", "mask")), ("object_mask",)]
    cropped = frozenset(first_of(each, names) for each in pixels) - {""}
    return _Source(
        file=file,
        dataset=dataset,
        release=_release(file, dataset),
        of_hub=table.origin == HUB,
        names=names,
        cropped=cropped if dataset.image is not None else frozenset(),
    )


def _release(file: Path, dataset: Dataset) -> str:
    """The configuration in a path: the folder of healpix=N, or the name of a HATS catalogue."""
    folders = list(file.parts[:-1])
    for number, folder in enumerate(folders):
        if folder.startswith("healpix=") and number:
            name = folders[number - 1]
            above = folders[number - 2] if number > 1 else ""
            return "" if name == "datafiles" or (name == dataset.name != above) else name
        if folder.startswith("Norder=") and number:
            name = folders[number - 2 if folders[number - 1] == "dataset" else number - 1]
            return name.removeprefix("mmu_").removeprefix(dataset.name).removeprefix("_")
    return ""


@lru_cache(maxsize=1024)
def _is_margin(catalogue: Path) -> bool:
    for name in ("hats.properties", "properties"):
        try:
            lines = (catalogue / name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        pairs = [line.split("=", 1) for line in lines if "=" in line and line[0] not in "#!"]
        kinds = {key.strip(): value.strip().lower() for key, value in pairs}
        return "margin" in (kinds.get("dataproduct_type"), kinds.get("catalog_type"))
    return False


def _in_margin(file: Path) -> bool:
    for folder in file.parents:
        if folder.name.startswith("Norder="):
            above = folder.parent
            return _is_margin(above.parent if above.name == "dataset" else above)
    return False


def _stored_ids(table: Table) -> Shaped[ndarray, " object"]:
    """object_id of all rows as text, "" where there is none."""
    stored = table.whole(first_of(columns.OBJECT_ID, table.names))
    if stored.ndim != 1:
        raise ValueError(f"expected one object_id a row, got shape {stored.shape}")
    if stored.dtype.kind in "iu":
        return np.where(stored > 0, stored.astype(str), "")
    if stored.dtype.kind not in "SUO":
        raise ValueError(f"expected object_id as text or whole numbers, got {stored.dtype}")
    return np.array([plain_text(each) for each in stored.tolist()], dtype=str)


def _repeated(stored: Shaped[ndarray, " object"]) -> Bool[ndarray, " object"]:
    """Which rows have an object_id that an earlier one has."""
    repeated = np.ones(len(stored), bool)
    repeated[np.unique(stored, return_index=True)[1]] = False
    return repeated


def _row_of(block: Block, number: int) -> Row:
    return Row({name: each[number] for name, each in block.columns.items()}, block.shapes)


def _observe_block(
    source: _Source,
    block: Block,
    stored: Shaped[ndarray, " object"],
    repeated: Bool[ndarray, " object"],
) -> ObservationBatch:
    observations, skipped = [], []
    for number in range(block.num_rows):
        index = block.start + number
        try:
            if block.problem:
                raise ValueError(block.problem)
            if repeated[index] and stored[index]:
                raise ValueError("an earlier row has this object_id")
            observations.append(_observe(source, _row_of(block, number)))
        except ValueError as error:
            why = f"row {index} (object_id {stored[index]}): {reason(error)}"
            skipped.append(Skipped(str(source.file), why))
    return ObservationBatch(tuple(observations), tuple(skipped))


def _observe(source: _Source, row: Row) -> Observation:
    dataset = source.dataset
    named = ids(dataset, row)
    refuse(dataset, row)
    notes: list[str] = []
    scalars, catalogue = numbers(dataset, row)
    z_scalars, z_columns = redshift(dataset, row, notes, of_hub=source.of_hub)
    place = position(row, notes)
    image: Image | None = None
    field, around, spectrum, xp = None, None, None, None
    if dataset.image is not None:
        cut = mmu_images.image(dataset.image, row, notes)
        image, field = cut.image, mmu_images.object_mask(row, cut.stored)
        around = mmu_images.neighbours(row, cut.stored)
    if dataset.spectrum:
        spectrum = mmu_spectra.spectrum(dataset, row)
    if dataset.xp:
        z_columns = {"position_epoch_year": EPOCH["DR3"]} if place is not None else {}
        xp = mmu_spectra.coefficients(row, notes)
    if dataset.picture:
        image = mmu_images.picture(source.file, row, notes)
    return Observation(
        survey=dataset.survey,
        release=source.release,
        source_id=named.source_id,
        object_id=named.object_id,
        fingerprint=fingerprint_of(dataset, row),
        source=str(source.file),
        source_part=row.text(columns.OBJECT_ID),
        ra_deg=None if place is None else place[0],
        dec_deg=None if place is None else place[1],
        image=image,
        spectrum=spectrum,
        xp=xp,
        object_mask=field,
        ellipses=around,
        scalars=scalars | z_scalars,
        catalogue=catalogue | z_columns,
        calibrated=not (dataset.picture and image is not None),
        notes=tuple(notes),
    )
