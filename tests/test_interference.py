"""`steer.interference`: doses against a general solver, and measurements of edits that add up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from steer.errors import InputError
from steer.evaluation import Evaluation
from steer.interference import Interference
from steer.interference_fit import measure_interference
from steer.portfolio import OWN, Candidate
from steer.rewards import length_reward
from steer.weights import doses, normalise_weights

TRAITS = ("a", "b", "c")


def interference(seed: int) -> Interference:
    rng = np.random.default_rng(seed)
    gains = rng.uniform(-0.4, 0.4, (3, 3))
    np.fill_diagonal(gains, rng.uniform(0.05, 1, 3))
    return Interference(TRAITS, gains)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_doses_are_the_shortest_that_give_every_trait_its_share(
    seed: int, weights: list[float]
) -> None:
    ours = interference(seed)
    shares = normalise_weights(dict(zip(TRAITS, weights, strict=True)), TRAITS)
    w = np.array(list(shares.values()))
    asked = w * np.minimum(np.diag(ours.gains), 0.25)
    found = minimize(
        lambda c: c @ c,
        np.ones(3),
        jac=lambda c: 2 * c,
        constraints={"type": "ineq", "fun": lambda c: c @ ours.gains - asked},
        bounds=[(0, None)] * 3,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assume(found.success and np.linalg.norm(found.x) < 50)
    expected = found.x / np.linalg.norm(found.x)
    np.testing.assert_allclose(list(ours.doses(shares).values()), expected, atol=1e-3)


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_doses_have_length_one_and_nothing_comes_unasked(seed: int, number: int) -> None:
    shares = dict.fromkeys(TRAITS[:number], 1 / number) | dict.fromkeys(TRAITS[number:], 0.0)
    given_out = interference(seed).doses(shares)
    assert list(given_out) == list(TRAITS)
    assert min(given_out.values()) >= 0
    assert np.linalg.norm(list(given_out.values())) == pytest.approx(1)
    assert all(given_out[name] == 0 for name in TRAITS[number:])
    if number == 1:
        assert given_out["a"] == pytest.approx(1)


def test_what_takes_from_another_is_dosed_less() -> None:
    # By hand: b gains 0.5 c_b - 0.4 c_a >= 1/8 and a gains c_a >= 1/8, so c = (0.125, 0.35).
    ours = Interference(("a", "b"), np.array([[1.0, -0.4], [0.0, 0.5]]))
    given_out = ours.doses({"a": 0.5, "b": 0.5})
    assert given_out["b"] / given_out["a"] == pytest.approx(0.35 / 0.125)


def test_a_weak_trait_is_asked_for_no_more_than_it_can() -> None:
    ours = Interference(("a", "b"), np.diag([0.5, 0.01]))
    given_out = ours.doses({"a": 0.5, "b": 0.5})
    assert given_out["b"] / given_out["a"] == pytest.approx(2)  # 0.01 / 0.01 to 0.25 / 0.5


@pytest.mark.parametrize(
    ("gains", "weights"),
    [
        ([[0.5, -0.6], [-0.6, 0.5]], {"a": 2.0, "b": 1.0}),  # undo each other
        ([[0.5, 0.0], [-0.9, 0.0]], {"b": 1.0, "zest": 3.0}),  # of neither anything is known
        ([[0.25, 0.0], [0.0, 0.25]], {"a": 1.0, "b": 3.0}),  # without interference
    ],
)
def test_otherwise_they_are_those_of_any_composition(
    gains: list[list[float]], weights: dict[str, float]
) -> None:
    shares = normalise_weights(weights, weights)
    found = Interference(("a", "b"), np.array(gains)).doses(shares)
    assert found == pytest.approx(doses(shares))


def test_what_is_done_to_an_unknown_trait_is_not_counteracted() -> None:
    ours = Interference(("a", "b"), np.array([[0.25, 0.0], [-0.2, 0.0]]))
    # By hand: a gains 0.25 c_a - 0.2 c_b >= 1/8, and b as if alone, c_b >= 1/2.
    given_out = ours.doses({"a": 0.5, "b": 0.5})
    assert given_out["a"] / given_out["b"] == pytest.approx(0.225 / 0.25 / 0.5)


@pytest.mark.parametrize(
    ("traits", "gains"),
    [
        (("a",), np.ones((1, 1))),
        (("a", "a"), np.eye(2)),
        (("a", "b"), np.eye(3)),
        (("a", "b"), np.array([[1, np.nan], [0, 1]])),
        (("a", "b"), np.array([[1.0, 0.0], [0.0, -1.0]])),
        (("a", "b"), np.array([[1.0, 0.3], [0.0, 0.0]])),
    ],
)
def test_bad_arguments(traits: tuple[str, ...], gains: Any) -> None:
    with pytest.raises(InputError, match="interference"):
        Interference(traits, gains)


class Linear:
    """Edits that add up, on prompts that differ; the last trait's edit does nothing for it."""

    families = {OWN: ()}
    dimensions = 3
    rewards = (length_reward(),) * 3
    unsteered = np.array([0.2, 0.5, 0.4])
    gains = np.array([[0.3, -0.1, 0.2], [0.05, 0.2, -0.1], [-0.1, 0.1, 0.0]])

    def __init__(self) -> None:
        self.asked: list[Candidate] = []

    def evaluate(self, candidates: Iterable[Candidate]) -> list[Evaluation]:
        self.asked = list(candidates)
        return [self._evaluation(one) for one in self.asked]

    def _evaluation(self, candidate: Candidate) -> Evaluation:
        # Noise that depends on the prompt alone and has mean zero.
        prompts = np.linspace(-0.05, 0.05, 9)[:, None]
        change = np.array(candidate.coefficients) @ self.gains * (1 - self.unsteered)
        size = np.linalg.norm(candidate.coefficients)
        rewards = self.unsteered + change + size * prompts
        zeros = np.zeros(9)
        return Evaluation(candidate, rewards, zeros, np.ones(9, bool), zeros.astype(int), ("",) * 9)


def test_gains_that_add_up_are_found() -> None:
    edits = Linear()
    found = measure_interference(edits, TRAITS, TRAITS)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.gains[:, :2], edits.gains[:, :2], atol=1e-3)
    assert not found.gains[:, 2].any()
    asked = np.array([one.coefficients for one in edits.asked])
    assert len(asked) == 1 + 3 + 3 and not asked[0].any()
    np.testing.assert_allclose(np.linalg.norm(asked[1:], axis=1), 1, atol=1e-3)


def test_what_is_done_to_a_trait_without_a_reward_stays_unknown() -> None:
    edits = Linear()
    edits.rewards = edits.rewards[:1]
    edits.unsteered, edits.gains = edits.unsteered[1:2], edits.gains[:, 1:2]
    found = measure_interference(edits, TRAITS, ("b",))  # type: ignore[arg-type]
    np.testing.assert_allclose(found.gains[:, [1]], edits.gains, atol=1e-3)
    assert not found.gains[:, [0, 2]].any()


def test_edits_and_rewards_are_one_a_trait() -> None:
    edits = Linear()
    for rewarded in (("a", "b"), ("a", "b", "d")):
        with pytest.raises(InputError, match="one reward for each"):
            measure_interference(edits, TRAITS, rewarded)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one own edit"):
        measure_interference(edits, ("a", "b"), ("a", "b"))  # type: ignore[arg-type]
    edits.families = {OWN: (), "other": ()}
    with pytest.raises(InputError, match="one own edit"):
        measure_interference(edits, TRAITS, TRAITS)  # type: ignore[arg-type]
