"""What stands around every request: whom it is for, a bound on its body, and a record of it."""

from __future__ import annotations

import ipaddress
import logging
import re
import time

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steer.serve.problem_body import problem
from steer.serve.service import Service

log = logging.getLogger("steer.serve")


class Bounded:
    """Refuses a body that is too large, before it is read."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lengths = [value for key, value in scope["headers"] if key == b"content-length"]
        if lengths and (not lengths[0].isdigit() or int(lengths[0]) > self._most):
            await self._refuse(scope, receive, send)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, bounded, send)

    @property
    def _message(self) -> str:
        return f"expected a body of at most {self._most} bytes"

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = JSONResponse(problem(413, self._message), 413)
        await response(scope, receive, send)


class Local:
    """Refuses names that no server without keys has, which is on one's own machine.

    Any page can have its own name lead there (DNS rebinding), and its browser takes what it then
    reads for the page's. It asks under that name; nobody can have one that is an address.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        if len(told) == 1 and _is_local(re.sub(r":\d*$", "", told[0])):
            await self._app(scope, receive, send)
            return
        message = (
            f"expected an address or localhost as Host, got {', '.join(told)!r:.80}; to be asked "
            "under other names the server needs --keys FILE, or --no-keys if that is meant"
        )
        await JSONResponse(problem(400, message), 400)(scope, receive, send)


def _is_local(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost"
    return True


class Recorded:
    """Counts and logs every request, and nothing of what it says."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - began
            route = scope.get("route")
            # The pattern, not the path: that may hold a name.
            path = getattr(route, "path", "other")
            self._service.metrics.requests.labels(path, status).inc()
            self._service.metrics.seconds.labels(path).observe(seconds)
            state = scope.get("state", {})
            asked = state.get("asked")
            log.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "tenant": state.get("tenant"),
                    "answers": None if asked is None else len(asked.jobs),
                    "prompt_tokens": None if asked is None else asked.prompt_tokens,
                },
            )
