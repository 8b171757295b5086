"""Fixtures shared by all floors."""

from __future__ import annotations

import os
import secrets
import zlib
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("settled", derandomize=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `make test-all`."""
    parser.addoption("--fresh-seeds", action="store_true", help="other random numbers in every run")


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis follows the option too."""
    if not config.getoption("--fresh-seeds"):
        settings.load_profile("settled")


def seed_of(request: pytest.FixtureRequest) -> int:
    """Seed of whatever asks: always the same for it, or new and printed with --fresh-seeds."""
    if request.config.getoption("--fresh-seeds"):
        seed = secrets.randbits(31)
        print(f"seed {seed}")
        return seed
    return zlib.crc32(request.node.nodeid.encode()) >> 1


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Seed of a test, see seed_of."""
    return seed_of(request)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real survey files; the test skips where it is absent."""
    folder = Path(os.environ.get("SKYKIN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real survey files are not at {folder} (set SKYKIN_TEST_DATA)")
    return folder
