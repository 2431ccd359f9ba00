"""Sets of weights on the preference simplex: PALM's grids, even lattices, random draws.

The preferences that a weight w covers are a box, [(w_i - delta') / (1 + eps'),
(w_i + delta') / (1 - eps')] in coordinate i; covering the simplex means covering it with boxes.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.errors import InputError

Float64 = NDArray[np.float64]
Kind = Literal["combined", "multiplicative", "additive"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SMALLEST_DELTA = 1e-9  # of delta'
_SHORT = 1 << 50  # denominator of the fractions that long ones are rounded to
_MOST_CELLS = 2_000_000


@dataclass(frozen=True)
class Closeness:
    """How near a weight must be to a preference to stand for it.

    Attributes:
        eps_prime: Relative part eps', in [0, 1).
        delta_prime: Absolute part delta', positive: no weight is near to zero otherwise.
    """

    eps_prime: float
    delta_prime: float

    def __post_init__(self) -> None:
        if not 0 <= self.eps_prime < 1:
            raise InputError(f"eps_prime: expected 0 <= eps' < 1, got {self.eps_prime}")
        if not SMALLEST_DELTA <= self.delta_prime < math.inf:
            raise InputError(
                f"delta_prime: expected a number of at least {SMALLEST_DELTA}, got "
                f"{self.delta_prime}"
            )

    def box(self, weights: ArrayLike) -> tuple[Float64, Float64]:
        """Lowest and highest preference that a weight covers, by coordinate, both (..., d)."""
        w = np.asarray(weights, np.float64)
        low = np.maximum(w - self.delta_prime, 0) / (1 + self.eps_prime)
        return low, (w + self.delta_prime) / (1 - self.eps_prime)

    def weight_above(self, low: ArrayLike) -> Float64:
        """The largest weight that still covers `low` from above: its box begins there."""
        return (1 + self.eps_prime) * np.asarray(low, np.float64) + self.delta_prime

    def covers(self, weights: ArrayLike, preferences: ArrayLike) -> NDArray[np.bool_]:
        """Which of n weights (n, d) cover which of m preferences (m, d), shape (m, n)."""
        low, high = self.box(weights)
        v = np.asarray(preferences, np.float64)[:, None]
        return np.asarray(((low <= v) & (v <= high)).all(-1))


def levels(closeness: Closeness, kind: Kind = "combined") -> Float64:
    """The fewest weights whose intervals cover [0, 1] in one coordinate, ascending.

    "combined" uses eps' and delta' together and has ceil(ln(1 + eps'/delta') /
    ln((1 + eps')/(1 - eps'))) levels, or ceil(1 / (2 delta')) when eps' = 0; "additive" uses
    delta' alone; "multiplicative" delta' for the lowest level alone, and eps' for the others.

    Raises:
        InputError: If the kind is unknown, or "multiplicative" is asked of eps' = 0.
    """
    return np.array([float(weight) for _, weight, _ in _chain(closeness, kind)])


def _chain(closeness: Closeness, kind: Kind) -> list[tuple[Fraction, Fraction, Fraction]]:
    """(lowest preference, weight, highest preference) of each level; they meet end to end."""
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}")
    # Exact: in floats the last level may miss 1 by a rounding and need another one.
    eps, delta = Fraction(str(closeness.eps_prime)), Fraction(str(closeness.delta_prime))
    if kind == "additive":
        eps = Fraction(0)
    if kind == "multiplicative" and eps == 0:
        raise InputError("a multiplicative grid needs eps' > 0")
    chain: list[tuple[Fraction, Fraction, Fraction]] = []
    covered = Fraction(0)
    while covered < 1:
        if kind == "multiplicative" and chain:
            weight = (1 + eps) * covered
            high = weight / (1 - eps)
        else:
            weight = (1 + eps) * covered + delta
            high = (weight + delta) / (1 - eps)
        chain.append((covered, weight, high))
        # Numbers as long as those of a thousand exact steps slow everything down.
        small = high.denominator.bit_length() <= 400
        covered = high if small else Fraction(math.floor(high * _SHORT), _SHORT)
    return chain


def size_formula(closeness: Closeness) -> int:
    """Number of combined levels in one coordinate, by PALM's formula."""
    eps, delta = closeness.eps_prime, closeness.delta_prime
    # Subnormal numbers have few digits, and the limit differs by less than a rounding from them.
    if eps < sys.float_info.min:
        return math.ceil(1 / (2 * delta) - 1e-9)
    return math.ceil(math.log1p(eps / delta) / (2 * math.atanh(eps)) - 1e-9)


def grid(dim: int, closeness: Closeness, kind: Kind = "combined") -> Float64:
    """Every product of levels whose box meets the simplex: a cover, by construction.

    Returns:
        Raw weights (n, dim).

    Raises:
        InputError: If there are fewer than two traits, or too many cells to list.
    """
    check_dim(dim)
    low, weights, high = np.array(_chain(closeness, kind), np.float64).T
    return simplex_cells(weights, low, high, dim)


def simplex_cells(weights: Float64, low: Float64, high: Float64, dim: int) -> Float64:
    """Products of 1-d intervals that meet the simplex in more than a face of theirs.

    Args:
        weights: (n,) of the intervals.
        low: (n,) lower ends, ascending.
        high: (n,) upper ends, ascending.
        dim: Number of factors.

    Raises:
        InputError: If there are too many to list.
    """
    tiny = 1e-12
    rows = np.zeros((1, 0), np.int64)
    lowest = highest = np.zeros(1)
    for position in range(dim):
        # Of each row the levels that may come next lie side by side, and only they are made.
        rest = dim - position - 1
        first = np.searchsorted(high, 1 + tiny - rest * high[-1] - highest, side="right")
        last = np.searchsorted(low, 1 - tiny - lowest, side="left")
        fitting = np.maximum(last - first, 0)
        if fitting.sum() > _MOST_CELLS:
            raise InputError(
                f"a grid of more than {_MOST_CELLS} weights; use a larger eps' or delta'"
            )
        row = np.repeat(np.arange(len(rows)), fitting)
        level = np.arange(len(row)) - np.repeat(np.cumsum(fitting) - fitting - first, fitting)
        rows = np.concatenate([rows[row], level[:, None]], axis=1)
        lowest, highest = lowest[row] + low[level], highest[row] + high[level]
    return np.asarray(weights[rows])


def uniform_weights(dim: int, at_least: int) -> Float64:
    """The coarsest even lattice on the simplex with so many weights, (n, dim)."""
    check_dim(dim)
    parts = 1
    while math.comb(parts + dim - 1, dim - 1) < at_least:
        parts += 1
    # Stars and bars: the gaps between dim - 1 bars among parts + dim - 1 places.
    bars = np.array(list(itertools.combinations(range(parts + dim - 1), dim - 1)), np.int64)
    ends = np.full((len(bars), 1), parts + dim - 1)
    edges = np.concatenate([np.full((len(bars), 1), -1), bars, ends], axis=1)
    return np.asarray((np.diff(edges, axis=1) - 1) / parts)


def random_weights(dim: int, number: int, seed: int = 0) -> Float64:
    """Weights drawn evenly from the simplex, (number, dim)."""
    check_dim(dim)
    return np.random.default_rng(seed).dirichlet(np.ones(dim), number)


def check_dim(dim: int) -> None:
    """Refuse fewer than two traits."""
    if dim < 2:
        raise InputError(f"expected at least 2 traits, got {dim}")
