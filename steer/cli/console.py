"""What the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Characters that command a terminal, or turn the text around them.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """Text of others as a terminal may have it: with nothing in it that the terminal obeys."""
    return _COMMANDS.sub("\ufffd", text)


class _Console(Console):
    """A console on which only its own styles and movements command the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(harmless(text), style)


_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
out = _Console(**_PLAIN)
err = _Console(stderr=True, **_PLAIN)


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
