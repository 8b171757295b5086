"""Rows and objects: what one survey saw, and what all of them say about one object.

A row is one observation of one survey. An object is what rows with one object_id have in common;
its int64 key is given once and never used again. Missing is NULL, never NaN.

Which rows are one object
    object_id is source_id unless the reader gives another, which is then a match it vouches for (an
    SDSS spectrum carries the id of its photometric object). So: an id that a survey uses for its
    own rows (object_id = source_id) is taken by the first survey that comes with it; the same id as
    another survey's own id may mean anything and is written `survey:source_id`; a match always
    joins the object of that id, whichever came first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64
from numpy import ndarray

from index.predicate import connection, quoted
from training.observations import CatalogueValue, Observation

# Columns that every sky has, so that a predicate on one of them is never an unknown column.
CATALOGUE: dict[str, pa.DataType] = {
    **{f"mag_{band}": pa.float64() for band in "ugriz"},  # AB magnitude
    **{f"flux_{band}_nmgy": pa.float64() for band in "ugriz"},
    "redshift": pa.float64(),
    "redshift_source": pa.string(),  # who measured it
    "spectrum_class": pa.string(),
    "radius_arcsec": pa.float64(),
}
ROW_FIELDS: dict[str, pa.DataType] = {
    "reader": pa.string(),  # whose reader finds it again (training.surveys)
    "survey": pa.string(),
    "release": pa.string(),
    "source_id": pa.string(),
    "object_id": pa.string(),  # as the reader gave it
    "source": pa.string(),
    "source_part": pa.string(),
    "fingerprint": pa.string(),
    "calibrated": pa.bool_(),
    "notes": pa.list_(pa.string()),
    "precision": pa.string(),  # of the encoder's arithmetic; NULL until the row has its vector
    "ra_deg": pa.float64(),
    "dec_deg": pa.float64(),
}
OBJECT_FIELDS: dict[str, pa.DataType] = {
    "object_key": pa.int64(),
    "object_id": pa.string(),
    "ra_deg": pa.float64(),
    "dec_deg": pa.float64(),
    "views": pa.list_(pa.string()),
    "_healpix_29": pa.int64(),  # HATS: nested HEALPix cell of order 29
}
_RESERVED = {*ROW_FIELDS, *OBJECT_FIELDS, "file", "view"} - {"ra_deg", "dec_deg"}


def as_rows(seen: Sequence[tuple[int, Observation, tuple[str, ...]]], *, reader: str) -> pa.Table:
    """Rows of observations: the number of the file, ROW_FIELDS, views, and catalogue columns.

    Args:
        seen: Number of the file, observation, views that the encoder makes of it.
        reader: Name of the reader that gave them.

    Raises:
        ValueError: a catalogue column has the name of a column of ours, or values of two types.
    """
    observations = [observation for _, observation, _ in seen]
    columns: dict[str, pa.Array] = {
        "file": pa.array([number for number, _, _ in seen], pa.int64()),
        "views": pa.array([list(views) for _, _, views in seen], pa.list_(pa.string())),
    }
    for name, kind in ROW_FIELDS.items():
        if name in ("reader", "precision"):
            same = reader if name == "reader" else None
            columns[name] = pa.array([same] * len(seen), kind)
            continue
        values = [getattr(observation, name) for observation in observations]
        columns[name] = pa.array([list(v) if name == "notes" else v for v in values], kind)
    names = dict.fromkeys(name for observation in observations for name in observation.catalogue)
    for name in names:
        if name in _RESERVED:
            raise ValueError(f"a catalogue column may not be called {name!r}: the name is taken")
        if name not in ("ra_deg", "dec_deg"):
            columns[name] = _catalogue(name, [o.catalogue for o in observations])
    return pa.table(columns)


def _catalogue(name: str, catalogues: Sequence[Mapping[str, CatalogueValue]]) -> pa.Array:
    values = [_null_if_not_finite(catalogue.get(name)) for catalogue in catalogues]
    kind = CATALOGUE.get(name)
    if kind is None and any(isinstance(value, float) for value in values):
        kind = pa.float64()
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"catalogue column {name!r}: expected values of one type: {error}"
        ) from error


def _null_if_not_finite(value: CatalogueValue) -> CatalogueValue:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_all_columns(rows: pa.Table) -> pa.Table:
    """Rows with every column of CATALOGUE, NULL where a survey has none."""
    for name, kind in CATALOGUE.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
    return rows


def merge_rows(rows: pa.Table, ids: pa.Table) -> pa.Table:
    """The object table of some rows.

    Every column takes the first value that is not NULL: calibrated rows first, then by name of
    survey, release and source_id, so that the order of builds does not matter. A redshift and its
    source come from one row, and so do right ascension and declination.

    Args:
        rows: object_key, view, ROW_FIELDS and catalogue columns. Rows of a
            joint view made from several surveys have no values of their own.
        ids: object_key, object_id.

    Returns:
        OBJECT_FIELDS and catalogue columns, ordered by object_key.
    """
    rows = with_all_columns(rows)
    kept = {*ROW_FIELDS, "object_key", "view", "redshift_source"} - {"ra_deg", "dec_deg"}
    merged = [name for name in rows.column_names if name not in kept]

    def first(name: str, condition: str) -> str:
        order = "ORDER BY calibrated DESC, survey, release, source_id"
        return f"first({quoted(name)} {order}) FILTER (WHERE {condition}) AS {quoted(name)}"

    columns = [first(name, f"{quoted(name)} IS NOT NULL") for name in merged]
    columns.append(first("redshift_source", "redshift IS NOT NULL"))
    with connection() as database:
        database.register("seen", rows)
        database.register("ids", ids)
        table = database.sql(
            f"""
            SELECT ids.object_key, ids.object_id, merged.* EXCLUDE (object_key)
            FROM ids JOIN (
                SELECT object_key, list_sort(list_distinct(list("view"))) AS views,
                    {", ".join(columns)}
                FROM seen GROUP BY object_key
            ) AS merged USING (object_key)
            ORDER BY ids.object_key
            """
        ).to_arrow_table()
    cells = healpix_cells(_floats(table["ra_deg"]), _floats(table["dec_deg"]))
    table = table.append_column("_healpix_29", pa.array(cells, mask=cells < 0))
    order = [*OBJECT_FIELDS, *CATALOGUE]
    order += [name for name in table.column_names if name not in order]
    table = table.select(order)
    kinds = {field.name: field.type for field in table.schema} | OBJECT_FIELDS | CATALOGUE
    return table.cast(pa.schema(kinds))


def healpix_cells(
    ra_deg: Float64[ndarray, " n"], dec_deg: Float64[ndarray, " n"]
) -> Int64[ndarray, " n"]:
    """Nested HEALPix cells of order 29; -1 where the position is NaN."""
    from astropy import units
    from astropy.coordinates import Latitude, Longitude
    from cdshealpix.nested import lonlat_to_healpix

    cells = np.full(len(ra_deg), -1, np.int64)
    known = np.isfinite(ra_deg)
    if known.any():
        cells[known] = lonlat_to_healpix(
            Longitude(ra_deg[known] * units.deg), Latitude(dec_deg[known] * units.deg), depth=29
        ).astype(np.int64)
    return cells


def _floats(column: pa.ChunkedArray) -> Float64[ndarray, " n"]:
    """A column as float64, NaN where NULL (for arithmetic; tables keep NULL)."""
    return column.cast(pa.float64()).to_numpy()
