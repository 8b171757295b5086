"""Tables of the Gaia archive, row by row, in every format that the archive hands out.

Csv with arrays as "(1.0, 2.0)"; ecsv with arrays as "[1.0,2.0]", which is also what the bulk
download is (csv.gz that begins with YAML in # lines, null for missing); FITS binary tables, arrays
of fixed or variable length; VOTables. Each may be gzipped. The format is seen from the first bytes
of the file, not from its name.

Text and FITS are read a block at a time. A VOTable is taken whole, with the wanted columns only.
A gzipped file is checked to its end before its first row is given: a damaged one gives no rows.

A source_id goes beyond 2^53, so it never passes through floating point.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import tempfile
import warnings
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from astropy.io import votable
from astropy.io.votable.exceptions import VOWarning
from astropy.table.meta import YamlParseError, get_header_from_yaml
from astropy.utils.exceptions import AstropyWarning
from astropy.utils.xml.iterparser import get_xml_iterator
from jaxtyping import Float64
from numpy import ndarray

from training.surveys.files import (
    BROKEN_FITS,
    GZIP_START,
    open_regular,
    pieces_unpacked,
    read_whole,
)
from training.surveys.fits_rows import find_table

GAIA_SUFFIXES = tuple(
    suffix + packed
    for suffix in (".csv", ".ecsv", ".fits", ".vot", ".votable", ".xml")
    for packed in ("", ".gz")
)
# What the libraries let through when a file is damaged.
BROKEN_TABLE = (
    *(*BROKEN_FITS, csv.Error, YamlParseError, VOWarning, zlib.error),
    *(EOFError, AttributeError),
)
_FITS = b"SIMPLE  ="
_VOTABLE = re.compile(rb"\s*(<\?xml|<!--|<VOTABLE)")
_LINE_CHARACTERS = 1 << 20  # an XP row has 45,000
_MISSING = ("", "null", "nan", "--")

Format = Literal["csv", "fits", "votable"]
Cell = str | int | float | ndarray | None


@dataclass(frozen=True, slots=True)
class Header:
    """What a table says of itself before its first row."""

    format: Format
    units: Mapping[str, str]  # column name in lower case -> unit as written, "" = not stated


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; a cell is decoded when it is asked for."""

    number: int  # the first is 1
    cells: Mapping[str, Cell] = field(default_factory=dict)
    fault: str = ""  # why the line cannot be used
    cut: bool = False  # the text ends in this line, without a line break

    def source_id(self) -> str:
        """The id as decimal digits.

        Raises:
            ValueError: there is none, or it was stored as floating point.
        """
        value = self.cells.get("source_id")
        if isinstance(value, int):
            value = str(value)
        if not isinstance(value, str) or not re.fullmatch(r"[1-9][0-9]{0,18}", value.strip()):
            raise ValueError(f"expected source_id as a positive whole number, got {value!r}")
        if int(value) >= 2**63:
            raise ValueError(f"expected source_id below 2^63, got {value}")
        return value.strip()

    def text(self, name: str) -> str:
        """Text of a cell, "" where it is missing."""
        value = self.cells.get(name)
        return "" if value is None or str(value).strip().lower() in _MISSING else str(value).strip()

    def number_of(self, name: str) -> float | None:
        """A number, None where it is missing or NaN.

        Raises:
            ValueError: the cell holds something else, or infinity.
        """
        value = self.cells.get(name)
        if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
            return None
        try:
            number = _as_float(value) if isinstance(value, str) else float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: expected a number, got {str(value)[:40]!r}") from error
        if np.isinf(number):
            raise ValueError(f"{name}: expected a finite number, got {number}")
        return None if np.isnan(number) else number

    def array_of(self, name: str) -> Float64[ndarray, " n"] | None:
        """Several numbers, None where the cell is missing, empty or all NaN.

        Raises:
            ValueError: the cell holds something else.
        """
        value = self.cells.get(name)
        if isinstance(value, str):
            value = _as_array(value, name)
        if value is None:
            return None
        cells: np.ma.MaskedArray[Any, Any] = np.ma.asarray(value)
        try:
            if cells.dtype.kind not in "fiuO":
                raise TypeError(cells.dtype)
            # Floating point first: there is no NaN among whole numbers to fill in.
            array = np.asarray(np.ma.filled(cells.astype(np.float64), np.nan)).reshape(-1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: expected numbers, got {str(value)[:40]!r}") from error
        return None if np.isnan(array).all() else array


def read_header(file: Path) -> Header:
    """Format, columns and units of a table.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is none of the formats, damaged, or an error message of the archive.
    """
    with _damage_named():
        with _unpacked(file) as stream:
            start = stream.read(64)
        if start.startswith(_FITS):
            with _unpacked(file, seekable=True) as stream:
                return Header("fits", find_table(stream, "source_id").units)
        with _unpacked(file) as stream:
            if _VOTABLE.match(start.removeprefix(b"\xef\xbb\xbf")):
                return Header("votable", dict(_votable_fields(stream)))
            with _text(stream) as lines:
                described, _, names = _text_header(_lines(lines))
                units = _text_units(described, names)
            return Header("csv", {name: units.get(name, "") for name in names if name})


def read_rows(
    file: Path, header: Header, *, wanted: frozenset[str], only: str | None = None
) -> Iterator[Row]:
    """Rows in the order of the file, with those of the wanted columns that it has.

    Args:
        file: The table.
        header: What `read_header` said of it.
        wanted: Column names in lower case, without source_id, which always comes.
        only: The source_id of the rows that are wanted; None = all rows.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged; rows that were given before stand.
    """
    if not {"source_id"} <= header.units.keys():
        raise ValueError(f"no column source_id: got {', '.join(header.units) or 'none'}")
    wanted = frozenset((wanted | {"source_id"}) & header.units.keys())
    with _damage_named():
        if only is None:
            _check_gzip(file)
        with _unpacked(file, seekable=header.format == "fits") as stream:
            if header.format == "csv":
                rows = _text_rows(stream, wanted)
            elif header.format == "fits":
                rows = _fits_rows(stream, wanted, only=only)
            else:
                rows = _votable_rows(stream, wanted)
            with closing(rows):
                for row in rows:
                    if only is None or row.text("source_id") == only:
                        yield row


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            "neither FITS nor VOTable nor a table of text: it holds bytes that are no text"
        ) from error
    except BROKEN_TABLE as error:
        raise ValueError(f"damaged table: {type(error).__name__}: {error}") from error


@contextmanager
def _unpacked(file: Path, *, seekable: bool = False) -> Iterator[io.BufferedIOBase]:
    """The file, unpacked where it is gzipped; on request into a temporary file that can seek."""
    with open_regular(file) as packed:
        gzipped = packed.read(2) == GZIP_START
        packed.seek(0)
        if not gzipped:
            yield packed
            return
        if not seekable:
            with gzip.GzipFile(fileobj=packed) as stream:
                yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            unpacked.writelines(pieces_unpacked(packed))
            unpacked.flush()
            # astropy takes no file that is open for writing as one to read.
            with open(os.dup(unpacked.fileno()), "rb") as reading:
                reading.seek(0)
                yield reading


def _check_gzip(file: Path) -> None:
    """Read a gzipped file to its end, where its checksum is."""
    with open_regular(file) as packed:
        if packed.read(2) == GZIP_START:
            for _ in pieces_unpacked(packed):
                pass


def _as_float(text: str) -> float:
    if "_" in text:  # which Python takes for a separator
        raise ValueError(text)
    return float(text)


def _as_array(text: str, name: str) -> Float64[ndarray, " n"] | None:
    text = text.strip()
    if text.lower() in _MISSING:
        return None
    if (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        raise ValueError(f"{name}: expected an array in brackets, got {text[:20]!r}...")
    inside = text[1:-1].strip()
    try:
        return np.array([_as_float(each) for each in inside.split(",")] if inside else [])
    except ValueError as error:
        raise ValueError(f"{name}: expected numbers, got {_first_bad(inside)!r}") from error


def _first_bad(numbers: str) -> str:
    for each in numbers.split(","):
        try:
            _as_float(each)
        except ValueError:
            return each.strip()[:40]
    return ""


@contextmanager
def _text(stream: io.BufferedIOBase) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(cast(BinaryIO, stream), encoding="utf-8-sig", newline="")
    try:
        yield text
    finally:
        text.detach()


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_LINE_CHARACTERS):
        if len(line) == _LINE_CHARACTERS:
            raise ValueError(f"a line of more than {_LINE_CHARACTERS:,} characters: not a table")
        yield line


def _text_header(lines: Iterator[str]) -> tuple[list[str], str, list[str]]:
    """YAML lines of an ecsv, delimiter, and names; the lines then stand at the first row."""
    comments = []
    for line in lines:
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").removeprefix(" ").rstrip("\r\n"))
    else:
        raise ValueError("no line with the names of columns")
    described = comments[1:] if comments and comments[0].startswith("%ECSV") else []
    stated = re.search(r"^delimiter: *['\"]?(.)", "\n".join(described), re.MULTILINE)
    delimiter = stated[1] if stated else " " if described else ","
    names = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
    named = [name for name in names if name]  # a table saved with row numbers has one without
    if len(set(named)) != len(named):
        raise ValueError("a column has the name of another")
    return described, delimiter, names


def _text_units(described: list[str], names: list[str]) -> dict[str, str]:
    """Unit by name, from the YAML lines of an ecsv."""
    columns = get_header_from_yaml(described).get("datatype", []) if described else []
    units = {str(each["name"]).lower(): str(each.get("unit") or "") for each in columns}
    if described and list(units) != names:
        raise ValueError("the columns that the # lines describe are not those of the table")
    return units


def _text_rows(stream: io.BufferedIOBase, wanted: frozenset[str]) -> Generator[Row, None, None]:
    with _text(stream) as text:
        cut = False

        def watched() -> Iterator[str]:
            nonlocal cut
            for line in lines:
                cut = not line.endswith(("\n", "\r"))
                yield line

        lines = _lines(text)
        _, delimiter, names = _text_header(lines)
        places = [(place, name) for place, name in enumerate(names) if name in wanted]
        number = 0
        for cells in csv.reader(watched(), delimiter=delimiter, strict=True):
            if not cells:
                continue
            number += 1
            if len(cells) != len(names):
                yield Row(number, fault=f"expected {len(names)} cells, got {len(cells)}")
            else:
                yield Row(number, {name: cells[place] for place, name in places}, cut=cut)


def _fits_rows(
    stream: io.BufferedIOBase, wanted: frozenset[str], *, only: str | None
) -> Generator[Row, None, None]:
    table = find_table(stream, "source_id")
    key = int(only) if only is not None and only.isdecimal() else None
    rows = table.rows(wanted, key="source_id", only=key)
    for number, cells in enumerate(rows, start=1):
        faults = [str(cell) for cell in cells.values() if isinstance(cell, ValueError)]
        yield Row(number, {} if faults else cells, fault="; ".join(faults))


def _votable_fields(stream: io.BufferedIOBase) -> list[tuple[str, str]]:
    """Names and units of the columns of the first table, in order."""
    columns: list[tuple[str, str]] = []
    status = ""
    with get_xml_iterator(stream) as events:
        for start, tag, content, _ in events:
            if start and tag == "INFO":
                status = str(content.get("value", "")) if _is_status(content) else ""
            elif not start and tag == "INFO" and status.upper() == "ERROR":
                raise ValueError(f"the archive answered with an error: {str(content).strip()}")
            elif start and tag == "FIELD":
                name = str(content.get("name") or content.get("ID") or "")
                columns.append((name.lower(), str(content.get("unit", ""))))
            elif (start and tag == "DATA") or (not start and tag == "TABLE"):
                break
    if not columns:
        raise ValueError("expected a VOTable with a table, got none")
    return columns


def _is_status(attributes: Mapping[str, str]) -> bool:
    return str(attributes.get("name", "")).upper() == "QUERY_STATUS"


def _votable_rows(stream: io.BufferedIOBase, wanted: frozenset[str]) -> Generator[Row, None, None]:
    content = read_whole(stream)
    fields = _votable_fields(io.BytesIO(content))
    places = [place for place, (name, _) in enumerate(fields) if name in wanted]
    names = [fields[place][0] for place in places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        parsed = votable.parse(io.BytesIO(content), columns=places, table_number=0, verify="ignore")
        table = parsed.get_first_table()
    columns = [table.array[name] for name in table.array.dtype.names]
    for i in range(len(table.array)):
        cells = zip(names, columns, strict=True)
        yield Row(i + 1, {name: _votable_cell(column[i]) for name, column in cells})


def _votable_cell(cell: Any) -> Cell:
    if np.ma.is_masked(cell) and np.ndim(cell) == 0:
        return None
    return cell.item() if isinstance(cell, np.generic) else cell
