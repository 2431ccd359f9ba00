"""The application: exit codes and errors without tracebacks."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from steer.cli.console import fail, out, show_warning
from steer.errors import InputError, SteerError

app = typer.Typer(
    help="Personalise a frozen language model at inference, by weights on traits.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

# Click's own class, or that of the copy of Click inside newer versions of typer.
_UsageError: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: Without the program's name; None for those of this process.

    Returns:
        Exit code: 0, 1 for an error, 2 for unusable input, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end an answer half way.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # Bytes that are no text are told by what takes them, as invalid Unicode.
    if hasattr(sys.stdin, "reconfigure") and sys.stdin.errors != "surrogateescape":
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            code = app(args=arguments, prog_name="steer", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SteerError as error:
        return fail(str(error), 2 if isinstance(error, InputError) else 1)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "steer"
        return fail(f"{error.format_message().rstrip('.')} (see `{command} --help`)", 2)
    except BrokenPipeError:
        # The reader of a pipe has gone, as `head` does. Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from steer.versions import __version__

        out.print(f"steer {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        out.print(context.get_help())
        raise typer.Exit()
