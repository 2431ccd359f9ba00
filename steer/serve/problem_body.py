"""The body that tells of an error, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def problem(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body that tells of one."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    if status == 429:
        kind = "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
