"""Sliders: one a trait, and what they amount to together.

Weights only say in which direction to steer. Sliders say how far as well: one that is pushed half
way asks for half the dose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sliders:
    """Where sliders stand, and a knob for all of them.

    Attributes:
        values: By trait, >= 0; a trait that is left out stands at 0.
        knob: Multiplies the amount that they give.
    """

    values: Mapping[str, float]
    knob: float = 1.0

    @property
    def weights(self) -> dict[str, float] | None:
        """Of the traits that are asked for; None for the unsteered model, if there are none."""
        return {name: value for name, value in self.values.items() if value > 0} or None

    @property
    def strength(self) -> float:
        """Of an answer: the largest slider, as far as it goes up to 1, times the knob."""
        return min(1.0, max(self.values.values(), default=0.0)) * self.knob

    def mixing(self, shares: Mapping[str, float]) -> Sliders:
        """The same amount of another mixture; as much as there can be where nothing was asked for.

        Args:
            shares: Numbers >= 0 by trait, not all of them 0; others are set to 0.
        """
        largest = max(shares.values())
        top = min(1.0, max(self.values.values(), default=0.0)) or 1.0
        values = {name: round(top * share / largest, 3) for name, share in shares.items()}
        return replace(self, values={**dict.fromkeys(self.values, 0.0), **values})
