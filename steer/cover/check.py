"""Whether weights cover the whole continuous simplex: decided exactly, with a counterexample."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.cover.grids import Closeness, check_dim
from steer.errors import InputError

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Verdict = Literal["yes", "no", "undecided"]

# Exact decisions are made on integers: coordinates in units of 2^-50. A box is widened by
# `TOLERANCE` and then rounded inwards, so a "yes" is proven for (eps', delta' + TOLERANCE), and
# boxes that touch in exact arithmetic are not parted by the rounding of their weights to floats.
_ONE = 1 << 50
TOLERANCE = 1e-12


@dataclass(frozen=True)
class CoverCheck:
    """Whether weights cover the whole simplex.

    Attributes:
        verdict: "yes" is a proof, "no" comes with a counterexample, "undecided" means that time
            ran out.
        counterexample: A preference that no weight covers, exactly, summing to one; None unless
            the verdict is "no".
        regions: Number of regions that were looked at.
    """

    verdict: Verdict
    counterexample: tuple[Fraction, ...] | None
    regions: int


def is_cover(
    weights: ArrayLike, closeness: Closeness, *, time_limit: float = math.inf
) -> CoverCheck:
    """Decide whether every preference of the continuous simplex is covered.

    Branch and bound: a region (a box cut by the simplex) is either inside one weight's box, or a
    weight's box is cut out of it and the parts that remain are regions again, or no box meets its
    interior and any point in there is a counterexample. The uncovered part of the simplex is
    relatively open, so regions without an interior need not be looked at. The arithmetic is exact,
    on integers (see `TOLERANCE`).

    Args:
        weights: Raw weights (n, d).
        closeness: What covering means.
        time_limit: Seconds, after which the verdict is "undecided".

    Raises:
        InputError: If the weights are no (n, d) array of numbers >= 0.
    """
    search = UncoveredSearch(_checked(weights), closeness, time_limit)
    point = next(search.uncovered(), None)
    if point is not None:
        return CoverCheck("no", point, search.regions)
    return CoverCheck("undecided" if search.out_of_time else "yes", None, search.regions)


class UncoveredSearch:
    """Regions that are yet to be covered, and how many have been looked at."""

    def __init__(self, weights: Float64, closeness: Closeness, time_limit: float) -> None:
        self._low, self._high = _integer_boxes(weights, closeness)
        self._deadline = time.monotonic() + time_limit
        self.regions = 0
        self.out_of_time = False

    def uncovered(self) -> Iterator[tuple[Fraction, ...]]:
        """Points that no box covers, one from each uncovered region that is met."""
        dim = self._low.shape[1]
        start = (np.zeros(dim, np.int64), np.full(dim, _ONE), np.arange(len(self._low)))
        stack: list[tuple[Int64, Int64, Int64]] = [start]
        while stack:
            if time.monotonic() > self._deadline:
                self.out_of_time = True
                return
            low, high, near = stack.pop()
            trimmed = _trim(low, high)
            if trimmed is None:
                continue
            low, high = trimmed
            self.regions += 1
            # Parts of the boxes inside the region, those with an interior on the simplex.
            a, b = np.maximum(self._low[near], low), np.minimum(self._high[near], high)
            meets = (a < b).all(1) & (a.sum(1) < _ONE) & (b.sum(1) > _ONE)
            near, a, b = near[meets], a[meets], b[meets]
            if not len(near):
                yield _inner_point(low, high)
                continue
            whole = (a == low) & (b == high)
            if whole.all(1).any():
                continue
            # The box that leaves the smallest part of the region over.
            share = np.log((b - a) / (high - low)).sum(1)
            best = int(share.argmax())
            cut_low, cut_high = a[best], b[best]
            low, high = low.copy(), high.copy()
            for i in range(dim):
                if low[i] < cut_low[i]:
                    below = high.copy()
                    below[i] = cut_low[i]
                    stack.append((low.copy(), below, near))
                    low[i] = cut_low[i]
                if high[i] > cut_high[i]:
                    above = low.copy()
                    above[i] = cut_high[i]
                    stack.append((above, high.copy(), near))
                    high[i] = cut_high[i]


def _integer_boxes(weights: Float64, closeness: Closeness) -> tuple[Int64, Int64]:
    """Boxes in units of 2^-50, widened by the tolerance and rounded inwards, cut to [0, 1]."""
    eps = Fraction(str(closeness.eps_prime))
    delta = Fraction(str(closeness.delta_prime)) + Fraction(str(TOLERANCE))
    values, places = np.unique(weights, return_inverse=True)
    low, high = [], []
    for value in map(Fraction, values.tolist()):
        low.append(math.ceil(max((value - delta) / (1 + eps), Fraction(0)) * _ONE))
        high.append(math.floor(min((value + delta) / (1 - eps), Fraction(1)) * _ONE))
    places = places.reshape(weights.shape)
    # A weight far above one covers nothing; its box would not fit an integer.
    return np.array([min(x, _ONE) for x in low], np.int64)[places], np.array(high, np.int64)[places]


def _trim(low: Int64, high: Int64) -> tuple[Int64, Int64] | None:
    """The least box around a region's part of the simplex; None if that has no interior."""
    low_sum, high_sum = low.sum(), high.sum()
    if not ((low < high).all() and low_sum < _ONE < high_sum):
        return None
    return np.maximum(low, _ONE - (high_sum - high)), np.minimum(high, _ONE - (low_sum - low))


def _inner_point(low: Int64, high: Int64) -> tuple[Fraction, ...]:
    """The point of the simplex between two corners: inside, since their sums are apart from 1."""
    first, last = [int(x) for x in low], [int(x) for x in high]
    part = Fraction(_ONE - sum(first), sum(last) - sum(first))
    return tuple((a + part * (b - a)) / _ONE for a, b in zip(first, last, strict=True))


def _checked(weights: ArrayLike) -> Float64:
    w = np.asarray(weights, np.float64)
    if w.ndim != 2 or not len(w):
        raise InputError(f"weights: expected shape (n, d), got {w.shape}")
    check_dim(w.shape[1])
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise InputError("weights: expected finite numbers >= 0")
    return w
