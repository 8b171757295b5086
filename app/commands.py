"""`skykin app` and `skykin demo`. What a command needs is imported when it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.engine import Engine
from index.asked_recall import DEFAULT_RECALL
from index.search_options import ClusterAddress, Device, Recall

if TYPE_CHECKING:
    from app.demo import Figures

commands = typer.Typer()

Port = Annotated[int, typer.Option(help="Port on 127.0.0.1.")]


@commands.command("app", epilog="Example: skykin app my_sky --port 8501")
def app_command(
    sky: Annotated[Path, typer.Argument(metavar="SKY", help="Folder that `skykin build` made.")],
    port: Port = 8501,
    recall: Recall = DEFAULT_RECALL,
    device: Device = "cpu",
    cluster: ClusterAddress = None,
) -> None:
    """Open the search page of a sky: prints its address, and serves it until Ctrl-C."""
    _serve(sky, port, Engine(device=device, cluster=cluster, recall=recall))


@commands.command("demo", epilog="Example: skykin demo --check --json")
def demo_command(
    check: Annotated[
        bool, typer.Option("--check", help="Stop after the figures, without the page.")
    ] = False,
    objects: Annotated[int, typer.Option(help="Objects to simulate.")] = 2000,
    folder: Annotated[Path, typer.Option(help="Where simulated survey and sky are kept.")] = Path(
        "~/.cache/skykin/demo"
    ),
    encoder: Annotated[
        str, typer.Option(help="Shipped name, folder of an encoder, or owner/name on the Hub.")
    ] = "nano",
    port: Port = 8501,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON document; needs --check.")
    ] = False,
) -> None:
    """Simulate a survey, build a sky of it, measure the search, and open the page.

    Everything is kept, so that a second call opens the page at once.
    """
    if as_json and not check:
        raise ValueError("--json goes with --check: the page has no JSON")
    from app.demo import measure, prepare
    from training.progress import progress_bars

    with progress_bars() as progress:
        demo = prepare(folder, num_objects=objects, encoder_name=encoder, progress=progress)
        figures = measure(demo, progress=progress)
    if as_json:
        print(json.dumps(figures.to_json(), allow_nan=False))
        return
    _print(figures)
    typer.echo(f"{figures.num_objects:,} simulated objects are in {demo.sky}")
    if not check:
        _serve(demo.sky, port, Engine())


def _print(figures: Figures) -> None:
    typer.echo(f"nDCG@10 in view {figures.view}, queries left out of their own results:")
    for found in figures.evaluations:
        typer.echo(
            f"  {found.label:<8} {found.ndcg:.3f} +- {found.error:.3f}"
            f"   chance {found.chance:.3f}   {found.num_queries:,} queries"
        )


def _serve(sky: Path, port: int, engine: Engine) -> None:
    from app.serving import serve

    code = serve(
        sky,
        port=port,
        engine=engine,
        announce=lambda address: typer.echo(f"Skykin shows {sky} at {address} (Ctrl-C stops it)"),
    )
    if code:
        raise ValueError(f"the page stopped with exit code {code}")
