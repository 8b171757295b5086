"""DESI spectra: coadd-*.fits and spectra-*.fits of tiles and of healpixels, many targets a file.

FIBERMAP says what was observed; for each arm (B, R, Z) there are a wavelength, flux, ivar and mask
HDU (target, pixel). The arms are coadded onto the one grid of 7,781 pixels, 3600 to 9824 Angstrom;
a pixel is bad where no arm has a good one, and a pixel of an arm is bad where its mask is not 0.
The rows of a spectra file are exposures: those of one TARGETID with FIBERSTATUS 0 are coadded too.

Redshifts come from the redrock or zbest table beside the file. Sky fibres, bad fibres and negative
TARGETIDs are refused row by row.

Source: desidatamodel, coadd-SURVEY-PROGRAM-PIXNUM and spectra-SURVEY-PROGRAM-PIXNUM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from training.observations import Observation, ObservationBatch, Skipped, fingerprint
from training.surveys import redrock
from training.surveys.coaddition import coadd
from training.surveys.desi_arms import Arm, Arms, read_arms, weighted
from training.surveys.desi_targets import (
    COLUMNS_WANTED,
    NUMBERS,
    PLACES,
    WHOLE,
    Row,
    check_status,
    object_id,
    photometry,
    position,
    redshift,
    refuse_no_target,
)
from training.surveys.files import FITS_SUFFIXES, list_by_suffix, reason, stem
from training.surveys.lazy_fits import Hdu, LazyFits, check_kinds, open_lazily

RECIPE = "desi 1"  # part of the fingerprint: raise it when the same file gives other pixels
SPECTRA = ("coadd", "spectra")  # how the names of spectrum files begin


@dataclass(frozen=True, slots=True)
class Target:
    """One target of an open file: its rows, the first of which describes it."""

    rows: tuple[int, ...]  # ascending; several where the rows are exposures
    about: Row
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spectra:
    """An open file: its arms, its targets in order, and what is left out."""

    file: Path
    release: str
    arms: Arms
    targets: dict[int, Target]
    refused: dict[int, str]  # row -> why
    redshifts: redrock.Redshifts | None
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...]  # of the redshift table


def list_files(source: Path) -> list[Path]:
    """The spectrum files under a folder, sorted; a file is itself. See `Reader`.

    A spectra file is left out where its coadd lies beside it: that is the same light. A folder
    without any coadd-... or spectra-... gives all its FITS files but redshift tables.
    """
    found = list_by_suffix(source, FITS_SUFFIXES)
    if not source.is_dir():
        return found
    coadds = {(file.parent, stem(file).removeprefix("coadd")) for file in found if _is(file, 0)}
    chosen = [
        file
        for file in found
        if _is(file, 0)
        or (_is(file, 1) and (file.parent, stem(file).removeprefix("spectra")) not in coadds)
    ]
    return chosen or [file for file in found if not file.name.startswith(redrock.KINDS)]


def _is(file: Path, kind: int) -> bool:
    return file.name.startswith(f"{SPECTRA[kind]}-")


def companions(file: Path) -> tuple[Path, ...]:
    """The redshift table beside a file of spectra, if there is one. See `Reader`."""
    found = redrock.find(file)
    return () if found is None else (found,)


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The targets of a file in order, at most batch_size rows at a time. See `Reader`."""
    file = file.absolute()
    try:
        with open_lazily(file) as opened:
            spectra = _spectra(opened, file)
            first = (*spectra.skipped, *_refusals(spectra))
            for targets in _chunks(list(spectra.targets.values()), batch_size):
                batch = _batch(spectra, targets)
                yield ObservationBatch(batch.observations, (*first, *batch.skipped))
                first = ()
            if first:
                yield ObservationBatch((), first)
    except (OSError, ValueError) as error:
        yield ObservationBatch((), (Skipped(str(file), reason(error)),))


def read_one(source: Path, source_part: str) -> Observation:
    """The target of that TARGETID again. See `Reader`."""
    file = source.absolute()
    try:
        with open_lazily(file) as opened:
            spectra = _spectra(opened, file)
            target = int(source_part) if re.fullmatch(r"-?\d+", source_part) else None
            if target in spectra.targets:
                batch = _batch(spectra, [spectra.targets[target]])
                if batch.observations:
                    return batch.observations[0]
                raise ValueError(batch.skipped[0].reason)
            for refusal in _refusals(spectra):
                if f"(TARGETID {target})" in refusal.reason:
                    raise ValueError(refusal.reason)
            raise ValueError(f"no TARGETID {source_part!r} in the file")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {reason(error)}") from error


def _refusals(spectra: Spectra) -> tuple[Skipped, ...]:
    return tuple(Skipped(str(spectra.file), why) for _, why in sorted(spectra.refused.items()))


def _chunks(targets: list[Target], num_rows: int) -> Iterator[list[Target]]:
    """Targets in order, of together at most num_rows rows; a target is never divided."""
    chunk: list[Target] = []
    for target in targets:
        if chunk and sum(len(each.rows) for each in (*chunk, target)) > num_rows:
            yield chunk
            chunk = []
        chunk.append(target)
    if chunk:
        yield chunk


def _batch(spectra: Spectra, targets: list[Target]) -> ObservationBatch:
    rows = sorted(row for target in targets for row in target.rows)
    place = {row: here for here, row in enumerate(rows)}
    pixels = [
        (
            arm.flux.take(rows),
            arm.ivar.take(rows),
            None if arm.mask is None else arm.mask.take(rows),
        )
        for arm in spectra.arms.arms
    ]
    observations, skipped = [], []
    for target in targets:
        chosen = [place[row] for row in target.rows]
        parts = [
            (arm, flux[here], ivar[here], None if mask is None else mask[here])
            for here in chosen
            for arm, (flux, ivar, mask) in zip(spectra.arms.arms, pixels, strict=True)
        ]
        try:
            observations.append(_observe(spectra, target, parts))
        except ValueError as error:
            why = f"{_where(target.rows[0], target.about)}: {reason(error)}"
            skipped.append(Skipped(str(spectra.file), why))
    return ObservationBatch(tuple(observations), tuple(skipped))


def _where(row: int, about: Row) -> str:
    return f"row {row} (TARGETID {about['targetid']})"


def _observe(
    spectra: Spectra, target: Target, parts: list[tuple[Arm, ndarray, ndarray, ndarray | None]]
) -> Observation:
    about, number = target.about, int(target.about["targetid"])
    seen = coadd((weighted(*part) for part in parts), spectra.arms.grid)
    scalars, catalogue = photometry(about)
    notes = [*target.notes, *spectra.notes]
    measured = None
    if spectra.redshifts is not None:
        measured = spectra.redshifts.by_target.get(number)
        z_scalars, z_catalogue, z_notes = redshift(measured)
        scalars |= z_scalars
        catalogue |= z_catalogue
        notes.extend(z_notes)
    place = position(about)
    if place is None:
        notes.append("no position in the FIBERMAP")
    ra_deg, dec_deg = place or (None, None)
    values = [(name, about[name]) for name in sorted(about) if name not in PLACES]
    return Observation(
        survey="desi",
        release=spectra.release,
        source_id=str(number),
        object_id=object_id(number),
        fingerprint=fingerprint(
            RECIPE,
            spectra.arms.calibration,
            *(_plain(pixels) for part in parts for pixels in part[1:]),
            repr((values, measured)),
        ),
        source=str(spectra.file),
        source_part=str(number),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        spectrum=seen,
        scalars=scalars,
        catalogue=catalogue,
        notes=tuple(notes),
    )


def _plain(pixels: ndarray | None) -> ndarray | None:
    """The same numbers for the same content, however they were stored."""
    return None if pixels is None else pixels.astype(np.float64)


def _spectra(opened: LazyFits, file: Path) -> Spectra:
    hdus: dict[str, Hdu] = {}
    for hdu in opened.hdus():
        hdus.setdefault(hdu.name if hdu.number else "PRIMARY", hdu)
    if "FIBERMAP" not in hdus:
        found = ", ".join(f"{hdu.number} {name or 'nameless'}" for name, hdu in hdus.items())
        raise ValueError(f"no usable HDU: expected FIBERMAP, got {found}")
    table = opened.table(hdus["FIBERMAP"], COLUMNS_WANTED)
    if "targetid" not in table:
        raise ValueError(f"HDU {hdus['FIBERMAP'].number} FIBERMAP: no column TARGETID")
    check_kinds(table, whole=WHOLE, numbers=NUMBERS)
    arms = read_arms(opened, hdus, num_rows=len(table["targetid"]))
    by_exposure = stem(file).startswith("spectra") or (
        "expid" in table and "coadd_fiberstatus" not in table
    )
    targets, refused = _exposures(table) if by_exposure else _coadds(table)
    redshifts, skipped, notes = _redshifts(file)
    return Spectra(
        file=file,
        release=_release(hdus["PRIMARY"]),
        arms=arms,
        targets=targets,
        refused=refused,
        redshifts=redshifts,
        notes=(*arms.notes, *notes),
        skipped=skipped,
    )


def _rows(table: dict[str, ndarray]) -> Iterator[tuple[int, Row]]:
    columns = {name: column.tolist() for name, column in table.items()}
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        yield row, dict(zip(columns, values, strict=True))


def _coadds(table: dict[str, ndarray]) -> tuple[dict[int, Target], dict[int, str]]:
    """Targets of a file of one row a target, and the rows refused."""
    targets: dict[int, Target] = {}
    refused: dict[int, str] = {}
    for row, about in _rows(table):
        try:
            refuse_no_target(about)
            if about["targetid"] in targets:
                raise ValueError("the TARGETID came before")
        except ValueError as error:
            refused[row] = f"{_where(row, about)}: {error}"
            continue
        targets[about["targetid"]] = Target((row,), about, ())
    return targets, refused


def _exposures(table: dict[str, ndarray]) -> tuple[dict[int, Target], dict[int, str]]:
    """Targets of a file of one row an exposure, and the rows refused.

    An exposure with a bad fibre is refused; a target that has others is made from those.
    """
    chosen: dict[int, dict[tuple[object, ...], int]] = {}
    first: dict[int, Row] = {}
    refused: dict[int, str] = {}
    for row, about in _rows(table):
        try:
            refuse_no_target(about)
            check_status(about.get("fiberstatus", 0), name="FIBERSTATUS")
            exposures = chosen.setdefault(about["targetid"], {})
            which = tuple(about.get(name) for name in ("expid", "tileid", "fiber"))
            if "expid" in about and which in exposures:
                raise ValueError("the same exposure came before")
            exposures[which] = row
            first.setdefault(about["targetid"], about)
        except ValueError as error:
            refused[row] = f"{_where(row, about)}: {error}"
    targets = {}
    for number, exposures in chosen.items():
        used = tuple(sorted(exposures.values()))
        noted = (f"coadded from {len(used)} exposures",) if len(used) > 1 else ()
        if used:
            targets[number] = Target(used, first[number], noted)
    return targets, refused


def _redshifts(
    file: Path,
) -> tuple[redrock.Redshifts | None, tuple[Skipped, ...], tuple[str, ...]]:
    """The redshift table of a file, what of it is left out, and a note where there is none."""
    table = redrock.find(file)
    if table is None:
        return None, (), ("no redshift table: redshift and class left out",)
    try:
        redshifts = redrock.read_redshifts(table)
    except (OSError, ValueError) as error:
        why = reason(error)
        return None, (Skipped(str(table), why),), (f"{table.name} could not be used: {why}",)
    return redshifts, tuple(Skipped(str(table), why) for why in redshifts.repeated), ()


def _release(primary: Hdu) -> str:
    """SPECPROD of the header or of its list of dependencies: fuji is EDR, iron DR1."""
    header = primary.header
    if header.get("SPECPROD", "").strip():
        return header["SPECPROD"].strip()
    for key, value in header.items():
        if key.startswith("DEPNAM") and value.strip() == "SPECPROD":
            return header.get(f"DEPVER{key.removeprefix('DEPNAM')}", "").strip()
    return ""
