"""The command line: every floor's commands under one name, errors in one line."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.cli import COMMANDS, TRACEBACK, cli, load, main

FLOORS = ("app", "discovery", "index", "training")


def test_help_lists_every_command_with_its_line() -> None:
    shown = CliRunner().invoke(cli, ["--help"])

    assert shown.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert any(
            text.split()[:1] == [name] and line.split()[0] in text
            for text in shown.output.splitlines()
        )


def test_every_command_of_the_floors_is_mounted() -> None:
    mounted = set()
    for floor in FLOORS:
        group = typer.main.get_command(importlib.import_module(f"{floor}.commands").commands)
        own = {"train"} if floor == "training" else set(getattr(group, "commands", {}))
        assert {COMMANDS[name][0] for name in own} == {f"{floor}.commands"}
        mounted |= own
    fetch = typer.main.get_command(importlib.import_module("training.archives.commands").commands)

    assert mounted | {fetch.name} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])

    assert shown.exit_code == 0
    assert load(name).help
    assert "Usage:" in shown.output


def test_help_waits_for_no_heavy_import() -> None:
    script = (
        "import sys\n"
        "from app.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "print(sorted({'torch', 'streamlit', 'astropy', 'pandas', 'faiss'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_is_answered_with_the_nearest_one() -> None:
    answer = CliRunner().invoke(cli, ["serch"])

    assert answer.exit_code == 2
    assert "Did you mean 'search'" in answer.output


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "fail", ("tests.app.gated", "Fail."))
    monkeypatch.delenv(TRACEBACK, raising=False)


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("gate", 3, "skykin: recall 0.91 is below 0.95"),
        ("known", 2, "skykin: no object 'x' in this sky"),
        ("value", 2, "skykin: expected a, got b"),
        ("stopped", 130, "skykin: stopped; what was finished is kept"),
        ("file", 2, "skykin: [Errno 2] No such file or directory: 'labels.csv'"),
        (
            "extra",
            2,
            "skykin: gaiaxpy is not installed (calibrated Gaia XP spectra): "
            "python -m pip install 'skykin[surveys]'",
        ),
    ],
)
@pytest.mark.usefixtures("failing")
def test_a_known_error_is_one_line_on_stderr(how: str, code: int, line: str) -> None:
    answer = CliRunner().invoke(cli, ["fail", how])

    assert answer.exit_code == code
    assert answer.stderr == f"{line}\n"
    assert answer.stdout == ""


@pytest.mark.parametrize(("how", "kind"), [("ours", KeyError), ("ours_too", ModuleNotFoundError)])
@pytest.mark.usefixtures("failing")
def test_a_mistake_of_ours_is_not_hidden(how: str, kind: type[Exception]) -> None:
    assert isinstance(CliRunner().invoke(cli, ["fail", how]).exception, kind)


@pytest.mark.usefixtures("failing")
def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK, "1")

    assert isinstance(CliRunner().invoke(cli, ["fail", "value"]).exception, ValueError)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["app", "missing"], "there is no folder missing"),
        (["search", "missing", "--id", "1"], "there is no folder missing"),
        (["demo", "--json"], "--json goes with --check"),
        (["demo", "--check", "--objects", "0"], "40 objects or more, got 0"),
    ],
)
def test_bad_input_is_refused_with_code_2(arguments: list[str], said: str) -> None:
    answer = CliRunner().invoke(cli, arguments)

    assert answer.exit_code == 2
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_taken_port_is_refused(sky_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        answer = CliRunner().invoke(cli, ["app", str(sky_folder), "--port", port])

    assert answer.exit_code == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in answer.stderr


def test_the_installed_command_searches_a_sky(
    sky_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["search", str(sky_folder), "-k", "3", "--json", "--id"]

    done = subprocess.run(
        [sys.executable, "-c", "from app.cli import main; main()", *search, "plain"],
        capture_output=True,
        text=True,
        check=True,
    )
    with pytest.raises(SystemExit) as refused:
        main([*search, "plane"])

    assert len(json.loads(done.stdout)["hits"]) == 3
    assert refused.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("skykin: ")
    assert len(told.err.splitlines()) == 1
    assert "Traceback" not in told.err
