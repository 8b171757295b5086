"""The machines of a Ray cluster: joined, or Ray started on this machine for as long as it is used.

Ray is an extra. It is imported, and its processes are started, when somebody asks for a cluster and
not before.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from index.errors import ClusterUnavailable
from index.workers import num_cores

LOCAL = "local"
LOCAL_STORE_BYTES = 256 << 20  # of shared memory, for what processes of one machine hand on
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray listens on 127.0.0.1 only
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as Ray is going to do; else it warns
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where work is done past one process.

    Attributes:
        address: HOST:PORT of a Ray cluster; "auto": the one that this machine is part of; "local":
            Ray on this machine alone, started and ended by us.
        num_actors: Processes that share out the segments of a sky; None: one a machine, but two at
            least. Never more than there are segments.
        num_replicas: Processes that hold the same segments, on different machines where there are
            enough.
        patience_seconds: A process that has not answered by then is given up for a query.
    """

    address: str
    num_actors: int | None = None
    num_replicas: int = 1
    patience_seconds: float | int = 60

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        if not self.address:
            raise ValueError("expected the address of a Ray cluster, auto or local, got nothing")
        if self.num_actors is not None and self.num_actors < 1:
            raise ValueError(f"expected num_actors of 1 or more, got {self.num_actors}")
        if self.num_replicas < 1:
            raise ValueError(f"expected num_replicas of 1 or more, got {self.num_replicas}")
        if not self.patience_seconds > 0:
            raise ValueError(f"expected patience_seconds above 0, got {self.patience_seconds}")


def cluster_of(asked: str | Cluster | None) -> Cluster | None:
    """A cluster by its address, or as it is."""
    return Cluster(address=asked) if isinstance(asked, str) else asked


@dataclass(slots=True)
class _Membership:
    """What this process has joined. Ray knows one cluster a process."""

    address: str = ""
    num_users: int = 0
    is_ours: bool = False  # False: whoever called ray.init ends it
    was_local: bool = False  # since Ray was imported; it keeps to the addresses it had then


_membership = _Membership()
_lock = threading.RLock()  # a version may be forgotten, and left, while another joins


def join(address: str) -> None:
    """Join a cluster, or start Ray on this machine; each call needs a `leave`.

    Where the program has called ray.init itself, that is what is used.

    Raises:
        ClusterUnavailable: no cluster answers there, or one of another Ray or Python.
        ValueError: this process is in another cluster already.
        ModuleNotFoundError: Ray is not installed.
    """
    with _lock:
        if not _membership.num_users:
            _membership.is_ours = _init(address)
            _membership.address = address
        elif address != _membership.address:
            raise ValueError(
                f"this process is in the cluster {_membership.address!r} already, and Ray knows "
                f"one a process: expected that, got {address!r}"
            )
        _membership.num_users += 1


def leave() -> None:
    """Leave; the last to leave ends what `join` started."""
    import ray

    with _lock:
        _membership.num_users -= 1
        if not _membership.num_users and _membership.is_ours:
            ray.shutdown()


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Be in a cluster for a while."""
    join(address)
    try:
        yield
    finally:
        leave()


def joined_if_asked(cluster: Cluster | None) -> AbstractContextManager[None]:
    """Be in a cluster for a while, or do without."""
    return nullcontext() if cluster is None else joined(cluster.address)


def _init(address: str) -> bool:
    """Whether Ray was not there before."""
    with _environment(_QUIET | ({_LOOPBACK: "0"} if address == LOCAL else {})):
        import ray

        if ray.is_initialized():
            return False
        if address != LOCAL and _membership.was_local:
            raise ValueError(
                f"this process has run Ray for itself alone, which Ray remembers: join {address} "
                "from a new process"
            )
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == LOCAL:
            settings |= {
                "num_cpus": num_cores(),
                "object_store_memory": LOCAL_STORE_BYTES,
                "include_dashboard": False,
            }
        try:
            ray.init(address=address, **settings)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ClusterUnavailable(f"no Ray cluster can be joined at {address}: {reason}") from (
                error
            )
    if address == LOCAL:
        _membership.was_local = True
        if ray.util.get_node_ip_address() != "127.0.0.1":
            warnings.warn(
                "Ray was imported before it was asked to stay on this machine: other machines can "
                "reach it. Import skykin's packages alone, and Ray listens on 127.0.0.1 only",
                stacklevel=3,
            )
    return True


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for Ray, which it reads when it is imported and hands to its processes."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def num_cpus(address: str) -> int:
    """CPUs of a cluster, at least 1."""
    import ray

    with joined(address):
        return max(1, int(ray.cluster_resources().get("CPU", 1)))


def alive_nodes() -> list[dict[str, Any]]:
    """The machines that are there, as Ray describes them, in a settled order."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return sorted(nodes, key=lambda node: str(node["NodeID"]))
