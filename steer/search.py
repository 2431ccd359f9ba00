"""The search for a near-optimal edit at each weight of a cover, lazily.

PALM (arXiv 2604.04144) asks an oracle for an optimal policy at every weight of a cover. Here the
oracle is a search over measured edits, and it is asked only where that can still matter: the
optimum is convex in the weights, so the weights that are solved bound it at all others, and a
weight at which the best measured edit is within the guarantee of that bound is served already.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from steer.certificate import Measured
from steer.errors import CertificateError, InputError
from steer.evaluation import Evaluation, Evaluator, measured
from steer.objective import Objective
from steer.portfolio import Candidate

Float64 = NDArray[np.float64]

# Divergences span orders of magnitude, so their logarithm is modelled; this is nothing.
_NO_KL = 1e-4


@dataclass(frozen=True)
class Effort:
    """How hard an oracle tries at one weight.

    Attributes:
        first: Candidates spread over the whole space before any weight is asked about.
        batch: Candidates that are proposed and measured at once.
        rounds: Most batches for one weight.
        improvement: A round that gains less than this in J is the last.
        largest: Largest coefficient of a trait, in default doses. Those are the largest at which
            whole answers hold, so more than 1 is for experiments.
        pool: Candidates among which the surrogate chooses.
        exploration: Standard deviations added to what the surrogate expects.
    """

    first: int = 24
    batch: int = 6
    rounds: int = 3
    improvement: float = 0.005
    largest: float = 1.0
    pool: int = 1024
    exploration: float = 1.0

    def __post_init__(self) -> None:
        for name in ("first", "batch", "rounds", "pool"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("improvement", "exploration"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: expected a number >= 0, got {getattr(self, name)}")
        if not 0 < self.largest < float("inf"):
            raise InputError(f"largest: expected a number above 0, got {self.largest}")


@dataclass(frozen=True)
class OracleCall:
    """One weight that was searched for.

    Attributes:
        weight: Its row in the cover.
        value: J of the best edit that was found there.
        bound: The upper bound on J before the call.
        candidates: How many edits were newly measured for it.
    """

    weight: int
    value: float
    bound: float
    candidates: int


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Everything that a search measured.

    Attributes:
        evaluations: The unsteered model's first.
        measured: Their means, in the same order.
        calls: The oracle's calls, in order.
    """

    evaluations: tuple[Evaluation, ...]
    measured: Measured
    calls: tuple[OracleCall, ...]

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return int(sum(one.tokens.sum() for one in self.evaluations))


def search(
    evaluator: Evaluator,
    weights: ArrayLike,
    objective: Objective,
    *,
    epsilon: float = 0.0,
    delta: float = 0.02,
    effort: Effort = Effort(),  # noqa: B008  (frozen)
    lazy: bool = True,
    seed: int = 0,
) -> SearchResult:
    """Measure edits until every weight of a cover is served.

    Args:
        evaluator: Measures candidates, each once.
        weights: Raw weights (m, d) of a cover.
        objective: J.
        epsilon: Relative loss at which a weight counts as served.
        delta: Absolute loss at which it does.
        effort: How hard each weight is searched for.
        lazy: Ask only about weights that are not served yet; otherwise about all.
        seed: Seeds every proposal.

    Raises:
        InputError: If the weights do not fit the rewards or a number is out of range.
    """
    rows = np.asarray(weights, np.float64)
    dim = len(evaluator.rewards)
    if rows.ndim != 2 or rows.shape[1] != dim or not (np.isfinite(rows) & (rows >= 0)).all():
        raise InputError(f"expected finite weights >= 0 (m, {dim}), got shape {rows.shape}")
    if not (0 <= epsilon <= 1 and 0 <= delta < float("inf")):
        raise InputError(f"expected 0 <= epsilon <= 1 and delta >= 0, got ({epsilon}, {delta})")
    state = _State(evaluator, objective, effort, seed)
    calls: list[OracleCall] = []
    solved: list[int] = []
    left = list(range(len(rows)))
    while left:
        best = state.measured.value(rows).max(1)  # (m,)
        bounds = np.array([upper_bound(rows[i], rows[solved], best[solved]) for i in left])
        gaps = (1 - epsilon) * bounds - delta - best[left]
        if lazy and gaps.max() <= 0:
            break
        place = int(gaps.argmax())
        weight = left.pop(place)
        before = len(state.evaluations)
        value = state.solve(rows[weight])
        solved.append(weight)
        calls.append(
            OracleCall(weight, value, float(bounds[place]), len(state.evaluations) - before)
        )
    return SearchResult(tuple(state.evaluations), state.measured, tuple(calls))


def upper_bound(weight: Float64, solved: Float64, values: Float64) -> float:
    """The most that any edit can be worth at a weight, given the optima at others.

    max over e of J_w(e) is convex in w, grows with w since u >= 0, and by at most sum_i s_i where
    w grows by s since u <= 1. So for every mixture l of the solved weights w_j (and of w = 0,
    where the optimum is 0) with sum_j l_j w_j + s >= w it is at most sum_j l_j V_j + sum_i s_i.

    Args:
        weight: w (d,).
        solved: w_j (m, d).
        values: V_j (m,), the optima there.

    Raises:
        CertificateError: If the linear program fails.
    """
    number, dim = len(values), len(weight)
    reach = np.concatenate([-solved.reshape(number, dim).T, -np.eye(dim)], axis=1)
    shares = np.append(np.ones(number), np.zeros(dim))  # the rest is the share of w = 0
    found = linprog(
        np.append(values, np.ones(dim)),
        A_ub=np.concatenate([reach, shares[None]]),
        b_ub=np.append(-weight, 1.0),
        bounds=(0, None),
        method="highs",
    )
    if found.status != 0:
        raise CertificateError(f"the bound at {weight} was not solved: {found.message}")
    return float(found.fun)


class _State:
    """What has been measured so far, and the surrogate that proposes what to measure next."""

    def __init__(
        self, evaluator: Evaluator, objective: Objective, effort: Effort, seed: int
    ) -> None:
        self._evaluator = evaluator
        self._objective = objective
        self._effort = effort
        self._rng = np.random.default_rng(seed)
        self._names = sorted(evaluator.families)
        self.evaluations: list[Evaluation] = []
        self._measure(self._first())

    @property
    def measured(self) -> Measured:
        return measured(self.evaluations, self._objective)

    def solve(self, weight: Float64) -> float:
        """Measure candidates for one weight until a round gains little; the best J."""
        best = float(self.measured.value(weight).max())
        for _ in range(self._effort.rounds):
            self._measure(self._proposals(weight))
            value = float(self.measured.value(weight).max())
            gained, best = value - best, value
            if gained < self._effort.improvement:
                break
        return best

    def _measure(self, candidates: Sequence[Candidate]) -> None:
        known = {one.candidate for one in self.evaluations}
        fresh = [one for one in dict.fromkeys(candidates) if one not in known]
        self.evaluations += self._evaluator.evaluate(fresh)

    def _first(self) -> list[Candidate]:
        """The unsteered model, each trait's default dose, and a spread of mixtures."""
        k = self._evaluator.dimensions
        unsteered = Candidate(self._names[0], (0.0,) * k)
        alone = [
            Candidate(name, tuple(float(i == j) for j in range(k)))
            for name in self._names
            for i in range(k)
        ]
        spread = self._spread(self._effort.first)
        return [unsteered, *alone, *spread]

    def _spread(self, number: int) -> list[Candidate]:
        """Mixtures evenly spread over doses and directions, in families by turns."""
        k = self._evaluator.dimensions
        with warnings.catch_warnings():
            # A number of points that is no power of two is balanced well enough.
            warnings.simplefilter("ignore", UserWarning)
            points = qmc.Sobol(k + 1, seed=self._rng).random(number)
        # Exponential variables, scaled, are uniform on the simplex.
        direction = -np.log1p(-points[:, :k] * (1 - 1e-9))
        direction /= np.maximum(direction.max(1, keepdims=True), 1e-12)
        doses = self._effort.largest * points[:, k:]
        return [
            Candidate.rounded(self._names[i % len(self._names)], row)
            for i, row in enumerate(direction * doses)
        ]

    def _proposals(self, weight: Float64) -> list[Candidate]:
        """The candidates from which the surrogate hopes for most at a weight."""
        effort = self._effort
        pool = self._spread(effort.pool // 2)
        order = np.argsort(-self.measured.value(weight), kind="stable")
        leaders = [self.evaluations[i].candidate for i in order[: effort.batch].tolist()]
        for i in range(effort.pool - len(pool)):
            leader = leaders[i % len(leaders)]
            step = self._rng.normal(0, 0.15 * effort.largest, self._evaluator.dimensions)
            moved = np.clip(np.asarray(leader.coefficients) + step, 0, effort.largest)
            # A trait that nobody asks for should be able to vanish exactly.
            pool.append(
                Candidate.rounded(leader.family, moved * (self._rng.random(len(moved)) > 0.1))
            )
        known = {one.candidate for one in self.evaluations}
        pool = [one for one in dict.fromkeys(pool) if one not in known]
        hope = self._hope(pool, weight)
        chosen: list[int] = []
        points = self._points(pool)
        for i in np.argsort(-hope, kind="stable").tolist():
            # Not the same place many times: a batch is measured before anything is learnt of it.
            if all(np.abs(points[i] - points[j]).max() > 0.05 * effort.largest for j in chosen):
                chosen.append(i)
            if len(chosen) == effort.batch:
                break
        return [pool[i] for i in chosen]

    def _points(self, candidates: Sequence[Candidate]) -> Float64:
        """Candidates as points (n, k + families): coefficients, and the family's corner."""
        corners = np.eye(len(self._names)) * self._effort.largest
        return np.array(
            [[*one.coefficients, *corners[self._names.index(one.family)]] for one in candidates]
        )

    def _hope(self, candidates: Sequence[Candidate], weight: Float64) -> Float64:
        """An optimistic J (n,) of candidates, by a Gaussian process a quantity."""
        x, at = self._points([one.candidate for one in self.evaluations]), self._points(candidates)
        utilities = self.measured.utilities
        expected, variance = np.zeros(len(at)), np.zeros(len(at))
        for i in np.flatnonzero(weight):
            mean, deviation = _fit(x, utilities[:, i], at)
            expected += weight[i] * np.clip(mean, 0, 1)
            variance += (weight[i] * deviation) ** 2
        kl = np.array([one.kl.mean() for one in self.evaluations])
        mean, _ = _fit(x, np.log(kl + _NO_KL), at)
        cost = self._objective.regulariser(np.maximum(np.exp(mean) - _NO_KL, 0))
        return np.asarray(expected - cost + self._effort.exploration * np.sqrt(variance))


def _fit(x: Float64, y: Float64, at: Float64) -> tuple[Float64, Float64]:
    """Mean and standard deviation of y at other points."""
    kernel = ConstantKernel() * RBF(np.ones(x.shape[1]), (0.1, 30)) + WhiteKernel(1e-2, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        # A length scale at the edge of its range says that a coefficient has no effect.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, y)
    mean, deviation = process.predict(at, return_std=True)
    return np.asarray(mean), np.asarray(deviation)
