"""The fewest weights that cover the simplex: set cover, verification, counterexamples, again."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from steer.cover.check import TOLERANCE, CoverCheck, UncoveredSearch, is_cover
from steer.cover.grids import Closeness, check_dim, grid, simplex_cells
from steer.cover.set_cover import greedy_cover, set_cover
from steer.errors import InputError

Float64 = NDArray[np.float64]
Method = Literal["exact", "greedy"]

_MOST_CANDIDATES = 20_000
_POINTS_A_ROUND = 200


@dataclass(frozen=True)
class Cover:
    """A cover that has been verified.

    Attributes:
        weights: Raw weights (n, d).
        closeness: What covering means.
        lower_bound: No set of the candidate weights that covers the simplex is smaller.
        check: The verification.
    """

    weights: Float64
    closeness: Closeness
    lower_bound: int
    check: CoverCheck


def minimal_cover(
    dim: int,
    closeness: Closeness,
    *,
    method: Method = "exact",
    refinement: int = 2,
    time_limit: float = 60.0,
    seed: int = 0,
) -> Cover:
    """The fewest weights that cover the simplex, out of a lattice of candidate boxes.

    Finitely many test points are covered by a minimum set cover, the result is verified over the
    whole simplex, the points it misses join the test points, and so on until nothing is missed.
    Any cover by candidates covers the test points, so the set cover's bound holds for it.

    Args:
        dim: Number of traits d.
        closeness: What covering means.
        method: "exact" solves each set cover with HiGHS, "greedy" takes the candidate that covers
            most of what is left, again and again, which is faster and has no bound.
        refinement: Candidates are products of the combined levels and of this many minus one
            chains between them; fewer where they would be too many.
        time_limit: Seconds; when they run out the grid is returned, which is a cover as well.
        seed: Draws the first test points.

    Raises:
        InputError: If an argument is out of range.
    """
    check_dim(dim)
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; expected 'exact' or 'greedy'")
    if refinement < 1:
        raise InputError(f"refinement: expected at least 1, got {refinement}")
    deadline = time.monotonic() + time_limit
    candidates = _candidates(dim, closeness, refinement)
    rng = np.random.default_rng(seed)
    # Concentrated near the faces, where boxes are small.
    points = rng.dirichlet(np.full(dim, 0.5), size=60 * dim)
    bound = 1
    while (left := deadline - time.monotonic()) > 0:
        covers = closeness.covers(candidates, points)
        if method == "exact":
            chosen, lower = set_cover(covers, left)
            bound = max(bound, lower)
        else:
            chosen = greedy_cover(covers)
        if chosen is None:
            break
        weights = candidates[chosen]
        search = UncoveredSearch(weights, closeness, max(deadline - time.monotonic(), 0))
        missed = list(itertools.islice(search.uncovered(), _POINTS_A_ROUND))
        if search.out_of_time:
            break
        if not missed:
            return Cover(weights, closeness, bound, CoverCheck("yes", None, search.regions))
        points = np.concatenate([points, np.array(missed, np.float64)])
    weights = grid(dim, closeness)
    return Cover(weights, closeness, bound, is_cover(weights, closeness, time_limit=time_limit))


def _candidates(dim: int, closeness: Closeness, refinement: int) -> Float64:
    """Weights whose boxes begin on a lattice that has the combined grid in it."""
    for parts in range(refinement, 1, -1):
        low = _finer(closeness, parts)
        # An estimate, so that a hopeless list is not made: the simplex cuts most of the cube off.
        if len(low) ** dim / math.factorial(dim - 1) > 100 * _MOST_CANDIDATES:
            continue
        weights = closeness.weight_above(low)
        cells = simplex_cells(weights, *closeness.box(weights), dim)
        if len(cells) <= _MOST_CANDIDATES:
            return cells
    return grid(dim, closeness)


def _finer(closeness: Closeness, parts: int) -> Float64:
    """Lower ends: the combined chain, each of its steps in `parts` equal ones of the same map."""
    eps, delta = closeness.eps_prime, closeness.delta_prime
    # A whole step is x -> r x + 2 delta' / (1 - eps') with r = (1 + eps') / (1 - eps'), which
    # stretches x + delta' / eps' by r.
    stretch = math.expm1(2 * math.atanh(eps) / parts)
    low = [0.0]
    while True:
        step = 2 * delta / parts if eps == 0 else (low[-1] + delta / eps) * stretch
        if low[-1] + step >= 1 - TOLERANCE:
            return np.array(low)
        low.append(low[-1] + step)
