"""Engines in processes of their own, asked by lines of JSON (see worker.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from worker import OURS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS",
    "TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS", "LANCE_IO_THREADS",
)  # fmt: skip


class EngineFailed(Exception):
    """An engine could not do what it was asked; the message says why."""


class Engine:
    """The process of one engine.

    Args:
        name: Of a peer (see peers.py), or OURS.
        folder: Where queries and vectors lie, and where it puts its index.
        python: Interpreter that has its library; ours always runs in the one of the parent.
        num_threads: That its libraries are told to use.
    """

    def __init__(self, name: str, folder: Path, *, python: Path, num_threads: int) -> None:
        self.name = name
        environment = dict(os.environ)
        path = [str(HERE.parent)]
        if name == OURS:
            python = Path(sys.executable)
            path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")]), *path]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        environment |= dict.fromkeys(_THREADS, str(num_threads))
        self._process = subprocess.Popen(
            [str(python), str(HERE / "worker.py"), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have a command done.

        Raises:
            EngineFailed: it said no, or died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # said below
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise EngineFailed(f"{self.name} died with exit code {self._process.wait()} in {do!r}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineFailed(f"{self.name} cannot {do}: {answer['error']}")
        return answer
