"""API keys, and whose they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from steer.errors import InputError

LOCAL = "local"
"""The tenant of a server without keys."""

_SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Tenants:
    """Who a key lets in. Only hashes of keys are held."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """Set up.

        Args:
            keys: Tenants by key; without any, everybody is `LOCAL`.

        Raises:
            InputError: If a key is short, or a name is not usable.
        """
        for key, name in keys.items():
            if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(
                    f"the key of {name!r}: expected at least {_SHORTEST} printable ASCII "
                    "characters without spaces"
                )
            if not _NAME.fullmatch(name):
                raise InputError(
                    f"tenant: expected letters, digits, '.', '_' and '-', got {name!r:.80}"
                )
        self._tenant_of = {_hash(key): name for key, name in keys.items()}

    @classmethod
    def read(cls, path: Path) -> Tenants:
        """Keys of a file: `tenant: key` in each line; empty lines and those after # are skipped.

        Raises:
            InputError: If it cannot be read, or a line is something else.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable file of keys: {error}") from error
        keys: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, colon, key = (part.strip() for part in line.partition(":"))
            if not colon or not key or key in keys:
                raise InputError(f"{path}, line {number}: expected `tenant: key`, each key once")
            keys[key] = name
        if not keys:
            raise InputError(f"{path}: expected a line `tenant: key`, got none")
        return cls(keys)

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        return not self._tenant_of

    def of(self, authorization: str | None) -> str | None:
        """The tenant of an `Authorization` header; None if it lets nobody in."""
        if self.open:
            return LOCAL
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        # Looked up by hash: how long it takes tells nothing of the keys.
        return self._tenant_of.get(_hash(key.strip()))


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
