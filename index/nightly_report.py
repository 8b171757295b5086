"""What a nightly did, as JSON for programs and Markdown for people.

    SKY/nightly/000001.json, 000001.md

Numbered, so that a clock that goes backwards changes no order. The newest KEPT stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from index import disk
from index.comparison import Outage
from index.gates import Gate
from index.inputs import printable
from index.pruning import Pruned
from index.saved_searches import NewNear
from training.observations import Skipped

FOLDER = "nightly"
KEPT = 400  # reports
LISTED = 1000  # names in one list; the counts are whole

Outcome = Literal["published", "unchanged", "refused"]


@dataclass(frozen=True, slots=True)
class Named:
    """How many, and the names of the first LISTED."""

    num: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Named:
        """All of these, by name, with escapes for what is not UTF-8."""
        return cls(len(names), tuple(map(printable, sorted(names)[:LISTED])))


@dataclass(frozen=True, slots=True, kw_only=True)
class NightlyReport:
    """One nightly. Objects and rows count what is searchable; a row is a view of an observation."""

    outcome: Outcome
    version: int | None  # published when it ended; None: a new sky of which nothing was published
    version_before: int | None
    started_at_utc: str
    num_objects: int
    num_rows: int
    num_objects_before: int
    num_rows_before: int
    num_embedded: int
    num_joint: int
    objects_came: Named  # ids
    objects_went: Named
    objects_changed: Named
    files_same: int
    files_came: Named  # paths
    files_changed: Named
    files_went: Named
    outages: tuple[Outage, ...]
    unclear: Mapping[str, int]  # file -> rows not found again that stay, as reading it failed
    num_skipped: int
    skipped: tuple[Skipped, ...]  # of files read tonight or read in vain before: the first LISTED
    gates: tuple[Gate, ...]
    near_saved: tuple[NewNear, ...]
    pruned: Pruned | None
    notes: tuple[str, ...]
    seconds: Mapping[str, float]  # by stage, and "all"

    @property
    def refused_by(self) -> tuple[Gate, ...]:
        """Gates that did not let the new version pass."""
        return tuple(gate for gate in self.gates if not gate.passed)

    def to_json(self) -> dict[str, object]:
        """The document of `skykin nightly --json`."""
        return asdict(self)

    def line(self) -> str:
        """One line for people."""
        if self.outcome == "unchanged":
            what = f"version {self.version}, nothing new"
        elif self.outcome == "published":
            what = f"version {self.version} published"
        else:
            names = ", ".join(f"{gate.name}: {gate.text}" for gate in self.refused_by)
            what = f"refused ({names}), version {self.version} stays published"
        text = (
            f"{what}; {self.num_objects:,} objects, {self.objects_came.num:,} came, "
            f"{self.objects_went.num:,} went, {self.objects_changed.num:,} changed, "
            f"{self.num_skipped:,} skipped"
        )
        if self.outages:
            kept = sum(each.num_files for each in self.outages)
            text += f", {len(self.outages)} outages ({kept:,} files stay as they were)"
        return f"{text}, {self.seconds['all']:.1f} s"


def write_report(sky: Path, report: NightlyReport) -> Path:
    """Write a report beside the others; gives its JSON file."""
    folder = sky / FOLDER
    folder.mkdir(exist_ok=True)
    there = sorted(int(file.stem) for file in folder.glob("*.json") if file.stem.isdecimal())
    file = folder / f"{(there or [0])[-1] + 1:06d}.json"
    with disk.new_file(file.with_suffix(".md")) as handle:
        handle.write(as_markdown(report).encode())
    disk.write_json(file, report.to_json())
    for number in there[: -(KEPT - 1)]:
        for ending in ("json", "md"):
            (folder / f"{number:06d}.{ending}").unlink(missing_ok=True)
    return file


def as_markdown(report: NightlyReport) -> str:
    """The report for people."""
    lines = [
        f"# Nightly of {report.started_at_utc}: {report.outcome}",
        "",
        f"{report.line()}.",
        "",
        "| | before | now | came | went | changed |",
        "|---|---|---|---|---|---|",
        f"| version | {report.version_before or '-'} | {report.version or '-'} | | | |",
        f"| objects | {report.num_objects_before:,} | {report.num_objects:,} | "
        f"{report.objects_came.num:,} | {report.objects_went.num:,} | "
        f"{report.objects_changed.num:,} |",
        f"| rows | {report.num_rows_before:,} | {report.num_rows:,} | | | |",
        f"| files | | | {report.files_came.num:,} | {report.files_went.num:,} | "
        f"{report.files_changed.num:,} |",
    ]
    lines += _section("Gates", [_gate(gate) for gate in report.gates])
    lines += _section(
        "Outages: what lies there stays as it was",
        [f"{each.place}: {each.reason} ({each.num_files:,} files)" for each in report.outages],
    )
    lines += _section(
        "Not found again, but kept, as reading the file failed",
        [f"{file}: {num:,} rows" for file, num in report.unclear.items()],
    )
    for near in report.near_saved:
        found = [
            f"{name} (cosine {cosine:.4f})"
            for name, cosine in zip(near.object_ids, near.cosines, strict=True)
        ]
        lines += _section(
            f"New near “{near.name}” ({near.view})", found or [near.problem or "nothing"]
        )
    for title, named in (
        ("Objects that came", report.objects_came),
        ("Objects that went", report.objects_went),
        ("Objects that changed", report.objects_changed),
        ("Files that came", report.files_came),
        ("Files that went", report.files_went),
        ("Files that changed", report.files_changed),
    ):
        lines += _section(title, named.names, num=named.num)
    lines += _section(
        "Skipped",
        [f"{each.file}: {each.reason}" for each in report.skipped],
        num=report.num_skipped,
    )
    if report.pruned is not None:
        lines += _section("Pruned", _pruned(report.pruned))
    lines += _section("Notes", report.notes)
    lines += _section("Seconds", [f"{name}: {spent:.2f}" for name, spent in report.seconds.items()])
    return "\n".join(lines) + "\n"


def _section(title: str, items: Sequence[str], *, num: int | None = None) -> list[str]:
    if not items:
        return []
    # a name of a file may hold anything, line breaks too
    listed = [f"- {' '.join(item.split())}" for item in items]
    num = len(items) if num is None else num
    if num > len(items):
        listed.append(f"- ... and {num - len(items):,} more")
    return ["", f"## {title}", "", *listed]


def _gate(gate: Gate) -> str:
    return f"{'passed' if gate.passed else '**refused**'} {gate.name}: {gate.text}"


def _pruned(pruned: Pruned) -> list[str]:
    lines = [f"version {number}" for number in pruned.versions]
    lines += [f"version {number} is due, but somebody reads it" for number in pruned.held]
    if pruned.num_files:
        lines.append(f"{pruned.num_files:,} files, {pruned.num_bytes / 2**20:,.1f} MiB")
    return lines
