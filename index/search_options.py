"""How a command is told to search: options that `skykin search` and `skykin app` share."""

from __future__ import annotations

from typing import Annotated

import typer

Recall = Annotated[
    float, typer.Option(help="Share of the exact answer to find, on average; 1 is exact.")
]
Device = Annotated[
    str, typer.Option(help="Where large segments are searched: cpu, or such as cuda.")
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="ADDRESS|auto|local", help="Search on the machines of a Ray cluster."
    ),
]
