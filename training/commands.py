"""The commands under `skykin train`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from training.processes import is_first, only_run
from training.progress import progress_bars
from training.recipe import Recipe, read_recipe

commands = typer.Typer(no_args_is_help=True, help="Train tokenizers, an encoder or a search head.")

ConfigFile = Annotated[Path, typer.Argument(help="The recipe, a TOML file.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder that receives what is trained.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes; default: all cores.")]


@commands.command("tokenizer")
def tokenizer_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Fit the tokenizers of all streams of the recipe's model.

    A fit that was stopped goes on when the command is given again.

    Example: skykin train tokenizer nano.toml --out my_nano
    """
    from training.tokenizer_stage import fit_tokenizers

    figures = _run(fit_tokenizers, config, out, workers)
    networks = [f"{name} R2 {of['r2']:.3f}" for name, of in figures.items() if name != "scalars"]
    tables = f"{len(figures['scalars'])} tables of numbers"
    typer.echo(f"{out / 'codecs'}: {', '.join([*networks, tables])}")


@commands.command("tokens")
def tokens_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Tokenize the data with the tokenizers in the same folder; the encoder's training reads that.

    The next command does it too. On a cluster it is done beforehand, on machines with many cores.

    Example: skykin train tokens base.toml --out my_base
    """
    from training.encoder_stage import make_tokens

    figures = _run(make_tokens, config, out, workers)
    rows = ", ".join(f"{name} {number:,} rows" for name, number in figures["rows"].items())
    skipped = f"; {figures['skipped']:,} could not be read" if figures["skipped"] else ""
    typer.echo(f"{out / 'tokens'}: {rows}{skipped}")


@commands.command("encoder")
def encoder_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Train the transformer on tokens of the tokenizers in the same folder.

    A run that was stopped goes on when the command is given again. Several processes, on one
    machine or many, are started by torchrun:
    torchrun --nproc-per-node 8 --no-python skykin train encoder base.toml --out my_base

    Example: skykin train encoder nano.toml --out my_nano
    """
    from training.encoder_stage import train_encoder

    figures = _run(train_encoder, config, out, workers)
    losses = ", ".join(f"{key} {loss:.2f}" for key, loss in figures["loss"].items())
    if is_first():
        typer.echo(f"{out}: encoder after {figures['steps']:,} steps, loss {losses}")


@commands.command("pooling")
def pooling_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Give vectors of the encoder in the same folder the light and the latents of the recipe.

    The training of an encoder does it too. Alone it serves an encoder that was trained before.

    Example: skykin train pooling nano.toml --out my_nano
    """
    from training.pooling_stage import make_pooling

    figures = _run(make_pooling, config, out, workers)
    light = "light and " if figures["light"] else ""
    typer.echo(f"{out / 'pooling'}: {light}{figures['latents']} latents")


@commands.command("decoder")
def decoder_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Train the decoder of the encoder in the same folder on whole streams; vectors stay.

    Example: skykin train decoder whole.toml --out my_nano
    """
    from training.decoder_stage import train_decoder

    figures = _run(train_decoder, config, out, workers)
    nats = "; ".join(
        f"from {shown} " + ", ".join(f"{key} {loss:.2f}" for key, loss in asked.items())
        for shown, asked in figures["held_out"].items()
    )
    typer.echo(f"{out}: decoder after {figures['steps']:,} steps, nats held out: {nats}")


@commands.command("search-head")
def search_head_command(config: ConfigFile, out: OutFolder, workers: Workers = None) -> None:
    """Train the search head of the encoder in the same folder.

    Example: skykin train search-head nano.toml --out my_nano
    """
    from training.head_stage import train_search_head

    figures = _run(train_search_head, config, out, workers)
    if figures["method"] == "contrastive":
        how = (
            f"search head after {figures['steps']:,} steps, "
            f"its pair is nearest for {figures['accuracy']:.0%} of objects"
        )
    elif "begin" in figures:
        how = f"the search head of {figures['begin']}, {figures['method']}"
    else:
        how = f"principal components as search head, for {figures['reason']}"
    if "kinds" in figures:
        how += f", told {', '.join(figures['kinds']['names'])}"
    typer.echo(f"{out / 'head'}: {how}")


def _run(
    stage: Callable[..., dict[str, Any]], config: Path, out: Path, workers: int | None
) -> dict[str, Any]:
    """Run one stage under progress bars, and keep the recipe beside what it makes."""
    recipe: Recipe = read_recipe(config)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "recipe.toml"
    if not is_first():
        return stage(recipe, out, lambda what, share: None, num_workers=workers)
    with only_run(out), progress_bars() as show:
        if config.resolve() != kept.resolve():
            shutil.copyfile(config, kept)
        return stage(recipe, out, lambda what, share: show(what, share, 1), num_workers=workers)
