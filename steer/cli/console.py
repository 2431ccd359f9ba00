"""What the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
out = Console(**_PLAIN)
err = Console(stderr=True, **_PLAIN)


def fail(message: str, code: int) -> int:
    """Tell an error on stderr and give back the exit code."""
    say(f"error: {message}", "red")
    return code


def say(message: str, style: str = "") -> None:
    """One line on stderr, whatever is in the message, and above any progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        err.print(Text(" ".join(message.split()), style=style), soft_wrap=True)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Tell a warning in one line; takes the place of `warnings.showwarning`."""
    say(f"warning: {message}", "yellow")


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show on a terminal that something takes a while; silent elsewhere."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        yield
