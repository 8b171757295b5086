"""Fixtures shared by all floors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real survey files; the test skips where it is absent."""
    folder = Path(os.environ.get("SKYKIN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real survey files are not at {folder} (set SKYKIN_TEST_DATA)")
    return folder
