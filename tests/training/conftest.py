"""Fixtures of the training floor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.small_encoder import save_encoder
from training import encoder
from training.encoder import Encoder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small untrained encoder; read only."""
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def small_encoder(encoder_folder: Path) -> Encoder:
    """A small untrained encoder."""
    return encoder.load(encoder_folder)
