"""The project's own open prompts, in three splits that are never mixed.

`extract` makes contrast data, `develop` chooses layers and doses, `report` is measured once for
the figures that are published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from steer.errors import InputError
from steer.resources import data_dir

Split = Literal["extract", "develop", "report"]


@dataclass(frozen=True)
class Prompt:
    """A prompt with its stable id, such as "extract-001", and its topic."""

    id: str
    topic: str
    text: str


def load_prompts(split: Split) -> tuple[Prompt, ...]:
    """Read one split: extract (300), develop (100) or report (200).

    Raises:
        InputError: If there is no such split.
    """
    if split not in get_args(Split):
        raise InputError(f"unknown split {split!r}; expected one of {', '.join(get_args(Split))}")
    path = data_dir() / "prompts" / f"{split}.jsonl"
    return tuple(
        Prompt(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()
    )


def check_develop_left(name: str, number: int, taken: int) -> None:
    """Refuse more develop prompts than are left of the split once some are taken.

    Raises:
        InputError: With the name of what asked for them.
    """
    left = 100 - taken
    if not 0 <= number <= left:
        raise InputError(
            f"{name}: expected 0 to {left}, the develop prompts that are left, got {number}"
        )
