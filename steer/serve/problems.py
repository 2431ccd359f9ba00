"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from steer.errors import BundleFormatError, InputError, SteerError
from steer.serve.problem_body import problem
from steer.serve.service import BusyError, FailedError, LateError, NotFoundError

log = logging.getLogger("steer.serve")

_STATUS: tuple[tuple[type[SteerError], int], ...] = (
    (NotFoundError, 404),
    (BusyError, 429),
    (LateError, 504),
    (FailedError, 503),
    (InputError, 400),
    (BundleFormatError, 400),
)


def status_of(error: SteerError) -> int:
    """The status that tells of an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


async def _steer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SteerError), "registered for these"
    status = status_of(error)
    if status == 500:
        log.error("failed", extra={"error": str(error)})
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else None
    return JSONResponse(problem(status, str(error)), status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for these"
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field, which would have no effect"
    text = f"{where}: {message}" if where else message
    return JSONResponse(problem(400, text, where or None), 400)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for these"
    return JSONResponse(
        problem(error.status_code, str(error.detail)), error.status_code, error.headers
    )


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    SteerError: _steer_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
}

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
    for status, what in (
        (400, "The request cannot be understood or served."),
        (401, "No key, or an unknown one."),
        (404, "No such model or user."),
        (413, "The body is too large."),
        (429, "Busy; see Retry-After."),
        (503, "The engine gave up, or does not run."),
        (504, "The answer took too long."),
    )
}
ERRORS[422] = {"description": "Not used: what is invalid is 400.", "content": {}}
