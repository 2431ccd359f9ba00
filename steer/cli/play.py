"""`steer play`: a page on which a model is steered by hand, beside itself unsteered."""

from __future__ import annotations

import asyncio
import logging

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
    url,
)
from steer.errors import SteerError

_SHUTDOWN = 2.0  # an open page never lets go by itself


@app.command(epilog="Example: [bold]steer play[/bold], then open http://127.0.0.1:8000/play")
def play(
    model: Model = None,
    bundle: BundleFile = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    no_keys: NoKeys = False,
    rows: Rows = None,
    max_tokens: MaxTokens = 512,
    force: Force = False,
) -> None:
    """Steer by hand on a page of your own machine, beside the unsteered model.

    The server is that of `steer serve`, with the page on it; people are forgotten when it ends.
    """
    try:
        from steer.play.page import mount
        from steer.serve.listen import bound, listen
        from steer.serve.server import Settings, make_app
        from steer.serve.service import Limits
    except ImportError as error:
        raise SteerError(
            f"{error}; install what the playground needs: pip install 'steer-engine[play]'"
        ) from error

    check_reach(host, open_to_all=not no_keys, instead="give --no-keys if that is meant")
    usual = Limits()
    limits = Limits(
        answer_tokens=max_tokens,
        default_tokens=min(usual.default_tokens, max_tokens),
        shutdown_seconds=_SHUTDOWN,
    )
    settings = Settings(
        model=model,
        bundle=bundle,
        force=force,
        store="sqlite://",
        any_host=no_keys,
        limits=limits,
        rows=rows,
    )
    with bound(host, port) as sockets:
        with doing("loading the model"):
            application = make_app(settings)
            mount(application, application.state.service)
        out.print(f"playground at {url(host, port)}/play", soft_wrap=True)
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        listen(application, sockets, limits.shutdown_seconds)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record tells more than that a page was open when the server ended."""
    error = record.exc_info[1] if record.exc_info else None
    cancelled = "timeout graceful shutdown exceeded" in record.getMessage()
    return not cancelled and not isinstance(error, asyncio.CancelledError)
