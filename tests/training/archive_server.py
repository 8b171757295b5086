"""A local web server that answers, or misbehaves, as a test tells it to."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from training.archives.transfer import Clock, Service


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: float  # seconds of the clock of the test, 0 without one

    @property
    def form(self) -> dict[str, str]:
        """Fields of a form, urlencoded."""
        return dict(parse_qsl(self.body.decode()))


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server sends."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    send_bytes: int | None = None  # of the body; then the connection is closed
    reset: bool = False  # closed so that the client sees a reset
    hang: bool = False  # nothing is sent until the server stops
    drip_s: float = 0  # between single bytes
    length: bool = True  # send Content-Length


Answer = Callable[[Request], Reply]


class ArchiveServer:
    """Answers on 127.0.0.1 and remembers what it was asked."""

    def __init__(self, answer: Answer, *, clock: Clock | None = None) -> None:
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._at_once = 0
        self._answer = answer
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def service(self, **changes: Any) -> Service:
        """This server as a service, fast and patient enough for a test."""
        settings: dict[str, Any] = {
            "url": self.url,
            "requests_per_second": 1e6,
            "num_at_once": 2,
            "timeout_s": 20.0,
            "num_attempts": 3,
        }
        return Service(**(settings | changes))

    def paths(self) -> list[str]:
        """Paths in the order in which they were asked for."""
        return [request.path for request in self.requests]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        parts = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length", 0))
        request = Request(
            method=handler.command,
            path=unquote(parts.path),
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in handler.headers.items()},
            body=handler.rfile.read(length),
            at=self._clock.now() if self._clock else 0.0,
        )
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self._answer(request)
        finally:
            with self._lock:
                self._at_once -= 1
        self._send(handler, reply)

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.hang:
            self._stop.wait()
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.length:
            handler.send_header("Content-Length", str(len(reply.body)))
        else:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        body = reply.body if reply.send_bytes is None else reply.body[: reply.send_bytes]
        if handler.command == "HEAD":
            return
        if reply.drip_s:
            for place in range(len(body)):
                if self._stop.wait(reply.drip_s):
                    return
                handler.wfile.write(body[place : place + 1])
                handler.wfile.flush()
        else:
            handler.wfile.write(body)
            handler.wfile.flush()
        if reply.reset:
            # No lingering: the connection is reset, not closed.
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        if reply.send_bytes is not None or reply.reset:
            handler.close_connection = True


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def _sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.time += seconds

    def clock(self, *, chance: float = 1.0) -> Clock:
        """This time, with a chance that never changes."""
        return Clock(now=lambda: self.time, sleep=self._sleep, chance=lambda: chance)


def stay_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, and no connection but to this machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


def _handler(server: ArchiveServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else 40 ms pass between headers and body

        def do_GET(self) -> None:
            server.serve(self)

        def do_POST(self) -> None:
            server.serve(self)

        def do_HEAD(self) -> None:
            server.serve(self)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    return Handler
