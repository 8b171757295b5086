"""The command `skykin fetch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.progress import progress_bars

if TYPE_CHECKING:
    from training.archives import fetching

commands = typer.Typer(add_completion=False)

SHOWN = 20  # rows without a file that are told one by one


@commands.command(
    "fetch", epilog="Example: skykin fetch sdss --positions quasars.csv --out spectra"
)
def fetch_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="legacysurvey, sdss, desi, gaia or multimodal_universe."
        ),
    ],
    positions: Annotated[
        Path,
        typer.Option(
            help="Table with ra and dec (ICRS, degrees or sexagesimal): csv, ecsv, fits or vot. "
            "Instead: plate, mjd, fiberid (sdss), targetid (desi), source_id (gaia)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder that receives the files and fetched.csv.")],
    radius: Annotated[
        float | None,
        typer.Option(
            help="Arcsec around a position; default 1, sdss 2. Not for legacysurvey.", min=0
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="legacysurvey: pixels of a cutout; default 160.", min=1)
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(help="multimodal_universe: data set and configuration, as desi/edr_sv3."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Fetch images or spectra of the objects at a list of positions from a public archive.

    At the archive's pace. What is there already is kept: run it again to fetch what is missing.
    """
    from training.archives.fetching import archive, fetch

    source = archive(name, radius_arcsec=radius, size_px=size, subset=subset)
    with progress_bars() as show:
        report = fetch(
            source,
            positions,
            out,
            progress=lambda done, total: show(f"fetching {name}", done, total),
        )
    if as_json:
        typer.echo(json.dumps(_as_json(name, out, report), ensure_ascii=False, allow_nan=False))
    else:
        _tell_problems(report)
    counts = ", ".join(
        f"{report.count(status):,} {status}"
        for status in ("fetched", "kept", "nothing", "failed", "refused")
    )
    if not report.num_arrived:
        raise ValueError(f"nothing arrived: {counts}; reasons are in {report.file}")
    if not as_json:
        typer.echo(f"{out}: {len(report.outcomes):,} rows, {counts}; see {report.file}")


def _tell_problems(report: fetching.FetchReport) -> None:
    problems = [each for each in report.outcomes if each.status not in ("fetched", "kept")]
    for each in problems[:SHOWN]:
        typer.echo(f"row {each.row} {each.name}: {each.status}: {each.reason}", err=True)
    if len(problems) > SHOWN:
        typer.echo(f"... and {len(problems) - SHOWN:,} more in {report.file}", err=True)


def _as_json(name: str, out: Path, report: fetching.FetchReport) -> dict[str, object]:
    return {
        "archive": name,
        "out": str(out),
        "report": str(report.file),
        "rows": len(report.outcomes),
        **{
            status: report.count(status)
            for status in ("fetched", "kept", "nothing", "failed", "refused")
        },
        "files": sorted({each.file for each in report.outcomes if each.file}),
        "problems": [
            {"row": each.row, "name": each.name, "status": each.status, "reason": each.reason}
            for each in report.outcomes
            if each.status not in ("fetched", "kept")
        ],
        "seconds": round(report.seconds, 3),
    }
