"""A sky on a file system that is mounted read-only: what reads works, what writes says why not.

Rights of files say nothing here, root may write anyway. So the sky is mounted over itself, without
the right to write, in a mount namespace that one process is in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from discovery import Query, Sky

ROOT = Path(__file__).parents[2]
MOUNTED = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77
shift
exec "$@"
"""
CANNOT = 77

# Every command is called in one process, which imports torch once.
PROGRAM = """
import json, sys
from pathlib import Path
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner
import app.main
import discovery
from app.cli import cli
from app.serving import free_port, page

sky, seed, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
told = {}
for name, arguments in commands.items():
    done = CliRunner().invoke(cli, arguments)
    told[name] = [done.exit_code, done.stdout, done.stderr]
with discovery.open(sky) as opened:  # a program that stays open
    hits = opened.search(discovery.Query(like=[seed], where="mag_r < 99", k=10))
    found = [list(hits.ids), hits.scores.tolist(), opened.refresh()]
sys.argv = [app.main.__file__, sky]
shown = AppTest.from_file(sys.argv[0], default_timeout=60).run()
with page(Path(sky), port=free_port()) as (process, address):
    served = [address, process.poll()]
print(json.dumps({
    "told": told, "found": found, "served": served,
    "errors": [*map(str, shown.exception), *(each.value for each in shown.error)],
    "codes": [each.value for each in shown.code],
}))
"""


def mounted_read_only(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that finds the folder mounted read-only; the test skips where none may."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a folder read-only with")
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        ["unshare", *root, "--mount", "sh", "-c", MOUNTED, "sh", str(folder), *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode == CANNOT or done.stderr.startswith("unshare:"):
        pytest.skip(f"nothing can be mounted read-only here: {done.stderr.strip()}")
    return done


def content(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below it, when it was last changed and what it holds."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def answers(
    sky_folder: Path, sky: Sky, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What commands, a program and the page say of the small sky while it cannot be written to."""
    folder, pictures = str(sky_folder), sky_folder.parent / "pictures"
    config = tmp_path_factory.mktemp("read_only") / "nightly.toml"
    config.write_text(f'num_workers = 0\n[[sources]]\nsurvey = "composite"\npath = "{pictures}"\n')
    own = next(pictures.glob("*.png"))
    commands = {
        "search": ["search", folder, "--id", sky.random_bright(0), "-k", "5", "--json"],
        "search a file": ["search", folder, "--file", str(own), "--survey", "composite", "--json"],
        "versions": ["versions", folder],
        "verify": ["verify", folder],
        "build": ["build", folder, str(pictures), "--survey", "composite"],
        "nightly": ["nightly", folder, "--config", str(config)],
        "compact": ["compact", folder],
        "reindex": ["reindex", folder],
        "rollback": ["rollback", folder, "1"],
    }
    before = content(sky_folder)
    done = mounted_read_only(
        sky_folder,
        *(sys.executable, "-W", "error", "-c", PROGRAM, folder, sky.random_bright(0)),
        json.dumps(commands),
    )
    assert done.returncode == 0, done.stderr
    assert content(sky_folder) == before
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_the_mount_takes_nothing(sky_folder: Path) -> None:
    done = mounted_read_only(sky_folder, "touch", str(sky_folder / "file"))
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("name", ["search", "search a file", "versions", "verify"])
def test_what_reads_works_on_a_read_only_sky(answers: dict[str, Any], name: str) -> None:
    code, stdout, stderr = answers["told"][name]
    assert code == 0, stderr
    assert {
        "search": '"hits"',
        "search a file": '"hits"',
        "versions": "2 versions, published (*): 2",
        "verify": "files of 2 versions are whole",
    }[name] in stdout


def test_a_read_only_sky_answers_as_any_and_is_shown(answers: dict[str, Any], sky: Sky) -> None:
    seed = sky.random_bright(0)
    expected = sky.search(Query(like=[seed], where="mag_r < 99", k=10))
    assert answers["found"] == [list(expected.ids), expected.scores.tolist(), False]
    assert answers["errors"] == []
    assert answers["codes"][0] == seed
    address, exit_code = answers["served"]
    assert address.startswith("http://127.0.0.1:")
    assert exit_code is None


@pytest.mark.parametrize("name", ["build", "nightly", "compact", "reindex", "rollback"])
def test_what_writes_names_the_read_only_file_system(
    answers: dict[str, Any], sky_folder: Path, name: str
) -> None:
    code, stdout, stderr = answers["told"][name]
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    assert "Read-only file system" in stderr
    assert str(sky_folder) in stderr
