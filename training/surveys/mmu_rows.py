"""One object of a Multimodal Universe file: its id, place, numbers and redshift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from training.modalities import STREAM
from training.observations import CatalogueValue, fingerprint, sky_position
from training.surveys import desi_targets, sdss_objects
from training.surveys import mmu_columns as columns
from training.surveys.mmu_columns import Dataset, Names, first_of
from training.surveys.nanomaggies import photometry

RECIPE = "multimodal_universe 1"  # part of the fingerprint: raise it when a row gives other values


@dataclass(frozen=True, slots=True)
class Row:
    """One object as it is stored."""

    values: Mapping[str, Any]  # column -> array, number or text
    shapes: Mapping[str, tuple[int, int]]  # stored y, x of what is cropped already

    def get(self, names: Names) -> Any:
        """The value of a quantity, None where there is none."""
        name = first_of(names, self.values)
        return self.values[name] if name else None

    def number(self, names: Names, element: int | None = None) -> float | None:
        """A finite number, None where there is none."""
        value = self.get(names)
        if value is None:
            return None
        flat = np.asarray(value).reshape(-1)
        at = element or 0
        if flat.dtype.kind not in "fiub" or at >= len(flat) or (element is None and len(flat) > 1):
            raise ValueError(f"{names[0]}: expected a number, got {str(value)[:40]!r}")
        return float(flat[at]) if np.isfinite(flat[at]) else None

    def text(self, names: Names) -> str:
        """Text without blanks at its ends, "" where there is none."""
        value = self.get(names)
        return "" if value is None else plain_text(value)


def plain_text(value: Any) -> str:
    """Text of a cell without blanks at its ends."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size == 1 else ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "" if value is None else str(value).strip("\0 \t\r\n")
    if text.startswith("b'") and text.endswith("'"):  # some files hold str() of bytes
        text = text[2:-1].strip()
    return text


def array(row: Row, names: Names, num_axes: int, what: str) -> ndarray:
    """The numbers of a quantity; raise ValueError where there are none of that many axes."""
    value = np.asarray(row.get(names))
    if value.ndim != num_axes or value.dtype.kind not in "fiub":
        raise ValueError(f"{names[0]}: expected {what}, got {value.dtype} of shape {value.shape}")
    return value


@dataclass(frozen=True, slots=True)
class Ids:
    """Names of an object."""

    source_id: str
    object_id: str


def ids(dataset: Dataset, row: Row) -> Ids:
    """The ids that the survey's native files give the object, as far as the file has them.

    TARGETIDs of DESI name objects of the Legacy Surveys (RELEASE-BRICKID-OBJID), which files of
    the Legacy Survey spell out; SDSS has BESTOBJID.

    Raises:
        ValueError: there is no object_id.
    """
    stored = row.text(columns.OBJECT_ID)
    if stored in ("", "0"):
        raise ValueError("no object_id")
    if dataset.survey in ("desi", "provabgs"):
        if not stored.isdecimal() or int(stored) >= 2**63:
            raise ValueError(f"expected a TARGETID as object_id, got {stored!r}")
        return Ids(stored, desi_targets.object_id(int(stored)))
    own = {name.lower(): row.text((name,)) for name in dataset.id_columns}
    if dataset.survey == "legacysurvey" and all(each.isdecimal() for each in own.values()):
        own_id = "-".join(own.values())
        return Ids(own_id, own_id)
    if dataset.survey == "sdss":
        spectrum_id = sdss_objects.source_id({k: v for k, v in own.items() if v.isdecimal()})
        return Ids(spectrum_id or stored, sdss_objects.photometric_id(own) or spectrum_id or stored)
    return Ids(stored, stored)


def position(row: Row, notes: list[str]) -> tuple[float, float] | None:
    """ra_deg and dec_deg, by `sky_position`."""
    place = sky_position(row.number(columns.RA_DEG), row.number(columns.DEC_DEG))
    if place is None:
        notes.append("no position in the file")
    return place


def numbers(dataset: Dataset, row: Row) -> tuple[dict[str, float], dict[str, CatalogueValue]]:
    """Token streams and columns of the object table."""
    scalars: dict[str, float] = {}
    catalogue: dict[str, CatalogueValue] = {}
    flux_nmgy: dict[str, float] = {}
    for scalar in dataset.scalars:
        value = row.number(scalar.columns, scalar.element)
        if value is None or not scalar.low <= value <= scalar.high:
            continue
        if (scalar.zero_is_missing and value == 0) or (
            scalar.only_with and scalar.only_with not in scalars
        ):
            continue
        if scalar.token and (value > 0 or not STREAM[scalar.token].log):
            scalars[scalar.token] = value
        if scalar.catalogue.startswith("flux_") and scalar.catalogue.endswith("_nmgy"):
            flux_nmgy[scalar.catalogue[5:-5]] = value
        elif scalar.catalogue:
            catalogue[scalar.catalogue] = value
    for name, column in dataset.texts:
        if row.text((name,)):
            catalogue[column] = row.text((name,))
    label = row.number(dataset.label)
    if label is not None:
        if label not in range(len(columns.GZ10_CLASSES)):
            raise ValueError(f"{dataset.label[0]}: expected a class from 0 to 9, got {label:g}")
        catalogue |= {"gz10_label": int(label), "gz10_class": columns.GZ10_CLASSES[int(label)]}
    return scalars, photometry(flux_nmgy) | catalogue


def redshift(
    dataset: Dataset, row: Row, notes: list[str], *, of_hub: bool
) -> tuple[dict[str, float], dict[str, CatalogueValue]]:
    """tok_z and columns of the object table, empty where no redshift is to be trusted."""
    measured = dataset.redshift
    if measured is None:
        return {}, {}
    value = row.number(measured.columns)
    if value is None:
        notes.append(f"{measured.columns[0]} is not a number: redshift left out")
        return {}, {}
    if measured.warning:
        name, warning = measured.warning[0], row.get(measured.warning)
        if warning is None:
            notes.append(f"no {name}: redshift and class left out")
            return {}, {}
        is_flag = np.asarray(warning).dtype.kind == "b"
        if not (bool(warning) if is_flag and of_hub else not int(warning)):
            notes.append(f"{name} {warning}: redshift and class left out")
            return {}, {}
    elif dataset.label and value in (row.number(columns.DEC_DEG), row.number(columns.RA_DEG)):
        notes.append("redshift equals a coordinate: left out")  # in Galaxy10's own table
        return {}, {}
    found: dict[str, CatalogueValue] = {"redshift": value, "redshift_source": measured.source}
    error = row.number(measured.error)
    if error is not None and error > 0:
        found["redshift_error"] = error
    spectrum_class = row.text(measured.spectrum_class)
    if spectrum_class:
        found["spectrum_class"] = spectrum_class
    return {"tok_z": value}, found


def refuse(dataset: Dataset, row: Row) -> None:
    """Raise ValueError for a row that is no observation of an object."""
    for name, good, why in dataset.refused:
        if name in row.values and row.text((name,)).upper() != good:
            raise ValueError(f"{why}: {name} {row.text((name,))}")


def fingerprint_of(dataset: Dataset, row: Row) -> str:
    """sha256 of what was read of a row, as it was stored."""
    parts: list[str | bytes | ndarray | None] = [RECIPE, dataset.name]
    for name in sorted(row.values):
        value = row.values[name]
        is_text = (
            isinstance(value, str | bytes) or getattr(value, "dtype", np.dtype("f8")).kind in "OSU"
        )
        parts += [name, repr(value) if is_text else np.asarray(value)]
    return fingerprint(*parts)
