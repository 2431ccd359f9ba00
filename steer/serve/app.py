"""The application: routes, errors, and what stands around them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from steer.serve.around import Bounded, Local, Recorded
from steer.serve.cors import check_origins, cors
from steer.serve.problems import HANDLERS
from steer.serve.routes import router
from steer.serve.service import Service
from steer.serve.tenants import Tenants
from steer.versions import __version__


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        tenants: By API key.
        origins: Of pages that may ask from a browser; none unless they are named.
        any_host: Whether a server without keys may be asked under any name.
    """

    tenants: Tenants = field(default_factory=lambda: Tenants({}))
    origins: tuple[str, ...] = ()
    any_host: bool = False

    def __post_init__(self) -> None:
        check_origins(self.origins)


def create_app(
    service: Service,
    access: Access = Access(),  # noqa: B008  (frozen)
    metrics: Callable[[], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """The application of one served model.

    Args:
        service: What answers; its engine is started and stopped with the application.
        access: Who may ask.
        metrics: What Prometheus is told; None for the service's own.
    """

    async def own_metrics() -> bytes:
        return service.metrics.text()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.engine.start)
        try:
            yield
        finally:
            await run_in_threadpool(service.engine.stop, service.limits.shutdown_seconds)
            service.store.close()

    local = access.tenants.open and not access.any_host
    app = FastAPI(
        title="steer",
        version=__version__,
        description="One frozen model for many people: OpenAI's completions with `weights`.",
        lifespan=lifespan,
        middleware=[
            *cors(access.origins),
            Middleware(Recorded, service=service),
            *([Middleware(Local)] if local else []),
            Middleware(Bounded, most=service.limits.body_bytes),
        ],
    )
    app.state.service, app.state.access, app.state.began = service, access, int(time.time())
    app.state.metrics = own_metrics if metrics is None else metrics
    app.include_router(router)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app
