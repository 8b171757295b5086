"""The demo, small: simulated, built, measured, kept; and the page served by the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from typer.testing import CliRunner

from app.cli import cli
from app.demo import FEWEST
from app.serving import free_port


def test_the_check_prints_figures_and_a_second_one_makes_nothing_again(
    encoder_folder: Path, tmp_path: Path
) -> None:
    arguments = ["demo", "--check", "--objects", str(FEWEST), "--encoder", str(encoder_folder)]
    arguments += ["--folder", str(tmp_path / "demo"), "--json"]

    first = CliRunner().invoke(cli, arguments)

    assert first.exit_code == 0, first.output
    figures = json.loads(first.stdout)
    assert figures["objects"] == FEWEST
    assert set(figures["labels"]) == {"spiral", "merger", "lens"}
    for found in figures["labels"].values():
        assert 0 < found["chance"] < 1
        assert 0 <= found["ndcg@10"] <= 1
        assert found["corpus"] == FEWEST
    assert "simulating" in first.stderr
    assert "embedding" in first.stderr

    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.hdf5")}
    again = CliRunner().invoke(cli, arguments)

    assert json.loads(again.stdout) == figures
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.hdf5")} == made


def test_app_prints_its_address_and_leaves_nothing_behind_when_stopped(sky_folder: Path) -> None:
    port = free_port()
    script = "from app.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "app", str(sky_folder), "--port", str(port)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert f"http://127.0.0.1:{port}" in line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=10) as up:
            assert up.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
        assert process.stdout is not None
        process.stdout.close()

    assert code == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
