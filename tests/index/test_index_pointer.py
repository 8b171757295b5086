"""The file that names a version: no flipped bit names another."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import VersionCorrupt
from index.pointer import read_pointer, write_pointer


@pytest.mark.parametrize("number", [1, 2, 9, 4096])
def test_no_flipped_bit_names_another_version(tmp_path: Path, number: int) -> None:
    file = tmp_path / "CURRENT"
    write_pointer(file, number)
    assert read_pointer(file) == number
    whole = file.read_bytes()
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        file.write_bytes(content)
        with pytest.raises(VersionCorrupt, match="CURRENT"):
            read_pointer(file)


@pytest.mark.parametrize("content", ["7", "7\n", "7 \r\n"])
def test_a_number_alone_is_read_as_older_releases_wrote_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "CURRENT").write_text(content)
    assert read_pointer(tmp_path / "CURRENT") == 7


@pytest.mark.parametrize(
    "content",
    ["", " ", "0", "007", "-1", "1.0", "²", "٣", "../../x", "versions/1", "1\n2\n", "1 2",
     "9" * 5000, "1 6b86b273ff34fce", "1 d4735e3a265e16ee\n", "\x00" * 18],
)  # fmt: skip
def test_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "CURRENT").write_text(content)
    with pytest.raises(VersionCorrupt, match="CURRENT"):
        read_pointer(tmp_path / "CURRENT")


@pytest.mark.parametrize("kind", ["nothing", "folder", "circle"])
def test_what_is_no_file_is_told(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "CURRENT"
    if kind == "folder":
        file.mkdir()
    if kind == "circle":
        file.symlink_to(file)
    with pytest.raises(VersionCorrupt, match=r"CURRENT is (missing|not a file)"):
        read_pointer(file)
