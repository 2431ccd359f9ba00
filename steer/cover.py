"""Covers of the preference simplex: finitely many weights that stand for all of them.

A weight w covers a preference v when |w_i - v_i| <= eps' v_i + delta' for every trait i. An
optimal policy for w is then nearly optimal for v (PALM, arXiv 2604.04144, Lemma 3.2). The lemma
asks nothing of the sum of w, so the weights here are *raw*: they need not sum to one, and must not
be normalised, since a reward J_w = sum_i w_i r_i - f weighs f against that sum.

The preferences that w covers are a box, [(w_i - delta') / (1 + eps'), (w_i + delta') / (1 - eps')]
in coordinate i; covering the simplex means covering it with boxes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from steer.errors import InputError

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Kind = Literal["combined", "multiplicative", "additive"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Verdict = Literal["yes", "no", "undecided"]

# Exact decisions are made on integers: coordinates in units of 2^-50. A box is widened by
# `TOLERANCE` and then rounded inwards, so a "yes" is proven for (eps', delta' + TOLERANCE), and
# boxes that touch in exact arithmetic are not parted by the rounding of their weights to floats.
_ONE = 1 << 50
TOLERANCE = 1e-12
_SMALLEST = 1e-9
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
        if not _SMALLEST <= self.delta_prime < math.inf:
            raise InputError(
                f"delta_prime: expected a number of at least {_SMALLEST}, got {self.delta_prime}"
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
        covered = high if small else Fraction(math.floor(high * _ONE), _ONE)
    return chain


def size_formula(closeness: Closeness) -> int:
    """Number of combined levels in one coordinate, by PALM's formula."""
    eps, delta = closeness.eps_prime, closeness.delta_prime
    if eps == 0:
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
    return _cells(weights, low, high, dim)


def _cells(weights: Float64, low: Float64, high: Float64, dim: int) -> Float64:
    """Products of 1-d intervals that meet the simplex in more than a face of theirs."""
    tiny = 1e-12
    rows = np.zeros((1, 0), np.int64)
    for position in range(dim):
        rows = np.concatenate(
            [
                np.repeat(rows, len(weights), axis=0),
                np.tile(np.arange(len(weights)), len(rows))[:, None],
            ],
            axis=1,
        )
        rest = dim - position - 1
        fits = low[rows].sum(1) < 1 - tiny
        rows = rows[fits & (high[rows].sum(1) + rest * high[-1] > 1 + tiny)]
        if len(rows) > _MOST_CELLS:
            raise InputError(
                f"a grid of more than {_MOST_CELLS} weights; use a larger eps' or delta'"
            )
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


# --- deciding -----------------------------------------------------------------------------------


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
    search = _Search(_checked(weights), closeness, time_limit)
    point = next(search.uncovered(), None)
    if point is not None:
        return CoverCheck("no", point, search.regions)
    return CoverCheck("undecided" if search.out_of_time else "yes", None, search.regions)


class _Search:
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


# --- optimising ---------------------------------------------------------------------------------


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


Method = Literal["exact", "greedy"]

_MOST_CANDIDATES = 20_000
_POINTS_A_ROUND = 200


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
        search = _Search(weights, closeness, max(deadline - time.monotonic(), 0))
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
        cells = _cells(weights, *closeness.box(weights), dim)
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


def set_cover(covers: NDArray[np.bool_], seconds: float) -> tuple[NDArray[np.intp] | None, int]:
    """A minimum set of columns that covers all rows, and a bound on its size.

    Args:
        covers: Which column covers which row (rows, columns).
        seconds: Time limit.

    Returns:
        Indices, or None if no set was found in time; and a number that no set is smaller than.
    """
    columns = covers.shape[1]
    found = milp(
        np.ones(columns),
        constraints=LinearConstraint(csr_array(covers.astype(np.float64)), lb=1),
        integrality=np.ones(columns),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds},
    )
    dual = found.mip_dual_bound
    bound = math.ceil(dual - 1e-6) if dual is not None and math.isfinite(dual) else 1
    return (None if found.x is None else np.flatnonzero(found.x > 0.5)), bound


def greedy_cover(covers: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Columns that cover all rows, each the best for what the former ones left.

    Args:
        covers: Which column covers which row (rows, columns); each row needs one.
    """
    left = np.ones(len(covers), bool)
    chosen: list[int] = []
    while left.any():
        chosen.append(int(covers[left].sum(0).argmax()))
        left &= ~covers[:, chosen[-1]]
    # Later choices may have made earlier ones unnecessary.
    for column in list(chosen):
        others = [one for one in chosen if one != column]
        if others and covers[:, others].any(1).all():
            chosen = others
    return np.array(chosen, np.intp)


# --- guarantees ---------------------------------------------------------------------------------


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
    shares = np.linspace(0, min(epsilon / 2, _LARGEST_EPS), 1 if epsilon == 0 else 5)
    steps = 8
    best: tuple[float, Cover] | None = None
    for eps_prime in shares.tolist():
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


_LARGEST_EPS = 0.95


def _closenesses(epsilon: float, delta: float, scale: Scale) -> list[Closeness]:
    found = []
    for eps_prime in np.linspace(0, min(epsilon / 2, _LARGEST_EPS), 65).tolist():
        delta_prime = scale.closeness(eps_prime, delta)
        if delta_prime >= _SMALLEST:
            found.append(Closeness(eps_prime, delta_prime))
    return found


def _check_guarantee(epsilon: float, delta: float) -> None:
    if not 0 <= epsilon < 2:
        raise InputError(f"epsilon: expected 0 <= epsilon < 2, got {epsilon}")
    if not 0 < delta < math.inf:
        raise InputError(
            f"delta: expected a number above 0, got {delta}; no finite set of weights is near "
            "enough to every preference otherwise"
        )
