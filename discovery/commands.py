"""`skykin search` and `skykin evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from discovery.positions import parse_position
from discovery.query import DEFAULT_RADIUS_ARCSEC, Query, parse_cone
from discovery.results import Hits
from discovery.seeds import angle_text
from discovery.sky import open as open_sky
from index.asked_recall import DEFAULT_RECALL
from index.evaluation import Evaluation, evaluate
from index.search_options import ClusterAddress, Device, Recall
from training.encoder import load as load_encoder
from training.progress import progress_bars

commands = typer.Typer()

_WIDTH_WITHOUT_TERMINAL = 160  # so that a pipe gets whole ids
_SHOWN = {  # column -> how a number is written
    "rank": "d", "object_id": "", "score": ".4f", "ra_deg": ".5f", "dec_deg": "+.5f",
    "mag_r": ".2f", "redshift": ".4f", "survey": "", "view": "", "known_as": "",
}  # fmt: skip

SkyFolder = Annotated[str, typer.Argument(metavar="SKY", help="Folder that `skykin build` made.")]


@commands.command(
    "search",
    epilog='Example: skykin search my_sky --ra 150.1 --dec 2.2 --where "mag_r < 20" --out hits.vot',
)
def search_command(
    sky: SkyFolder,
    object_id: Annotated[
        str | None, typer.Option("--id", help="Find objects like the one of this id.")
    ] = None,
    ra: Annotated[str | None, typer.Option(help='Right ascension: degrees, or "HH MM SS".')] = None,
    dec: Annotated[str | None, typer.Option(help='Declination: degrees, or "-00 12 30".')] = None,
    position: Annotated[
        str | None, typer.Option(help='Both in one: "150.1 2.2", sexagesimal, or a viewer address.')
    ] = None,
    radius: Annotated[
        float, typer.Option(help="How far the object may be from the position, in arcsec.")
    ] = DEFAULT_RADIUS_ARCSEC,
    name: Annotated[
        str | None, typer.Option(help="Published name, looked up at CDS Sesame (network).")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="FITS cutout, picture or spectrum of your own.")
    ] = None,
    survey: Annotated[str | None, typer.Option(help="How to read --file.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="Hits to return; 50 by default.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="More ids to be like.")] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="Ids to be unlike.")] = None,
    where: Annotated[
        str | None, typer.Option(help='Predicate, such as "redshift > 0.2 and mag_r < 20".')
    ] = None,
    cone: Annotated[
        str | None, typer.Option(metavar="RA,DEC,RADIUS", help="Only within it, in degrees.")
    ] = None,
    moc: Annotated[
        Path | None, typer.Option(help="Only inside this MOC: a FITS, JSON or ASCII file.")
    ] = None,
    seen_by: Annotated[
        list[str] | None, typer.Option(help="Only objects that this survey observed.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Ids never to return.")] = None,
    collapse: Annotated[
        float | None,
        typer.Option(help="Of hits as close as this, in arcsec, return the best alone."),
    ] = None,
    recall: Recall = DEFAULT_RECALL,
    device: Device = "cpu",
    cluster: ClusterAddress = None,
    view: Annotated[
        str | None,
        typer.Option(help="image, spectrum, xp, joint or any; by default the seed's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write all hits: .csv, .parquet, .fits or .vot.")
    ] = None,
) -> None:
    """Find the objects most similar to an object, a position, or a file of your own."""
    if (ra is None) != (dec is None):
        raise ValueError("--ra and --dec are given together")
    if ra is not None and position is not None:
        raise ValueError("give either --ra and --dec, or --position")
    query = Query(
        like=[*([object_id] if object_id is not None else []), *(like or [])],
        unlike=unlike or [],
        position=parse_position(f"{ra}, {dec}") if ra is not None else position,
        radius_arcsec=radius,
        name=name,
        file=file,
        survey=survey,
        where=where,
        cone=parse_cone(cone) if cone is not None else None,
        moc=moc,
        seen_by=seen_by or [],
        exclude=exclude or [],
        collapse_arcsec=collapse,
        recall=recall,
        view=view,
        k=k,
    )
    with open_sky(sky, device=device, cluster=cluster) as opened:
        hits = opened.search(query)
    written = hits.write(out) if out is not None else None
    if as_json:
        print(json.dumps(hits.to_json(), allow_nan=False))
        return
    if written is None:
        print_hits(hits)
    typer.echo(_closing_line(hits, sky, written))


@commands.command(
    "evaluate",
    epilog="Examples: skykin evaluate my_sky --labels labels.csv --label spiral; "
    "skykin evaluate gz10/ legacysurvey/ --protocol morphology --encoder polymathic-ai/aion-base",
)
def evaluate_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SKY | FILES...",
            help="A sky, or with --protocol Multimodal Universe files or folders of them: labels, "
            "images, spectra; objects are matched across them.",
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV: object_id and one column a label, 0 to 1, blank = unknown."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label to measure.")] = None,
    query_above: Annotated[
        float | None, typer.Option(help="Objects of higher relevance are the queries; 0.9.")
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="View to search in; by default the sky's first.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Measure an encoder instead: morphology, properties or redshift."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="With --protocol: nano (default), a folder, or a Hub id.")
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="linear or mlp on mean vectors; attentive or attentive-mlp on tokens; by default "
            "the paper's."
        ),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(help="Which of photometry,image,spectrum the encoder reads."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first split; 0.")] = None,
    splits: Annotated[
        int | None, typer.Option(min=1, help="Random splits, 80 % to learn from; 3.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take that many objects at most, drawn by the seed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure a sky: nDCG@10 on labelled objects, its bootstrap error, and the level of chance.

    With --protocol, measure an encoder: how well a small head predicts morphology (gz10_label),
    galaxy properties (PROVABGS) or redshifts from it, beside the published AION-1.
    """
    of_sky = {
        "--labels": labels, "--label": label, "--query-above": query_above, "--view": view
    }  # fmt: skip
    of_protocol = {
        "--encoder": encoder, "--probe": probe, "--modalities": modalities, "--seed": seed,
        "--splits": splits, "--limit": limit,
    }  # fmt: skip
    if protocol:
        _refuse(of_sky, unless="a sky is measured")
    else:
        _refuse(of_protocol, unless="--protocol is given")
    if protocol is not None:
        _evaluate_protocol(
            [Path(source) for source in sources],
            protocol,
            encoder or "nano",
            as_json=as_json,
            probe=probe,
            modalities=None if modalities is None else modalities.split(","),
            seed=seed or 0,
            repeats=splits or 3,
            limit=limit,
        )
        return
    if labels is None or label is None:
        raise ValueError("a sky needs --labels and --label, files need --protocol")
    if len(sources) != 1:
        raise ValueError(f"expected one sky, got {len(sources)}: {', '.join(sources)}")
    above = 0.9 if query_above is None else query_above
    _print_evaluation(
        evaluate(open_sky(sources[0]), labels, label, query_above=above, view=view),
        as_json=as_json,
    )


def _refuse(options: Mapping[str, object], *, unless: str) -> None:
    """Raise ValueError where an option is given that nothing would read."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} has a meaning only where {unless}")


def _print_evaluation(found: Evaluation, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
        return
    if found.num_left_out:
        typer.echo(
            f"{found.num_left_out:,} labelled objects are not in view {found.view} of this sky "
            "and were left out"
        )
    typer.echo(
        f"{found.label}, view {found.view}, version {found.version}: "
        f"nDCG@{found.k} {found.ndcg:.3f} +- {found.error:.3f} (chance {found.chance:.3f}), "
        f"precision@{found.k} {found.precision:.3f}, {found.num_queries:,} queries, "
        f"corpus {found.num_corpus:,}"
    )


def _evaluate_protocol(
    files: list[Path], protocol: str, encoder: str, *, as_json: bool, **settings: Any
) -> None:
    """Run a protocol with those settings of `measure`, and print what it gives."""
    # imported here because scikit-learn takes a second, which a search need not wait for
    from discovery.protocol_table import closing_line, remarks, table_of
    from training.protocols import measure

    with progress_bars() as show:
        measured = measure(files, protocol, load_encoder(encoder), show=show, **settings)
    if as_json:
        print(json.dumps({"encoder": encoder, **measured.to_json()}, allow_nan=False))
        return
    _console().print(table_of(measured, encoder))
    for remark in remarks(measured):
        typer.echo(remark)
    typer.echo(closing_line(measured, encoder))


def print_hits(hits: Hits) -> None:
    """Print hits as a table, as wide as the terminal."""
    table = Table()
    shown = [
        name
        for name in _SHOWN
        if name in hits.table.colnames
        and (name != "known_as" or any(value is not None for value in hits.table[name].tolist()))
    ]
    for name in shown:
        if name == "object_id":  # a long one goes on below, it takes no room from the numbers
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right" if _SHOWN[name] else "left", no_wrap=True)
    for row in zip(*(hits.table[name].tolist() for name in shown), strict=True):
        table.add_row(*(_cell(value, _SHOWN[name]) for name, value in zip(shown, row, strict=True)))
    _console().print(table)


def _console() -> Console:
    terminal = sys.stdout.isatty()
    return Console(width=None if terminal else _WIDTH_WITHOUT_TERMINAL, markup=False)


def _cell(value: str | float | int | None, how: str) -> str:
    """A value as text; control characters, which a terminal would obey, as their escapes."""
    text = "" if value is None else format(value, how)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _closing_line(hits: Hits, sky: str, written: Path | None) -> str:
    parts = [f"{len(hits):,} hits in view {hits.view} of {sky}, version {hits.version}"]
    for seed in hits.seeds:
        if seed.separation_arcsec is not None:
            away = angle_text(seed.separation_arcsec)
            parts.append(f"the nearest object is {seed.object_id}, {away} away")
    if hits.num_without_position:
        parts.append(f"{hits.num_without_position:,} objects without a position were left out")
    parts += [each.text() for each in hits.missing]
    if written is not None:
        parts.append(f"written to {written}")
    return "; ".join(parts)
