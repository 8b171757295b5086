"""Two distributions of FAISS side by side are refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import FaissConflict, SkykinError
from index.faiss_distributions import check_one_faiss, installed


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What pip leaves behind of a second distribution."""
    name = "faiss-gpu" if "faiss-cpu" in installed() else "faiss-cpu"
    folder = tmp_path / f"{name.replace('-', '_')}-1.15.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_one_distribution_is_fine() -> None:
    assert len(installed()) == 1
    check_one_faiss()


def test_two_are_refused_and_what_to_uninstall_is_said(another: str) -> None:
    assert another in installed()
    with pytest.raises(FaissConflict, match=r"pip uninstall faiss-cpu faiss-gpu"):
        check_one_faiss()
    assert issubclass(FaissConflict, SkykinError)  # the command line tells it in one line
