"""Tables as files that other programs read, with what made them inside."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed_version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import votable
from astropy.io.fits import BinTableHDU, HDUList, PrimaryHDU, table_to_hdu
from astropy.io.votable.tree import Info
from astropy.table import MaskedColumn, Table

PARQUET_KEY = b"skykin"  # of the schema metadata


def encode(table: Table, provenance: Mapping[str, object], ending: str) -> bytes:
    """Content of a file of the table.

    Args:
        table: Masked where a value is unknown.
        provenance: Name -> what made the table; anything JSON can carry.
        ending: csv (ECSV: comment lines, then plain CSV), parquet, fits or vot.

    Raises:
        ValueError: another ending.
    """
    encoders: dict[str, Callable[[Table, dict[str, object]], bytes]] = {
        "csv": _csv,
        "parquet": _parquet,
        "fits": _fits,
        "vot": _votable,
    }
    if ending not in encoders:
        raise ValueError(
            f"cannot write a table as {ending!r}: the file's name must end in "
            f"{', '.join('.' + known for known in encoders)}"
        )
    made_by = {"creator": f"skykin {installed_version('skykin')}", **provenance}
    return encoders[ending](table, made_by)


def _csv(table: Table, provenance: dict[str, object]) -> bytes:
    plain = table.copy()
    plain.meta = dict(provenance)
    buffer = io.StringIO()
    plain.write(buffer, format="ascii.ecsv", delimiter=",")
    return buffer.getvalue().encode()


def _parquet(table: Table, provenance: dict[str, object]) -> bytes:
    arrays, fields = [], []
    for name in table.colnames:
        column = table[name]
        mask = np.asarray(column.mask) if isinstance(column, MaskedColumn) else None
        values = np.asarray(column.data.data if mask is not None else column.data)
        if values.dtype.kind == "U":
            array = pa.array(values.tolist(), type=pa.string(), mask=mask)
        else:
            array = pa.array(values, mask=mask)
        about = {"description": column.description or ""}
        if column.unit is not None:
            about["unit"] = str(column.unit)
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=about))
    schema = pa.schema(fields, metadata={PARQUET_KEY: json.dumps(provenance)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return bytes(sink.getvalue())


def _fits(table: Table, provenance: dict[str, object]) -> bytes:
    plain = table.copy()
    descriptions = {name: table[name].description for name in table.colnames}
    for name in plain.colnames:
        column = plain[name]
        if column.dtype.kind == "U":  # FITS has bytes only
            values = column.filled("") if isinstance(column, MaskedColumn) else column
            plain[name] = np.char.encode(np.asarray(values), "utf-8")
    hdu: BinTableHDU = table_to_hdu(plain)
    hdu.name = "HITS"
    for number, name in enumerate(plain.colnames, start=1):
        hdu.header[f"TCOMM{number}"] = descriptions[name]
    for card, (value, comment) in _cards(provenance).items():
        hdu.header[card] = (value, comment) if comment else value
    buffer = io.BytesIO()
    HDUList([PrimaryHDU(), hdu]).writeto(buffer, checksum=True)
    return buffer.getvalue()


def _cards(provenance: Mapping[str, object]) -> dict[str, tuple[str | int, str]]:
    """FITS cards: names of eight letters, values as they are or as JSON (continued if long)."""
    cards: dict[str, tuple[str | int, str]] = {}
    for name, value in provenance.items():
        if isinstance(value, int):
            cards[name.upper()[:8]] = (value, f"{name} of the sky")
        else:
            cards[name.upper()[:8]] = (_text(value), "")
    return cards


def _votable(table: Table, provenance: dict[str, object]) -> bytes:
    document = votable.from_table(table.copy(), table_id="hits")
    resource = document.resources[0]
    for name, value in provenance.items():
        resource.infos.append(Info(name=name, value=_text(value)))
    buffer = io.BytesIO()
    document.to_xml(buffer)
    return buffer.getvalue()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
