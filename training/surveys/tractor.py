"""Tractor and sweep catalogues of the Legacy Survey, with cutouts where the coadds are there too.

One row is one source as The Tractor modelled it: total fluxes in nanomaggies (AB, zero point 22.5),
a type (PSF, REX, EXP, DEV, SER; SIMP and COMP in older releases) and, but for PSF, a half-light
radius and ellipticities. Fluxes and magnitudes are as observed: not corrected for Galactic
extinction, which EBV (SFD98, mag) allows to do. A band whose inverse variance is 0 was not
observed and is left out.

Left out and counted: rows that are not BRICK_PRIMARY (a neighbouring brick has the source too), and
TYPE DUP (a Gaia star that is modelled as a galaxy of its own row). Rows come brick by brick, bricks
in the order in which they first come; so the coadds of one brick at a time are in memory. Rows
that are not primary still are neighbours of those that are.

An id is RELEASE-BRICKID-OBJID: the three numbers that are unique together (legacysurvey.org,
catalogs page), and the three that DESI packs into a TARGETID.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from training.observations import (
    IMAGE_SIZE,
    CatalogueValue,
    Ellipses,
    Field,
    Image,
    Observation,
    ObservationBatch,
    Skipped,
    fingerprint,
    sky_position,
)
from training.surveys import bricks
from training.surveys.files import reason
from training.surveys.nanomaggies import photometry
from training.surveys.neighbours import (
    OBJECT_VALUE,
    Shapes,
    drawable,
    ellipses,
    join,
    object_mask,
)
from training.surveys.tractor_sources import (
    NEIGHBOUR_COLUMNS,
    Sources,
    decode,
    fluxes,
    release_name,
)
from training.surveys.tractor_table import (
    BrickRows,
    Table,
    group_by_brick,
    open_table,
)

RECIPE = "tractor 1"  # part of the fingerprint: raise it when the same row gives another object
_ROWS_AT_ONCE = 16_384  # of a brick without coadds
_PART = re.compile(r"(\d+)-(\d+)-(\d+)")


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The sources of one table. See `Reader`."""
    file = file.absolute()
    pending: list[Observation | Skipped] = []
    try:
        with open_table(file) as table:
            for each in _objects(file, table):
                pending.append(each)
                if len(pending) == batch_size:
                    yield _batch(pending)
                    pending = []
    except (OSError, ValueError) as error:
        pending.append(Skipped(str(file), reason(error)))
    if pending:
        yield _batch(pending)


def read_one(source: Path, source_part: str) -> Observation:
    """The source of one id (RELEASE-BRICKID-OBJID) again. See `Reader`."""
    source = source.absolute()
    try:
        wanted = _PART.fullmatch(source_part)
        if wanted is None:
            raise ValueError(f"expected an id RELEASE-BRICKID-OBJID, got {source_part!r}")
        release, brickid, objid = (int(number) for number in wanted.groups())
        with open_table(source) as table:
            groups = _groups_of(source)
            for brick in groups:
                if (brick.release, brick.brickid) == (release, brickid):
                    objids = table.columns(brick.rows, frozenset(("objid",)))["objid"]
                    rows = brick.rows[np.flatnonzero(objids == objid)]
                    for each in _objects_of(source, table, groups, brick, rows, _Tally()):
                        if isinstance(each, Observation):
                            return each
                        if each.reason.startswith("row "):
                            raise ValueError(each.reason)
        raise ValueError(f"no source {source_part} in it that is primary and no duplicate")
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {reason(error)}") from error


def companions(file: Path) -> tuple[Path, ...]:
    """The coadds of the bricks of a table; none where the table cannot be read."""
    file = file.absolute()
    found: set[Path] = set()
    try:
        if bricks.may_have_coadds(file):
            with open_table(file) as table:
                for brick in _groups_of(file):
                    coadds = bricks.find(file, brick=_name(table, brick), release=brick.release)
                    found.update(() if coadds is None else coadds.files)
    except (OSError, ValueError):
        return ()  # reading it says why
    return tuple(sorted(found))


@dataclass(slots=True)
class _Tally:
    """Rows left out on purpose."""

    not_primary: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A brick's pixels, and all sources that lie on them."""

    brick: bricks.Brick
    x: Float64[ndarray, " source"]  # ascending
    y: Float64[ndarray, " source"]
    shapes: Shapes

    def around(self, first_x: int, first_y: int) -> tuple[Ellipses, Field]:
        """Ellipses and object mask of the cutout with this lower left pixel."""
        start, stop = np.searchsorted(self.x, [first_x - 1, first_x + IMAGE_SIZE + 1])
        near = np.arange(start, stop)
        x, y, shapes = self.x[near] - first_x, self.y[near] - first_y, self.shapes.take(near)
        inside = drawable(x, y, shapes)
        x, y, shapes = x[inside], y[inside], shapes.take(inside)
        return ellipses(x, y, shapes), object_mask(x, y, shapes)


def _batch(pending: list[Observation | Skipped]) -> ObservationBatch:
    return ObservationBatch(
        tuple(each for each in pending if isinstance(each, Observation)),
        tuple(each for each in pending if isinstance(each, Skipped)),
    )


def _groups_of(file: Path) -> tuple[BrickRows, ...]:
    stat = file.stat()
    return _groups(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _groups(file: Path, num_bytes: int, changed_ns: int) -> tuple[BrickRows, ...]:
    with open_table(file) as table:
        return group_by_brick(table)


def _objects(file: Path, table: Table) -> Iterator[Observation | Skipped]:
    groups, tally = group_by_brick(table), _Tally()
    for brick in groups:
        yield from _objects_of(file, table, groups, brick, brick.rows, tally)
    if tally.not_primary:
        yield Skipped(
            str(file), f"{tally.not_primary:,} rows are not BRICK_PRIMARY: other bricks have them"
        )
    if tally.duplicates:
        yield Skipped(
            str(file), f"{tally.duplicates:,} rows of TYPE DUP: stars that other rows model"
        )


def _objects_of(
    file: Path,
    table: Table,
    groups: tuple[BrickRows, ...],
    brick: BrickRows,
    rows: Int64[ndarray, " row"],
    tally: _Tally,
) -> Iterator[Observation | Skipped]:
    """Some rows of one brick as objects."""
    name = _name(table, brick)
    coadds = bricks.find(file, brick=name, release=brick.release)
    view, lost = None, f"no coadd of brick {name}: no image"
    if coadds is not None:
        try:
            view = _view(table, groups, brick, coadds, decode(table, rows))
        except ValueError as error:
            lost = f"no image: {error}"
            yield Skipped(str(file), f"brick {name}: its objects have no image: {error}")
    seen: dict[int, int] = {}
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        sources = decode(table, rows[start : start + _ROWS_AT_ONCE])
        duplicate = sources.shapes.kind == "DUP"
        tally.not_primary += int((~sources.primary).sum())
        tally.duplicates += int((sources.primary & duplicate).sum())
        for index in sources.kept():
            number, objid = int(sources.row[index]), int(sources.columns["objid"][index])
            part = f"{brick.release}-{brick.brickid}-{objid}"
            try:
                if objid in seen:
                    raise ValueError(f"the same id as row {seen[objid]}")
                seen[objid] = number
                yield _observe(file, sources, int(index), part, view, lost)
            except ValueError as error:
                yield Skipped(str(file), f"row {number} ({part}): {error}")


def _observe(
    file: Path, sources: Sources, index: int, part: str, view: _View | None, lost: str
) -> Observation:
    columns = {name: values[index] for name, values in sources.columns.items()}
    kind, radius = str(sources.shapes.kind[index]), float(sources.shapes.radius_arcsec[index])
    place = sky_position(float(columns["ra"]), float(columns["dec"]))
    if place is None:
        raise ValueError("no position: RA and DEC are NaN")
    ra_deg, dec_deg = place
    if kind not in OBJECT_VALUE:
        raise ValueError(f"unknown TYPE {kind!r}: expected one of {', '.join(OBJECT_VALUE)}")
    flux_nmgy = fluxes(columns)
    scalars = {f"tok_flux_{band}": flux for band, flux in flux_nmgy.items() if flux > 0}
    catalogue = photometry({band: flux_nmgy[band] for band in "griz" if band in flux_nmgy})
    catalogue["morphology"] = kind
    if kind != "PSF" and np.isfinite(radius) and radius > 0:
        catalogue["radius_arcsec"] = scalars["tok_shape_r"] = radius
        for component in ("e1", "e2"):
            value = float(getattr(sources.shapes, component)[index])
            if abs(value) < 1:
                scalars[f"tok_shape_{component}"] = value
    ebv = float(columns.get("ebv", np.nan))
    if np.isfinite(ebv) and ebv >= 0:
        scalars["tok_ebv"] = ebv
    image, around, field, notes = None, None, None, [lost]
    if view is not None:
        try:
            pixel = view.brick.pixel(np.array([ra_deg]), np.array([dec_deg]))
            first_x, first_y = (int(each) for each in bricks.corner(pixel)[0])
            cutout = view.brick.cut(first_x, first_y)
            image, notes = cutout.image, list(cutout.notes)
            around, field = view.around(first_x, first_y)
        except ValueError as error:
            notes = [f"no image: {error}"]
    return Observation(
        survey="legacysurvey",
        release=release_name(int(columns["release"])),
        source_id=part,
        object_id=part,
        fingerprint=_fingerprint(
            part, (ra_deg, dec_deg), scalars, catalogue, image=image, ellipses=around, field=field
        ),
        source=str(file),
        source_part=part,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        image=image,
        object_mask=field,
        ellipses=around,
        scalars=scalars,
        catalogue=catalogue,
        notes=(*notes, "magnitudes not corrected for Galactic extinction"),
    )


def _fingerprint(
    part: str,
    position: tuple[float, float],
    scalars: dict[str, float],
    catalogue: dict[str, CatalogueValue],
    *,
    image: Image | None,
    ellipses: Ellipses | None,
    field: Field | None,
) -> str:
    numbers = json.dumps([part, position, scalars, catalogue], sort_keys=True)
    if image is None or ellipses is None or field is None:
        return fingerprint(RECIPE, numbers, None)
    return fingerprint(
        RECIPE,
        numbers,
        ",".join(image.bands),
        *(image.flux, image.ivar, image.mask, field.value),
        *(ellipses.x, ellipses.y, ellipses.shape_e1, ellipses.shape_e2, ellipses.shape_r_arcsec),
    )


def _name(table: Table, brick: BrickRows) -> str:
    return str(table.columns(brick.rows[:1], frozenset(("brickname",)))["brickname"][0])


def _view(
    table: Table,
    groups: tuple[BrickRows, ...],
    brick: BrickRows,
    coadds: bricks.Coadds,
    sources: Sources,
) -> _View:
    kept = sources.kept()
    pixels = bricks.read_brick(
        coadds, ra_deg=sources.columns["ra"][kept], dec_deg=sources.columns["dec"][kept]
    )
    parts = [decode(table, brick.rows, NEIGHBOUR_COLUMNS)]
    if parts[0].primary.all():  # else the brick's own rows go beyond its edge
        parts += [
            decode(table, other.rows, NEIGHBOUR_COLUMNS)
            for other in groups
            if other is not brick and other.release == brick.release and brick.touches(other)
        ]
    chosen = [np.arange(len(parts[0].row)), *(part.kept() for part in parts[1:])]
    shapes = join([part.shapes.take(index) for part, index in zip(parts, chosen, strict=True)])
    ra_deg, dec_deg = (
        np.concatenate([part.columns[name][i] for part, i in zip(parts, chosen, strict=True)])
        for name in ("ra", "dec")
    )
    pixel = pixels.pixel(ra_deg, dec_deg)
    order = np.argsort(pixel[:, 0], kind="stable")  # NaN comes last
    return _View(brick=pixels, x=pixel[order, 0], y=pixel[order, 1], shapes=shapes.take(order))
