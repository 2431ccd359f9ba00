"""`steer serve`: an OpenAI-compatible server whose requests carry weights."""

from __future__ import annotations

import json
import logging
import time
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
    Rows,
    check_reach,
)
from steer.errors import InputError, SteerError

if TYPE_CHECKING:
    from steer.serve.server import EngineName

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


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
    force: Force = False,
) -> None:
    """Serve the model to many people at once, each request with weights of its own.

    POST /v1/chat/completions and /v1/completions take "weights", or "profile", or "user", and
    "strength"; GET /docs tells of all.
    """
    try:
        from steer.serve.listen import listen
        from steer.serve.server import Settings, make_app
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
    with doing("loading the model"):
        application = make_app(settings)
    _log_as_json()
    served = application.state.service.model
    out.print(f"serving {served} at http://{host}:{port}/v1")
    listen(application, host, port, settings.limits.shutdown_seconds)


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"--engine-options: expected a JSON object, got {text!r}") from error
    if not isinstance(found, dict):
        raise InputError(f"--engine-options: expected a JSON object, got {text!r}")
    return found


class _Json(logging.Formatter):
    """One JSON object a line: time, level, event, and what the record adds."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        added = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **added,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Json())
    for name in ("steer", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)
