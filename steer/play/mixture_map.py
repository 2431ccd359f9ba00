"""All mixtures of a portfolio's traits in one picture, and who serves them.

Each trait is a corner of a polygon, and a mixture stands at the mean of the corners by its weights.
For three traits that is the triangle, in which every place is one mixture; of more traits several
mixtures share a place, so that dots of several colours mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from steer.cover import random_weights
from steer.play.triangle import hex_colours, numbers
from steer.portfolio import Portfolio
from steer.portfolio_summary import served

Float64 = NDArray[np.float64]

RADIUS = 100.0
_DOTS = 1200


@dataclass(frozen=True)
class Dots:
    """Mixtures that one entry serves.

    Attributes:
        number: Of the entry; 0 for the unsteered model.
        colour: Of the entry, in hexadecimal digits.
        places: Where they stand (m, 2).
        middle: Where their mean stands.
        share: Of all mixtures.
    """

    number: int
    colour: str
    places: Float64
    middle: tuple[float, float]
    share: float


@dataclass(frozen=True, eq=False)
class MixtureMap:
    """The picture's places.

    Attributes:
        portfolio: What serves.
    """

    portfolio: Portfolio

    @cached_property
    def corners(self) -> Float64:
        """Of the traits (d, 2), the first at the top; x to the right, y downwards."""
        d = len(self.portfolio.traits)
        angle = 2 * np.pi * np.arange(d) / d - np.pi / 2
        return RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def place(self, weights: Mapping[str, float]) -> tuple[float, float]:
        """Where a mixture stands: weights of the portfolio's traits, summing to one."""
        shares = [weights.get(name, 0.0) for name in self.portfolio.traits]
        x, y = (np.array(shares) @ self.corners).tolist()
        return x, y

    @cached_property
    def dots(self) -> list[Dots]:
        """Of every entry that serves a mixture; mixtures are drawn evenly."""
        weights = random_weights(len(self.portfolio.traits), _DOTS, 0)
        number = numbers(self.portfolio, weights)
        places, colours = weights @ self.corners, hex_colours(self.portfolio)
        shares, centres = served(self.portfolio)
        found = []
        for entry in np.flatnonzero(shares).tolist():
            x, y = (centres[entry] @ self.corners).tolist()
            mine = places[number == entry]
            found.append(Dots(entry, colours[entry], mine, (x, y), float(shares[entry])))
        return found
