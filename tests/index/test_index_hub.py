"""Skies made with an encoder of the Hub: a server here answers as the Hub documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from index.building import build
from index.manifest import read_head
from tests.index.conftest import write_cutout
from tests.training.hub_server import HubServer, serving, use
from training import encoder as encoders
from training import hub
from training.encoder import EncoderNotFound

NAME = "someone/tiny"


def test_the_hub_is_asked_once_and_not_by_workers(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    files, sky = tmp_path / "files", tmp_path / "sky"
    write_cutout(files / "a.fits", 1)
    with serving(HubServer({NAME: encoder})) as server:
        use(server.endpoint, monkeypatch)  # of this process: a worker would not find the server
        with pytest.raises(EncoderNotFound, match="someone/other"):
            build(sky, [files], survey="legacysurvey", encoder="someone/other")
        assert not sky.exists()
        server.asked.clear()
        report = build(sky, [files], survey="legacysurvey", encoder=NAME, num_workers=1)
        asked = list(server.asked)
        hub.fetch(NAME)

    assert (report.num_embedded, report.skipped) == (1, ())
    made_by = read_head(sky).encoder
    assert (made_by.name, made_by.hash) == (NAME, encoders.load(encoder).hash)
    weights = [path for path in asked if path.endswith("/model.safetensors")]
    assert len(weights) == len(set(weights)) > 0
    revisions = [path for path in asked if "/revision/" in path]
    assert len(revisions) == 1
    write_cutout(files / "b.fits", 2)  # without the server: from the cache
    assert build(sky, [files], survey="legacysurvey", num_workers=0).num_embedded == 1
