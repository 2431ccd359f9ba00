"""`steer.uncertainty`: bootstraps and held-out regret against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from steer.certificate import Measured, certify
from steer.cover import random_weights
from steer.errors import InputError
from steer.evaluation import Evaluation, measured
from steer.objective import Objective
from steer.portfolio import Candidate
from steer.uncertainty import certificate_intervals, held_out_regret

OBJECTIVE = Objective()
N, PROMPTS, DIM = 12, 30, 3


def some_evaluations(seed: int, noise: float = 0.1) -> list[Evaluation]:
    """Edits with means of their own, and prompts around them."""
    means = np.random.default_rng(1).uniform(0.2, 0.8, (N, DIM))
    costs = np.append(0.0, np.random.default_rng(2).uniform(0, 0.5, N - 1))
    rng = np.random.default_rng(seed)
    return [
        Evaluation(
            Candidate("own", (float(i),)),
            np.clip(means[i] + noise * rng.normal(size=(PROMPTS, DIM)), 0, 1),
            costs[i] * (1 + noise * rng.uniform(-1, 1, PROMPTS)),
            np.ones(PROMPTS, bool),
            np.full(PROMPTS, 9),
            ("x",) * PROMPTS,
        )
        for i in range(N)
    ]


def test_intervals_are_those_of_prompts_drawn_anew() -> None:
    evaluations, kept = some_evaluations(3), (2, 5)
    found = certificate_intervals(evaluations, kept, OBJECTIVE, draws=8, level=0.9, seed=7)
    rng = np.random.default_rng(7)
    deltas, epsilons = [], []
    for _ in range(8):
        drawn = rng.integers(PROMPTS, size=PROMPTS)
        again = [
            Evaluation(one.candidate, one.rewards[drawn], one.kl[drawn], one.fluent, one.tokens, ())
            for one in evaluations
        ]
        certificate = certify(measured(again, OBJECTIVE), kept)
        deltas.append(certificate.delta.loss)
        epsilons.append(certificate.epsilon.loss)
    assert found.delta == pytest.approx(np.quantile(deltas, [0.05, 0.95]))
    assert found.epsilon == pytest.approx(np.quantile(epsilons, [0.05, 0.95]))


def test_no_noise_no_interval() -> None:
    evaluations = some_evaluations(0, noise=0.0)
    whole = certify(measured(evaluations, OBJECTIVE), (1,))
    found = certificate_intervals(evaluations, (1,), OBJECTIVE, draws=3)
    assert found.delta == pytest.approx((whole.delta.loss,) * 2)
    assert found.epsilon == pytest.approx((whole.epsilon.loss,) * 2)


def losses_by_hand(
    table: Measured, other: Measured, kept: tuple[int, ...], mixtures: np.ndarray
) -> list[float]:
    """What each mixture loses elsewhere by what is routed here, against what was best here."""
    losses = []
    for weight in mixtures:
        on_develop = [float(table.value(weight)[i]) for i in range(N)]
        routed = max((0, *kept), key=lambda i: on_develop[i])
        best = max(range(N), key=lambda i: on_develop[i])
        losses.append(float(other.value(weight)[best] - other.value(weight)[routed]))
    return losses


def test_regret_on_held_out_prompts() -> None:
    develop, held_out, kept = some_evaluations(4), some_evaluations(5), (3, 6, 8)
    table = measured(develop, OBJECTIVE)
    mixtures = random_weights(DIM, 50, 0)
    found = held_out_regret(table, held_out, kept, OBJECTIVE, mixtures, draws=200)
    other = measured(held_out, OBJECTIVE)
    losses = losses_by_hand(table, other, kept, mixtures)
    assert found.mean == pytest.approx(sum(losses) / 50)
    assert found.worst == pytest.approx(max(losses))
    assert found.interval[0] < found.mean < found.interval[1]
    everything = held_out_regret(table, held_out, tuple(range(1, N)), OBJECTIVE, mixtures)
    assert (everything.mean, everything.worst) == (0.0, 0.0)


def test_bad_arguments() -> None:
    evaluations = some_evaluations(0)
    table = measured(evaluations, OBJECTIVE)
    with pytest.raises(InputError, match="unsteered"):
        certificate_intervals(evaluations[1:], (1,), OBJECTIVE)
    with pytest.raises(InputError, match="draws"):
        certificate_intervals(evaluations, (1,), OBJECTIVE, draws=0)
    with pytest.raises(InputError, match="level"):
        held_out_regret(table, evaluations, (1,), OBJECTIVE, np.eye(3), level=1.0)
    with pytest.raises(InputError, match="11 held-out evaluations of 12"):
        held_out_regret(table, evaluations[:-1], (1,), OBJECTIVE, np.eye(3))


def test_the_interval_of_regret_is_that_of_prompts_drawn_anew() -> None:
    develop, held_out, kept = some_evaluations(4), some_evaluations(5), (3, 6, 8)
    table = measured(develop, OBJECTIVE)
    mixtures = random_weights(DIM, 20, 0)
    found = held_out_regret(table, held_out, kept, OBJECTIVE, mixtures, draws=40, level=0.8, seed=7)
    rng = np.random.default_rng(7)
    means = []
    for _ in range(40):
        drawn = rng.integers(PROMPTS, size=PROMPTS)
        again = measured(
            [
                Evaluation(
                    one.candidate, one.rewards[drawn], one.kl[drawn], one.fluent, one.tokens, ()
                )
                for one in held_out
            ],
            OBJECTIVE,
        )
        means.append(np.mean(losses_by_hand(table, again, kept, mixtures)))
    assert found.interval == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))
