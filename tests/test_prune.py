"""Certificates, pruning and routing against dense sampling and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer.certificate import Measured, certify, worst_delta, worst_epsilon
from steer.cover import uniform_weights
from steer.errors import CertificateError, InputError
from steer.prune import prune, prune_to_size
from steer.route import route, usage

seeds = st.integers(0, 2**32)


def some(seed: int, edits: int, dim: int) -> Measured:
    """Trade-offs between traits, with costs; the first edit is the unsteered model."""
    rng = np.random.default_rng(seed)
    direction = rng.dirichlet(np.full(dim, 0.4), edits)
    rewards = np.clip(0.2 + 0.7 * np.sqrt(direction) * rng.uniform(0.6, 1, (edits, 1)), 0, 1)
    cost = 0.1 * rng.random(edits)
    rewards[0], cost[0] = 0.25 + 0.1 * rng.random(dim), 0.0
    return Measured(rewards, cost)


def sampled_losses(
    measured: Measured, kept: tuple[int, ...], epsilon: float
) -> tuple[float, float]:
    """Largest delta at epsilon, and largest epsilon at delta 0, over a lattice, in a plain loop."""
    delta = relative = 0.0
    dim = measured.utilities.shape[1]
    for w in uniform_weights(dim, 3000 if dim < 4 else 8000):
        values = [
            float(w @ r) - f for r, f in zip(measured.utilities, measured.regulariser, strict=True)
        ]
        best, served = max(values), max(values[e] for e in (0, *kept))
        delta = max(delta, (1 - epsilon) * best - served)
        if best > 0:
            relative = max(relative, 1 - served / best)
    return delta, relative


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 4), st.floats(0, 0.3))
def test_certificate_is_what_dense_sampling_approaches(seed: int, dim: int, epsilon: float) -> None:
    measured = some(seed, 14, dim)
    kept = (3, 7)
    delta = worst_delta(measured, (0, *kept), epsilon)
    relative = worst_epsilon(measured, (0, *kept))
    found = sampled_losses(measured, kept, epsilon)
    # Never below what a sample shows, and not far above: the lattice is fine.
    assert found[0] - 1e-9 <= delta.loss <= found[0] + 0.02
    assert found[1] - 1e-9 <= relative.loss <= found[1] + 0.06
    # Attained where it is said to be.
    for worst, share in ((delta, epsilon), (relative, relative.loss)):
        w = worst.weights
        assert w.min() >= 0 and w.sum() == pytest.approx(1)
        values = measured.value(w[None])[0]
        served = values[[0, *kept]].max()
        lost = (1 - share) * values[worst.edit] - served
        assert lost == pytest.approx(worst.loss if worst is delta else 0.0, abs=1e-7)


def test_certificate_of_everything_and_its_curve() -> None:
    measured = some(1, 20, 3)
    whole = certify(measured, range(20))
    assert whole.delta.loss == whole.epsilon.loss == 0.0
    part = certify(measured, [2, 5])
    epsilons, deltas = zip(*part.curve, strict=True)
    assert deltas[0] == pytest.approx(part.delta.loss) and deltas[-1] == pytest.approx(0, abs=1e-6)
    assert list(epsilons) == sorted(epsilons) and list(deltas) == sorted(deltas, reverse=True)
    assert "20 measured edits" in str(part)


def test_the_unsteered_model_bounds_the_loss() -> None:
    measured = some(2, 9, 3)
    nothing = certify(measured, [])
    assert 0 < nothing.epsilon.loss < 1
    assert nothing.delta.loss == pytest.approx(sampled_losses(measured, (), 0.0)[0], abs=0.01)


@pytest.mark.parametrize("criterion", ["delta", "epsilon"])
@pytest.mark.parametrize("seed", range(4))
def test_pruning_to_a_size_is_as_good_as_the_best_subset(criterion: str, seed: int) -> None:
    measured = some(seed, 10, 3)

    def loss(kept: tuple[int, ...]) -> float:
        if criterion == "delta":
            return worst_delta(measured, (0, *kept), 0.0).loss
        return worst_epsilon(measured, (0, *kept)).loss

    kept = prune_to_size(measured, 2, criterion=criterion)  # type: ignore[arg-type]
    assert len(kept) <= 2 and 0 not in kept
    best = min(loss(subset) for subset in itertools.combinations(range(1, 10), 2))
    assert best - 1e-6 <= loss(kept) <= 1.02 * best + 1e-6  # what may be given up for the mean


@pytest.mark.parametrize("seed", range(4))
def test_pruning_to_a_loss_keeps_as_few_as_brute_force(seed: int) -> None:
    measured = some(seed, 9, 3)
    epsilon, delta = 0.05, 0.02
    kept = prune(measured, epsilon=epsilon, delta=delta)
    assert worst_delta(measured, (0, *kept), epsilon).loss <= delta + 1e-6
    for size in range(len(kept)):
        for subset in itertools.combinations(range(1, 9), size):
            assert worst_delta(measured, (0, *subset), epsilon).loss > delta - 1e-6
    greedy = prune(measured, epsilon=epsilon, delta=delta, method="greedy")
    assert len(greedy) >= len(kept)
    assert worst_delta(measured, (0, *greedy), epsilon).loss <= delta + 1e-6


def test_pruning_of_many_edits() -> None:
    measured = some(3, 300, 3)
    kept = prune_to_size(measured, 5)
    certificate = certify(measured, kept)
    assert certificate.epsilon.loss < certify(measured, range(1, 6)).epsilon.loss
    assert certificate.delta.loss <= certificate.epsilon.loss + 1e-9  # rewards are at most 1


def test_among_sets_with_one_worst_case_the_mean_decides() -> None:
    """Whichever edit is kept, a corner is lost altogether; the last loses least on average."""
    rewards = np.array([[0.0, 0.0], [0.0, 0.8], [0.0, 0.9], [1.0, 0.0]])
    measured = Measured(rewards, np.zeros(4))
    assert prune_to_size(measured, 1) == (3,)
    assert set(prune_to_size(measured, 2)) == {2, 3}


@pytest.mark.parametrize(("first", "kept"), [(0.395, 3), (0.38, 2)])
def test_a_little_of_the_worst_case_is_given_up_for_the_mean(first: float, kept: int) -> None:
    """The second edit's worst case is 0.6, at the first corner; the third is best elsewhere."""
    rewards = np.array([[0.0, 0.0], [1.0, 0.0], [0.4, 0.9], [first, 1.0]])
    measured = Measured(rewards, np.zeros(4))
    assert prune_to_size(measured, 1, criterion="delta") == (kept,)


@pytest.mark.parametrize("seed", range(3))
def test_no_swap_lowers_the_mean_at_the_same_worst_case(seed: int) -> None:
    measured = some(seed, 12, 3)
    # Rewards in coarse steps, so that worst cases tie.
    measured = Measured(np.round(measured.utilities * 3) / 3, measured.regulariser)
    mixtures = np.random.default_rng(5).dirichlet(np.ones(3), 4000)
    value = measured.value(mixtures)

    def mean(kept: tuple[int, ...]) -> float:
        return float((value.max(1) - value[:, (0, *kept)].max(1)).mean())

    kept = prune_to_size(measured, 3)
    worst = worst_epsilon(measured, (0, *kept)).loss
    for out, new in itertools.product(kept, range(1, 12)):
        swapped = (*(i for i in kept if i != out), new)
        if worst_epsilon(measured, (0, *swapped)).loss <= worst + 1e-9:
            assert mean(swapped) >= mean(kept) - 2e-3  # other mixtures than it looked at


def test_nothing_is_kept_where_nothing_is_better() -> None:
    measured = Measured(np.array([[0.5, 0.5], [0.5, 0.4]]), np.array([0.0, 0.1]))
    assert prune(measured, delta=0.0) == ()
    assert prune_to_size(measured, 1) == ()


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_routing_takes_the_best_kept_edit(seed: int) -> None:
    measured = some(seed, 12, 3)
    kept = (4, 2, 9)
    weights = np.random.default_rng(seed).dirichlet(np.ones(3), 50)
    found = route(measured, kept, weights)
    for w, served in zip(weights, found, strict=True):
        values = {e: float(w @ measured.utilities[e]) - measured.regulariser[e] for e in (0, *kept)}
        assert served in values
        assert values[served] == pytest.approx(max(values.values()))
    alone = np.concatenate([route(measured, kept, w[None]) for w in weights])
    assert np.array_equal(found, alone)


def test_ties_go_to_the_first_named_and_to_the_unsteered_model() -> None:
    same = np.array([[0.2, 0.2], [0.6, 0.4], [0.6, 0.4], [0.2, 0.2]])
    measured = Measured(same, np.zeros(4))
    weights = uniform_weights(2, 30)
    assert set(route(measured, (2, 1), weights)) == {2}
    assert set(route(measured, (1, 2), weights)) == {1}
    assert set(route(measured, (3,), weights)) == {0}


def test_usage_is_the_perplexity_of_shares() -> None:
    measured = Measured(np.array([[0, 0], [1.0, 0], [0, 1.0], [0.1, 0.1]]), np.zeros(4))
    weights = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8]]
    shares, perplexity = usage(measured, (1, 2, 3), weights)
    assert shares.tolist() == [0.75, 0.25, 0.0]
    assert perplexity == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert usage(measured, (), weights)[1] == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: Measured(np.zeros((2, 2)), np.zeros(3)), "shapes"),
        (lambda m: Measured(np.full((2, 2), -0.1), np.zeros(2)), "utilities"),
        (lambda m: Measured(np.full((2, 2), np.nan), np.zeros(2)), "utilities"),
        (lambda m: Measured(np.zeros((2, 2)), np.array([0.1, 0.1])), "unsteered"),
        (lambda m: Measured(np.zeros((2, 2)), np.array([0.0, -0.1])), "regulariser"),
        (lambda m: certify(m, [99]), "99"),
        (lambda m: worst_delta(m, (0,), 1.5), "epsilon"),
        (lambda m: prune(m, delta=-0.1), "delta"),
        (lambda m: prune(m, delta=0.1, method="best"), "best"),
        (lambda m: prune_to_size(m, 0), "size"),
        (lambda m: prune_to_size(m, 2, criterion="best"), "best"),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(some(0, 5, 2))  # type: ignore[operator]


def test_no_portfolio_is_claimed_when_time_runs_out() -> None:
    with pytest.raises(CertificateError, match="time"):
        prune(some(0, 40, 3), delta=0.0, time_limit=0.0)
    with pytest.raises(CertificateError, match="time"):
        prune_to_size(some(0, 40, 3), 2, time_limit=0.0)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_edit_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(InputError, match=f"edit {index} does not exist; there are 5"):
        certify(some(0, 5, 2), [1, index])
