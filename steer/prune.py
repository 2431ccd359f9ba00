"""Which of the measured edits are kept: as few as serve every preference.

Pruning is a set cover in reward space: at finitely many preferences the kept edits must be nearly
as good as the best measured one; the certificate then finds the worst preference of the whole
simplex, which joins the others, until nothing is worse than what was asked for.
"""

from __future__ import annotations

import math
import time
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from steer.certificate import Measured, Worst, worst_delta, worst_epsilon
from steer.cover import Method, greedy_cover, random_weights, set_cover, uniform_weights
from steer.errors import CertificateError, InputError

Float64 = NDArray[np.float64]
Criterion = Literal["delta", "epsilon"]

# What the certificate may find beyond what was asked, from rounding.
_SLACK = 1e-7
# Preferences over which a mean loss is taken, and what counts as a smaller one.
_MIXTURES = 500
_LESS = 1e-6
# Share of the worst case that a smaller mean may cost: far less than the measuring noise of it.
_GIVEN_UP = 0.02


def prune(
    measured: Measured,
    *,
    epsilon: float = 0.0,
    delta: float,
    method: Method = "exact",
    time_limit: float = 60.0,
) -> tuple[int, ...]:
    """The fewest edits that lose at most (epsilon, delta) anywhere on the simplex.

    Args:
        measured: Every measured edit.
        epsilon: Relative loss allowed.
        delta: Absolute loss allowed.
        method: "exact" minimum set covers, or "greedy" ones.
        time_limit: Seconds.

    Returns:
        Indices without the unsteered model, which is always kept and costs nothing.

    Raises:
        InputError: If an argument is out of range.
        CertificateError: If time ran out.
    """
    if not (0 <= epsilon <= 1 and 0 <= delta < math.inf):
        raise InputError(f"expected 0 <= epsilon <= 1 and delta >= 0, got ({epsilon}, {delta})")
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; expected 'exact' or 'greedy'")
    deadline = time.monotonic() + time_limit
    points = _first_points(measured)
    while time.monotonic() < deadline:
        value = measured.value(points)
        best = value.max(1, keepdims=True)
        kept = _fewest(value >= (1 - epsilon) * best - delta - _SLACK / 2, method, deadline)
        if kept is None:
            break
        worst = worst_delta(measured, (0, *kept), epsilon)
        if worst.loss <= delta + _SLACK:
            return kept
        points = np.concatenate([points, worst.weights[None]])
    raise CertificateError("time ran out before a portfolio was certified; allow more")


def prune_to_size(
    measured: Measured,
    size: int,
    *,
    criterion: Criterion = "epsilon",
    time_limit: float = 60.0,
) -> tuple[int, ...]:
    """The edits, at most `size` of them, whose worst case over the simplex is the least.

    Several sets come within 2 % of it; among them edits are swapped while that lowers the mean
    loss, so one far preference does not cost all the others.

    Args:
        measured: Every measured edit.
        size: Number of edits kept beside the unsteered model.
        criterion: What is made small: delta at epsilon = 0, or epsilon at delta = 0. As rewards
            are at most 1, the latter bounds the former.
        time_limit: Seconds; when they run out, the best set found so far is returned.

    Raises:
        InputError: If an argument is out of range.
        CertificateError: If time ran out before there was one.
    """
    if size < 1:
        raise InputError(f"size: expected at least 1, got {size}")
    if criterion not in get_args(Criterion):
        raise InputError(f"unknown criterion {criterion!r}; expected 'delta' or 'epsilon'")
    deadline = time.monotonic() + time_limit
    points = _first_points(measured)
    best: tuple[float, tuple[int, ...]] | None = None
    while time.monotonic() < deadline:
        threshold, kept = _best_of_size(_losses(measured, points, criterion), size, deadline)
        if kept is None:
            break
        worst = _worst(measured, kept, criterion)
        if best is None or worst.loss < best[0]:
            best = (worst.loss, kept)
        # No set of this size does better on the points, so none does on the simplex.
        if best[0] <= threshold + _SLACK:
            break
        points = np.concatenate([points, worst.weights[None]])
    if best is None:
        raise CertificateError("time ran out before a portfolio was found; allow more")
    loss, kept = best
    limit = loss * (1 + _GIVEN_UP) + _SLACK
    return _lower_mean(measured, kept, size, points, limit, criterion, deadline)


def _lower_mean(
    measured: Measured,
    kept: tuple[int, ...],
    size: int,
    points: Float64,
    limit: float,
    criterion: Criterion,
    deadline: float,
) -> tuple[int, ...]:
    """Swap or add edits while the mean loss falls and the worst case stays within a limit."""
    value = measured.value(random_weights(measured.utilities.shape[1], _MIXTURES, 0))  # (P, n)
    losses = _losses(measured, points, criterion)
    while time.monotonic() < deadline:
        mean = value[:, (0, *kept)].max(1).mean()
        rests = [tuple(i for i in kept if i != out) for out in kept]
        if len(kept) < size:
            rests.append(kept)
        moves = []
        for rest in rests:
            means = np.maximum(value[:, (0, *rest)].max(1)[:, None], value).mean(0)  # (n,)
            moves += [(means[i], rest, i) for i in np.flatnonzero(means > mean + _LESS).tolist()]
        for _, rest, new in sorted(moves, key=lambda move: -move[0]):
            found = (*rest, new)
            # Cheap, and rules out most; the certificate is for the others.
            if (losses[:, (0, *found)].min(1) <= limit).all() and (
                _worst(measured, found, criterion).loss <= limit
            ):
                kept = found
                break
        else:
            break
    return tuple(sorted(kept))


def _first_points(measured: Measured) -> Float64:
    """Preferences to begin with: corners, edges, and some within."""
    return uniform_weights(measured.utilities.shape[1], 20)


def _losses(measured: Measured, points: Float64, criterion: Criterion) -> Float64:
    """What each edit loses against the best measured one at each preference (m, n)."""
    value = measured.value(points)
    best = value.max(1, keepdims=True)
    lost = best - value
    if criterion == "delta":
        return np.asarray(lost)
    # Where even the best is worth nothing, nothing is lost: the unsteered model's J is >= 0.
    return np.asarray(np.where(best > 0, lost / np.maximum(best, 1e-12), 0.0))


def _worst(measured: Measured, kept: tuple[int, ...], criterion: Criterion) -> Worst:
    if criterion == "delta":
        return worst_delta(measured, (0, *kept), 0.0)
    return worst_epsilon(measured, (0, *kept))


def _best_of_size(
    losses: Float64, size: int, deadline: float
) -> tuple[float, tuple[int, ...] | None]:
    """The least threshold at which `size` edits serve every point, and those edits."""
    # Beside the unsteered model no loss above its own occurs.
    thresholds = np.unique(np.append(losses[losses <= losses[:, 0].max()], losses[:, 0].max()))
    found: tuple[float, tuple[int, ...] | None] = (math.inf, None)
    low, high = 0, len(thresholds) - 1
    while low <= high and time.monotonic() < deadline:
        middle = (low + high) // 2
        kept = _fewest(losses <= thresholds[middle] + 1e-12, "exact", deadline)
        if kept is None:
            return math.inf, None
        if len(kept) <= size:
            found = (float(thresholds[middle]), kept)
            high = middle - 1
        else:
            low = middle + 1
    return found if low > high else (math.inf, None)


def _fewest(serves: NDArray[np.bool_], method: Method, deadline: float) -> tuple[int, ...] | None:
    """The fewest edits that serve all points together with the unsteered model, column 0.

    None if time ran out.
    """
    left = serves[~serves[:, 0], 1:]
    if not len(left):
        return ()
    if method == "greedy":
        return tuple((greedy_cover(left) + 1).tolist())
    chosen, _ = set_cover(left, max(deadline - time.monotonic(), 0.01))
    return None if chosen is None else tuple((chosen + 1).tolist())
