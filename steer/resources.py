"""Where the project's own files and the user's cache lie; names and writing of files there."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock


def data_dir() -> Path:
    """Folder with traits, prompts and bundles.

    A wheel carries it inside the package; in a checkout it is the top-level `data/`.
    """
    packaged = Path(__file__).parent / "_data"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "data"


def default_bundle_path() -> Path:
    """The bundle of the packaged model."""
    return data_dir() / "bundles" / "smollm2-135m-instruct.safetensors"


def cache_dir() -> Path:
    """User cache folder: `$STEER_CACHE`, else `$XDG_CACHE_HOME/steer`, else `~/.cache/steer`."""
    if explicit := os.environ.get("STEER_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "steer"


def state_dir() -> Path:
    """User folder of what must not be lost: `$XDG_DATA_HOME/steer`, else `~/.local/share/steer`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "steer"


def content_key(what: Any) -> str:
    """Sixteen digits that name a file by what its content hangs on.

    Args:
        what: Plain JSON values, in which the order of keys does not count.
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place on success, remove it on failure.

    A reader therefore sees the old file or the whole new one, never a half-written one. What a link
    points to is replaced, not the link; who may read and write a file stays as it is.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its own name: threads of one process may write one file at once, as processes may.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    try:
        if mode is not None:
            temporary.touch(0o600)
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what an `atomic_path` that was killed left beside a file.

    A write that goes on meanwhile fails; `locked` keeps those away that ask for it too.
    """
    path = Path(os.path.realpath(path))
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until nobody else is in such a block for the same file, whatever link names it.

    Who reads a file to write it anew does both in here, or what was written in between is lost. A
    process that is killed lets go; the empty file that is locked, beside the other one, stays.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield
