"""What the scripts of this folder share: arguments, and what is known of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import add_dtype  # noqa: E402
from timing import command  # noqa: E402

from steer.models import LanguageModel  # noqa: E402
from steer.resources import cache_dir  # noqa: E402
from steer.versions import versions  # noqa: E402


def common_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the arguments that all scripts take.

    Args:
        description: The script's; its first line is shown.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default=None, help="local folder or hub id")
    add_dtype(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "chameleon")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[1] / "results" / "chameleon"
    )
    return parser


def add_group(parser: argparse.ArgumentParser) -> None:
    """For scripts that make groups."""
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--group-people", type=int, default=24, help="of whom groups are made")


def known(script: str, model: LanguageModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is known of a run.

    Args:
        script: Its path in the project.
        model: The model.
        arguments: The script's.
    """
    return {
        "command": command(script),
        "model": model.name,
        "fingerprint": model.fingerprint.to_dict(),
        "dtype": arguments.dtype,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "versions": versions(),
    }


def last_line(content: dict[str, Any]) -> str:
    """Under a table: how it was made, and with what."""
    names = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"`{content['command']}`; {names}."
