"""Other ways to keep a few measured edits, to compare a portfolio with.

All ask the same oracle, the best measured edit at a weight; they differ in which weights they ask
about. None has a guarantee over the simplex.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import differential_evolution

from steer.certificate import Measured
from steer.cover import random_weights, uniform_weights
from steer.errors import InputError

Float64 = NDArray[np.float64]

_MIXTURES = 2000
_PLACES = 3000  # among which the farthest is looked for


def best_edits(measured: Measured, weights: Float64) -> tuple[int, ...]:
    """The best measured edit at each weight, each once, without the unsteered model."""
    found = measured.value(weights).argmax(1).tolist()
    return tuple(index for index in dict.fromkeys(found) if index != 0)


def uniform(measured: Measured, size: int) -> tuple[int, ...]:
    """The best edits at weights that are spread evenly over the simplex.

    An edit that is best at several of them leaves places empty.
    """
    _check(size)
    return best_edits(measured, _spread_evenly(measured.utilities.shape[1], size))


def _spread_evenly(dim: int, number: int) -> Float64:
    """Weights (number, dim): a lattice, then the points farthest from all before.

    The lattice is the finest that has no more points; the centre, where even the corners are too
    many. Without the points that fill it up the baseline would be smaller than what it is compared
    with: three weights instead of five, for three traits.
    """
    parts = 0  # of the lattice, which has (parts + dim - 1 over dim - 1) points
    while math.comb(parts + dim, dim - 1) <= number:
        parts += 1
    weights = np.full((1, dim), 1 / dim)
    if parts:
        weights = uniform_weights(dim, math.comb(parts + dim - 1, dim - 1))
    places = uniform_weights(dim, _PLACES)
    while len(weights) < number:
        away = np.linalg.norm(places[:, None] - weights, axis=2).min(1)
        # Rounded, so that of points equally far the first is taken on every machine.
        weights = np.append(weights, places[None, away.round(9).argmax()], axis=0)
    return weights


def at_random(measured: Measured, size: int, seed: int = 0) -> tuple[int, ...]:
    """The best edits at random weights, uniform on the simplex."""
    _check(size)
    return best_edits(measured, random_weights(measured.utilities.shape[1], size, seed))


def one_for_all(measured: Measured, seed: int = 0) -> tuple[int, ...]:
    """The one edit with the best mean J over all mixtures."""
    weights = random_weights(measured.utilities.shape[1], _MIXTURES, seed)
    best = int(measured.value(weights).mean(0).argmax())
    return (best,) if best else ()


def gpi(measured: Measured, size: int, seed: int = 0) -> tuple[int, ...]:
    """Generalised policy improvement: again and again the best edit at the weight of most regret.

    The weight is looked for by differential evolution, as PALM (arXiv 2604.04144) has its GPI
    baseline do, so it need not be the worst.
    """
    _check(size)
    dim = measured.utilities.shape[1]
    kept: list[int] = []

    def regret(point: Float64) -> float:
        weight = _on_simplex(point)
        values = measured.value(weight)
        return float(values[[0, *kept]].max() - values.max())  # minus the regret: it is minimised

    for step in range(size):
        found = differential_evolution(
            regret, [(0.0, 1.0)] * dim, seed=seed + step, maxiter=100, polish=False
        )
        best = int(measured.value(_on_simplex(found.x)).argmax())
        if best in (0, *kept):
            break  # no regret is left that it can find
        kept.append(best)
    return tuple(kept)


def _on_simplex(point: Float64) -> Float64:
    """A point of the unit cube as a weight: exponential variables, scaled, are uniform."""
    exponential = -np.log(np.clip(point, 1e-12, 1.0)) + 1e-12
    return np.asarray(exponential / exponential.sum())


def _check(size: int) -> None:
    if size < 1:
        raise InputError(f"size: expected at least 1, got {size}")
