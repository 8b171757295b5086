"""Builds that are killed or run out of disk: what was published stays, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.store import Store
from index.versions import numbers, open_version, verify
from tests.index.conftest import Builder, write_cutout

NUM_NEW = 12

KILLED = """
import os, signal, sys
from pathlib import Path
from index import building, embedding, writing
sky, files, encoder, where = sys.argv[1:5]
embedding.FLUSH_SECONDS = 0.0
embedding.FILES_PER_TASK = 4

def dies(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    def stop(stage, done, total):
        if stage == where and done >= 4:
            dies()
    if where == "publish":
        building.publish = dies
    if where == "segments":
        writing.write_segment = dies
    if where == "partitions":
        writing.write_objects = dies
    building.build(Path(sky), [Path(files)], survey="legacysurvey", encoder=encoder,
                   num_workers=int(sys.argv[5]), progress=stop)
"""

FULL = """
import resource, signal, sys
from pathlib import Path
from index.building import build
from index.errors import DiskFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    build(Path(sys.argv[1]), [Path(sys.argv[2])], survey="legacysurvey", encoder=sys.argv[3],
          num_workers=0)
except DiskFull as error:
    print(error)
    sys.exit(7)
"""


@pytest.fixture
def half_built(tmp_path: Path, into: Builder) -> tuple[Path, Path]:
    """A sky with a published version of two objects, and a folder with NUM_NEW more files."""
    sky, files = tmp_path / "sky", tmp_path / "files"
    for seed in range(2):
        write_cutout(files / f"old{seed}.fits", seed)
    into(sky, files, "legacysurvey")
    for seed in range(NUM_NEW):
        write_cutout(files / f"new{seed:02d}.fits", 100 + seed)
    return sky, files


@pytest.mark.parametrize(
    ("where", "num_workers"),
    [
        pytest.param("embedding", 0, marks=pytest.mark.slow),
        pytest.param("embedding", 2, marks=pytest.mark.slow),
        pytest.param("segments", 0, marks=pytest.mark.slow),
        pytest.param("partitions", 0, marks=pytest.mark.slow),
        ("publish", 0),
    ],
)
def test_a_killed_build_goes_on_where_it_stopped(
    half_built: tuple[Path, Path],
    encoder: Path,
    into: Builder,
    tmp_path: Path,
    where: str,
    num_workers: int,
) -> None:
    sky, files = half_built
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    arguments = [sky, files, encoder, where, num_workers]
    done = subprocess.run([sys.executable, program, *map(str, arguments)], check=False)
    assert done.returncode == -9

    assert open_version(sky).number == 1
    assert open_version(sky).num_objects == 2
    assert not verify(sky).problems
    stored = num_stored(sky, encoder)
    assert stored >= 4 + 2

    report = into(sky, files, "legacysurvey")

    assert report.num_embedded == NUM_NEW + 2 - stored
    assert (report.num_embedded == 0) == (where != "embedding")
    assert report.num_objects == NUM_NEW + 2
    assert not verify(sky).problems
    assert not list(sky.rglob(".tmp-*"))
    version = open_version(sky)
    keys = version.table["object_key"].to_numpy()
    found = version.search(version.vectors(keys, "image"), view="image", k=1)
    assert found.keys[:, 0].tolist() == keys.tolist()


def num_stored(sky: Path, encoder: Path) -> int:
    """Observations with all their views in the store."""
    from training import encoder as encoders

    store = Store(sky / "store", encoder_hash=encoders.load(encoder).hash)
    parts = store.folder.glob("image/*/fingerprint.npy")
    names = {bytes(row).hex() for part in parts for row in np.load(part)}
    return int(store.has("joint", sorted(names)).sum())


@pytest.mark.parametrize("limit", [500, pytest.param(4_000, marks=pytest.mark.slow)])
def test_a_full_disk_is_told_and_the_published_version_stays_whole(
    half_built: tuple[Path, Path], encoder: Path, into: Builder, limit: int
) -> None:
    sky, files = half_built
    arguments = [str(argument) for argument in (sky, files, encoder, limit)]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *arguments], check=False, capture_output=True, text=True
    )

    assert done.returncode == 7, done.stderr
    assert "no space left to write" in done.stdout
    assert "What was published stays whole" in done.stdout
    assert (numbers(sky), open_version(sky).num_objects) == ([1], 2)
    assert not verify(sky).problems
    assert into(sky, files, "legacysurvey").num_objects == NUM_NEW + 2
