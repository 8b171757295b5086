"""Gaia DR3: XP coefficients and the source table, from every format of the archive.

An XP file (xp_continuous_mean_spectrum, DataLink XP_CONTINUOUS) has the coefficients and no
position; a source table (gaia_source, or columns of it) has fluxes, parallax and position. Those
in one folder belong together: a source that is in both is read from the XP file, with what
the source table says of it; the source table then gives the other sources. Files of the bulk
download belong together where they bear the same range of cells (000000-003111).

Positions are of the epoch of the release, 2016.0 in DR3: that is position_epoch_year in the
catalogue, beside pmra_mas_per_yr (which includes cos dec) and pmdec_mas_per_yr.

A parallax that is not positive is measured all the same: it stays in the catalogue, but the stream
of parallaxes is logarithmic, so it is left out there.

Source tables of other releases are read as what they are: an id is one of its release, so the
object is called "Gaia DR2 123"; fluxes are of other passbands than the stream was made from and
are left out, magnitudes are kept.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from training.observations import (
    CatalogueValue,
    Observation,
    ObservationBatch,
    Skipped,
    XpCoefficients,
    fingerprint,
)
from training.surveys.files import list_by_suffix, reason
from training.surveys.gaia_source import (
    CATALOGUE,
    EPOCH,
    MEASURED,
    SAME_SOURCES,
    Source,
    SourceTable,
    find_source,
    gather,
    measured,
    photometry,
    position_of,
    unit_factors,
    unit_notes,
)
from training.surveys.gaia_table import GAIA_SUFFIXES, Header, Row, read_header, read_rows
from training.surveys.xp import BASIS, COEFFICIENT_COLUMNS, coefficients

RECIPE = "gaia 1"  # part of the fingerprint: raise it when the same row gives other values
_RACE_SECONDS = 2.0  # a folder that changed this recently may change again unseen
_RANGE = re.compile(r"_(\d{6}-\d{6})\.")

Kind = Literal["xp", "sources"]


def list_files(source: Path) -> list[Path]:
    """Tables of the archive under a folder, sorted; a file is itself. See `Reader`.

    A source table brings the XP files beside it, which hold the rest of its sources.
    """
    files = list_by_suffix(source, GAIA_SUFFIXES)
    if not source.is_dir() and _kind(files[0]) == "sources":
        files = sorted({*files, *companions(files[0])})
    return files


def companions(file: Path) -> tuple[Path, ...]:
    """The source tables beside an XP file, or the XP files beside a source table, sorted."""
    file = file.absolute()
    kind = _kind(file)
    return () if kind is None else _beside(file, kind)


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The sources of one file. See `Reader`."""
    file = file.absolute()
    observations: list[Observation] = []
    skipped: list[Skipped] = []
    num_rows = 0
    first_row: dict[str, int] = {}
    try:
        table = _Table.open(file)
        elsewhere = _ids_in(table.beside) if table.kind == "sources" else frozenset()
        for row in read_rows(file, table.header, wanted=table.wanted):
            num_rows += 1
            where = f"row {row.number}"
            try:
                source_id = _source_id(row)
                where += f" (source_id {source_id})"
                if source_id in first_row:
                    raise ValueError(f"the id of row {first_row[source_id]} again")
                first_row[source_id] = row.number
                if int(source_id) not in elsewhere:
                    observations.append(table.observe(row, source_id))
            except (OSError, ValueError) as error:
                skipped.append(Skipped(str(file), f"{where}: {reason(error)}"))
            if len(observations) + len(skipped) >= batch_size:
                yield ObservationBatch(tuple(observations), tuple(skipped))
                observations, skipped = [], []
        if not num_rows:
            raise ValueError("the table has no rows")
    except (OSError, ValueError) as error:
        skipped.append(Skipped(str(file), reason(error)))
    if observations or skipped:
        yield ObservationBatch(tuple(observations), tuple(skipped))


def read_one(source: Path, source_part: str) -> Observation:
    """The source of that id again. See `Reader`."""
    source = source.absolute()
    try:
        table = _Table.open(source)
        for row in read_rows(source, table.header, wanted=table.wanted, only=source_part):
            return table.observe(row, _source_id(row))
        raise ValueError(f"holds no source {source_part!r}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {reason(error)}") from error


@dataclass(frozen=True, slots=True)
class _Table:
    """A file that is being read, and what is known of it before its first row."""

    file: Path
    header: Header
    kind: Kind
    factors: dict[str, float]  # to the units of MEASURED
    notes: tuple[str, ...]
    beside: tuple[Path, ...]  # files of the other kind

    @classmethod
    def open(cls, file: Path) -> _Table:
        header = read_header(file)
        kind = _kind_of(header)
        if kind is None:
            raise ValueError(_refusal(header))
        beside = _beside(file, kind)
        factors = unit_factors(header) if kind == "sources" else {}
        return cls(file, header, kind, factors, unit_notes(header, factors), beside)

    @property
    def wanted(self) -> frozenset[str]:
        if self.kind == "xp":
            return COEFFICIENT_COLUMNS
        return frozenset((*MEASURED, "designation"))

    def observe(self, row: Row, source_id: str) -> Observation:
        if row.fault:
            raise ValueError(row.fault)
        notes = list(self.notes)
        if row.cut:
            notes.append("the file ends in this row without a line break: it may be cut short")
        if self.kind == "sources":
            source = measured(row, source_id, self.factors)
            return _observation(self.file, source_id, source, None, notes=notes)
        xp = coefficients(row)
        notes += [f"no {arm.upper()} coefficients" for arm in BASIS if getattr(xp, arm) is None]
        found = Source("DR3", {})
        for path in self.beside:
            try:
                table = _lookup(path)
            except (OSError, ValueError) as error:
                notes.append(f"source table {path.name} left out: {reason(error)}")
                continue
            source_there = find_source(table, source_id)
            if source_there is not None:
                found = source_there
                notes += table.notes
                break
        return _observation(self.file, source_id, found, xp, notes=notes)


def _observation(
    file: Path, source_id: str, source: Source, xp: XpCoefficients | None, *, notes: list[str]
) -> Observation:
    values = source.values
    position = position_of(values)
    scalars: dict[str, float] = {}
    catalogue: dict[str, CatalogueValue] = {
        column: values[name] for name, column in CATALOGUE.items() if name in values
    }
    notes = [*notes, *source.notes]
    ra_deg, dec_deg = (None, None) if position is None else position
    if ra_deg is None or dec_deg is None:
        notes.append("no position")
    else:
        scalars |= {"tok_ra": ra_deg, "tok_dec": dec_deg}
        catalogue["position_epoch_year"] = EPOCH[source.release]
        notes.append(f"position of epoch {EPOCH[source.release]}")
    fluxes, magnitudes = photometry(source, notes)
    scalars |= fluxes
    catalogue |= magnitudes
    if "parallax" in values and values["parallax"] > 0:
        scalars["tok_parallax"] = values["parallax"]
    elif "parallax" in values:
        notes.append(f"parallax {values['parallax']:.3f} mas is not positive: no scalar of it")
    arms = (None,) * 4 if xp is None else (xp.bp, xp.rp, xp.bp_error, xp.rp_error)
    same = source.release in SAME_SOURCES
    return Observation(
        survey="gaia",
        release=source.release if xp is None else "DR3",
        source_id=source_id,
        object_id=source_id if same else f"Gaia {source.release} {source_id}",
        fingerprint=fingerprint(RECIPE, source.release, repr(sorted(values.items())), *arms),
        source=str(file),
        source_part=source_id,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        xp=xp,
        scalars=scalars,
        catalogue=catalogue,
        notes=tuple(notes),
    )


def _source_id(row: Row) -> str:
    if row.fault:
        raise ValueError(row.fault)
    return row.source_id()


def _kind_of(header: Header) -> Kind | None:
    names = header.units.keys()
    if "source_id" not in names or {"flux", "flux_error"} <= names:
        return None
    if {f"{arm}_coefficients" for arm in BASIS} <= names:
        return "xp"
    return "sources" if MEASURED.keys() & names else None


def _refusal(header: Header) -> str:
    names = header.units.keys()
    if "source_id" in names and {"flux", "flux_error"} <= names:
        return (
            "spectra sampled in wavelength (flux, flux_error): there are no bp_coefficients and "
            "rp_coefficients in it, which the encoder reads; the archive hands them out as "
            "XP_CONTINUOUS"
        )
    some = ", ".join(list(names)[:8]) or "none"
    return (
        "expected source_id with bp_coefficients and rp_coefficients, or with columns of "
        f"gaia_source, got {some}"
    )


def _kind(file: Path) -> Kind | None:
    if not file.is_file():  # opening a pipe would wait for ever
        return None
    try:
        return _kind_of(read_header(file))
    except (OSError, ValueError):
        return None


def _beside(file: Path, kind: Kind) -> tuple[Path, ...]:
    """Files of the other kind that belong to this one."""
    cells = _RANGE.search(file.name)
    found = []
    for path, other in _kinds(file.parent):
        theirs = _RANGE.search(path.name)
        same_cells = cells is None or theirs is None or cells[1] == theirs[1]
        if other not in (None, kind) and same_cells:
            found.append(path)
    return tuple(found)


def _kinds(folder: Path) -> tuple[tuple[Path, Kind | None], ...]:
    """The tables in a folder, sorted, and what they are."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return ()
    if time.time_ns() - changed > _RACE_SECONDS * 1e9:
        return _known_kinds(folder, changed)
    return _known_kinds.__wrapped__(folder, changed)


@lru_cache(maxsize=16)
def _known_kinds(folder: Path, changed_ns: int) -> tuple[tuple[Path, Kind | None], ...]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ()
    return tuple(
        (folder / name, _kind(folder / name))
        for name in names
        if name.lower().endswith(GAIA_SUFFIXES) and not name.startswith(".")
    )


def _lookup(file: Path) -> SourceTable:
    stat = file.stat()
    return _load_sources(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)  # a folder of many XP files has one or two source tables
def _load_sources(file: Path, changed_ns: int, size: int) -> SourceTable:
    """A source table; rows that cannot be used are left out."""
    table = _Table.open(file)
    return gather(_usable_sources(table), notes=table.notes)


def _usable_sources(table: _Table) -> Iterator[tuple[str, Source]]:
    for row in read_rows(table.file, table.header, wanted=table.wanted):
        try:
            source_id = _source_id(row)
            yield source_id, measured(row, source_id, table.factors)
        except ValueError:
            continue  # it is reported where the source table itself is read


def _ids_in(files: tuple[Path, ...]) -> frozenset[int]:
    ids: set[int] = set()
    for file in files:
        stat = file.stat()
        ids |= _ids_of(file, stat.st_mtime_ns, stat.st_size)
    return frozenset(ids)


@lru_cache(maxsize=4)
def _ids_of(file: Path, changed_ns: int, size: int) -> frozenset[int]:
    """Ids of the sources of an XP file, as far as it can be read."""
    ids = set()
    with suppress(OSError, ValueError):  # it is reported where the XP file itself is read
        for row in read_rows(file, read_header(file), wanted=frozenset()):
            if not row.fault:
                ids.add(int(row.source_id()))
    return frozenset(ids)
