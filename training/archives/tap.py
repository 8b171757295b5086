"""Questions to a table service: ADQL in, rows out, by one synchronous request.

Source: IVOA Table Access Protocol 1.1. astroquery.gaia speaks it too, but without a time limit,
without another attempt and with results in the working directory, so that the requests are made
here.
"""

from __future__ import annotations

import csv
import io
import re

import numpy as np
from astropy.io.votable import from_table
from astropy.table import Table

from training.archives.transfer import Answer, Client

Row = dict[str, str]


def ask(
    client: Client,
    url: str,
    adql: str,
    *,
    columns: tuple[str, ...],
    upload: Table | None = None,
    max_rows: int,
) -> list[Row]:
    """Rows of a query, column name in lower case -> text.

    Args:
        client: Of the service.
        url: The service's address of synchronous queries.
        adql: The query.
        columns: What the answer must have, in lower case.
        upload: A table that the query calls tap_upload.targets.
        max_rows: As many rows as the service gives at most: an answer of that length may be cut.

    Raises:
        ArchiveUnreachable, NotThere, TransferFailed: as `Client.request`.
    """
    fields = {"REQUEST": "doQuery", "LANG": "ADQL", "FORMAT": "csv", "QUERY": adql}
    files = None
    if upload is not None:
        content = io.BytesIO()
        from_table(upload).to_xml(content)
        fields["UPLOAD"] = "targets,param:targets"
        files = {"targets": ("targets.vot", content.getvalue(), "application/x-votable+xml")}

    def rows(answer: Answer) -> list[Row]:
        return _rows(answer, columns, max_rows)

    return client.request("POST", url, rows, data=fields, files=files)


def boxes(
    ra_column: str, dec_column: str, places: list[tuple[float, float]], radius_arcsec: float
) -> str:
    """A condition that holds within a radius of any of the places, and somewhat beyond.

    Boxes in right ascension and declination: every table service can look them up.
    """
    radius = radius_arcsec / 3600
    parts = []
    for ra_deg, dec_deg in places:
        low, high = max(dec_deg - radius, -90), min(dec_deg + radius, 90)
        cosine = np.cos(np.radians(max(abs(low), abs(high))))
        width = radius / cosine if cosine > radius / 180 else 180.0
        band = f"{dec_column} BETWEEN {low:.7f} AND {high:.7f}"
        ranges = [(ra_deg - width, ra_deg + width)]
        if width >= 180:
            ranges = [(0.0, 360.0)]
        elif ra_deg - width < 0:
            ranges = [(0.0, ra_deg + width), (ra_deg - width + 360, 360.0)]
        elif ra_deg + width >= 360:
            ranges = [(ra_deg - width, 360.0), (0.0, ra_deg + width - 360)]
        parts += [
            f"({ra_column} BETWEEN {first:.7f} AND {last:.7f} AND {band})" for first, last in ranges
        ]
    return " OR ".join(parts)


def _rows(answer: Answer, columns: tuple[str, ...], max_rows: int) -> list[Row]:
    text = answer.content.decode("utf-8", "replace")
    if text.lstrip().startswith("<"):  # a VOTable: how TAP tells an error
        said = re.search(r'QUERY_STATUS"\s+value="ERROR"[^>]*>(.*?)</', text, re.DOTALL)
        raise ValueError(f"the query failed: {' '.join((said[1] if said else text).split())[:300]}")
    lines = csv.reader(io.StringIO(text))
    header = [name.strip().lower() for name in next(lines, [])]
    if not set(columns) <= set(header):
        raise ValueError(f"expected a table of {', '.join(columns)}, got {text[:200]!r}")
    rows = []
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise ValueError(f"truncated: a row of {len(cells)} cells, expected {len(header)}")
        rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=True)))
    if len(rows) >= max_rows:
        raise ValueError(f"{max_rows:,} rows or more: the answer may be cut; make the radius less")
    return rows
