"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import disk
from index.errors import SkyBusy, VersionCorrupt


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "CURRENT"
    file.write_text("1")

    def stop() -> None:
        with disk.new_file(file) as handle:
            handle.write(b"2")
            raise KeyError

    with pytest.raises(KeyError):
        stop()

    assert file.read_text() == "1"
    assert os.listdir(tmp_path) == ["CURRENT"]


def test_blocks_make_the_file_that_numpy_makes(tmp_path: Path) -> None:
    array = np.arange(35, dtype=np.float16).reshape(7, 5)
    disk.write_array_blocks(
        tmp_path / "a.npy", (array[:3], array[3:]), shape=(7, 5), dtype=array.dtype
    )

    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (1,), (3, 2, 2)])
def test_arrays_of_any_shape_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.int64)
    disk.write_array(tmp_path / "a.npy", array)

    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)


@settings(deadline=None, max_examples=40)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_document_shows(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("json") / "manifest.json"
    disk.write_json(file, {"number": 3, "views": ["image", "joint"], "name": "Bärbel", "no": None})
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(content)

    with pytest.raises(VersionCorrupt, match=r"manifest\.json"):
        disk.read_json(file)


def test_a_document_comes_back(tmp_path: Path) -> None:
    content: dict[str, object] = {"number": 3, "share": 0.1, "name": "Bärbel", "list": [1, None]}
    disk.write_json(tmp_path / "a.json", content)

    assert disk.read_json(tmp_path / "a.json") == content


def test_a_second_writer_is_told_to_wait(tmp_path: Path) -> None:
    with disk.only_writer(tmp_path), pytest.raises(SkyBusy) as caught:
        disk.only_writer(tmp_path).__enter__()
    assert str(tmp_path) in str(caught.value)
    with disk.only_writer(tmp_path):  # free again
        pass


HOLDS = """
import subprocess, sys, time
from pathlib import Path
from index import disk
with disk.only_writer(Path(sys.argv[1])):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # outlives it
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_does_not_outlive_its_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(SkyBusy):
        disk.only_writer(tmp_path).__enter__()

    owner.kill()
    owner.wait()

    with disk.only_writer(tmp_path):
        pass
    os.killpg(owner.pid, signal.SIGKILL)  # its child, which was left
    owner.stdout.close()


@pytest.mark.parametrize("kind", ["array", "table", "json"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    program = f"""
import os, resource, signal, sys
import numpy as np, pyarrow as pa
from pathlib import Path
from index import disk
from index.errors import DiskFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
file = Path(sys.argv[1])
numbers = np.random.default_rng(0).integers(0, 2**60, 5000)
write = {{
    "array": lambda: disk.write_array(file, numbers),
    "table": lambda: disk.write_table(file, pa.table({{"a": numbers}})),
    "json": lambda: disk.write_json(file, {{"a": numbers.tolist()}}),
}}[{kind!r}]
try:
    write()
except DiskFull as error:
    assert str(file) in str(error), error
    assert os.listdir(file.parent) == [], os.listdir(file.parent)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], check=False)

    assert done.returncode == 7
