"""Loses a machine of a Ray cluster while its actors are asked; what came of it goes to stdout.

`python lost_machine.py SKY QUERIES_FILE NUM_REPLICAS`. The machines are three nodes of Ray on this
one, each with processes and a place in Ray's books of its own. It is a program, and not part of
test_cluster.py, since Ray knows one cluster a process.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy import ndarray
from ray.cluster_utils import Cluster as Nodes

from index.cluster import AT_ONCE, Missing
from index.ray_nodes import Cluster
from index.versions import Version, open_version

NUM_NODES, NUM_GROUPS = 3, 2
ASKED_BEFORE = 4  # queries that wait at the actors when their machine goes
PATIENCE_SECONDS = 240  # an actor imports torch; with a core for all of them that takes a minute
ASLEEP_SECONDS = 600
# A node is given up that is gone, not one that is slow, as all are where cores are few.
PATIENT = {"health_check_period_ms": 1000, "health_check_timeout_ms": 60_000}


def main(sky: Path, queries: ndarray, num_replicas: int) -> dict[str, Any]:
    """Where actors were, and what was answered before, while and after a machine was lost."""
    head = {"include_dashboard": False, "_system_config": PATIENT}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    for _ in range(NUM_NODES - 1):
        nodes.add_node()
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    alone = open_version(sky)
    cluster = Cluster(
        address=nodes.address, num_actors=NUM_GROUPS, num_replicas=num_replicas,
        patience_seconds=PATIENCE_SECONDS,
    )  # fmt: skip
    version = open_version(sky, cluster=cluster)
    before = machines_of(version)
    ours = nodes.head_node.node_id
    lost = next(each for group in before for each in group if each != ours)
    told: dict[str, Any] = {"nodes": num_alive(), "before": before, "lost": lost}

    assert version.holders is not None
    for group, places in zip(version.holders.actors, before, strict=True):
        for actor, place in zip(group, places, strict=True):
            if place == lost:
                for _ in range(AT_ONCE):  # then a query waits there
                    actor.__ray_call__.remote(lambda _: time.sleep(ASLEEP_SECONDS))
    with ThreadPoolExecutor(ASKED_BEFORE) as pool:
        asked = [pool.submit(answer, version, alone, queries) for _ in range(ASKED_BEFORE)]
        time.sleep(2)
        told["waiting"] = sum(not each.done() for each in asked)
        node = next(each for each in nodes.worker_nodes if each.node_id == lost)
        nodes.remove_node(node, allow_graceful=False)
        told["answers"] = [each.result() for each in asked]
    told["after"] = machines_of(version)
    version.holders.close()
    ray.shutdown()
    nodes.shutdown()
    return told


def answer(version: Version, alone: Version, queries: ndarray) -> dict[str, Any]:
    """Whether the answer is that of one process, and what it says is missing."""
    missing: list[Missing] = []
    found = version.search(queries, view="image", k=10, missing=missing)
    expected = alone.search(queries, view="image", k=10)
    same = np.array_equal(found.keys, expected.keys)
    return {
        "is_same": same and np.array_equal(found.scores, expected.scores),
        "missing": [part.text() for part in missing],
    }


def machines_of(version: Version) -> list[list[str]]:
    """Machine of each actor, by group and replica, as the actors themselves say."""
    assert version.holders is not None
    where = lambda _: ray.get_runtime_context().get_node_id()  # noqa: E731
    return [
        [ray.get(actor.__ray_call__.remote(where)) for actor in group]
        for group in version.holders.actors
    ]


def num_alive() -> int:
    """Machines that are there."""
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3]))))
