"""What experiments share: arguments, and what is known of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precision import add_dtype
from timing import command

from steer.errors import DataError
from steer.models import LanguageModel
from steer.resources import cache_dir, default_bundle_path
from steer.versions import versions


def common_parser(description: str, name: str, *, work: bool = True) -> argparse.ArgumentParser:
    """A parser of the arguments that all scripts take.

    Args:
        description: The script's; its first line is shown.
        name: Of the folder of results, and of the one in the cache where what takes long is kept.
        work: Whether anything is kept.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default=None, help="local folder or hub id")
    add_dtype(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    add_output(parser, Path(__file__).parent / "results" / name)
    if work:
        parser.add_argument("--work-dir", type=Path, default=cache_dir() / name)
    return parser


def add_output(parser: argparse.ArgumentParser, folder: Path) -> None:
    """For scripts that write results, which `parse` says where.

    Args:
        parser: The script's.
        folder: Of its results.
    """
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument(
        "--output", type=Path, help=f"default: results/{folder.name}, of a quick run quick in it"
    )
    parser.set_defaults(results=folder)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; what a quick run shows is no result, and never takes the place of one."""
    arguments = parser.parse_args()
    if arguments.output is None:
        arguments.output = arguments.results / ("quick" if arguments.quick else "")
    return arguments


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """For scripts that take a bundle's edits."""
    parser.add_argument("--bundle", type=Path, default=default_bundle_path())


def set_apart(arguments: argparse.Namespace) -> None:
    """Keep the work of another precision, and of a quick run, in folders of their own."""
    arguments.work_dir /= arguments.dtype
    if arguments.quick:
        arguments.work_dir /= "quick"


def provenance(script: str, model: LanguageModel, arguments: argparse.Namespace) -> dict[str, Any]:
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


def earlier(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same kind wrote, for one that adds to it.

    Args:
        path: Of its JSON.
        content: Of this run, without what is added; all but the command must be as it was.

    Raises:
        DataError: If there is none, or anything was another.
    """
    if not path.exists():
        raise DataError(f"{path}: there is nothing to add to")
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key, value in content.items():
        before = written.get(key)
        if key != "command" and before != value:
            raise DataError(f"{path}: made with {key} {before!r}, now it is {value!r}")
    return written


def last_line(content: dict[str, Any]) -> str:
    """Under a table: how it was made, and with what."""
    names = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"`{content['command']}`; {names}."
