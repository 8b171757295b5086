"""SIGKILL at random instants: the published version stays whole, the next run ends the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from index.codec import IndexConfig
from index.compacting import reindex
from tests.index.conftest import Builder, write_cutout

ROOT = Path(__file__).parents[2]


NUM_INSTANTS = 30


@pytest.fixture
def work(tmp_path: Path, into: Builder) -> Path:
    """A sky of two versions, and files of which one is new, one has changed and one is gone."""
    sky, files = tmp_path / "sky", tmp_path / "files"
    for seed, name in enumerate(("a", "b", "c")):
        write_cutout(files / f"{name}.fits", seed)
        if name == "b":
            into(sky, files, "legacysurvey")
    into(sky, files, "legacysurvey")
    write_cutout(files / "b.fits", 50)
    write_cutout(files / "d.fits", 51)
    (files / "c.fits").unlink()
    return tmp_path


@pytest.fixture
def coded(work: Path) -> Path:
    """The same, and every view has a codec and every segment an index from now on."""
    reindex(work / "sky", IndexConfig(exact_rows=0, indexed_rows=1))
    return work


OF_ALL = [
    pytest.param(operation, "coded", NUM_INSTANTS, marks=pytest.mark.slow)
    for operation in ("build", "nightly", "compact", "reindex", "rollback")
]


@pytest.mark.parametrize(
    ("operation", "where", "num_instants"),
    [("nightly", "work", 2), *OF_ALL],
)
def test_killed_at_any_instant_nothing_is_lost(
    request: pytest.FixtureRequest,
    encoder: Path,
    seed: int,
    operation: str,
    where: str,
    num_instants: int,
) -> None:
    found = run(request.getfixturevalue(where), encoder, operation, num_instants, seed)
    nothing_is_lost(found)
    assert len(found["runs"]) == num_instants


@pytest.mark.parametrize(
    ("operation", "where", "num_instants"),
    [("compact", "work", 2), *OF_ALL],
)
def test_a_disk_that_is_full_at_any_step_loses_nothing(
    request: pytest.FixtureRequest,
    encoder: Path,
    seed: int,
    operation: str,
    where: str,
    num_instants: int,
) -> None:
    found = run(request.getfixturevalue(where), encoder, operation, num_instants, seed, "full")
    nothing_is_lost(found)
    assert len(found["runs"]) == min(num_instants, found["num"])
    for each in found["runs"]:
        assert "No space left on device" in str(each["told"]), each


def run(work: Path, encoder: Path, *arguments: object) -> dict[str, Any]:
    """What tests/index/killed.py prints."""
    program = ROOT / "tests" / "index" / "killed.py"
    done = subprocess.run(
        [sys.executable, *map(str, (program, work, encoder, *arguments))],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def nothing_is_lost(found: dict[str, Any]) -> None:
    """What is published is whole each time, and the next run ends as an undisturbed one."""
    before, after = found["before"], found["after"]
    assert not after["problems"]
    for each in found["runs"]:
        killed, again = each["killed"], each["again"]
        assert not killed["problems"], each["instant"]
        old = killed["version"] == before["version"]
        assert killed["results"] == (before if old else after)["results"], each["instant"]
        assert not again["state"]["problems"], each["instant"]
        assert not again["left"]
        assert again["state"]["results"] == after["results"], each["instant"]


READ_ONLY = """
import ctypes, sys
from pathlib import Path
from index.nightly import nightly
from index.nightly_config import NightlyConfig, SourceConfig
from index.versions import open_version

# root may write anywhere: give that right up (capset of no capability, version 3 of the call)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
sky, files, encoder = sys.argv[1:4]
print(open_version(Path(sky)).table.num_rows)
source = SourceConfig(survey="legacysurvey", path=files)
try:
    nightly(Path(sky), NightlyConfig(sources=(source,), encoder=encoder, num_workers=0))
except PermissionError as error:
    assert sky in str(error), error
    sys.exit(7)
"""

FULL = """
import resource, signal, sys
from pathlib import Path
from index.errors import DiskFull
from index.nightly import nightly
from index.nightly_config import NightlyConfig, SourceConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
sky, files, encoder = sys.argv[1:4]
source = SourceConfig(survey="legacysurvey", path=files)
config = NightlyConfig(sources=(source,), encoder=encoder, num_workers=0, max_removed_share=1.0)
try:
    nightly(Path(sky), config)
except DiskFull as error:
    assert "What was published stays whole" in str(error), error
    sys.exit(7)
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(READ_ONLY, id="read-only"),
        pytest.param(FULL, id="full", marks=pytest.mark.slow),
    ],
)
def test_a_folder_that_takes_nothing_is_told_and_stays_whole(
    work: Path, encoder: Path, program: str
) -> None:
    from index.versions import open_version, verify

    sky = work / "sky"
    folders = [sky, *(path for path in sky.rglob("*") if path.is_dir())]
    if program == READ_ONLY:
        for path in [*folders, *sky.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    done = subprocess.run(
        [sys.executable, "-c", program, str(sky), str(work / "files"), str(encoder)],
        check=False,
        capture_output=True,
        text=True,
    )
    for path in folders:
        path.chmod(0o755)

    assert done.returncode == 7, done.stderr
    assert open_version(sky).number == 2
    assert not verify(sky).problems
