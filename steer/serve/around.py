"""What stands around every request: a bound on its body, and a record of it."""

from __future__ import annotations

import logging
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
