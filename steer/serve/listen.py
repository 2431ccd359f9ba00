"""A server that listens until it is told to end."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI


def listen(application: FastAPI, host: str, port: int, shutdown_seconds: float) -> None:
    """Run an application until it is told to end.

    Args:
        application: Of `steer.serve.app.create_app`.
        host: Address to listen on.
        port: Port to listen on.
        shutdown_seconds: That answers in flight have when it ends.
    """
    uvicorn.run(
        application,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(shutdown_seconds),
    )
