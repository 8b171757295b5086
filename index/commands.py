"""The commands build, nightly, compact, reindex, versions, rollback, verify and plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import VersionCorrupt
from training.progress import progress_bars
from training.surveys import SURVEYS

if TYPE_CHECKING:
    from index.building import BuildReport
    from index.plan import Plan

commands = typer.Typer(no_args_is_help=True, help="Build a sky and look after its versions.")

SkyFolder = Annotated[Path, typer.Argument(metavar="SKY", help="Folder of the sky.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
SHOWN = 20  # skipped files that are printed one by one


@commands.command("build")
def build_command(
    sky: SkyFolder,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Files, or folders read recursively."),
    ],
    survey: Annotated[str, typer.Option(help="Who made the files, as in: " + ", ".join(SURVEYS))],
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Shipped name, folder, or owner/name on the Hub. Default: the sky's own; nano for "
            "a new sky."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16|bfloat16-all",
            help="Of the encoder's arithmetic. Default: the sky's own; float32 for a new sky. "
            "Another than the sky's goes in only where it is measured to agree.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes. Default: one a core.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|auto|local", help="Read and embed on the machines of a Ray cluster."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read survey files, embed them and publish a searchable sky.

    Again with another survey adds to it. What is there already is not embedded again, and a build
    that was stopped goes on where it stopped.

    Example: skykin build my_sky cutouts/ --survey legacysurvey
    """
    from index.building import build

    with progress_bars() as show:
        report = build(
            sky,
            sources,
            survey=survey,
            encoder=encoder,
            precision=precision,
            num_workers=workers,
            cluster=cluster,
            progress=show,
        )
    if as_json:
        typer.echo(json.dumps(_as_json(report), ensure_ascii=False))
        return
    for skipped in report.skipped[:SHOWN]:
        typer.echo(f"skipped {skipped.file}: {skipped.reason}", err=True)
    if len(report.skipped) > SHOWN:
        more = len(report.skipped) - SHOWN
        typer.echo(f"... and {more:,} more (--json lists them all)", err=True)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    news = f"{report.num_embedded:,} newly embedded" if report.published else "nothing new"
    if report.num_embedded:
        news += f" in {report.precision}"
    if report.centred_cosine:
        news += f" (centred cosine {min(report.centred_cosine.values()):.6f} or more)"
    typer.echo(
        f"{sky}: version {report.version}, {report.num_objects:,} objects, "
        f"{report.num_rows:,} rows, {news}, {len(report.skipped):,} skipped, {report.seconds:.1f} s"
    )


@commands.command("nightly")
def nightly_command(
    sky: SkyFolder,
    config: Annotated[
        Path, typer.Option(help="TOML that lists all sources, gates and what is kept.")
    ],
    as_json: AsJson = False,
) -> None:
    """Bring a sky up to its sources: what is new comes, what is gone goes, if the gates let it.

    A report is written to SKY/nightly/. Exit code 3 when a gate refuses.

    Example: skykin nightly my_sky --config nightly.toml
    """
    from index.errors import GateRefused
    from index.nightly import nightly
    from index.nightly_config import read_nightly

    settings = read_nightly(config)
    try:
        with progress_bars() as show:
            report = nightly(sky, settings, progress=show)
    except GateRefused as error:
        if as_json and error.report is not None:
            typer.echo(json.dumps(error.report, ensure_ascii=False))
        raise
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=False))
        return
    for skipped in report.skipped[:SHOWN]:
        typer.echo(f"skipped {skipped.file}: {skipped.reason}", err=True)
    if report.num_skipped > SHOWN:
        typer.echo(f"... and {report.num_skipped - SHOWN:,} more, see the report", err=True)
    for outage in report.outages:
        typer.echo(f"outage {outage.place}: {outage.reason}", err=True)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    for near in report.near_saved:
        found = near.problem or f"{len(near.object_ids):,} new objects"
        typer.echo(f"saved search {near.name}: {found}", err=True)
    typer.echo(f"{sky}: {report.line()}")


@commands.command("compact")
def compact_command(sky: SkyFolder, as_json: AsJson = False) -> None:
    """Put the small segments of a sky together, and leave out deleted rows where they are many.

    Example: skykin compact my_sky
    """
    from index.compacting import compact

    with progress_bars() as show:
        report = compact(sky, progress=show)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    what = f"{report.num_before} segments into {report.num_after}"
    if not report.published:
        what = f"nothing to put together in {report.num_before} segments"
    typer.echo(f"{sky}: version {report.version}, {what}, {report.num_rows:,} rows")


@commands.command("reindex")
def reindex_command(
    sky: SkyFolder,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML with kind (rabitq or sq8), exact_rows or memory_gib, kept from now on. "
            "Default: what the sky was told before, or the rule."
        ),
    ] = None,
) -> None:
    """Choose the codecs of a sky anew, code its vectors again and measure their recall.

    Nothing is embedded. The published version stays until the new one is whole.

    Example: skykin reindex my_sky
    """
    from index.codec import read_index_config
    from index.compacting import reindex

    asked = None if config is None else read_index_config(config)
    with progress_bars() as show:
        manifest = reindex(sky, asked, progress=show)
    for curve in manifest.curves:
        typer.echo(f"{curve.view}: {curve.text()}")
    typer.echo(
        f"{sky}: version {manifest.number}, {manifest.num_rows:,} rows, "
        + (
            f"recall@10 {manifest.recall:.4f}"
            if manifest.recall is not None
            else "searched exactly"
        )
    )


@commands.command("versions")
def versions_command(sky: SkyFolder) -> None:
    """List the versions of a sky.

    Example: skykin versions my_sky
    """
    from index.versions import versions

    listed = versions(sky)
    for each in listed:
        typer.echo(
            f"{'*' if each.published else ' '} {each.number:>4}  {each.built_at_utc}  "
            f"{each.num_objects:,} objects  {each.num_rows:,} rows"
        )
    published = next((each.number for each in listed if each.published), None)
    typer.echo(f"{sky}: {len(listed)} versions, published (*): {published}")


@commands.command("rollback")
def rollback_command(
    sky: SkyFolder,
    number: Annotated[
        int | None, typer.Argument(help="Version to publish. Default: the one before.")
    ] = None,
) -> None:
    """Publish an earlier version of a sky again.

    Example: skykin rollback my_sky 3
    """
    from index.versions import rollback

    typer.echo(f"{sky}: published version {rollback(sky, number)}")


@commands.command("verify")
def verify_command(sky: SkyFolder) -> None:
    """Compare every file of every version with its checksum; measure recall again.

    Example: skykin verify my_sky
    """
    from index.versions import verify

    with progress_bars() as show:
        report = verify(sky, progress=show)
    for problem in report.problems:
        typer.echo(f"{problem.file}: {problem.reason}", err=True)
    if report.problems:
        text = f"{sky}: {len(report.problems)} of {report.num_files:,} files damaged"
        raise VersionCorrupt(f"{text}; {report.advice}" if report.advice else text)
    for view, recall in report.recall.items():
        typer.echo(f"recall@10 of view {view}, measured again: {recall:.4f}")
    typer.echo(
        f"{sky}: {report.num_files:,} files of {len(report.versions)} versions are whole, "
        f"{report.num_bytes / 2**20:,.1f} MiB"
    )


@commands.command("plan")
def plan_command(
    objects: Annotated[float, typer.Option(help="How many, such as 200e6.")],
    dim: Annotated[int, typer.Option(help="Of the encoder's vectors.")] = 768,
    views: Annotated[str, typer.Option(help="Of every object, with commas.")] = "image",
    as_json: AsJson = False,
) -> None:
    """Say what a sky of so many objects takes: disk, memory, GPU memory and hours.

    Example: skykin plan --objects 200e6
    """
    from index.plan import RATES, plan

    planned = plan(objects, dim=dim, views=views.split(","))
    if as_json:
        rates = {name: asdict(rate) for name, rate in RATES.items()}
        typer.echo(json.dumps(asdict(planned) | {"rates": rates}, ensure_ascii=False))
        return
    _show_plan(planned)


def _show_plan(planned: Plan) -> None:
    from index.plan import RATES, total

    def show(title: str, lines: Mapping[str, float | int | None], unit: int, name: str) -> None:
        typer.echo(title)
        for what, value in lines.items():
            told = "not measured" if value is None else f"{value / unit:,.2f} {name}"
            typer.echo(f"  {what:<48} {told:>16}")

    show("on disk", planned.disk | {"in all": total(planned.disk)}, 2**30, "GiB")
    show("memory to serve", planned.ram | {"in all": total(planned.ram)}, 2**30, "GiB")
    if planned.other_codes:
        show("instead of the index above, where asked for", planned.other_codes, 2**30, "GiB")
    show("GPU memory (one of these)", planned.gpu, 2**30, "GiB")
    show("hours", planned.hours, 1, "h")
    typer.echo("measured")
    for rate in RATES.values():
        if rate.value is not None:
            typer.echo(
                f"  {rate.value:,g} {rate.unit}: {rate.what} ({rate.measured_on}; {rate.source})"
            )
    views = ", ".join(planned.views)
    lists = f"{planned.codec} in {planned.num_lists:,} lists" if planned.codec else "no index"
    if planned.code_dim is not None:
        lists = f"{planned.codec} of {planned.code_dim} dimensions in {planned.num_lists:,} lists"
    typer.echo(
        f"plan: {planned.num_objects:,} objects, views {views}, {planned.dim} dimensions, {lists}"
    )


def _as_json(report: BuildReport) -> dict[str, object]:
    return {
        "version": report.version,
        "objects": report.num_objects,
        "rows": report.num_rows,
        "skipped": [{"file": each.file, "reason": each.reason} for each in report.skipped],
        "seconds": round(report.seconds, 3),
        "precision": report.precision,
        "centred_cosine": dict(report.centred_cosine) or None,
        "notes": list(report.notes),
    }
