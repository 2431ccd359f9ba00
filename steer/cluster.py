"""Ray, as everything here that runs on several processes or machines uses it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from steer.errors import SteerError

LOCAL = "local"
"""The address of processes on this machine alone, which end with this one."""


def need_ray() -> Any:
    """Ray, which tells nobody that it is used.

    Raises:
        SteerError: If it is not installed.
    """
    # Ray reads these when it is imported, and when a cluster is started.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # What processes log comes to this one's stderr; lines that look alike are not left out.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        import ray
    except ImportError as error:
        raise SteerError(
            f"{error}; install what several processes need: pip install 'steer-engine[cluster]'"
        ) from error
    return ray


@contextmanager
def connected(
    address: str, *, cpus: int, environment: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Ray, until the block is left.

    Args:
        address: Of a running cluster, "auto" for the one of this machine, or `LOCAL`.
        cpus: Cores that are spoken of where there is no cluster: more than there are is allowed.
        environment: Variables of every process.

    Raises:
        SteerError: If Ray is not installed, or there is no such cluster.
    """
    ray = need_ray()
    mine = {"num_cpus": cpus, "include_dashboard": False} if address == LOCAL else {}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            runtime_env={"env_vars": dict(environment or {})},
            logging_level="warning",
            **mine,
        )
    except (ConnectionError, ValueError) as error:
        raise SteerError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or leave "
            "its address out"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's aborts
    try:
        yield ray
    finally:
        ray.shutdown()


def gpus_of(ray: Any) -> int:
    """How many GPUs the cluster has."""
    return int(ray.cluster_resources().get("GPU", 0))
