"""Pages of other origins, which may ask from a browser where they are named."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware


def cors(origins: Sequence[str]) -> list[Middleware]:
    """What stands outermost around an application so that pages may ask it.

    Args:
        origins: Of the pages; without any nothing is let through.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            # OpenAI's client sends a dozen of its own. No cookie is looked at, so any may come.
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    ]
