"""`steer.baselines`: what each keeps, against its definition written out."""

from __future__ import annotations

import numpy as np
import pytest

from steer.baselines import at_random, best_edits, gpi, one_for_all, uniform
from steer.certificate import Measured, worst_delta
from steer.cover import random_weights
from steer.errors import InputError


def some_edits(seed: int, number: int = 40, dim: int = 3) -> Measured:
    rng = np.random.default_rng(seed)
    rewards = rng.dirichlet(np.ones(dim), number) ** 0.5
    rewards[0] = 0.2
    regulariser = np.append(0.0, rng.uniform(0, 0.1, number - 1))
    return Measured(rewards, regulariser)


def value(measured: Measured, edit: int, weight: np.ndarray) -> float:
    rewards = measured.rewards[edit]
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


@pytest.mark.parametrize(("size", "points"), [(1, 1), (2, 1), (3, 3), (5, 3), (6, 6), (12, 10)])
def test_uniform_weights_fit_the_size(size: int, points: int) -> None:
    edits = some_edits(1)
    parts = {1: 0, 3: 1, 6: 2, 10: 3}[points]
    lattice = [
        (i / parts, j / parts, (parts - i - j) / parts)
        for i in range(parts + 1)
        for j in range(parts + 1 - i)
        if parts
    ] or [(1 / 3, 1 / 3, 1 / 3)]
    assert len(lattice) == points
    assert set(uniform(edits, size)) == set(best_edits(edits, np.array(lattice)))
    assert len(uniform(edits, size)) <= size


def test_one_for_all_has_the_best_mean() -> None:
    edits = some_edits(2)
    (best,) = one_for_all(edits)
    centre = np.full(3, 1 / 3)  # J is linear, and this is the mean of all mixtures
    assert value(edits, best, centre) >= max(value(edits, i, centre) for i in range(40)) - 0.01
    nothing = Measured(np.full((2, 3), 0.5), np.array([0.0, 0.1]))
    assert one_for_all(nothing) == ()


def test_gpi_lowers_the_worst_regret_step_by_step() -> None:
    edits = some_edits(3)
    losses = [worst_delta(edits, gpi(edits, size), 0.0).loss for size in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    assert gpi(edits, 4) == gpi(edits, 4)
    assert len(gpi(edits, 40)) < 40, "it goes on after no regret is left"


@pytest.mark.parametrize("method", [uniform, at_random, gpi])
def test_sizes_below_one(method) -> None:
    with pytest.raises(InputError, match="size"):
        method(some_edits(0), 0)
