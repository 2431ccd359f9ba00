"""`steer.posterior` against the same density on a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from steer.errors import InputError
from steer.posterior import SLOPE, Posterior

TWO = np.array([[0.8, -0.5], [0.3, -0.9], [-0.2, 0.6], [0.7, -0.1]])


def on_a_grid(differences, exponents, concentration=(1.0, 1.0), slope=SLOPE):
    """Points beta (n, 2) and their probabilities, by the formula."""
    scale = slope / sum(concentration)
    axis = (np.arange(600) + 0.5) * 0.1
    first, second = np.meshgrid(axis, axis, indexing="ij")
    log = -(first + second) / scale
    log += (concentration[0] - 1) * np.log(first) + (concentration[1] - 1) * np.log(second)
    for (a, b), k in zip(differences, exponents, strict=True):
        log += k * np.log(expit(a * first + b * second))
    chance = np.exp(log - log.max())
    points = np.stack([first.ravel(), second.ravel()], axis=1)
    return points, chance.ravel() / chance.sum()


def expected_mean(*arguments, **options):
    points, chance = on_a_grid(*arguments, **options)
    return chance @ (points / points.sum(1, keepdims=True))


def test_before_any_answer_weights_are_uniform() -> None:
    prior = Posterior.prior(np.ones(3), particles=20_000)
    np.testing.assert_allclose(prior.mean, 1 / 3, atol=0.01)
    # Of a uniform distribution on the simplex each weight is Beta(1, 2).
    level = np.mean(prior.weights < 0.5, axis=0)
    np.testing.assert_allclose(level, 1 - 0.5**2, atol=0.01)
    assert prior.slope == pytest.approx(SLOPE, rel=0.03)
    assert prior.prior_slope == SLOPE
    np.testing.assert_array_equal(prior.most_probable(), np.full(3, 1 / 3))


@pytest.mark.parametrize("concentration", [(1.0, 1.0), (3.0, 1.5)])
def test_mean_and_slope_follow_the_formula(concentration: tuple[float, float]) -> None:
    posterior = Posterior.prior(concentration, particles=20_000)
    for row in TWO:
        posterior = posterior.updated(row)
    points, chance = on_a_grid(TWO, np.ones(4), concentration)
    mean = chance @ (points / points.sum(1, keepdims=True))
    np.testing.assert_allclose(posterior.mean, mean, atol=0.01)
    assert posterior.slope == pytest.approx(chance @ points.sum(1), rel=0.03)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_particles_that_are_drawn_anew_follow_it_too(exponent: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 2)) * 0.5
    said = np.where((rows @ (7.0, 2.0) > rng.logistic(size=80))[:, None], rows, -rows)
    posterior = Posterior.prior(np.ones(2)).after(said, np.full(80, exponent))
    assert posterior.effective > 0.5 * len(posterior.beta)
    points, chance = on_a_grid(said, np.full(80, exponent))
    mean = chance @ (points / points.sum(1, keepdims=True))
    np.testing.assert_allclose(posterior.mean, mean, atol=0.01)
    assert posterior.slope == pytest.approx(chance @ points.sum(1), rel=0.05)
    weight = points[:, 0] / points.sum(1)
    order = weight.argsort()
    levels = np.interp([0.05, 0.95], chance[order].cumsum(), weight[order])
    np.testing.assert_allclose(posterior.interval(0.9)[0], levels, atol=0.02)


def test_what_faded_counts_less() -> None:
    posterior = Posterior.prior(np.ones(2)).after(TWO[:2], np.ones(2)).faded(0.4).updated(TWO[2])
    exponents = np.array([0.4, 0.4, 1.0])
    np.testing.assert_allclose(posterior.exponents, exponents)
    np.testing.assert_allclose(posterior.mean, expected_mean(TWO[:3], exponents), atol=0.015)


def test_the_maximum_is_the_grids() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 2))
    said = np.where((rows @ (3.0, 1.0) > rng.logistic(size=40))[:, None], rows, -rows)
    for concentration in ((1.0, 1.0), (2.0, 4.0)):
        posterior = Posterior.prior(concentration).after(said, np.ones(40))
        points, chance = on_a_grid(said, np.ones(40), concentration)
        best = points[chance.argmax()]
        found = posterior.most_probable()
        np.testing.assert_allclose(found, best / best.sum(), atol=0.03)


@given(st.integers(1, 5), st.integers(0, 1000))
def test_an_answer_moves_the_mean_towards_what_was_preferred(traits: int, seed: int) -> None:
    difference = np.random.default_rng(seed).normal(size=traits)
    prior = Posterior.prior(np.ones(traits), seed=seed)
    after = prior.updated(difference)
    assert after.shares.sum() == pytest.approx(1)
    assert after.mean.sum() == pytest.approx(1)
    assert (after.shares * (after.beta @ difference)).sum() >= prior.shares @ (
        prior.beta @ difference
    )


@given(st.integers(0, 1000), st.floats(0.01, 0.99))
def test_quantiles_are_those_of_a_plain_loop(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    posterior = Posterior.prior(np.ones(2), particles=20, seed=seed).updated(rng.normal(size=2))
    values = rng.normal(size=20)
    found = posterior.quantile(values, level)
    below = sum(s for s, v in zip(posterior.shares, values, strict=True) if v <= found)
    less = sum(s for s, v in zip(posterior.shares, values, strict=True) if v < found)
    assert below >= level - 1e-9 and less <= level + 1e-9


def test_the_same_seed_is_the_same() -> None:
    def made(seed: int) -> Posterior:
        return Posterior.prior(np.ones(2), seed=seed).after(np.tile(TWO, (10, 1)), np.ones(40))

    np.testing.assert_array_equal(made(3).beta, made(3).beta)
    assert (made(3).beta != made(4).beta).any()


@pytest.mark.parametrize(
    ("concentration", "options", "match"),
    [
        ([], {}, "concentration"),
        ([0.5, 1], {}, "at least 1"),
        ([1, np.nan], {}, "finite"),
        ([[1, 1]], {}, "concentration"),
        ([1, 1], {"particles": 7}, "even"),
        ([1, 1], {"particles": 4}, "from 8"),
        ([1, 1], {"particles": 10**13}, "to 1000000"),
        ([1, 1], {"slope": 0.0}, "slope"),
        ([1, 1], {"slope": np.inf}, "slope"),
    ],
)
def test_priors_that_are_refused(concentration, options, match) -> None:
    with pytest.raises(InputError, match=match):
        Posterior.prior(concentration, **options)


def test_answers_that_are_refused() -> None:
    prior = Posterior.prior(np.ones(2))
    for difference in ([1.0], [1.0, np.inf], [[1.0, 2.0]]):
        with pytest.raises(InputError, match="2 finite"):
            prior.updated(difference)
    for exponent in (0.0, -1.0, 1.5, np.inf, np.nan):
        with pytest.raises(InputError, match="exponent"):
            prior.updated(TWO[0], exponent=exponent)
    with pytest.raises(InputError, match="4 reward differences and 3"):
        prior.after(TWO, np.ones(3))
    for keep in (0.0, 1.5):
        with pytest.raises(InputError, match="keep"):
            prior.faded(keep)
    for level in (0.0, 1.0):
        with pytest.raises(InputError, match="level"):
            prior.interval(level)


@pytest.mark.parametrize("exponent", [0.1, 0.4])
def test_the_maximum_is_the_grids_where_answers_count_less(exponent: float) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 2))
    said = np.where((rows @ (3.0, 1.0) > rng.logistic(size=40))[:, None], rows, -rows)
    exponents = np.where(np.arange(40) % 2, 1.0, exponent)
    posterior = Posterior.prior((2.0, 4.0)).after(said, exponents)
    points, chance = on_a_grid(said, exponents, (2.0, 4.0))
    best = points[chance.argmax()]
    np.testing.assert_allclose(posterior.most_probable(), best / best.sum(), atol=0.02)


def test_what_does_not_fade_is_the_same() -> None:
    posterior = Posterior.prior((1.0, 2.0), slope=3.0, particles=400, seed=5).after(TWO, np.ones(4))
    again = posterior.faded(1.0)
    np.testing.assert_array_equal(again.beta, posterior.beta)
    np.testing.assert_array_equal(again.shares, posterior.shares)
