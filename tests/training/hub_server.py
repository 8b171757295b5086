"""A server on this machine that answers as the Hugging Face Hub documents.

Source: https://huggingface.co/docs/hub/api and /docs/hub/local-cache: a repository is listed under
/api/models, its files lie under /resolve with the headers ETag, X-Repo-Commit and, for large files,
X-Linked-Etag (sha256) and X-Linked-Size; refusals carry X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40


@dataclass
class HubServer:
    """Repositories by id, and what went over the wire."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut_body_at: int | None = None  # bytes of a large file that are sent before the line breaks
    short_body: bool = False  # large files come whole by their header, but short
    asked: list[str] = field(default_factory=list)  # "GET /path", in order
    endpoint: str = ""

    def files(self, name: str) -> dict[str, Path]:
        """The files of a repository by their path in it."""
        folder = self.repositories[name]
        return {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}


@contextmanager
def serving(server: HubServer) -> Iterator[HubServer]:
    """Answer on a free port of this machine until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            server.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            rest = parts[4:] if parts[0] == "api" else parts[2:]
            if name in server.gated:
                return self._refuse(403, "GatedRepo", "Access to model is restricted")
            if name not in server.repositories:
                return self._refuse(401, "RepoNotFound", "Repository not found")
            if len(rest) < 2 or rest[1] not in ("main", "v1", COMMIT):
                return self._refuse(404, "RevisionNotFound", "Invalid rev id")
            if parts[0] == "api":
                return self._list(name, tree=rest[0] == "tree")
            self._send_file(name, "/".join(rest[2:]), body=body)

        def _list(self, name: str, *, tree: bool) -> None:
            files = server.files(name)
            if not tree:
                siblings = [{"rfilename": path} for path in files]
                return self._send_json({"id": name, "sha": COMMIT, "siblings": siblings})
            listing: list[dict[str, object]] = []
            for path, file in files.items():
                size = file.stat().st_size
                entry: dict[str, object] = {
                    "type": "file", "path": path, "size": size, "oid": git_object(file),
                }  # fmt: skip
                if file.suffix != ".json":
                    entry["lfs"] = {"oid": sha256(file), "size": size, "pointerSize": 130}
                listing.append(entry)
            self._send_json(listing)

        def _send_json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _send_file(self, name: str, path: str, *, body: bool) -> None:
            file = server.files(name).get(path)
            if file is None:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            content, large = file.read_bytes(), file.suffix != ".json"
            total = len(content)
            start = 0
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes=") and body:
                start = int(asked.removeprefix("bytes=").split("-")[0])
            if large and server.short_body:
                content = content[: total // 2]
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if large:
                self.send_header("ETag", '"of the storage"')
                self.send_header("X-Linked-Etag", f'"{sha256(file)}"')
                self.send_header("X-Linked-Size", str(total))
            else:
                self.send_header("ETag", f'"{git_object(file)}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if body:
                end = server.cut_body_at if large else None
                self.wfile.write(content[start:end])
                self.close_connection = self.close_connection or end is not None

        def _refuse(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.endpoint = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub ask another server, as HF_ENDPOINT does before its import."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def sha256(file: Path) -> str:
    """What names a large file on the Hub."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def git_object(file: Path) -> str:
    """What names a small file on the Hub: its git object."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
