"""What the scripts of this folder share: arguments, the model, what is kept of answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from answers import Store
from contenders import Effort, Workshop

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import add_dtype  # noqa: E402
from runs import add_output, parse, set_apart  # noqa: E402

from steer.bundle import Bundle  # noqa: E402
from steer.generation import Decoding  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.resources import cache_dir  # noqa: E402
from steer.steerer import Steerer  # noqa: E402
from steer.versions import versions  # noqa: E402


def common_parser(description: str, work: str) -> argparse.ArgumentParser:
    """A parser of the arguments that all scripts take.

    Args:
        description: The script's; its first line is shown.
        work: Name of the folder in the cache where the script keeps what takes long.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", default=None, help="local folder or hub id")
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "arena" / work)
    add_dtype(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    add_output(parser, Path(__file__).parents[1] / "results" / "arena")
    return parser


def add_build_dir(parser: argparse.ArgumentParser) -> None:
    """For scripts that make edits."""
    parser.add_argument("--build-dir", type=Path, default=cache_dir() / "build")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; answers of another precision, or of a quick run, are kept apart."""
    arguments = parse(parser)
    set_apart(arguments)
    return arguments


def steerer_of(model: LanguageModel, arguments: argparse.Namespace) -> Steerer:
    """The model with the bundle that was asked for."""
    return Steerer(model, Bundle.load(arguments.bundle))


def workshop_of(
    model: LanguageModel, arguments: argparse.Namespace, effort: Effort | None = None
) -> Workshop:
    """Makes edits, keeping them where the script keeps what takes long."""
    return Workshop(
        model,
        build_dir=arguments.build_dir / model.precision,
        work_dir=arguments.work_dir,
        effort=effort or Effort(),
        seed=arguments.seed,
    )


def store_of(path: Path, model: LanguageModel, prompts: Sequence[str], decoding: Decoding) -> Store:
    """Answers of a model to some prompts."""
    header = {
        "model": model.fingerprint.to_dict(),
        "prompts": list(prompts),
        "decoding": asdict(decoding),
        "versions": versions(),
    }
    return Store(path, header)
