"""Several nodes of a Ray cluster, simulated on one machine, and the replicas on them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from steer.cluster import need_ray


@contextlib.contextmanager
def simulated(nodes: int) -> Iterator[Any]:
    """A cluster whose head does nothing else, and so many nodes of one core."""
    need_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def raylet(node: Any) -> int:
    """The process that is a node."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def replicas(cluster: Any) -> dict[int, int]:
    """The processes of the replicas, by that of their node."""
    nodes = {raylet(node) for node in cluster.worker_nodes}
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = (path / "status").read_text().splitlines()
            parent = int(next(line.split()[1] for line in lines if line.startswith("PPid:")))
            # "ServeReplica:steer:steer", or SERVE_REPLICA::steer#steer# while it does something.
            name = (path / "cmdline").read_text().replace("#", ":")
            if parent in nodes and "steer:steer" in name:
                found[parent] = int(path.name)
    return found


def kill_node(cluster: Any, node: Any) -> None:
    """Have a node and its replica end at once."""
    process = replicas(cluster)[raylet(node)]
    cluster.remove_node(node, allow_graceful=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def telling(url: str, headers: Mapping[str, str] | None = None) -> int:
    """How many replicas tell Prometheus what they do."""
    lines = httpx.get(f"{url}/metrics", headers=headers, timeout=30).text.splitlines()
    return sum(line.startswith("steer_in_flight{") for line in lines)


def wait_for_replicas(
    url: str, cluster: Any, number: int, headers: Mapping[str, str] | None = None
) -> None:
    """Until so many replicas run, and all tell what they do.

    Raises:
        TimeoutError: After three minutes.
    """
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if telling(url, headers) == len(replicas(cluster)) == number:
            return
        time.sleep(0.5)
    raise TimeoutError(f"{number} replicas did not come up")
