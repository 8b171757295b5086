"""The report of a fetch: one line a row of the positions table, kept as fetched.csv.

A line is added as soon as a row is done, so that a fetch that is killed knows on its next run
which files belong to which row. At the end the lines are put in the order of the table.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from training.archives.positions import Target
from training.archives.transfer import utc_now, write_whole

FILE = "fetched.csv"
Status = Literal["fetched", "kept", "nothing", "failed", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one row.

    Status: fetched: a file arrived and was checked; kept: it was there and whole; nothing: the
    archive has none there; failed: see the reason, another run tries again; refused: the row asks
    for nothing that exists.
    """

    row: int
    name: str
    key: str
    ra_deg: float  # NaN: none
    dec_deg: float
    file: str  # relative to the folder, "" without a file
    status: Status
    reason: str
    url: str
    fetched_at_utc: str

    @property
    def place(self) -> tuple[str, str, str]:
        """As `Target.place`."""
        return Target(
            row=self.row, name=self.name, key=self.key, ra_deg=self.ra_deg, dec_deg=self.dec_deg
        ).place


def outcome(
    target: Target, status: Status, *, file: str = "", reason: str = "", url: str = ""
) -> Outcome:
    """What became of a target, now."""
    return Outcome(
        row=target.row,
        name=target.name,
        key=target.key,
        ra_deg=target.ra_deg,
        dec_deg=target.dec_deg,
        file=file,
        status=status,
        reason=" ".join(reason.split()),
        url=url,
        fetched_at_utc=utc_now(),
    )


def read_report(folder: Path) -> list[Outcome]:
    """Lines of the report in a folder; lines that a killed run cut short are left out."""
    file = folder / FILE
    if not file.is_file():
        return []
    found = []
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        for line in csv.DictReader(stream):
            cells = {each.name: line.get(each.name) for each in fields(Outcome)}
            if None in cells.values() or cells["status"] not in get_args(Status):
                continue
            text = {name: str(cell) for name, cell in cells.items()}
            try:
                found.append(_parsed(text))
            except ValueError:
                continue
    return found


def _parsed(text: dict[str, str]) -> Outcome:
    status: Status = text["status"]  # type: ignore[assignment]  # checked by the caller
    return Outcome(
        row=int(text["row"]),
        name=text["name"],
        key=text["key"],
        ra_deg=float(text["ra_deg"] or math.nan),
        dec_deg=float(text["dec_deg"] or math.nan),
        file=text["file"],
        status=status,
        reason=text["reason"],
        url=text["url"],
        fetched_at_utc=text["fetched_at_utc"],
    )


def add_lines(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Add lines to the report while the fetch goes on."""
    file = folder / FILE
    text = _lines(outcomes)
    with file.open("a+b") as stream:
        if stream.seek(0, io.SEEK_END) == 0:
            text = _header() + text
        else:
            stream.seek(-1, io.SEEK_END)
            if stream.read(1) != b"\n":  # the line that a killed run was writing
                text = "\n" + text
        stream.write(text.encode())


def write_report(folder: Path, outcomes: Iterable[Outcome]) -> Path:
    """Replace the report by these lines, in the order of their rows; where it is."""
    ordered = sorted(outcomes, key=lambda each: each.row)
    write_whole(folder / FILE, (_header() + _lines(ordered)).encode())
    return folder / FILE


def _header() -> str:
    return ",".join(each.name for each in fields(Outcome)) + "\n"


def _lines(outcomes: Iterable[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for each in outcomes:
        cells = asdict(each)
        for name in ("ra_deg", "dec_deg"):
            cells[name] = "" if math.isnan(cells[name]) else repr(cells[name])
        writer.writerow(cells.values())
    return text.getvalue()
