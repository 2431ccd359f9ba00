"""What a cache of keys and values must be told apart by, where requests are steered.

Keys and values that were computed under one edit must not be read under another, so vLLM's prefix
cache is salted with all that they hang on. Requests with the same edit share a salt, which is what
a small portfolio is good for.
"""

from __future__ import annotations

import hashlib

from steer.edits import Edit
from steer.errors import InputError
from steer.hooks import Scope
from steer.models import Fingerprint

_MARK = "steer:"


def cache_salt(edit: Edit, scope: Scope, fingerprint: Fingerprint) -> str | None:
    """The salt of an edit, after its strength; None for no edit.

    Args:
        edit: What acts on the model.
        scope: Where it acts.
        fingerprint: Of the model that the bundle was built on: all processes hold the bundle.
    """
    if edit.is_zero():
        return None
    content = f"{edit.digest} {scope} {fingerprint}"
    return f"{_MARK}{hashlib.sha256(content.encode()).hexdigest()}"


def is_steered(salt: str | None) -> bool:
    """Whether a salt is that of an edit."""
    return salt is not None and _MARK in salt


def check_salt(given: str | None, expected: str | None) -> None:
    """Refuse a request that would share keys and values with requests of another edit.

    What stands before the mark is free: a salt of a tenant's own, say.

    Args:
        given: The request's salt.
        expected: Its edit's.

    Raises:
        InputError: If they do not agree.
    """
    found = given[given.index(_MARK) :] if given is not None and is_steered(given) else None
    if found != expected:
        raise InputError(
            f"cache_salt: expected it to end in {expected!r}, got {given!r}: keys and values that "
            "were computed under one edit must not be read under another"
            if expected is not None
            else f"cache_salt {given!r} is that of an edit, and the request has none"
        )
