"""The commands under `skykin train`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from training.recipe import Recipe, read_recipe

commands = typer.Typer(no_args_is_help=True, help="Train tokenizers, an encoder or a search head.")

ConfigFile = Annotated[Path, typer.Argument(help="The recipe, a TOML file.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder that receives what is trained.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes; default: all cores.")]


@commands.command("tokenizer")
def tokenizer_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Fit the tokenizers of images, spectra and scalars.

    Example: skykin train tokenizer nano.toml --out my_nano
    """
    from training.stages import fit_tokenizers

    figures = _run(fit_tokenizers, config, out, workers)
    image, spectrum = figures["image"], figures["spectrum"]
    typer.echo(
        f"{out / 'codecs'}: image tokenizer R2 {image['r2']:.3f}, "
        f"spectrum tokenizer R2 {spectrum['r2']:.3f}"
    )


@commands.command("encoder")
def encoder_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Train the transformer on tokens of the tokenizers in the same folder.

    Example: skykin train encoder nano.toml --out my_nano
    """
    from training.stages import train_encoder

    figures = _run(train_encoder, config, out, workers)
    losses = ", ".join(f"{key} {loss:.2f}" for key, loss in figures["loss"].items())
    typer.echo(f"{out}: encoder after {figures['steps']:,} steps, loss {losses}")


@commands.command("search-head")
def search_head_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Train the search head of the encoder in the same folder.

    Example: skykin train search-head nano.toml --out my_nano
    """
    from training.stages import train_search_head

    figures = _run(train_search_head, config, out, workers)
    typer.echo(
        f"{out / 'head'}: search head after {figures['steps']:,} steps, "
        f"its pair is nearest for {figures['accuracy']:.0%} of objects"
    )


def _run(
    stage: Callable[..., dict[str, Any]], config: Path, out: Path, workers: int | None
) -> dict[str, Any]:
    """Run one stage under progress bars, and keep the recipe beside what it makes."""
    recipe: Recipe = read_recipe(config)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "recipe.toml"
    if config.resolve() != kept.resolve():
        shutil.copyfile(config, kept)
    with _Bars() as bars:
        return stage(recipe, out, bars.show, num_workers=workers)


class _Bars:
    """A progress bar for each thing that is done, on the error stream."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, share: float) -> None:
        """Move the bar of `what`; what comes after a comma may change from call to call."""
        name = what.partition(",")[0]
        if self._task is None or name != self._what:
            self._what, self._task = name, self._progress.add_task(what, total=1.0)
        self._progress.update(self._task, description=what, completed=min(share, 1.0))
