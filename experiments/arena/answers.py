"""What was answered, kept: a JSON Lines file that a killed run goes on with.

Only what the model had to do is kept: texts, tokens, likelihoods. Measures are made of the texts
afterwards, so a measure can change and nothing is answered again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from steer.errors import DataError
from steer.journal import Journal

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


def joined(parts: Sequence[Answers]) -> Answers:
    """Answers of one setting to some prompts, and to others, as answers to all of them."""
    (passes,) = {one.passes for one in parts}
    columns = ("texts", "tokens", "log_likelihood", "extra_tokens")
    return Answers(
        *(tuple(chain.from_iterable(getattr(one, name) for one in parts)) for name in columns),
        passes,
    )


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
        self._journal = Journal(path, {"format": FORMAT, **header})
        self.known = dict(_parse(path, row) for row in self._journal.rows)

    def add(self, answers: Mapping[Key, Answers]) -> None:
        """Append answers and make sure that they are on disk."""
        self._journal.append(
            [{"key": asdict(key), "answers": asdict(one)} for key, one in answers.items()]
        )
        self.known |= answers


def _parse(path: Path, line: Mapping[str, Any]) -> tuple[Key, Answers]:
    try:
        columns = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in line["answers"].items()
        }
        return Key(**line["key"]), Answers(**columns)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: a line is not of answers ({error!r}); delete the file") from error
