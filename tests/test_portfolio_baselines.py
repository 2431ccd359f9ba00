"""`steer.portfolio_baselines`: what each keeps, against its definition written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from steer.certificate import Measured, worst_delta
from steer.cover import random_weights
from steer.errors import InputError
from steer.portfolio_baselines import at_random, best_edits, gpi, one_for_all, uniform


def some_edits(seed: int, number: int = 40, dim: int = 3) -> Measured:
    rng = np.random.default_rng(seed)
    rewards = rng.dirichlet(np.ones(dim), number) ** 0.5
    rewards[0] = 0.2
    regulariser = np.append(0.0, rng.uniform(0, 0.1, number - 1))
    return Measured(rewards, regulariser)


def value(measured: Measured, edit: int, weight: np.ndarray) -> float:
    rewards = measured.utilities[edit]
    return sum(w * r for w, r in zip(weight, rewards, strict=True)) - measured.regulariser[edit]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_edit_at_each_weight(seed: int) -> None:
    edits = some_edits(seed)
    weights = random_weights(3, 6, seed)
    expected = []
    for weight in weights:
        best = max(range(len(edits)), key=lambda i: value(edits, i, weight))
        if best and best not in expected:
            expected.append(best)
    assert list(best_edits(edits, weights)) == expected
    assert at_random(edits, 6, seed) == best_edits(edits, weights)


def everyone(dim: int, parts: int) -> Measured:
    """For every point of a lattice, an edit that is the best there, and at no other."""
    points = [
        point for point in itertools.product(range(parts + 1), repeat=dim) if sum(point) == parts
    ]
    # <w, u> - |u|^2 / 2 = (|w|^2 - |w - u|^2) / 2 is largest where u = w; the first is unsteered.
    rewards = np.array([[0] * dim, *points]) / parts
    return Measured(rewards, (rewards**2).sum(1) / 2)


@pytest.mark.parametrize(("dim", "size", "parts"), [(2, 4, 3), (2, 5, 4), (3, 3, 1), (3, 10, 3)])
def test_a_size_that_a_lattice_has_gives_the_lattice(dim: int, size: int, parts: int) -> None:
    edits = everyone(dim, parts)
    assert len(edits) == size + 1
    assert sorted(uniform(edits, size)) == list(range(1, size + 1))


@pytest.mark.parametrize(("dim", "size"), [(2, 6), (3, 1), (3, 2), (3, 5), (3, 7), (6, 5), (6, 12)])
def test_every_size_is_filled_and_spread(dim: int, size: int) -> None:
    edits = everyone(dim, 12 if dim < 6 else 6)
    kept = uniform(edits, size)
    assert len(kept) == size
    assert kept == uniform(edits, size)

    def gap(weights: np.ndarray) -> float:
        """How far a preference can be from all weights."""
        return np.linalg.norm(edits.utilities[1:, None] - weights, axis=2).min(1).max()

    by_chance = [gap(random_weights(dim, size, seed)) for seed in range(20)]
    assert gap(edits.utilities[list(kept)]) < np.median(by_chance)


def test_one_for_all_has_the_best_mean() -> None:
    edits = some_edits(2)
    (best,) = one_for_all(edits)
    centre = np.full(3, 1 / 3)  # J is linear, and this is the mean of all mixtures
    assert value(edits, best, centre) >= max(value(edits, i, centre) for i in range(40)) - 0.01
    nothing = Measured(np.full((2, 3), 0.5), np.array([0.0, 0.1]))
    assert one_for_all(nothing) == ()


def test_gpi_lowers_the_worst_regret_step_by_step() -> None:
    edits = some_edits(3)
    kept = [gpi(edits, size) for size in (1, 2, 4, 8)]
    losses = [worst_delta(edits, entries, 0.0).loss for entries in kept]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    assert gpi(edits, 4) == kept[2]
    assert len(gpi(edits, 40)) < 40, "it goes on after no regret is left"


@pytest.mark.parametrize("method", [uniform, at_random, gpi])
def test_sizes_below_one(method) -> None:
    with pytest.raises(InputError, match="size"):
        method(some_edits(0), 0)
