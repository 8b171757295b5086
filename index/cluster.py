"""The segments of a version on Ray actors, and a search that asks all of them.

Each actor opens the version from the folder that all machines see and holds some of its segments.
A query goes to the actors that hold its view. Each searches its own segments with `search.find`, as
one process does with all of them, and `search.ranked` makes one ranking of what they found: an
object that is among the best k of all is among the best k of its actor, scores do not depend on
which segments are searched together, and ties go by key. So the answer is that of one process, bit
for bit.

An actor that is lost is replaced. Until then another replica answers; where there is none the query
waits for the new one. Where that does not come either, the answer says which rows were not
searched (`Missing`), or `PartMissing` is raised where nobody asked to be told.

Replicas of a share go to different machines while there are enough, so that one lost machine takes
one of them. Actors take no CPU from Ray's books (num_cpus=0), for they mostly wait, and Ray Data
would starve beside actors that hold every core. They end with the version that they were made for.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from index import search
from index.errors import ClusterUnavailable, PartMissing
from index.filtering import MAX_BYTES, Filter, Filters, Live
from index.probing import Effort
from index.ray_nodes import Cluster, alive_nodes, join, leave
from index.search import Neighbors
from index.segment import Segment
from index.version import Version

OPENING_SECONDS = 300.0  # an actor imports torch, and may copy its segments to a GPU
AT_ONCE = 8  # queries that one actor works on
# Ray places an actor that asks for nothing at random, whatever machine it was told
LEAST_BYTES = 1


@dataclass(frozen=True, slots=True)
class Missing:
    """Rows that a search could not look at."""

    view: str
    segments: tuple[str, ...]  # by name
    num_rows: int  # live
    share: float  # of the live rows of the view
    reason: str

    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.share:.1%} of the rows of view {self.view} ({self.num_rows:,} in "
            f"{', '.join(self.segments)}) were not searched: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class SentFilter:
    """A filter on its way: an actor fetches the bits when it does not know the number."""

    number: int  # given by the one process that asks
    num_keys: int
    bits: list[Any]  # one reference into Ray's object store; in a list, so that Ray leaves it one


class Holder:
    """Some segments of a version in a process of their own. Ray makes an actor of it."""

    def __init__(
        self, sky: str, number: int, names: Sequence[str], *, device: str, num_threads: int
    ) -> None:
        import faiss

        faiss.omp_set_num_threads(num_threads)
        self._version = Version(Path(sky), number)  # held: not pruned while somebody asks
        self._lives: dict[str, list[Live]] = {}
        for live in self._version.segments:
            if live.segment.name not in names:
                continue
            if device != "cpu":
                live = replace(live, segment=Segment(live.segment.folder, device=device))
            if live.segment.has_lists:  # now, not in the first query
                assert live.segment.lists is not None
            self._lives.setdefault(live.segment.view, []).append(live)
        self._filters = Filters()

    def ready(self) -> bool:
        """Answers when it is open."""
        return True

    def find(
        self,
        queries: Float32[ndarray, "query dim"],
        view: str,
        k: int,
        sent: SentFilter | None,
        effort: Effort | None,
    ) -> tuple[ndarray, ndarray]:
        """Keys and scores of `search.find` in the segments of a view that are here."""
        chosen = self._version.everything
        if sent is not None:
            chosen = self._filters.get(sent.number, lambda: _fetched(sent))
        found = search.find(queries, self._lives[view], k=k, chosen=chosen, effort=effort)
        return found.keys, found.scores


def _fetched(sent: SentFilter) -> Filter:
    import ray

    bits = ray.get(sent.bits[0])
    return Filter(np.unpackbits(bits, count=sent.num_keys).astype(bool))


@dataclass(slots=True)
class _Group:
    """Segments that are held together, and the actors that hold them."""

    names: tuple[str, ...]
    rows: dict[str, int]  # live rows by view
    start: Callable[[int, bool], Any]  # number of a replica, on another machine? -> a new actor
    replicas: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put_in_place(self, number: int, lost: Any, *, elsewhere: bool) -> None:
        """Replace an actor, once, however many queries lost it; on another machine if asked."""
        with self.lock:
            if self.replicas[number] is lost:
                self.replicas[number] = self.start(number, elsewhere)


class Holders:
    """The actors of one open version. Safe to share between threads."""

    def __init__(self, version: Version, cluster: Cluster, *, device: str = "cpu") -> None:
        """Start actors and wait until all segments are open.

        Raises:
            ClusterUnavailable: there is no cluster, or some segments cannot be opened on it.
        """
        self.cluster = cluster
        self._groups: list[_Group] = []
        join(cluster.address)
        self._leave = weakref.finalize(self, leave)  # also where nobody closes
        try:
            self._groups = self._started(version, device)
            self._wait_until_open()
        except BaseException:
            self.close()
            raise
        self._sent: OrderedDict[int, tuple[ndarray, SentFilter]] = OrderedDict()
        self._lock = threading.Lock()
        self._numbers, self._turns = count(), count()

    @property
    def actors(self) -> list[list[Any]]:
        """Handles of the actors, by group and replica."""
        return [list(group.replicas) for group in self._groups]

    def close(self) -> None:
        """End the actors, and Ray where it was started for them. Nothing can be asked after."""
        self._groups = []  # Ray ends an actor that nobody can ask any more
        self._leave()

    def _started(self, version: Version, device: str) -> list[_Group]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = alive_nodes()
        lives, number = version.segments, version.number
        sky = os.path.abspath(version.sky)  # machines do not share where one stands
        num_groups = min(self.cluster.num_actors or max(2, len(nodes)), len(lives))
        num_actors = num_groups * self.cluster.num_replicas
        actors_a_node = -(-num_actors // len(nodes))
        gpus = 0 if device == "cpu" else 1
        machines: list[list[str]] = []  # of the replicas of each group, as Ray was told

        def starter(names: tuple[str, ...], mine: list[str]) -> Callable[[int, bool], Any]:
            def start(replica: int, elsewhere: bool) -> Any:
                shunned = mine[replica] if elsewhere else ""
                mine[replica] = ""  # where a lost one was is free again
                taken = Counter(machine for each in machines for machine in each)
                node = machine_for(alive_nodes(), mine, taken, shunned=shunned, gpus=gpus)
                mine[replica] = node["NodeID"]
                cores = int(node["Resources"].get("CPU", 1))
                options = {
                    "num_cpus": 0, "num_gpus": gpus, "memory": LEAST_BYTES,
                    "max_concurrency": AT_ONCE,
                    # soft: where that machine goes meanwhile, another will do
                    "scheduling_strategy": NodeAffinitySchedulingStrategy(
                        node["NodeID"], soft=True
                    ),
                }  # fmt: skip
                return ray.remote(**options)(Holder).remote(
                    sky, number, names, device=device,
                    num_threads=max(1, cores // actors_a_node),
                )  # fmt: skip

            return start

        groups = []
        for mine in _shared_out(lives, num_groups):
            rows: dict[str, int] = {}
            for live in mine:
                view = live.segment.view
                rows[view] = rows.get(view, 0) + live.num_rows
            names = tuple(live.segment.name for live in mine)
            machines.append([""] * self.cluster.num_replicas)
            group = _Group(names, rows, starter(names, machines[-1]))
            group.replicas = [group.start(i, False) for i in range(self.cluster.num_replicas)]
            groups.append(group)
        return groups

    def _wait_until_open(self) -> None:
        import ray

        opening = [[actor.ready.remote() for actor in group.replicas] for group in self._groups]
        for group, replicas in zip(self._groups, opening, strict=True):
            reasons = []
            for reference in replicas:
                try:
                    ray.get(reference, timeout=OPENING_SECONDS)
                except ray.exceptions.RayError as error:
                    reasons.append(_reason(error, OPENING_SECONDS))
            if len(reasons) == len(replicas):
                raise ClusterUnavailable(
                    f"{', '.join(group.names)} cannot be opened on the cluster "
                    f"{self.cluster.address}: {reasons[0]}"
                )

    def find(
        self,
        queries: Float32[ndarray, "query dim"],
        segments: Sequence[Live],
        *,
        k: int,
        chosen: Filter,
        effort: Effort | None = None,
        missing: list[Missing] | None = None,
    ) -> Neighbors:
        """What `search.find` finds in all segments of one view, searched where they are.

        Args:
            queries: Unit vectors.
            segments: All of one view.
            k: At least 1.
            chosen: What may be found.
            effort: As `search.find` takes it.
            missing: Gets what could not be searched; None: an answer is whole or none.

        Raises:
            PartMissing: `missing` is None, and some segments could not be searched.
        """
        if not segments:
            return search.nothing(len(queries), k)
        view = segments[0].segment.view
        call = (queries, view, k, self._sent_filter(chosen), effort)
        groups = [group for group in self._groups if group.rows.get(view)]
        turn = next(self._turns)
        asked = [_ask(group, turn % len(group.replicas), call) for group in groups]
        found: list[tuple[ndarray, ndarray]] = []
        lost: list[Missing] = []
        for group, first in zip(groups, asked, strict=True):
            answer = self._answer(group, first, call)
            if not isinstance(answer, str):
                found.append(answer)
                continue
            names = {live.segment.name for live in segments} & {*group.names}
            share = group.rows[view] / sum(each.rows[view] for each in groups)
            lost.append(Missing(view, tuple(sorted(names)), group.rows[view], share, answer))
        if lost and missing is None:
            raise PartMissing("; ".join(each.text() for each in lost), missing=lost)
        if missing is not None:
            missing += [each for each in lost if each not in missing]
        if not found:
            return search.nothing(len(queries), k)
        keys, scores = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        return search.ranked(keys, scores.astype(np.float64), k=k)

    def _answer(
        self, group: _Group, first: tuple[int, Any, Any], call: tuple[Any, ...]
    ) -> tuple[ndarray, ndarray] | str:
        """What a group found, or why it gave no answer."""
        import ray

        patience = self.cluster.patience_seconds
        number, actor, reference = first
        num_silent, reason = 0, ""
        for _ in range(len(group.replicas) + 1):  # once more, for who stands in for the first
            try:
                keys, scores = ray.get(reference, timeout=patience)
                return keys, scores
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # ours, such as VersionCorrupt: as in one process
            except ray.exceptions.GetTimeoutError as error:
                # It may be at work, for others too: it is not ended.
                reason = _reason(error, patience)
                num_silent += 1
                if num_silent == len(group.replicas):
                    break
            except ray.exceptions.RayError as error:
                reason = _reason(error, patience)
                # Where Ray does not know what came of it, its machine may be gone, and count as
                # there for some seconds: an actor that is sent there is lost too.
                is_unclear = isinstance(error, ray.exceptions.ActorUnavailableError)
                group.put_in_place(number, actor, elsewhere=is_unclear)
            number, actor, reference = _ask(group, (number + 1) % len(group.replicas), call)
        return reason

    def _sent_filter(self, chosen: Filter) -> SentFilter | None:
        """The filter in Ray's object store, put there once for as long as it is kept."""
        import ray

        allowed = chosen.allowed
        if allowed is None:
            return None
        with self._lock:
            known = self._sent.pop(id(allowed), None)
            if known is None:
                bits = ray.put(np.packbits(allowed))
                known = allowed, SentFilter(next(self._numbers), len(allowed), [bits])
            self._sent[id(allowed)] = known  # the array too: nothing else gets its id
            while len(self._sent) > 1 and sum(one.nbytes for one, _ in self._sent.values()) > (
                MAX_BYTES
            ):
                self._sent.popitem(last=False)
            return known[1]


def machine_for(
    nodes: Sequence[dict[str, Any]],
    others: Sequence[str],
    taken: Counter[str],
    *,
    shunned: str = "",
    gpus: int = 0,
) -> dict[str, Any]:
    """Of machines as Ray describes them, the one for a new actor.

    One with GPUs left, where it needs them; then not the shunned one; then one that no other
    replica is on; then the one with the fewest actors; then the first.

    Args:
        nodes: At least one.
        others: Ids of the machines that other replicas of the same segments are on.
        taken: Actors of this version by id of the machine.
        shunned: Id of a machine that may be gone.
        gpus: That the actor needs.
    """

    def rank(node: dict[str, Any]) -> tuple[bool, bool, int, int]:
        machine = node["NodeID"]
        is_full = (1 + taken[machine]) * gpus > node["Resources"].get("GPU", 0)
        return is_full, machine == shunned, others.count(machine), taken[machine]

    return min(nodes, key=rank)


def _ask(group: _Group, number: int, call: tuple[Any, ...]) -> tuple[int, Any, Any]:
    """Send a query; gives the number of the replica, its actor, and a reference to the answer."""
    actor = group.replicas[number]
    return number, actor, actor.find.remote(*call)


def _shared_out(lives: Sequence[Live], num: int) -> list[list[Live]]:
    """Segments in so many shares of about as many rows."""
    shares: list[list[Live]] = [[] for _ in range(num)]
    sizes = [0] * num
    for live in sorted(lives, key=lambda live: (-live.num_rows, live.segment.name)):
        least = sizes.index(min(sizes))
        shares[least].append(live)
        sizes[least] += live.num_rows
    return [share for share in shares if share]


def _reason(error: Exception, seconds: float | int) -> str:
    import ray

    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"no answer within {seconds:g} s"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
