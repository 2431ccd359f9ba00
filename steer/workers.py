"""Long work cut into units, which processes that have a model each can share out among them.

What a unit gives hangs on the unit and the model alone: not on who does it, nor on what else was
done before. So a build gives the same bundle with many workers as with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from steer.models import LanguageModel

T = TypeVar("T")
Unit = Callable[[LanguageModel], T]


class Workers(Protocol):
    """Whoever does units of work."""

    def each(self, units: Sequence[Unit[T]]) -> Iterator[T]:
        """What every unit gives, in their order; done while it is asked for.

        Raises:
            SteerError: What a unit raises.
        """
        ...


@dataclass(frozen=True, eq=False)
class Alone:
    """This process.

    Attributes:
        language_model: Its model.
    """

    language_model: LanguageModel

    def each(self, units: Sequence[Unit[T]]) -> Iterator[T]:
        """What every unit gives, one after the other."""
        for unit in units:
            yield unit(self.language_model)
