"""`steer.asking` against plain loops, and on the default bundle's questions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from steer.asking import best_question, service
from steer.bundle import Bundle
from steer.certificate import Measured
from steer.errors import InputError
from steer.posterior import Posterior
from steer.questions import questions_of
from steer.resources import default_bundle_path

KEPT = (1, 3)


def a_place(seed: int, traits: int = 3) -> tuple[Posterior, Measured, np.ndarray]:
    """A posterior of 500 particles of even weight, measured edits and questions."""
    rng = np.random.default_rng(seed)
    f = np.append(0.0, rng.uniform(0, 0.1, 4))
    measured = Measured(rng.uniform(size=(5, traits)), f)
    posterior = Posterior.prior(np.ones(traits), particles=500, seed=seed)
    return posterior, measured, rng.uniform(-1, 1, (6, traits))


def worth(posterior: Posterior, difference: np.ndarray, measured: Measured) -> tuple[float, float]:
    """By how much an answer raises J of what is served, and what it tells: by loops."""
    served = [0, *KEPT]

    def value(w: np.ndarray) -> float:
        return max(float(w @ measured.utilities[e] - measured.regulariser[e]) for e in served)

    def entropy(p: float) -> float:
        return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)

    particles = [beta / beta.sum() for beta in posterior.beta]
    yes = [float(expit(beta @ difference)) for beta in posterior.beta]
    after = 0.0
    for chances in (yes, [1 - p for p in yes]):
        total = sum(chances)
        mean = sum(p * w for p, w in zip(chances, particles, strict=True)) / total
        after += total / len(yes) * value(mean)
    told = entropy(float(np.mean(yes))) - float(np.mean([entropy(p) for p in yes]))
    return after - value(np.mean(particles, axis=0)), told


@given(st.integers(0, 10_000))
def test_the_best_question_is_that_of_the_loops(seed: int) -> None:
    posterior, measured, questions = a_place(seed)
    found = [worth(posterior, row, measured) for row in questions]
    gain, told = (np.array(column) for column in zip(*found, strict=True))
    score = told / told.max() + (gain / gain.max() if gain.max() > 1e-4 else 0)
    chosen = best_question(posterior, questions, measured, KEPT)
    assert score[chosen] >= score.max() - 1e-6
    assert gain.min() > -1e-9  # J of what is served cannot fall on average


@given(st.integers(0, 10_000), st.floats(0.5, 0.99))
def test_what_is_served_and_what_it_may_lose(seed: int, level: float) -> None:
    posterior, measured, questions = a_place(seed)
    posterior = posterior.updated(questions[0])
    now = service(posterior, measured, KEPT, level=level)
    mean = sum(s * w for s, w in zip(posterior.shares, posterior.weights, strict=True))
    values = {e: float(mean @ measured.utilities[e] - measured.regulariser[e]) for e in (0, *KEPT)}
    assert values[now.chosen] == pytest.approx(max(values.values()))
    regrets = []
    for w in posterior.weights:
        all_values = measured.utilities @ w - measured.regulariser
        regrets.append(all_values.max() - all_values[now.chosen])
    assert now.expected == pytest.approx(posterior.shares @ regrets)
    holds = sum(
        s for s, r in zip(posterior.shares, regrets, strict=True) if r <= now.certified + 1e-12
    )
    assert holds >= level - 1e-9


def test_questions_that_are_refused() -> None:
    posterior, measured, questions = a_place(0)
    for wrong in (questions[:0], questions[:, :2], questions[0]):
        with pytest.raises(InputError, match=r"\(q, 3\)"):
            best_question(posterior, wrong, measured, KEPT)


def test_asking_about_the_default_bundle_lowers_the_regret() -> None:
    """By four fifths, of people who are always consistent; random questions leave twice as much."""
    portfolio = Bundle.load(default_bundle_path()).portfolio
    assert portfolio is not None
    measured, kept = portfolio.measured, portfolio.kept
    questions = np.array([one.difference for one in questions_of(portfolio.answered)])
    people = np.random.default_rng(0).dirichlet(np.ones(5), 12)
    lost = {"active": 0.0, "random": 0.0, "none": 0.0}
    for number, weights in enumerate(people):
        values = measured.value(weights[None])[0]
        rng = np.random.default_rng(number)
        for way in lost:
            posterior = Posterior.prior(np.ones(5), particles=500, seed=number)
            for _ in range(0 if way == "none" else 8):
                chosen = int(rng.integers(len(questions)))
                if way == "active":
                    chosen = best_question(posterior, questions, measured, kept)
                row = questions[chosen]
                posterior = posterior.updated(row if row @ weights > 0 else -row)
            served = service(posterior, measured, kept).chosen
            lost[way] += float(values.max() - values[served]) / len(people)
    assert lost["active"] < 0.2 * lost["none"] and lost["active"] < 0.015
    assert lost["active"] < 0.5 * lost["random"]
