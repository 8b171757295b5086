"""The `skykin` command: the commands of every floor under one name, errors in one line."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

# Name -> module that holds it, and its line in `skykin --help`. Modules are imported when their
# command is called, so that help does not wait for torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("app.commands", "Simulate a sky, build it, measure it and open the page."),
    "build": ("index.commands", "Read survey files, embed them and publish a searchable sky."),
    "search": ("discovery.commands", "Find the objects most similar to one you name or show."),
    "app": ("app.commands", "Open the search page of a sky in the browser."),
    "evaluate": ("discovery.commands", "Measure how well a sky finds what people call alike."),
    "versions": ("index.commands", "List the versions of a sky."),
    "rollback": ("index.commands", "Publish an earlier version of a sky again."),
    "verify": ("index.commands", "Check every file of every version; measure recall again."),
    "nightly": ("index.commands", "Follow all sources: what is new comes, what is gone goes."),
    "compact": ("index.commands", "Put the small segments of a sky together."),
    "reindex": ("index.commands", "Choose codecs anew, and measure the recall of searches."),
    "plan": ("index.commands", "Say what a sky takes: disk, memory, GPU memory and hours."),
    "fetch": ("training.archives.commands", "Fetch images or spectra from a public archive."),
    "train": ("training.commands", "Train tokenizers, an encoder or a search head from a TOML."),
}

# Module that may be missing -> (the extra that brings it, what it is for).
EXTRAS: dict[str, tuple[str, str]] = {
    "streamlit": ("app", "the page"),
    "altair": ("app", "the page"),
    "h5py": ("surveys", "simulated surveys and Multimodal Universe files"),
    "astroquery": ("surveys", "the archives of SDSS and Gaia"),
    "gaiaxpy": ("surveys", "calibrated Gaia XP spectra"),
    "httpx": ("surveys", "downloads"),
    "ray": ("cluster", "work on many machines"),
    "lsdb": ("surveys", "cross-matching HATS catalogues"),
}

TRACEBACK = "SKYKIN_TRACEBACK"  # environment variable: set, errors are shown with their traceback


class Floors(TyperGroup):
    """Commands that are imported when called, and errors told in one line.

    Exit code 2 for bad usage or input, 3 for what a gate refused.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Name and help line only; enough to list a command, not to run it."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1], rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The real command, for a call."""
        self.commands = dict.fromkeys(COMMANDS, TyperCommand(None))  # names to suggest
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Call the command; a known error becomes one line on stderr and an exit code."""
        try:
            _check_start()
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            # a build, a download and pretraining go on where they stopped
            typer.echo("skykin: stopped; what was finished is kept", err=True)
            raise typer.Exit(code=130) from stopped
        except (ModuleNotFoundError, OSError, ValueError) as error:
            _fail(error, message=explain(error), code=2)
        except Exception as error:
            # The tree is imported here: index/ takes a second, and help must not wait for it.
            from index.errors import GateRefused, SkykinError

            if not isinstance(error, SkykinError):
                raise
            _fail(error, message=str(error), code=3 if isinstance(error, GateRefused) else 2)


def _check_start() -> None:
    from index.faiss_distributions import check_one_faiss

    check_one_faiss()


def load(name: str) -> Any:
    """Import the command of a name.

    Raises:
        ModuleNotFoundError: an extra it needs is not installed.
    """
    group = typer.main.get_command(importlib.import_module(COMMANDS[name][0]).commands)
    commands = getattr(group, "commands", {})
    return commands.get(name, group)


def explain(error: Exception) -> str | None:
    """What to tell a user; None where the error is ours, not theirs."""
    if isinstance(error, ModuleNotFoundError):
        top = (error.name or "").split(".")[0]
        if top not in EXTRAS:
            return None
        extra, what = EXTRAS[top]
        return f"{top} is not installed ({what}): python -m pip install 'skykin[{extra}]'"
    if isinstance(error, UnicodeError):
        return None
    return str(error)


def _fail(error: Exception, *, message: str | None, code: int) -> None:
    if message is None or os.environ.get(TRACEBACK):
        raise error
    line = " ".join(message.split())
    typer.echo(f"skykin: {line or type(error).__name__}", err=True)
    raise typer.Exit(code=code) from error


cli = typer.Typer(
    cls=Floors,
    name="skykin",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Finds the kin of any object in the sky. Start with `skykin demo`.",
    epilog=f"An error is one line; set {TRACEBACK}=1 to see where it came from.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"skykin {version('skykin')}")
        raise typer.Exit()


@cli.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of `skykin`."""
    cli(args=arguments, prog_name="skykin")
