"""Commands that fail in every way a command can, mounted by test_cli.py."""

from __future__ import annotations

import typer

from index.errors import RecallTooLow, UnknownObject

commands = typer.Typer()

ERRORS: dict[str, BaseException] = {
    "gate": RecallTooLow("recall 0.91 is below 0.95"),
    "known": UnknownObject("no object 'x'\nin this sky"),
    "value": ValueError("expected a, got b"),
    "file": FileNotFoundError(2, "No such file or directory", "labels.csv"),
    "extra": ModuleNotFoundError("No module named 'gaiaxpy'", name="gaiaxpy"),
    "stopped": KeyboardInterrupt(),
    "ours": KeyError("a mistake of ours"),
    "ours_too": ModuleNotFoundError("No module named 'nothing'", name="nothing"),
}


@commands.command("fail")
def fail(how: str) -> None:
    """Fail as told."""
    raise ERRORS[how]
