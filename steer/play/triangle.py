"""Three traits as the corners of a triangle: its points are their mixtures.

The picture's place of a mixture is the mean of the corners by its weights, so weights and places
are each other's barycentric coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.errors import InputError
from steer.portfolio import Portfolio
from steer.portfolio_picture import entry_colours
from steer.route import route

Float64 = NDArray[np.float64]

CORNERS: Float64 = np.array([[100.0, 0.0], [0.0, 173.2], [200.0, 173.2]])
"""Top, left and right, with y downwards; `triangle.js` has the same."""


@dataclass(frozen=True)
class Point:
    """A point of the triangle.

    Attributes:
        traits: Of its corners: top, left and right.
        shares: Of those, >= 0, summing to one.
    """

    traits: tuple[str, ...]
    shares: tuple[float, ...]

    @classmethod
    def read(cls, value: Any, known: Collection[str]) -> Point:
        """What the page says.

        Raises:
            InputError: If it is not a point of three different known traits.
        """
        traits = value.get("traits") if isinstance(value, dict) else None
        shares = value.get("shares") if isinstance(value, dict) else None
        if (
            not isinstance(traits, list)
            or not isinstance(shares, list)
            or len(traits) != 3
            or len(shares) != 3
            or not all(isinstance(name, str) and name in known for name in traits)
            or len(set(traits)) != 3
            or not all(isinstance(share, int | float) and share >= 0 for share in shares)
            or not 0 < math.fsum(shares) < math.inf
        ):
            raise InputError(f"expected shares of three different traits, got {value!r:.200}")
        total = math.fsum(shares)
        return cls(tuple(traits), tuple(share / total for share in shares))


@dataclass(frozen=True)
class Region:
    """The mixtures that one entry serves.

    Attributes:
        number: Of the entry; 0 for the unsteered model.
        colour: Of the entry, in hexadecimal digits.
        path: Its shape, as SVG has it.
        x: Where to write its number.
        y: The same.
    """

    number: int
    colour: str
    path: str
    x: float
    y: float


def hex_colours(portfolio: Portfolio) -> list[str]:
    """Colours of the unsteered model and of the entries."""
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in entry_colours(len(portfolio.kept))]


def numbers(portfolio: Portfolio, weights: Float64) -> NDArray[np.int64]:
    """Which entry serves each mixture (m, d); 0 is the unsteered model."""
    served = route(portfolio.measured, portfolio.kept, weights)
    return np.asarray(np.argmax(served[:, None] == np.array((0, *portfolio.kept)), axis=1))


def regions(portfolio: Portfolio | None, traits: Sequence[str]) -> list[Region]:
    """Who serves what of the mixtures of three traits; nobody if one of them is not routed."""
    if portfolio is None or not set(traits) <= set(portfolio.traits):
        return []
    corners = np.zeros((3, len(portfolio.traits)))
    corners[range(3), [portfolio.traits.index(name) for name in traits]] = 1.0
    # J is linear on the simplex, so its values at the corners are all of it.
    values = portfolio.measured.value(corners)[:, [0, *portfolio.kept]]
    colours = hex_colours(portfolio)
    found = []
    for number in range(values.shape[1]):
        shape = _best(values[:, number], np.delete(values, number, axis=1).T)
        if len(shape) < 3:
            continue
        places = (shape @ CORNERS).round(2)
        x, y = places.mean(0).round(1).tolist()
        path = "M" + "L".join(f"{px:g} {py:g}" for px, py in places.tolist()) + "Z"
        found.append(Region(number, colours[number], path, x, y))
    return found


def _best(mine: Float64, others: Float64) -> Float64:
    """Where one is at least as good as all others: a convex polygon in shares (m, 3).

    Args:
        mine: J at the corners (3,).
        others: The same of each other (n, 3).
    """
    shape = np.eye(3)
    for other in others:
        ahead = shape @ (mine - other)
        kept = []
        for i in range(len(shape)):  # Sutherland and Hodgman's clipping, edge by edge
            before, now = ahead[i - 1], ahead[i]
            if (before < 0) != (now < 0):
                part = before / (before - now)
                kept.append(shape[i - 1] + part * (shape[i] - shape[i - 1]))
            if now >= 0:
                kept.append(shape[i])
        shape = np.array(kept).reshape(-1, 3)
    return shape
