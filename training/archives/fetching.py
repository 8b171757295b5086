"""From a table of positions to a folder of checked files, with a report; goes on after a stop."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from training.archives.positions import Positions, Target, read_positions
from training.archives.report import (
    Outcome,
    add_lines,
    outcome,
    read_report,
    write_report,
)
from training.archives.transfer import ArchiveUnreachable, passes, utc_now

# Name -> (module, class). Imported on demand: each needs other libraries.
ARCHIVES: dict[str, tuple[str, str]] = {
    "legacysurvey": ("training.archives.legacysurvey", "LegacySurvey"),
    "sdss": ("training.archives.sdss", "Sdss"),
    "desi": ("training.archives.desi", "Desi"),
    "gaia": ("training.archives.gaia", "Gaia"),
    "multimodal_universe": ("training.archives.multimodal_universe", "MultimodalUniverse"),
}

Progress = Callable[[int, int], None]  # rows done, rows in all


@runtime_checkable
class Archive(Protocol):
    """What every archive offers; a frozen dataclass whose fields are its services and settings."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns that together are its id of an object."""
        ...

    def check_held(self, target: Target, file: Path) -> None:
        """Look at the file of an earlier run.

        Raises:
            ValueError, OSError: it is not whole, or not what this target asks for.
        """
        ...

    def fetch(self, targets: Sequence[Target], out: Path) -> Iterator[Outcome]:
        """Get the targets; one outcome for each, in any order.

        Raises:
            ArchiveUnreachable: no answer at all.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReport:
    """What a fetch did."""

    outcomes: tuple[Outcome, ...]  # one a row of the table, in its order
    file: Path  # the same as a table
    seconds: float

    def count(self, status: str) -> int:
        """Rows of one status."""
        return sum(each.status == status for each in self.outcomes)

    @property
    def num_arrived(self) -> int:
        """Rows whose file is there."""
        return self.count("fetched") + self.count("kept")


def archive(name: str, **settings: object) -> Archive:
    """The archive of a name; settings that are None keep their default.

    Raises:
        ValueError: the name, or a setting of this archive, is unknown.
    """
    if name not in ARCHIVES:
        raise ValueError(f"unknown archive {name!r}: expected one of {', '.join(ARCHIVES)}")
    module, kind = ARCHIVES[name]
    made = getattr(importlib.import_module(module), kind)
    given = {key: value for key, value in settings.items() if value is not None}
    known = set(made.__dataclass_fields__)
    if not given.keys() <= known:
        unknown = ", ".join(sorted(key.partition("_")[0] for key in given.keys() - known))
        raise ValueError(f"{name} takes no {unknown}")
    made_archive: Archive = made(**given)
    return made_archive


def fetch(
    source: Archive, table: Path, out: Path, *, progress: Progress | None = None
) -> FetchReport:
    """Fetch what lies at the positions of a table.

    What an earlier run brought, and is still whole, is kept and not asked for again.

    Raises:
        ValueError: the table cannot be used.
        ArchiveUnreachable: no answer; what had arrived is in the report, and is kept.
    """
    started = time.monotonic()
    positions = read_positions(table, keys=source.keys)
    out.mkdir(parents=True, exist_ok=True)
    done = {each.row: each for each in _refused(positions)}
    num_rows = len(positions.targets) + len(positions.refused) + len(positions.repeats)
    missing: list[Target] = []
    earlier = _earlier(out)
    for target in positions.targets:
        kept = _kept(source, target, earlier.get(target.place), out)
        if kept is None:
            missing.append(target)
        else:
            done[target.row] = kept
        if progress:
            progress(len(done), num_rows)
    stopped: ArchiveUnreachable | None = None
    try:
        for each in source.fetch(missing, out) if missing else ():
            done[each.row] = each
            add_lines(out, [each])
            if progress:
                progress(len(done), num_rows)
    except ArchiveUnreachable as error:
        stopped = error
    for target in missing:
        if target.row not in done:
            done[target.row] = outcome(target, "failed", reason=str(stopped or "no outcome"))
    for row, first in positions.repeats.items():
        reason = "; ".join(filter(None, [f"the same as row {first}", done[first].reason]))
        done[row] = replace(done[first], row=row, reason=reason)
    report = FetchReport(
        outcomes=tuple(done[row] for row in sorted(done)),
        file=write_report(out, done.values()),
        seconds=time.monotonic() - started,
    )
    if progress:
        progress(num_rows, num_rows)
    if stopped is not None:
        before = (
            f"; {report.num_arrived:,} rows are there, run it again" if report.num_arrived else ""
        )
        raise ArchiveUnreachable(f"{stopped}{before}") from stopped
    return report


def _earlier(out: Path) -> dict[tuple[str, str, str], Outcome]:
    """Files of earlier runs by what was asked for."""
    return {
        each.place: each
        for each in read_report(out)
        if each.status in ("fetched", "kept") and each.file
    }


def _kept(source: Archive, target: Target, before: Outcome | None, out: Path) -> Outcome | None:
    """The outcome of a target whose file is there and whole."""
    if before is None:
        return None
    # The report may have been edited: nothing outside the folder is looked at.
    file = (out / before.file).resolve()
    if not file.is_relative_to(out.resolve()) or not file.is_file():
        return None
    if not passes(lambda: source.check_held(target, file)):
        return None
    return replace(before, row=target.row, name=target.name, status="kept")


def _refused(positions: Positions) -> list[Outcome]:
    return [
        Outcome(
            row=each.row,
            name="",
            key="",
            ra_deg=math.nan,
            dec_deg=math.nan,
            file="",
            status="refused",
            reason=each.reason,
            url="",
            fetched_at_utc=utc_now(),
        )
        for each in positions.refused
    ]
