"""`steer.interference`: doses against brute force, and measurements of edits that are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer.errors import InputError
from steer.evaluation import Evaluation
from steer.interference import Interference
from steer.interference_fit import measure_interference
from steer.portfolio import OWN, Candidate
from steer.rewards import length_reward
from steer.weights import doses, normalise_weights

TRAITS = ("a", "b", "c")


def linear(gains: Any) -> Interference:
    """Without terms of two doses."""
    d = len(gains)
    return Interference(TRAITS[:d], np.array(gains), np.zeros((d, d, d)))


def interference(seed: int) -> Interference:
    rng = np.random.default_rng(seed)
    gains = rng.uniform(-0.4, 0.4, (3, 3))
    np.fill_diagonal(gains, rng.uniform(0.3, 1, 3))
    terms = rng.uniform(-0.3, 0.3, (3, 3, 3))
    terms[np.arange(3), np.arange(3), np.arange(3)] = rng.uniform(-0.2, 0.4, 3)
    return Interference(TRAITS, gains, (terms + terms.swapaxes(0, 1)) / 2)


def gained(ours: Interference, c: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The gains of doses, as the formula has it, term by term; of others' so much of each."""
    d = len(ours.traits)
    gains = []
    for j in range(d):
        own = c[j] * ours.linear[j, j] + c[j] ** 2 * ours.quadratic[j, j, j]
        every = sum(c[i] * ours.linear[i, j] for i in range(d)) + sum(
            c[i] * c[k] * ours.quadratic[i, k, j] for i in range(d) for k in range(d)
        )
        gains.append(own + counted[j] * (every - own))
    return np.array(gains)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_no_doses_give_the_least_gain_more(seed: int, weights: list[float]) -> None:
    ours = interference(seed)
    shares = normalise_weights(dict(zip(TRAITS, weights, strict=True)), TRAITS)
    w = np.array(list(shares.values()))
    alone = w / np.linalg.norm(w)
    asked = alone * np.minimum(np.diag(ours.gains), 0.25)
    counted = np.clip((w / w.max() - 0.1) / 0.3, 0, 1)
    # Brute force: the octant of the sphere in steps of about a hundredth.
    polar, azimuth = np.meshgrid(*[np.linspace(0, np.pi / 2, 160)] * 2)
    sphere = np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    ).reshape(3, -1)
    above, below = sphere >= alone[:, None] / 2, sphere <= 2.5 * alone[:, None]
    sphere = sphere[:, (above & below).all(0)]
    least = (gained(ours, sphere, counted) / asked[:, None]).min(0)
    given_out = np.array(list(ours.doses(shares).values()))
    assert np.linalg.norm(given_out) == pytest.approx(1)
    assert (given_out >= alone / 2 - 1e-6).all() and (given_out <= 2.5 * alone + 1e-6).all()
    ours_least = (gained(ours, given_out, counted) / asked).min()
    assert ours_least >= max(least, default=-np.inf) - 1e-6


@given(st.integers(0, 2**32), st.integers(1, 3))
@settings(deadline=None)
def test_doses_have_length_one_and_nothing_comes_unasked(seed: int, number: int) -> None:
    shares = dict.fromkeys(TRAITS[:number], 1 / number) | dict.fromkeys(TRAITS[number:], 0.0)
    given_out = interference(seed).doses(shares)
    assert list(given_out) == list(TRAITS)
    assert np.linalg.norm(list(given_out.values())) == pytest.approx(1)
    assert all(given_out[name] >= 0.5 / np.sqrt(number) - 1e-6 for name in TRAITS[:number])
    assert all(given_out[name] == 0 for name in TRAITS[number:])
    if number == 1:
        assert given_out["a"] == pytest.approx(1)


@pytest.mark.parametrize("hardly", [1e-9, 1e-3, 0.02])
def test_what_is_hardly_wanted_takes_no_dose_from_others(hardly: float) -> None:
    # Brief answers are cold: as much warmth as was asked for would take most of the dose.
    ours = linear([[0.9, -1.1, 0.1], [-0.1, 0.7, 0.3], [0.4, -0.3, 0.4]])
    for wanted in ({"a": 1.0}, {"a": 1.0, "c": 0.5}):
        without = ours.doses({"b": 0.0, **wanted})
        with_little = ours.doses({"b": hardly, **wanted})
        assert with_little == pytest.approx(without, abs=2.5 * hardly + 1e-6)


def test_doses_follow_weights_without_jumps() -> None:
    ours = linear([[0.9, -1.1], [-0.1, 0.7]])
    weights = np.linspace(0.01, 1, 1600)
    found = np.array([list(ours.doses({"a": 1.0, "b": w}).values()) for w in weights])
    assert np.abs(np.diff(found, axis=0)).max() < 0.05
    assert found[0, 1] < 0.03 and found[-1, 1] > 0.8


def test_what_takes_from_another_is_dosed_less() -> None:
    # By hand: a gains c_a and b 0.5 c_b - 0.2 c_a, as much if c_b is 2.4 c_a.
    given_out = linear([[1.0, -0.2], [0.0, 0.5]]).doses({"a": 0.5, "b": 0.5})
    assert given_out["b"] / given_out["a"] == pytest.approx(2.4)


def test_none_is_left_to_the_side_effects_of_another() -> None:
    # a does for b what b does itself: without a bound b would get no dose.
    given_out = linear([[1.0, 0.9], [-0.9, 0.9]]).doses({"a": 0.5, "b": 0.5})
    assert given_out["b"] == pytest.approx(0.5 * np.sqrt(0.5), abs=1e-6)


def test_a_weak_trait_is_asked_for_no_more_than_it_can() -> None:
    given_out = linear(np.diag([0.5, 0.01])).doses({"a": 0.5, "b": 0.5})
    assert given_out["b"] / given_out["a"] == pytest.approx(2)  # 0.01/0.01 to 0.25/0.5


def test_what_small_doses_hardly_do_is_dosed_more() -> None:
    # By hand: a gains c_a^2 and b c_b / 2, as much if c_b = 2 c_a^2.
    quadratic = np.zeros((2, 2, 2))
    quadratic[0, 0, 0] = 1
    ours = Interference(("a", "b"), np.array([[0.0, 0.0], [0.0, 0.5]]), quadratic)
    given_out = ours.doses({"a": 0.5, "b": 0.5})
    assert given_out["a"] ** 2 == pytest.approx((np.sqrt(17) - 1) / 8, abs=1e-4)
    np.testing.assert_allclose(ours.gains, np.diag([1.0, 0.5]))


@pytest.mark.parametrize(
    ("gains", "weights"),
    [
        ([[0.5, -0.6], [-0.6, 0.5]], {"a": 1.0, "b": 1.0}),  # undo each other, alike
        ([[0.5, 0.0], [-0.9, 0.0]], {"b": 1.0, "zest": 3.0}),  # of neither anything is known
        ([[0.25, 0.0], [0.0, 0.25]], {"a": 1.0, "b": 3.0}),  # without interference
    ],
)
def test_otherwise_they_are_those_of_any_composition(
    gains: list[list[float]], weights: dict[str, float]
) -> None:
    shares = normalise_weights(weights, weights)
    found = linear(gains).doses(shares)
    assert found == pytest.approx(doses(shares))


def test_what_is_done_to_an_unknown_trait_is_not_counteracted() -> None:
    ours = linear([[0.25, 0.0], [-0.2, 0.0]])
    # By hand: a gains 0.25 c_a - 0.2 c_b, and b as if alone 0.25 c_b, as much if c_a is 1.8 c_b.
    given_out = ours.doses({"a": 0.5, "b": 0.5})
    assert given_out["a"] / given_out["b"] == pytest.approx(1.8)


SKEW = np.zeros((2, 2, 2))
SKEW[0, 1, 0] = 0.1


@pytest.mark.parametrize(
    ("traits", "gains", "quadratic"),
    [
        (("a",), np.ones((1, 1)), np.zeros((1, 1, 1))),
        (("a", "a"), np.eye(2), np.zeros((2, 2, 2))),
        (("a", "b"), np.eye(3), np.zeros((3, 3, 3))),
        (("a", "b"), np.eye(2), np.zeros((2, 2))),
        (("a", "b"), np.array([[1, np.nan], [0, 1]]), np.zeros((2, 2, 2))),
        (("a", "b"), np.eye(2), np.full((2, 2, 2), np.inf)),
        (("a", "b"), np.array([[1.0, 0.0], [0.0, -1.0]]), np.zeros((2, 2, 2))),
        (("a", "b"), np.array([[1.0, 0.3], [0.0, 0.0]]), np.zeros((2, 2, 2))),
        (("a", "b"), np.eye(2), SKEW),
    ],
)
def test_bad_arguments(traits: tuple[str, ...], gains: Any, quadratic: Any) -> None:
    with pytest.raises(InputError, match="interference"):
        Interference(traits, gains, quadratic)


class Quadratic:
    """Edits of a known effect, on prompts that differ; the last trait's does nothing for it."""

    families = {OWN: ()}
    dimensions = 3
    rewards = (length_reward(),) * 3
    unsteered = np.array([0.2, 0.5, 0.4])
    gains = np.array([[0.3, -0.1, 0.2], [0.05, 0.2, -0.1], [-0.1, 0.1, 0.0]])

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        terms = rng.uniform(-0.2, 0.2, (3, 3, 3))
        terms[2, 2, 2] = 0
        self.terms = (terms + terms.swapaxes(0, 1)) / 2
        self.asked: list[Candidate] = []

    def evaluate(self, candidates: Iterable[Candidate]) -> list[Evaluation]:
        self.asked = list(candidates)
        return [self._evaluation(one) for one in self.asked]

    def _evaluation(self, candidate: Candidate) -> Evaluation:
        # Noise that depends on the prompt alone and has mean zero.
        prompts = np.linspace(-0.05, 0.05, 9)[:, None]
        c = np.array(candidate.coefficients)
        gain = c @ self.gains + sum(
            c[i] * c[k] * self.terms[i, k] for i in range(3) for k in range(3)
        )
        rewards = self.unsteered + gain * (1 - self.unsteered) + np.linalg.norm(c) * prompts
        zeros = np.zeros(9)
        return Evaluation(candidate, rewards, zeros, np.ones(9, bool), zeros.astype(int), ("",) * 9)


def test_what_edits_do_is_found() -> None:
    edits = Quadratic()
    found = measure_interference(edits, TRAITS, TRAITS)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.linear[:, :2], edits.gains[:, :2], atol=1e-3)
    np.testing.assert_allclose(found.quadratic[:, :, :2], edits.terms[:, :, :2], atol=1e-3)
    assert not found.linear[:, 2].any() and not found.quadratic[:, :, 2].any()
    assert found.known.tolist() == [True, True, False]
    asked = np.array([one.coefficients for one in edits.asked])
    # Unsteered, each alone at two doses, every two at three mixtures.
    assert len(asked) == 1 + 3 + 3 + 3 * 3 and not asked[0].any()
    lengths = [1] * 3 + [0.5] * 3 + [1] * 9
    np.testing.assert_allclose(np.linalg.norm(asked[1:], axis=1), lengths, atol=1e-3)


def test_what_is_done_to_a_trait_without_a_reward_stays_unknown() -> None:
    edits = Quadratic()
    edits.rewards = edits.rewards[:1]
    edits.unsteered, edits.gains = edits.unsteered[1:2], edits.gains[:, 1:2]
    edits.terms = edits.terms[:, :, 1:2]
    found = measure_interference(edits, TRAITS, ("b",))  # type: ignore[arg-type]
    np.testing.assert_allclose(found.linear[:, [1]], edits.gains, atol=1e-3)
    assert not found.linear[:, [0, 2]].any() and found.known.tolist() == [False, True, False]
    # a and c together would tell nothing of b that could be used without it.
    assert len(edits.asked) == 1 + 3 + 3 + 2
    assert not any(
        one.coefficients[1] == 0 < one.coefficients[0] * one.coefficients[2] for one in edits.asked
    )


def test_nothing_is_known_of_a_trait_whose_edit_does_nothing() -> None:
    """Least squares leave a rounding error of another edit's effect, which is sure of its sign."""
    for seed in range(20):
        edits = Quadratic()
        edits.gains = np.random.default_rng(seed).uniform(0.1, 0.3, (3, 1))
        edits.gains[1], edits.terms = 0, np.zeros((3, 3, 1))
        edits.rewards, edits.unsteered = edits.rewards[:1], edits.unsteered[:1]
        found = measure_interference(edits, TRAITS, ("b",))  # type: ignore[arg-type]
        assert not found.known.any()


def test_edits_and_rewards_are_one_a_trait() -> None:
    edits = Quadratic()
    for rewarded in (("a", "b"), ("a", "b", "d")):
        with pytest.raises(InputError, match="one reward for each"):
            measure_interference(edits, TRAITS, rewarded)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one own edit"):
        measure_interference(edits, ("a", "b"), ("a", "b"))  # type: ignore[arg-type]
    edits.families = {OWN: (), "other": ()}
    with pytest.raises(InputError, match="one own edit"):
        measure_interference(edits, TRAITS, TRAITS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("gain", "known"), [(0.03, False), (0.1, True)])
def test_a_trait_is_known_where_its_gain_is_two_standard_errors(gain: float, known: bool) -> None:
    """Nine prompts whose gains are spread by linspace(-0.1, 0.1): a standard error of 0.023."""
    edits = Quadratic()
    edits.gains, edits.terms = np.full((3, 1), 0.2), np.zeros((3, 3, 1))
    edits.gains[1] = gain
    edits.rewards, edits.unsteered = edits.rewards[:1], edits.unsteered[1:2]
    error = np.linspace(-0.1, 0.1, 9).std(ddof=1) / 3
    assert (gain > 2 * error) == known and gain < 2 * 3 * error
    found = measure_interference(edits, TRAITS, ("b",))  # type: ignore[arg-type]
    assert found.known.tolist() == [False, known, False]
