"""Encoders from the Hub, against a server on this machine that answers as the Hub documents."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.training.hub_server import COMMIT, HubServer, serving, use
from tests.training.small_encoder import observe
from training import artifact, encoder, hub

NAME = "someone/small"


@pytest.fixture
def server(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """The Hub with one encoder, some files beside it that nobody should ask for, a fresh cache."""
    folder = tmp_path / "published"
    for file in encoder_folder.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(encoder_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for other in ("pytorch_model.bin", "codecs/image/model.pkl", "notes.txt", "tokenizer.json"):
        (folder / other).write_text("not for us")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(HubServer({NAME: folder})) as running:
        use(running.endpoint, monkeypatch)
        yield running


def test_fetched_encoder_is_the_published_one(server: HubServer, encoder_folder: Path) -> None:
    local = encoder.load(encoder_folder)

    fetched = encoder.load(NAME)

    assert (fetched.hash, fetched.head_hash) == (local.hash, local.head_hash)
    seen = [observe(1), observe(2)]
    assert (fetched.embed(seen).vectors == local.embed(seen).vectors).all()


def test_only_settings_and_safetensors_are_asked_for(server: HubServer) -> None:
    hub.fetch(NAME)

    files = {path.split(COMMIT + "/")[1] for path in server.asked if "/resolve/" in path}
    own = {
        path
        for path in server.files(NAME)
        if Path(path).name in ("config.json",) or (path.endswith(".safetensors"))
    }
    assert files == own
    assert len(files) == 16


def test_second_load_needs_no_server(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.fetch(NAME)
    use("http://127.0.0.1:9", monkeypatch)  # the discard port: nobody answers

    again = hub.fetch(NAME)

    assert again == first
    assert artifact.load(again).encoder_hash == artifact.load(first).encoder_hash


def test_second_load_fetches_nothing_again(server: HubServer) -> None:
    hub.fetch(NAME)
    before = len(server.asked)

    hub.fetch(NAME)

    assert not [path for path in server.asked[before:] if path.startswith("GET /someone/")]


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT])
def test_revision_follows_the_name(server: HubServer, revision: str) -> None:
    assert hub.fetch(f"{NAME}@{revision}").name == COMMIT


def test_offline_mode_reads_the_cache_and_asks_nobody(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.fetch(NAME)
    before = len(server.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert hub.fetch(NAME) == folder
    assert len(server.asked) == before
    with pytest.raises(
        ValueError, match=r"not whole, in the cache .*HF_HUB_OFFLINE is set"
    ) as told:
        hub.fetch("someone/else")
    assert "/someone/else/tree/main the files config.json and model.safetensors" in str(told.value)
    assert "--encoder /path/to/else" in str(told.value)


def test_no_network_says_how_to_get_the_files_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    use("http://127.0.0.1:9", monkeypatch)

    with pytest.raises(encoder.EncoderNotFound) as told:
        encoder.load("polymathic-ai/aion-base")

    message = str(told.value)
    assert "http://127.0.0.1:9 cannot be reached" in message
    assert "ConnectError" in message or "Connection" in message
    assert "hf download polymathic-ai/aion-base --revision main" in message
    assert "--encoder /path/to/aion-base" in message
    assert str(tmp_path / "cache") in message


def test_files_got_by_hand_load_as_the_fetched_ones(server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "by_hand"
    for path, file in server.files(NAME).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(file.read_bytes())

    assert artifact.load(folder).encoder_hash == artifact.load(NAME).encoder_hash


REFUSALS = {
    "absent": ("someone/absent", "no repository someone/absent at http.*HF_TOKEN"),
    "gated": ("someone/gated", "someone/gated is gated: accept its conditions at http.*gated"),
    "revision": (f"{NAME}@v9", "someone/small has no revision 'v9'"),
    "pickled": ("someone/pickled", "holds no encoder: expected config.json and model.safetensors"),
    "bad name": ("a/b--c", "cannot be the name of a repository"),
    "no name": ("just words", "expected owner/name"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusal_is_explained(server: HubServer, tmp_path: Path, what: str) -> None:
    name, message = REFUSALS[what]
    server.gated.add("someone/gated")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    server.repositories["someone/pickled"] = pickled

    with pytest.raises(ValueError, match=message):
        hub.fetch(name)


def test_body_shorter_than_announced_is_refused_and_nothing_of_it_kept(server: HubServer) -> None:
    server.short_body = True
    with pytest.raises(ValueError, match=r"could not be fetched .*Consistency check failed"):
        hub.fetch(NAME)

    server.short_body = False
    assert artifact.load(hub.fetch(NAME)).encoder_hash


def test_broken_line_is_refused_and_nothing_of_it_kept(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patient:
        patient.setattr(time, "sleep", lambda seconds: None)  # between tries
        server.cut_body_at = 100
        with pytest.raises(ValueError, match="someone/small could not be fetched"):
            hub.fetch(NAME)

    server.cut_body_at = None
    assert artifact.load(hub.fetch(NAME)).encoder_hash


@pytest.mark.parametrize("file", ["model.safetensors", "codecs/image/config.json"])
def test_flipped_bit_in_the_cache_is_noticed(server: HubServer, file: str) -> None:
    blob = (hub.fetch(NAME) / file).resolve()
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)

    with pytest.raises(ValueError, match=f"{file}: (damaged|not JSON)"):
        artifact.load(NAME)


def test_environment_names_mirror_cache_and_offline_mode(server: HubServer, tmp_path: Path) -> None:
    program = f"from training import hub; print(hub.fetch({NAME!r}))"
    own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    run = [sys.executable, "-c", program]
    online = subprocess.run(run, env=os.environ | own, capture_output=True, text=True, check=True)
    own |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    offline = subprocess.run(run, env=os.environ | own, capture_output=True, text=True, check=True)

    assert online.stdout == offline.stdout
    assert str(tmp_path / "home") in online.stdout
