"""What was answered, kept: a JSON Lines file that a killed run goes on with.

Only what the model had to do is kept: texts, tokens, likelihoods. Measures are made of the texts
afterwards, so a measure can change and nothing is answered again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steer.errors import DataError
from steer.resources import atomic_path

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """What answered.

    Attributes:
        trait: What was asked for; empty for the unsteered model.
        method: By which method.
        setting: Its layers, dose and the like, for people.
        digest: Of everything that the answers hang on beside the file's header.
    """

    trait: str
    method: str
    setting: str
    digest: str


@dataclass(frozen=True)
class Answers:
    """The answers of one setting to all P prompts.

    Attributes:
        texts: (P,) the answers.
        tokens: (P,) tokens of each.
        log_likelihood: (P,) of each under the unedited model after the plain prompt, in nats per
            token.
        extra_tokens: (P,) prompt tokens beyond those of the plain prompt.
        passes: Forward passes of the model for one token.
    """

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    log_likelihood: tuple[float, ...]
    extra_tokens: tuple[int, ...]
    passes: int

    def __post_init__(self) -> None:
        columns: Sequence[Sequence[object]] = (self.tokens, self.log_likelihood, self.extra_tokens)
        lengths = {len(self.texts), *map(len, columns)}
        if len(lengths) != 1:
            raise DataError(f"answers: expected columns of one length, got {sorted(lengths)}")


class Store:
    """The answers of a file, by what answered."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open a file, or begin it.

        Args:
            path: JSON Lines file.
            header: What all its answers hang on: plain JSON values.

        Raises:
            DataError: If the file is damaged or was made with other settings.
        """
        self._path = path
        # As it will read back, so that the two can be compared.
        wanted = json.loads(json.dumps({"format": FORMAT, **header}))
        lines = [wanted]
        if path.exists():
            lines = _lines(path)
            if changed := [key for key in wanted if lines[0].get(key) != wanted[key]]:
                raise DataError(
                    f"{path} was made with other settings ({', '.join(changed)} differ); "
                    "choose another folder or delete the file"
                )
        self.known = dict(_parse(path, line) for line in lines[1:])
        with atomic_path(path) as temporary:
            content = "".join(json.dumps(line) + "\n" for line in lines)
            temporary.write_text(content, encoding="utf-8")

    def add(self, answers: Mapping[Key, Answers]) -> None:
        """Append answers and make sure that they are on disk."""
        with self._path.open("a", encoding="utf-8") as file:
            for key, one in answers.items():
                file.write(json.dumps({"key": asdict(key), "answers": asdict(one)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.known |= answers


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        # A kill can leave half a line at the end; it is answered again.
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        lines: list[dict[str, Any]] = [json.loads(line) for line in whole]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON Lines file: {error}") from error
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise DataError(f"{path}: not a file of answers; delete it")
    return lines


def _parse(path: Path, line: Mapping[str, Any]) -> tuple[Key, Answers]:
    try:
        columns = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in line["answers"].items()
        }
        return Key(**line["key"]), Answers(**columns)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: a line is not of answers ({error!r}); delete the file") from error
