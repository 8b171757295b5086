"""One engine in a process of its own: builds an index, or opens it and answers queries.

    python worker.py NAME FOLDER

Commands come as JSON, one a line, and so do answers. FOLDER holds `queries.npy` (float32) and, for
peers, `vectors.npy` (float32, mapped); the index goes to a folder inside it. A peer's library is
imported from whatever Python runs this; nothing of ours is, unless the engine is "ours".
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import resident_memory
from peers import PEERS, K

OURS = "ours"
Timed = dict[str, list[Any]]
WARM_UP = 20  # queries before any is timed
_VECTORS = "vectors.npy"  # of ours: for re-ranking, read through the page cache


def main() -> None:
    """Answer commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    name, root = sys.argv[1], Path(sys.argv[2])
    commands = _ours(root) if name == OURS else _peer(name, root)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = commands[asked.pop("do")](**asked)
        except Exception as error:  # goes to the parent, which says whose it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def folder_of(name: str, root: Path) -> Path:
    """Where an engine keeps its index."""
    return root / "".join(c if c.isalnum() else "_" for c in name)


class _Served:
    """An open index: times and answers of queries."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        search: Callable[[np.ndarray, Any], np.ndarray],
        open_index: Callable[[], None],
    ) -> None:
        self.folder, self.search = folder, search
        self.queries = np.load(root / "queries.npy")
        resident_memory.forget(resident_memory.files_below(folder))
        self.before_mib = resident_memory.anonymous_mib()
        open_index()

    def measure(self, first: int, last: int, effort: Any, seconds: float, warm: bool) -> Timed:
        """Ask queries one by one, for so many seconds at most, and at least one."""
        if warm:
            until = time.perf_counter() + seconds / 4
            for i in range(first, min(first + WARM_UP, last)):
                self.search(self.queries[i : i + 1], effort)
                if time.perf_counter() > until:
                    break
        return timed(lambda i: self.search(self.queries[i : i + 1], effort), first, last, seconds)

    def memory(self) -> dict[str, float]:
        """Anonymous memory since before opening with the index's mapped pages, and page cache."""
        anonymous = resident_memory.anonymous_mib() - self.before_mib
        mapped = resident_memory.mapped_mib(self.folder, without=[_VECTORS])
        files = resident_memory.files_below(self.folder)
        return {
            "memory_mib": anonymous + mapped,
            "page_cache_mib": resident_memory.cached_mib(files),
            "vectors_page_cache_mib": resident_memory.cached_mib(
                path for path in files if path.name == _VECTORS
            ),
        }


def timed(ask: Callable[[int], np.ndarray], first: int, last: int, seconds: float) -> Timed:
    """Milliseconds and rows of queries `first` to `last`, as far as the time allows."""
    times, rows = [], []
    until = time.perf_counter() + seconds
    for i in range(first, last):
        started = time.perf_counter()
        found = ask(i)
        ended = time.perf_counter()
        times.append(1000 * (ended - started))
        rows.append(found.tolist())
        if ended > until:
            break
    return {"ms": times, "rows": rows}


def _one_thread(core: int | None) -> None:
    """Threads that a library starts in spite of what it was told share the core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def _peer(name: str, root: Path) -> dict[str, Callable[..., Any]]:
    peer = PEERS[name]()
    folder = folder_of(name, root)
    served: list[_Served] = []

    def check() -> dict[str, Any]:
        module = import_module(peer.needs)
        return {"version": getattr(module, "__version__", None) or _installed(peer.needs)}

    def build(num_threads: int) -> dict[str, float]:
        folder.mkdir()
        vectors = np.load(root / "vectors.npy", mmap_mode="r")
        import_module(peer.needs)  # not part of building
        started = time.perf_counter()
        peer.build(vectors, folder, num_threads)
        return {"build_s": time.perf_counter() - started}

    def open_index(core: int | None) -> dict[str, Any]:
        _one_thread(core)
        import_module(peer.needs)
        served.append(_Served(root, folder, peer.search, lambda: peer.open(folder)))
        return {"efforts": list(peer.efforts)}

    return {
        "check": check,
        "build": build,
        "open": open_index,
        "measure": lambda **asked: served[0].measure(**_with_tuple(asked)),
        "memory": lambda: served[0].memory(),
    }


def _ours(root: Path) -> dict[str, Callable[..., Any]]:
    ours = import_module("ours")
    engine = ours.Ours(folder_of(OURS, root))
    served: list[_Served] = []

    def open_index(core: int | None) -> dict[str, Any]:
        _one_thread(core)
        served.append(_Served(root, engine.folder, engine.search, engine.open))
        return {"efforts": ours.efforts()}

    def filtered(predicate: str, num_queries: int, effort: float | None, seconds: float) -> Timed:
        queries = served[0].queries

        def ask(i: int) -> np.ndarray:
            return engine.filtered(queries[i : i + 1], predicate, effort)

        return timed(ask, 0, num_queries, seconds)

    return {
        "check": lambda: {"version": version("skykin")},
        "build": engine.build,
        "open": open_index,
        "measure": lambda **asked: served[0].measure(**asked),
        "filtered": filtered,
        "memory": lambda: served[0].memory(),
    }


def _with_tuple(asked: dict[str, Any]) -> dict[str, Any]:
    if isinstance(asked["effort"], list):
        asked["effort"] = tuple(asked["effort"])
    return asked


def _installed(module: str) -> str | None:
    try:
        return version(module.split(".")[0])
    except PackageNotFoundError:
        return None


__all__ = ["OURS", "K", "folder_of", "timed"]

if __name__ == "__main__":
    main()
