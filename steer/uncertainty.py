"""How far the figures of a portfolio hang on the prompts that it was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.certificate import Measured, with_unsteered, worst_delta, worst_epsilon
from steer.errors import InputError
from steer.evaluation import Evaluation
from steer.objective import Objective
from steer.route import route

Float64 = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class CertificateIntervals:
    """Intervals of a certificate's two figures, over prompts.

    Attributes:
        delta: Of the least delta at epsilon = 0.
        epsilon: Of the least epsilon at delta = 0.
    """

    delta: Interval
    epsilon: Interval


@dataclass(frozen=True)
class Regret:
    """What routing loses on prompts that took no part in it.

    Attributes:
        mean: Mean over mixtures of J(edit that was best on develop prompts) - J(routed edit), both
            on the held-out prompts. Negative where the routed one does better there.
        interval: Over the held-out prompts.
        worst: The largest over the mixtures.
    """

    mean: float
    interval: Interval
    worst: float


def certificate_intervals(
    evaluations: Sequence[Evaluation],
    kept: Sequence[int],
    objective: Objective,
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> CertificateIntervals:
    """Bootstrap over prompts: the certificate of the same portfolio on prompts drawn anew.

    Args:
        evaluations: Of all candidates, on the same prompts; the first of the unsteered model.
        kept: Which are kept.
        objective: J.
        draws: Number of bootstrap samples.
        level: Of the intervals, in (0, 1).
        seed: Seeds the draws.

    Raises:
        InputError: If a number is out of range.
    """
    _check(draws, level)
    rewards, kl = _stacked(evaluations)
    rng = np.random.default_rng(seed)
    deltas, epsilons = [], []
    for _ in range(draws):
        chosen = rng.integers(kl.shape[1], size=kl.shape[1])
        sample = _mean(rewards[:, chosen], kl[:, chosen], objective)
        served = with_unsteered(sample, kept)
        deltas.append(worst_delta(sample, served, 0.0).loss)
        epsilons.append(worst_epsilon(sample, served).loss)
    return CertificateIntervals(_interval(deltas, level), _interval(epsilons, level))


def held_out_regret(
    develop: Measured,
    held_out: Sequence[Evaluation],
    kept: tuple[int, ...],
    objective: Objective,
    weights: ArrayLike,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Regret:
    """What routing to the kept edits loses on other prompts.

    Args:
        develop: All candidates on develop prompts: they choose the routed and the best edit.
        held_out: The same candidates, in the same order, on the held-out prompts.
        kept: Which are kept.
        objective: J.
        weights: Mixtures (m, d), scaled to sum to one.
        draws: Number of bootstrap samples.
        level: Of the interval, in (0, 1).
        seed: Seeds the draws.

    Raises:
        InputError: If the evaluations are not of the same candidates, or a number is out of range.
    """
    _check(draws, level)
    if len(held_out) != len(develop):
        raise InputError(f"got {len(held_out)} held-out evaluations of {len(develop)} candidates")
    mixtures = np.asarray(weights, np.float64)
    routed = route(develop, kept, mixtures)
    best = develop.value(mixtures).argmax(1)
    rewards, kl = _stacked(held_out)
    rows = np.arange(len(mixtures))

    def losses(chosen: NDArray[np.int64]) -> Float64:
        value = _mean(rewards[:, chosen], kl[:, chosen], objective).value(mixtures)
        return np.asarray(value[rows, best] - value[rows, routed])

    number = kl.shape[1]
    rng = np.random.default_rng(seed)
    means = [losses(rng.integers(number, size=(number,))).mean() for _ in range(draws)]
    found = losses(np.arange(number))
    return Regret(float(found.mean()), _interval(means, level), float(found.max()))


def _stacked(evaluations: Sequence[Evaluation]) -> tuple[Float64, Float64]:
    """Rewards (n, P, d) and divergences (n, P)."""
    if not evaluations or not evaluations[0].candidate.is_unsteered():
        raise InputError("expected the unsteered model's evaluation first")
    return (
        np.stack([one.rewards for one in evaluations]),
        np.stack([one.kl for one in evaluations]),
    )


def _mean(rewards: Float64, kl: Float64, objective: Objective) -> Measured:
    return objective.measured(rewards.mean(1), kl.mean(1))


def _interval(values: Sequence[float], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return (low, high)


def _check(draws: int, level: float) -> None:
    if draws < 1 or not 0 < level < 1:
        raise InputError(f"expected draws >= 1 and 0 < level < 1, got {draws} and {level}")
