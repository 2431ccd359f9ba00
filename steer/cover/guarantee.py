"""From a guarantee (epsilon, delta), or a size, to the cover that gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steer.cover.grids import SMALLEST_DELTA, Closeness, check_dim, grid, size_formula
from steer.cover.minimal import Cover, Method, minimal_cover
from steer.errors import InputError

_LARGEST_EPS = 0.95


@dataclass(frozen=True)
class Scale:
    """What rewards and regulariser can be at most.

    Attributes:
        f_max: Largest regulariser f.
        r_max: Largest sum of the d rewards; d if each may be 1 at once.
    """

    f_max: float
    r_max: float

    def __post_init__(self) -> None:
        if not 0 <= self.f_max < math.inf:
            raise InputError(f"f_max: expected a number >= 0, got {self.f_max}")
        if not 0 < self.r_max < math.inf:
            raise InputError(f"r_max: expected a number above 0, got {self.r_max}")

    def guarantee(self, closeness: Closeness) -> tuple[float, float]:
        """(epsilon, delta) of an optimal policy for a weight this close (PALM, Lemma 3.2)."""
        eps, delta = closeness.eps_prime, closeness.delta_prime
        return 2 * eps, 2 * (delta * self.r_max + eps * self.f_max)

    def closeness(self, eps_prime: float, delta: float) -> float:
        """The delta' that spends all of delta at an eps'; not positive if there is none."""
        return (delta / 2 - eps_prime * self.f_max) / self.r_max


def closeness_for(dim: int, epsilon: float, delta: float, scale: Scale) -> Closeness:
    """The (eps', delta') that guarantees (epsilon, delta) with the smallest combined grid.

    Any eps' in [0, epsilon / 2] whose delta' = (delta / 2 - eps' f_max) / r_max is positive does
    (PALM, Lemma 3.2); a small eps' spends little on the regulariser, a large one needs few levels.

    Raises:
        InputError: If epsilon is not in [0, 2), delta is not positive, or no grid is small enough
            to be listed.
    """
    check_dim(dim)
    _check_guarantee(epsilon, delta)
    options = _closenesses(epsilon, delta, scale)
    if not options:
        raise InputError(f"delta = {delta} is too small to be told from 0; ask for more")
    fewest = min(map(size_formula, options))
    sizes: dict[Closeness, int] = {}
    for option in options:
        if size_formula(option) <= fewest + 1:
            try:
                sizes[option] = len(grid(dim, option))
            except InputError:  # too many weights to list
                continue
    if not sizes:
        raise InputError(
            f"a cover of {dim} traits for ({epsilon}, {delta}) has too many weights; ask for less"
        )
    return min(sizes, key=lambda option: sizes[option])


def cover_of_size(
    dim: int,
    size: int,
    epsilon: float,
    scale: Scale,
    *,
    method: Method = "exact",
    time_limit: float = 60.0,
    seed: int = 0,
) -> Cover:
    """The cover of at most `size` weights with the least delta at a given epsilon.

    For each of several eps' the least delta' whose cover is small enough is found by bisection.

    Raises:
        InputError: If an argument is out of range, or so few weights cover at no delta' below 1.
    """
    check_dim(dim)
    _check_guarantee(epsilon, 1.0)
    if size < 1:
        raise InputError(f"size: expected at least 1, got {size}")
    shares = _eps_primes(epsilon, 5)
    steps = 8
    best: tuple[float, Cover] | None = None
    for eps_prime in shares:
        low, high = 0.0, 1.0
        for _ in range(steps):
            middle = (low + high) / 2
            closeness = Closeness(eps_prime, middle)
            loss = scale.guarantee(closeness)[1]
            if best is not None and loss >= best[0]:
                high = middle  # no use, even if it covers
                continue
            cover = minimal_cover(
                dim,
                closeness,
                method=method,
                time_limit=time_limit / (steps * len(shares)),
                seed=seed,
            )
            if len(cover.weights) <= size and cover.check.verdict == "yes":
                best, high = (loss, cover), middle
            else:
                low = middle
    if best is None:
        raise InputError(f"{size} weights cover {dim} traits at no delta' below 1; allow more")
    return best[1]


def _closenesses(epsilon: float, delta: float, scale: Scale) -> list[Closeness]:
    found = []
    for eps_prime in _eps_primes(epsilon, 65):
        delta_prime = scale.closeness(eps_prime, delta)
        if delta_prime >= SMALLEST_DELTA:
            found.append(Closeness(eps_prime, delta_prime))
    return found


def _eps_primes(epsilon: float, number: int) -> list[float]:
    """So many eps' that a guarantee allows, evenly spread; one if it allows none but 0."""
    largest = min(epsilon / 2, _LARGEST_EPS)
    found: list[float] = np.linspace(0, largest, number if largest else 1).tolist()
    return found


def _check_guarantee(epsilon: float, delta: float) -> None:
    if not 0 <= epsilon < 2:
        raise InputError(f"epsilon: expected 0 <= epsilon < 2, got {epsilon}")
    if not 0 < delta < math.inf:
        raise InputError(
            f"delta: expected a number above 0, got {delta}; no finite set of weights is near "
            "enough to every preference otherwise"
        )
