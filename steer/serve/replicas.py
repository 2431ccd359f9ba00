"""Several engines behind one address: each a replica of Ray Serve.

A replica is a process that loads the model, starts an engine, connects to the store, and serves the
very application of a single server. Ray Serve's proxy gives the address, sends each request to the
replica of two that holds fewer, tells a replica when a client leaves, and has a replica that died
started anew. The replicas share the store and nothing else, so one that dies loses the requests
that it held, whose clients `steer.serve.proxy` tells so.

There is no process of ours between the proxy and the replicas: it would be one more that can die
with requests, and all that it could do for them the proxy's middleware does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from sqlalchemy.engine import make_url

from steer.cluster import LOCAL, connected, gpus_of
from steer.errors import InputError, SteerError
from steer.serve.logs import log_as_json
from steer.serve.metrics import merged
from steer.serve.proxy import ORIGINS
from steer.serve.server import Settings, make_app
from steer.serve.service import Service
from steer.serve.store import Store

_NAME = "steer"
# A replica refuses by itself what is too much, and says when to ask again; at fewer, Ray would have
# requests wait in its proxy, where nobody counts them.
_NEVER_TOO_MANY = 1_000_000
# Seconds after a replica's own limits at which Ray's take hold.
_GRACE = 10.0
_METRICS_SECONDS = 5.0


@dataclass(frozen=True)
class Replicas:
    """How many engines, and where.

    Attributes:
        number: Of them.
        address: Of a Ray cluster; `LOCAL` for processes on this machine.
        cpus: Cores that each has, where it has no GPU.
    """

    number: int
    address: str = LOCAL
    cpus: int = 1

    def __post_init__(self) -> None:
        for name in ("number", "cpus"):
            if getattr(self, name) < 1:
                raise InputError(f"replicas, {name}: expected 1 or more, got {getattr(self, name)}")


class Replica:
    """One engine. Ray Serve makes it, in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._service: Service | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What it serves; Ray Serve starts and stops it."""
        log_as_json()
        app = make_app(self._settings, _metrics)
        self._service = app.state.service
        return app

    def check_health(self) -> None:
        """Have Ray Serve put another in its place once the engine has stopped.

        Raises:
            SteerError: Then.
        """
        if self._service is not None and not self._service.engine.healthy:
            raise SteerError("the engine does not run")

    def metrics(self) -> tuple[str, bytes]:
        """Its name, and what it tells Prometheus."""
        from ray import serve

        told = b"" if self._service is None else self._service.metrics.text()
        return serve.get_replica_context().replica_id.unique_id, told


async def _metrics() -> bytes:
    """What all replicas tell Prometheus, whichever was asked; one that just died tells nothing."""
    from ray import serve

    asked = serve.get_app_handle(_NAME).broadcast("metrics")
    told = await asked.results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
    return merged(dict(one for one in told if not isinstance(one, BaseException)))


@contextmanager
def replicated(settings: Settings, replicas: Replicas, host: str, port: int) -> Iterator[None]:
    """Serve until the block is left; what is in flight then is answered first.

    Args:
        settings: What each replica is told. Files have the same paths on all machines.
        replicas: How many.
        host: Address to listen on, of the cluster's head.
        port: Port to listen on.

    Raises:
        SteerError: If Ray is not installed or has no such cluster, GPUs are too few, the machines
            could not share the store, or a replica does not start.
    """
    settings = settings.absolute()
    assert settings.store is not None, "made absolute"
    # The table is made once, here: not by all replicas at the same time.
    Store(settings.store).close()
    environment = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "steer.serve.proxy:middlewares",
        # After five seconds, Ray's default, a busy machine's proxy would be killed as it starts.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        ORIGINS: json.dumps(settings.origins),
    }
    cpus = replicas.number * replicas.cpus
    with connected(replicas.address, cpus=cpus, environment=environment) as ray:
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if serve.status().proxies:
            raise SteerError(
                "Ray Serve already runs in this cluster, at an address of its own; end it "
                "(`serve shutdown`), or use another cluster"
            )
        _check_shared(settings.store, replicas, ray)
        try:
            # The proxy lets pages ask, or their headers would be there twice.
            _start(replace(settings, origins=()), replicas, host, port, ray)
            yield
            # Before the proxies end: they pass on the answers to what is in flight.
            serve.delete(_NAME)
        finally:
            serve.shutdown()


def _start(settings: Settings, replicas: Replicas, host: str, port: int, ray: Any) -> None:
    from ray import serve
    from ray.exceptions import RayError

    limits = settings.limits
    # A path may hold somebody's name.
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": host,
                "port": port,
                "request_timeout_s": limits.seconds + _GRACE,
            },
            logging_config=quiet,
        )
    except (RayError, TimeoutError) as error:
        raise SteerError(f"Ray's proxy did not start at {host}:{port}: {error}") from error
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=_NAME,
        num_replicas=replicas.number,
        ray_actor_options=_resources(settings, replicas, ray),
        max_ongoing_requests=_NEVER_TOO_MANY,
        graceful_shutdown_timeout_s=limits.shutdown_seconds + _GRACE,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        logging_config=quiet,
        max_constructor_retry_count=3,
    )
    try:
        serve.run(deployment.bind(settings), name=_NAME, route_prefix="/")
    except RuntimeError as error:
        raise SteerError(f"the replicas did not start: {error}") from error


def _resources(settings: Settings, replicas: Replicas, ray: Any) -> dict[str, float]:
    """What a replica has for itself."""
    there = gpus_of(ray)
    if not there:
        return {"num_cpus": replicas.cpus}
    options = settings.engine_options
    each = int(options.get("tensor_parallel_size", 1)) * int(
        options.get("pipeline_parallel_size", 1)
    )
    if replicas.address == LOCAL and each * replicas.number > there:
        raise InputError(
            f"{replicas.number} replicas of {each} GPUs each: expected as many GPUs, got {there}"
        )
    return {"num_cpus": 0, "num_gpus": each}


def _check_shared(store: str, replicas: Replicas, ray: Any) -> None:
    """Refuse a store that the replicas would each have for themselves."""
    url = make_url(store)
    if url.get_backend_name() != "sqlite":
        return
    if url.database in (None, "", ":memory:"):
        raise InputError("replicas cannot share a store in memory; name a file, or PostgreSQL")
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        raise InputError(
            f"{len(machines)} machines cannot share SQLite's file; expected PostgreSQL, such as "
            "--store postgresql+psycopg://steer@db/steer"
        )
