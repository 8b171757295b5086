"""Runs the page on this machine: Streamlit in a process of its own, which ends with ours."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from app.engine import Engine, to_argument
from app.look import OPTIONS
from index.versions import open_version

HOST = "127.0.0.1"
CPU = Engine()
START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0


def serve(sky: Path, *, port: int, announce: Callable[[str], None], engine: Engine = CPU) -> int:
    """Serve the page of a sky until it is stopped.

    Args:
        sky: Folder of the sky; opened once here first, so that a wrong one is refused at once.
        port: On 127.0.0.1.
        announce: Called with the address when the page answers.
        engine: What searches.

    Returns:
        Exit code of the page's process; 0 when it was stopped by Ctrl-C or SIGTERM.

    Raises:
        NotASky: the folder is missing or foreign.
        ValueError: the port is taken or not usable, or the page did not start.
    """
    open_version(sky)
    check_port(port)
    with _stopped_by_signals(), page(sky, port=port, engine=engine) as (process, address):
        try:
            announce(address)  # whoever hears it may stop us at once
            return process.wait()
        except KeyboardInterrupt:
            return 0


@contextmanager
def page(
    sky: Path, *, port: int, engine: Engine = CPU
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The page's process and its address, from when it answers; ended on leaving.

    Raises:
        ModuleNotFoundError: Streamlit is not installed.
        ValueError: it did not start; the message holds what it last said.
    """
    import streamlit as _  # noqa: F401  said now, in one line, not by the other process

    process = subprocess.Popen(
        command(sky, port=port, engine=engine),
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # its own greeting; complaints come on stderr
    )
    try:
        _wait_until_up(process, port)
        yield process, f"http://{HOST}:{port}"
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(sky: Path, *, port: int, engine: Engine = CPU) -> list[str]:
    """The command line that runs the page."""
    options = {
        "server.address": HOST,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "logger.level": "warning",
        "browser.gatherUsageStats": "false",
        **OPTIONS,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    script = str(Path(__file__).with_name("main.py"))
    asked = [str(sky.resolve()), to_argument(engine)]
    return [sys.executable, "-m", "streamlit", "run", script, *flags, "--", *asked]


def check_port(port: int) -> None:
    """Raise ValueError unless the port can be listened to."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be 1 to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} of {HOST} cannot be used ({error.strerror}): choose another by --port"
            ) from error


def free_port() -> int:
    """A port that nothing listens to now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ValueError(f"the page stopped at once (exit code {process.returncode})")
        if _is_up(port):
            return
        time.sleep(0.1)
    raise ValueError(f"the page did not answer within {START_TIMEOUT_S:g} s")


def _is_up(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/_stcore/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM end us as Ctrl-C does, so that the page's process is not left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
