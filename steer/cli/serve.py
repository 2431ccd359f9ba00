"""`steer serve`: an OpenAI-compatible server whose requests carry weights."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steer.cli.app import app
from steer.cli.console import doing, out
from steer.cli.options import (
    BundleFile,
    Force,
    Host,
    MaxTokens,
    Model,
    NoKeys,
    Port,
    RayAddress,
    Rows,
    check_reach,
    url,
)
from steer.errors import InputError, SteerError

if TYPE_CHECKING:
    from steer.serve.server import EngineName, Settings


@app.command(epilog="Example: [bold]steer serve --port 8000[/bold]")
def serve(
    model: Model = None,
    bundle: BundleFile = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database of people, such as postgresql+psycopg://... Default: SQLite, in "
            "$XDG_DATA_HOME/steer.",
        ),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys: `tenant: key` in each line.")
    ] = None,
    no_keys: NoKeys = False,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Pages that may ask from a browser, such as https://example.org."),
    ] = None,
    rows: Rows = None,
    queue: Annotated[int, typer.Option(min=1, help="Most answers written or waiting.")] = 256,
    max_tokens: MaxTokens = 2048,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds an answer may take.")] = 300.0,
    engine: Annotated[
        str, typer.Option(metavar="transformers|vllm", help="What runs the model.")
    ] = "transformers",
    engine_options: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="For vLLM, such as '{\"tensor_parallel_size\": 2}': arguments of its engine.",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Engines behind the address, each with a GPU where there are."),
    ] = None,
    replica_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of a replica, where there is no GPU. Default: 1."),
    ] = None,
    ray_address: RayAddress = None,
    force: Force = False,
) -> None:
    """Serve the model to many people at once, each request with weights of its own.

    POST to /v1 takes "weights", "profile" or "user", and "strength"; GET /docs tells of all.
    """
    try:
        from steer.serve.server import Settings
        from steer.serve.service import Limits
    except ImportError as error:
        raise SteerError(
            f"{error}; install what serving needs: pip install 'steer-engine[serve]'"
        ) from error

    settings = Settings(
        model=model,
        bundle=bundle,
        force=force,
        store=store,
        keys=keys,
        origins=tuple(origin or ()),
        any_host=no_keys,
        limits=Limits(
            in_flight=queue,
            answer_tokens=max_tokens,
            default_tokens=min(Limits.default_tokens, max_tokens),
            seconds=timeout,
        ),
        engine=cast("EngineName", engine),
        engine_options=_json_object(engine_options),
        rows=rows,
    )
    check_reach(
        host,
        open_to_all=settings.tenants.open and not no_keys,
        instead="give --keys FILE, or --no-keys if that is meant",
    )
    if replicas is None:
        if ray_address is not None:
            raise InputError("--ray-address is for several engines; add --replicas")
        if replica_cpus is not None:
            raise InputError("--replica-cpus has no effect on one engine; add --replicas")
        _serve_one(settings, host, port)
    else:
        _serve_replicas(settings, host, port, replicas, replica_cpus or 1, ray_address)


def _serve_one(settings: Settings, host: str, port: int) -> None:
    from steer.serve.listen import bound, listen
    from steer.serve.logs import log_as_json
    from steer.serve.server import make_app

    with bound(host, port) as sockets:
        with doing("loading the model"):
            application = make_app(settings)
        log_as_json()
        served = application.state.service.model
        out.print(f"serving {served} at {url(host, port)}/v1", soft_wrap=True)
        listen(application, sockets, settings.limits.shutdown_seconds)


def _serve_replicas(
    settings: Settings, host: str, port: int, number: int, cpus: int, address: str | None
) -> None:
    from steer.cluster import LOCAL
    from steer.serve.listen import bound
    from steer.serve.replicas import Replicas, replicated

    if address is None:
        with bound(host, port):  # Ray would find out late, and say less
            pass
    # An end in good order, as Ctrl-C is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        with doing(f"starting {number} replicas"):
            replicas = Replicas(number, address or LOCAL, cpus)
            stack.enter_context(replicated(settings, replicas, host, port))
        out.print(f"{number} replicas serve at {url(host, port)}/v1", soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"--engine-options: expected a JSON object, got {text!r}") from error
    if not isinstance(found, dict):
        raise InputError(f"--engine-options: expected a JSON object, got {text!r}")
    return found
