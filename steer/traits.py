"""Traits: the axes along which an answer's manner can be moved.

A trait is one YAML file in `data/traits/` (or in a user's own folder), or a `Trait` value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import yaml

from steer.errors import TraitError
from steer.resources import data_dir

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Pole:
    """One end of a trait.

    Attributes:
        pole: A few words that name this end, such as "brief".
        instructions: Paraphrased commands that ask a model for it.
    """

    pole: str
    instructions: tuple[str, ...]

    def instruction(self, number: int) -> str:
        """One of the paraphrases; numbers beyond the last begin anew."""
        return self.instructions[number % len(self.instructions)]


@dataclass(frozen=True, init=False)
class Trait:
    """An axis with a positive and a negative pole.

    `Trait("calm", positive="Answer calmly.", negative="Answer in a panic.")` is enough; several
    paraphrases, given as a list, make the direction depend less on one wording. Its poles are then
    called "calm" and "not calm".

    Attributes:
        name: Lower-case words joined by hyphens.
        positive: The pole that a positive weight asks for.
        negative: The opposite pole.
        description: One sentence for people.
        pictographs: Whether its edit may make pictographs (emoji) likelier, where it is distilled.
            A small model that is asked for warmth begins with them more and more, and then writes
            nothing else.
    """

    name: str
    positive: Pole
    negative: Pole
    description: str = field(default="")
    pictographs: bool = field(default=True)

    def __init__(
        self,
        name: str,
        positive: str | Sequence[str] | Pole,
        negative: str | Sequence[str] | Pole,
        description: str = "",
        pictographs: bool = True,
    ) -> None:
        """Validate and store a trait.

        Args:
            name: Lower-case words joined by hyphens, such as "detail-by-example".
            positive: Instruction, instructions, or `Pole` of the positive end.
            negative: The same for the negative end.
            description: One sentence for people.
            pictographs: Whether its edit may make pictographs likelier.

        Raises:
            TraitError: If a field is malformed; the message names the field.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TraitError(
                "trait field 'name': expected lower-case words joined by hyphens, got "
                f"{_told(name)}"
            )
        if not isinstance(description, str):
            raise TraitError(
                f"trait {name!r}, field 'description': expected text, got {_told(description)}"
            )
        if not isinstance(pictographs, bool):
            raise TraitError(
                f"trait {name!r}, field 'pictographs': expected true or false, got "
                f"{_told(pictographs)}"
            )
        ends = {"positive": _pole(name, "positive", positive)}
        ends["negative"] = _pole(name, "negative", negative)
        if set(ends["positive"].instructions) & set(ends["negative"].instructions):
            raise TraitError(
                f"trait {name!r}, field 'negative.instructions': shares an instruction with "
                "'positive.instructions'; the two poles must ask for different things"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "positive", ends["positive"])
        object.__setattr__(self, "negative", ends["negative"])
        object.__setattr__(self, "description", description)
        object.__setattr__(self, "pictographs", pictographs)

    @property
    def asked(self) -> dict[str, Any]:
        """All but what becomes of its edit: what answers to its instructions hang on, as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "pictographs"}


def _told(value: object) -> str:
    """A value, for an error: a few aliases make one in YAML as long as somebody likes."""
    return f"{shortened(value):.80}"


def _pole(name: str, key: str, value: object) -> Pole:
    where = f"trait {name!r}, field '{key}"
    if isinstance(value, Pole):
        value = {"pole": value.pole, "instructions": list(value.instructions)}
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Sequence):
        value = {"instructions": list(value)}
    if not isinstance(value, Mapping):
        raise TraitError(
            f"{where}': expected an instruction, a list of them, or 'pole' and 'instructions', "
            f"got {_told(value)}"
        )
    if unknown := set(value) - {"pole", "instructions"}:
        raise TraitError(f"{where}': unknown field {sorted(map(str, unknown))[0]!r}")
    pole, instructions = value.get("pole", _unnamed(name, key)), value.get("instructions")
    if not isinstance(pole, str) or not pole.strip():
        raise TraitError(f"{where}.pole': expected a word or two, got {_told(pole)}")
    if not isinstance(instructions, list) or not instructions:
        raise TraitError(
            f"{where}.instructions': expected a non-empty list, got {_told(instructions)}"
        )
    for instruction in instructions:
        if not isinstance(instruction, str) or not instruction.strip():
            raise TraitError(
                f"{where}.instructions': expected non-empty text, got {_told(instruction)}"
            )
    return Pole(pole, tuple(instructions))


def _unnamed(name: str, key: str) -> str:
    """What an end is called that the definition of its trait gives no name."""
    words = name.replace("-", " ")
    return words if key == "positive" else f"not {words}"


def pole_names(name: str, positive: str, negative: str) -> tuple[str, str]:
    """What the ends of a bundle's trait are called.

    Earlier bundles call an end that the definition gave no name "positive" or "negative".

    Args:
        name: Of the trait.
        positive: What the bundle calls its positive end.
        negative: What the bundle calls the other.
    """
    known = load_traits().get(name)
    if known is not None and (known.positive.pole, known.negative.pole) == (positive, negative):
        return positive, negative
    return (
        _unnamed(name, "positive") if positive == "positive" else positive,
        _unnamed(name, "negative") if negative == "negative" else negative,
    )


def read_trait(path: str | Path) -> Trait:
    """Read one trait from a YAML file.

    Raises:
        TraitError: If the file cannot be read or a field is missing, unknown or malformed; the
            message names the file and the field.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    # ValueError: text that is not UTF-8, and dates and numbers that are none.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TraitError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(content, dict):
        raise TraitError(f"{path}: expected fields name, description, positive, negative")
    fields = {"name", "description", "positive", "negative", "pictographs"}
    if unknown := set(content) - fields:
        raise TraitError(f"{path}: unknown field {sorted(map(str, unknown))[0]!r}")
    for key in ("name", "positive", "negative"):
        if key not in content:
            raise TraitError(f"{path}: field {key!r} is missing")
    try:
        return Trait(
            content["name"],
            content["positive"],
            content["negative"],
            content.get("description", ""),
            content.get("pictographs", True),
        )
    except TraitError as error:
        raise TraitError(f"{path}: {error}") from error


def load_traits(folder: str | Path | None = None) -> dict[str, Trait]:
    """Read every `*.yaml` of a folder, by name; the built-in traits if no folder is given.

    Raises:
        TraitError: If the folder is missing, a file is invalid, or two files name one trait.
    """
    folder = data_dir() / "traits" if folder is None else Path(folder)
    if not folder.is_dir():
        raise TraitError(f"{folder}: no such folder; expected a folder of trait files (*.yaml)")
    traits: dict[str, Trait] = {}
    for path in sorted(folder.glob("*.yaml")):
        trait = read_trait(path)
        if trait.name in traits:
            raise TraitError(f"{path}: field 'name': {trait.name!r} is defined twice")
        traits[trait.name] = trait
    return traits
