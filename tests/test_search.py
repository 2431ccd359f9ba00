"""`steer.search`: bounds against brute force, and searches on edits whose worth is a formula."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer.certificate import Measured
from steer.cover import Closeness, minimal_cover, random_weights
from steer.errors import InputError
from steer.evaluation import Evaluation
from steer.objective import Objective
from steer.portfolio import Candidate
from steer.rewards import length_reward
from steer.search import Effort, search, upper_bound

OBJECTIVE = Objective(penalty=0.1, kl_unit=0.5, f_max=0.4)
FAMILIES = {"deep": (), "early": ()}


class Formula:
    """Edits whose rewards rise with their own coefficient, fall with the others, and cost."""

    def __init__(self, dim: int = 3) -> None:
        self.families = FAMILIES
        self.dimensions = dim
        self.rewards = (length_reward(),) * dim
        self.measured: list[Candidate] = []

    def evaluate(self, candidates: Iterable[Candidate]) -> list[Evaluation]:
        wanted = list(candidates)
        self.measured += wanted
        return [self._evaluation(candidate) for candidate in wanted]

    def _evaluation(self, candidate: Candidate) -> Evaluation:
        rewards, kl = worth(np.array(candidate.coefficients), candidate.family)
        return Evaluation(
            candidate,
            np.tile(rewards, (2, 1)),
            np.full(2, kl),
            np.ones(2, bool),
            np.array([3, 4]),
            ("a", "b"),
        )


def worth(c: np.ndarray, family: str) -> tuple[np.ndarray, float]:
    best = 0.9 if family == "deep" else 0.7
    rewards = 0.2 + (best - 0.2) * np.tanh(2 * c) - 0.15 * (c.sum() - c)
    return np.clip(rewards, 0, 1), float((c**2).sum())


def brute_force(weight: np.ndarray) -> float:
    line = np.linspace(0, 1.5, 31)
    c = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    rewards = np.stack([worth(row, "deep")[0] for row in c])
    return float((rewards @ weight - OBJECTIVE.regulariser((c**2).sum(1))).max())


def measured_edits(seed: int, number: int, dim: int) -> Measured:
    rng = np.random.default_rng(seed)
    regulariser = np.append(0.0, rng.uniform(0, 0.3, number - 1))
    return Measured(rng.uniform(0, 1, (number, dim)), regulariser)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(0, 6), st.integers(1, 12))
def test_no_edit_is_above_the_bound(seed: int, dim: int, solved: int, number: int) -> None:
    edits = measured_edits(seed, number, dim)
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 1.5, (solved, dim))
    values = edits.value(at).max(1)
    for weight in rng.uniform(0, 1.5, (8, dim)):
        assert edits.value(weight).max() <= upper_bound(weight, at, values) + 1e-7


def test_the_bound_is_exact_at_solved_weights_and_between_equals() -> None:
    at = np.array([[1.0, 0.0], [0.0, 1.0]])
    values = np.array([0.4, 0.6])
    assert upper_bound(at[0], at, values) == pytest.approx(0.4)
    assert upper_bound(np.array([0.5, 0.5]), at, values) == pytest.approx(0.5)
    assert upper_bound(np.array([0.25, 0.25]), at, values) == pytest.approx(0.25)
    assert upper_bound(np.array([0.3, 0.4]), np.zeros((0, 2)), np.zeros(0)) == pytest.approx(0.7)


def test_the_oracle_comes_near_the_optimum() -> None:
    weights = np.vstack([np.eye(3), np.full((1, 3), 1 / 3), [[0.6, 0.4, 0.0]]])
    found = search(Formula(), weights, OBJECTIVE, lazy=False, effort=Effort(rounds=5))
    assert len(found.calls) == len(weights)
    values = {call.weight: call.value for call in found.calls}
    for i, weight in enumerate(weights):
        assert values[i] >= brute_force(weight) - 0.02


def test_a_lazy_search_asks_less_and_serves_every_weight() -> None:
    weights = minimal_cover(3, Closeness(0.4, 0.0125)).weights
    effort = Effort(rounds=2, pool=256)
    lazy = search(Formula(), weights, OBJECTIVE, delta=0.05, effort=effort)
    assert 0 < len(lazy.calls) <= len(weights) / 2
    best = lazy.measured.value(weights).max(1)
    for i in range(0, len(weights), 4):
        # An oracle may fall short by a little, and a bound from such an oracle as well.
        assert best[i] >= brute_force(weights[i]) - 0.05 - 0.03


def test_one_seed_gives_one_search() -> None:
    weights = random_weights(3, 6, seed=3)
    runs = []
    for seed in (1, 1, 2):
        evaluator = Formula()
        search(evaluator, weights, OBJECTIVE, seed=seed)
        runs.append(evaluator.measured)
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == len(runs[0]), "a candidate was measured twice"
    assert runs[0][0].is_unsteered()


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([[1.0, 0.0]], {}, "weights"),
        ([[1.0, -0.1, 0.0]], {}, "weights"),
        ([[1.0, 0.0, 0.0]], {"delta": -1.0}, "delta"),
        ([[1.0, 0.0, 0.0]], {"epsilon": 1.5}, "epsilon"),
    ],
)
def test_bad_input(weights: list, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(Formula(), weights, OBJECTIVE, **options)


@pytest.mark.parametrize("name", ["first", "batch", "rounds", "pool", "largest", "improvement"])
def test_bad_effort(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Effort(**{name: -1})
