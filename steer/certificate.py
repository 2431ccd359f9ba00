"""How far a set of kept edits can be from the best measured one, over every preference.

J_w(e) = sum_i w_i u_i(e) - f(e) is linear in w, so the worst case over the whole continuous simplex
is a linear program per measured edit (PALM, arXiv 2604.04144): exact, not sampled. It is relative
to the measured edits: nothing is said of edits that were never tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog

from steer.errors import CertificateError, InputError

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What was measured of n edits; the first is the unsteered model.

    Attributes:
        utilities: u (n, d), >= 0.
        regulariser: f (n,), >= 0, and 0 for the unsteered model.
    """

    utilities: Float64
    regulariser: Float64

    def __post_init__(self) -> None:
        utilities = np.asarray(self.utilities, np.float64)
        regulariser = np.asarray(self.regulariser, np.float64)
        if utilities.ndim != 2 or regulariser.shape != utilities.shape[:1] or not utilities.size:
            raise InputError(
                "expected utilities (n, d) and a regulariser (n,), got shapes "
                f"{utilities.shape} and {regulariser.shape}"
            )
        if not (np.isfinite(utilities).all() and (utilities >= 0).all()):
            raise InputError("utilities: expected finite numbers >= 0")
        if not (np.isfinite(regulariser).all() and (regulariser >= 0).all()):
            raise InputError("regulariser: expected finite numbers >= 0")
        if regulariser[0] != 0:
            raise InputError(f"the first edit is the unsteered model; its f is {regulariser[0]}")
        object.__setattr__(self, "utilities", utilities)
        object.__setattr__(self, "regulariser", regulariser)

    def value(self, weights: ArrayLike) -> Float64:
        """J of every edit at raw weights (m, d), shape (m, n)."""
        return np.asarray(np.asarray(weights, np.float64) @ self.utilities.T - self.regulariser)

    def __len__(self) -> int:
        return len(self.utilities)


@dataclass(frozen=True)
class Worst:
    """The worst case of one figure.

    Attributes:
        loss: delta at a given epsilon, or epsilon at delta = 0.
        weights: The preference (d,) where it occurs.
        edit: The measured edit that would be better there.
    """

    loss: float
    weights: Float64
    edit: int


@dataclass(frozen=True)
class Certificate:
    """Bounds on what is lost by serving every preference with the kept edits.

    For every w of the simplex, max over the kept edits of J_w is at least
    (1 - epsilon) max over the measured edits of J_w - delta, at each pair below.

    Attributes:
        delta: The least delta at epsilon = 0.
        epsilon: The least epsilon at delta = 0.
        curve: Pairs (epsilon, least delta) between them, epsilon ascending.
        candidates: Number of edits that were measured: what "best" is relative to.
    """

    delta: Worst
    epsilon: Worst
    curve: tuple[tuple[float, float], ...]
    candidates: int

    def __str__(self) -> str:
        return (
            f"relative to the {self.candidates} measured edits, no mixture loses more than "
            f"{self.delta.loss:.4f} in J (at w = {_shown(self.delta.weights)}), or more than "
            f"{self.epsilon.loss:.2%} of it (at w = {_shown(self.epsilon.weights)})"
        )


def certify(measured: Measured, kept: Sequence[int], *, points: int = 9) -> Certificate:
    """The worst case over the continuous simplex.

    Args:
        measured: Every measured edit.
        kept: Indices of the edits kept. The unsteered model, index 0, always is one.
        points: Number of points of the curve.

    Raises:
        InputError: If an index does not exist.
        CertificateError: If a linear program fails.
    """
    kept = with_unsteered(measured, kept)
    delta = worst_delta(measured, kept, 0.0)
    epsilon = worst_epsilon(measured, kept)
    shares = np.linspace(0, epsilon.loss, points) if epsilon.loss > 0 else np.zeros(1)
    curve = tuple(
        (float(share), worst_delta(measured, kept, float(share)).loss) for share in shares
    )
    return Certificate(delta, epsilon, curve, len(measured))


def with_unsteered(measured: Measured, kept: Sequence[int]) -> tuple[int, ...]:
    """The kept indices with the unsteered model in front, checked."""
    for index in kept:
        if not 0 <= index < len(measured):
            raise InputError(f"edit {index} does not exist; there are {len(measured)}")
    return (0, *(index for index in dict.fromkeys(kept) if index != 0))


def worst_delta(measured: Measured, kept: Sequence[int], epsilon: float) -> Worst:
    """The least delta at an epsilon, with its preference.

    For each measured e: max t over w in the simplex with t <= (1 - epsilon) J_w(e) - J_w(s) for
    every kept s.
    """
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon: expected a number from 0 to 1, got {epsilon}")
    u, f = measured.utilities, measured.regulariser
    dim = u.shape[1]
    worst = Worst(0.0, np.eye(dim)[0], kept[0])
    for e in _rivals(measured, kept):
        share = 1 - epsilon
        # Variables (w, t): t + w (u_s - share u_e) <= f_s - share f_e.
        rows = np.concatenate([u[kept, :] - share * u[e], np.ones((len(kept), 1))], axis=1)
        solution = _solve(
            rows,
            f[list(kept)] - share * f[e],
            np.append(np.ones(dim), 0.0),
            f"edit {e}, epsilon {epsilon}",
        )
        if solution is not None and solution[-1] > worst.loss:
            worst = Worst(float(solution[-1]), np.maximum(solution[:-1], 0), e)
    return worst


def worst_epsilon(measured: Measured, kept: Sequence[int]) -> Worst:
    """The least epsilon at delta = 0, with its preference.

    max over w of 1 - max_s J_w(s) / J_w(e) is a linear fractional program; with y = w / J_w(e) it
    is a linear one (Charnes and Cooper, 1962): max t with t <= 1 - J_y(s) for every kept s and
    J_y(e) = 1, where f counts sum(y) times. The unsteered model is kept, so t is at most 1.
    """
    u, f = measured.utilities, measured.regulariser
    dim = u.shape[1]
    worst = Worst(0.0, np.eye(dim)[0], kept[0])
    scaled = u - f[:, None]  # J_y = y (u - f)
    for e in _rivals(measured, kept):
        rows = np.concatenate([scaled[kept, :], np.ones((len(kept), 1))], axis=1)
        solution = _solve(rows, np.ones(len(kept)), np.append(scaled[e], 0.0), f"edit {e}, delta 0")
        if solution is not None and solution[-1] > worst.loss:
            y = np.maximum(solution[:-1], 0)
            worst = Worst(float(solution[-1]), y / y.sum(), e)
    return worst


def _rivals(measured: Measured, kept: Sequence[int]) -> list[int]:
    """Edits that may be better than the kept ones somewhere.

    One that another beats on every utility at no more cost is never the only best one.
    """
    u, f = measured.utilities, measured.regulariser
    rest = [e for e in range(len(measured)) if e not in set(kept)]
    rivals = []
    for e in rest:
        better = (u >= u[e]).all(1) & (f <= f[e])
        strictly = better & ((u > u[e]).any(1) | (f < f[e]))
        twin = better & ~strictly & (np.arange(len(measured)) < e)
        if not (strictly.any() or twin.any()):
            rivals.append(e)
    return rivals


def _solve(rows: Float64, limits: Float64, equal_one: Float64, what: str) -> Float64 | None:
    """Maximise the last variable; the others are >= 0. None if nothing is feasible."""
    variables = rows.shape[1]
    found = linprog(
        -np.eye(variables)[-1],
        A_ub=rows,
        b_ub=limits,
        A_eq=equal_one[None],
        b_eq=[1.0],
        bounds=[(0, None)] * (variables - 1) + [(None, None)],
        method="highs",
    )
    if found.status == 2:
        return None
    if found.status != 0 or not math.isfinite(found.fun):
        raise CertificateError(f"the linear program of {what} was not solved: {found.message}")
    return np.asarray(found.x, np.float64)


def _shown(weights: Float64) -> str:
    return "(" + ", ".join(f"{x:.2f}" for x in weights) + ")"
