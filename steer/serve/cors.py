"""Pages of other origins, which may ask from a browser where they are named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from steer.errors import InputError

# As browsers write it. "null" is that of pages without one, such as files; "*" is all.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")


def check_origins(origins: Sequence[str]) -> None:
    """Refuse what no browser would ever call the origin of a page.

    Raises:
        InputError: If one is not written as browsers write it.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise InputError(
                "origin: expected scheme://host or scheme://host:port in lower case and without a "
                f"path, such as https://example.org, got {origin!r}"
            )


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
