"""Covers of the simplex against the formulas of PALM, brute force and planted gaps."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steer.cover import (
    TOLERANCE,
    Closeness,
    Scale,
    closeness_for,
    cover_of_size,
    grid,
    guarantee,
    is_cover,
    levels,
    minimal_cover,
    random_weights,
    size_formula,
    uniform_weights,
)
from steer.cover.grids import simplex_cells
from steer.errors import InputError

PAPER = Closeness(0.4, 0.0125)
closenesses = st.builds(Closeness, st.floats(0, 0.7), st.floats(0.02, 0.4))
KINDS = ("combined", "multiplicative", "additive")


def missed_by_all(
    point: tuple[Fraction, ...], weights: np.ndarray, closeness: Closeness, slack: str = "0"
) -> bool:
    """The definition, |w_i - v_i| <= eps' v_i + delta', in rational numbers."""
    eps, delta = Fraction(str(closeness.eps_prime)), Fraction(str(closeness.delta_prime))
    return not any(
        all(
            abs(Fraction(w) - v) <= eps * v + delta + Fraction(slack)
            for w, v in zip(row, point, strict=True)
        )
        for row in weights.tolist()
    )


@given(closenesses, st.integers(0, 2**32))
def test_boxes_are_the_definition(closeness: Closeness, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, points = rng.random((20, 3)), rng.dirichlet(np.ones(3), 20)
    distance = np.abs(weights - points[:, None])
    room = closeness.eps_prime * points[:, None] + closeness.delta_prime
    clear = np.abs(distance - room).min(-1) > 1e-9  # not on the border of a box
    expected = (distance <= room).all(-1)
    assert (closeness.covers(weights, points) == expected)[clear].all()


def test_lemma_of_palm_on_random_instances() -> None:
    """An optimum for w is (2 eps', 2 (delta' R_max + eps' f_max))-optimal for v (Lemma 3.2)."""
    rng = np.random.default_rng(0)
    tight = 0.0
    for _ in range(4000):
        d, policies = rng.integers(2, 7), rng.integers(2, 12)
        closeness = Closeness(rng.random() * 0.6, 0.001 + rng.random() * 0.2)
        scale = Scale(f_max=rng.random() * 2, r_max=float(d))
        rewards = rng.random((policies, d))
        regulariser = rng.random(policies) * scale.f_max
        rewards[0], regulariser[0] = rng.random(d), 0.0  # the unsteered model
        v = rng.dirichlet(np.full(d, 0.5))
        room = closeness.eps_prime * v + closeness.delta_prime
        w = np.maximum(v + room * rng.choice([-1, 1, rng.uniform(-1, 1)], d), 0)  # raw
        served = np.argmax(rewards @ w - regulariser)
        value = rewards @ v - regulariser
        epsilon, delta = scale.guarantee(closeness)
        assert value[served] >= (1 - epsilon) * value.max() - delta - 1e-12
        tight = max(tight, (value.max() - value[served]) / (epsilon * value.max() + delta))
    assert tight > 0.1, "the instances are too easy to test anything"


@given(st.floats(0, 0.9), st.floats(0.001, 0.6))
@example(5e-324, 0.234375)  # the smallest number there is
def test_levels_cover_the_unit_interval_and_are_as_many_as_the_formula(
    eps_prime: float, delta_prime: float
) -> None:
    closeness = Closeness(eps_prime, delta_prime)
    along = levels(closeness)
    low, high = closeness.box(along)
    assert low[0] == 0 and high[-1] >= 1 - 1e-12
    assert (low[1:] <= high[:-1] + 1e-12).all()
    exact = (
        math.log1p(eps_prime / delta_prime) / math.log((1 + eps_prime) / (1 - eps_prime))
        if eps_prime > 1e-6
        else 1 / (2 * delta_prime)
    )
    if abs(exact - round(exact)) > 1e-6:
        assert len(along) == size_formula(closeness) == math.ceil(exact)


def test_formula_where_nothing_is_left_over() -> None:
    assert len(levels(Closeness(0.0, 0.0125))) == size_formula(Closeness(0.0, 0.0125)) == 40
    assert len(levels(PAPER)) == size_formula(PAPER) == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dim", "eps_prime", "delta_prime"),
    [(2, 0.4, 0.0125), (3, 0.4, 0.0125), (3, 0.25, 0.05), (4, 0.5, 0.1), (5, 0.5, 0.2)],
)
def test_every_grid_is_a_cover(kind: str, dim: int, eps_prime: float, delta_prime: float) -> None:
    closeness = Closeness(eps_prime, delta_prime)
    weights = grid(dim, closeness, kind)  # type: ignore[arg-type]
    assert is_cover(weights, closeness).verdict == "yes"
    points = np.random.default_rng(0).dirichlet(np.full(dim, 0.4), 5000)
    assert closeness.covers(weights, points).any(1).all()


def test_the_paper_covers_three_traits_with_48() -> None:
    assert len(grid(3, PAPER)) <= 48


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_a_grid_without_one_weight_is_refuted(dim: int) -> None:
    closeness = Closeness(0.4, 0.05)
    weights = grid(dim, closeness)
    for index in range(len(weights)):
        rest = np.delete(weights, index, axis=0)
        check = is_cover(rest, closeness)
        # Cells that only touch the simplex beside their neighbours may be spared.
        if check.verdict == "yes":
            points = np.random.default_rng(index).dirichlet(np.full(dim, 0.4), 4000)
            assert closeness.covers(rest, points).any(1).all()
            continue
        assert check.counterexample is not None
        assert sum(check.counterexample) == 1
        assert missed_by_all(check.counterexample, rest, closeness)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32), st.sampled_from([1e-4, 1e-6, 1e-9]))
def test_a_planted_gap_is_found(dim: int, seed: int, width: float) -> None:
    """Intervals that leave out (at, at + width) in the first coordinate, and nothing else."""
    at = float(np.random.default_rng(seed).uniform(0.2, 0.8))
    closeness = Closeness(0.0, 0.05)

    def column(reach: float, upwards: bool) -> list[float]:
        centres = [at - 0.05] if not upwards else [at + width + 0.05]
        while (centres[-1] + 0.05 < 1) if upwards else (centres[-1] - 0.05 > 0):
            centres.append(centres[-1] + (reach if upwards else -reach))
        return centres

    first = [w for w in column(0.09, False) + column(0.09, True) if w >= 0]
    first += [0.0] if min(first) > 0.05 else []
    rest = levels(closeness)
    weights = np.array(list(itertools.product(first, *[rest] * (dim - 1))))
    check = is_cover(weights, closeness)
    assert check.verdict == "no" and check.counterexample is not None
    assert at <= check.counterexample[0] <= at + width
    assert missed_by_all(check.counterexample, weights, closeness)
    closed = np.concatenate([weights, weights + np.array([width - 0.04, *[0.0] * (dim - 1)])])
    assert is_cover(np.maximum(closed, 0), closeness).verdict == "yes"


@given(st.integers(0, 2**32), closenesses)
def test_two_traits_against_sorted_intervals(seed: int, closeness: Closeness) -> None:
    weights = np.random.default_rng(seed).random((12, 2)) * [1.2, 1.0]
    low, high = closeness.box(weights)
    # v = (t, 1 - t)
    intervals = sorted(
        (max(a0, 1 - b1), min(b0, 1 - a1))
        for (a0, a1), (b0, b1) in zip(low.tolist(), high.tolist(), strict=True)
    )
    reached, closest = 0.0, math.inf
    for start, end in intervals:
        if start > end:
            continue
        closest = min(closest, abs(start - reached)) if reached < 1 else closest
        if start <= reached:
            reached = max(reached, end)
    if min(closest, abs(reached - 1)) > 1e-9:  # not decided by a rounding
        assert is_cover(weights, closeness).verdict == ("yes" if reached >= 1 else "no")


@pytest.mark.parametrize("seed", range(3))
def test_random_and_uniform_weights_of_the_same_number_are_refuted(seed: int) -> None:
    uniform = [
        (a / 8, b / 8, (8 - a - b) / 8) for a in range(9) for b in range(9 - a)
    ]  # 45 of them
    rng = np.random.default_rng(seed)
    extra = rng.dirichlet(np.ones(3), 3)
    for weights in (rng.dirichlet(np.ones(3), 48), np.concatenate([uniform, extra])):
        check = is_cover(weights, PAPER)
        assert check.verdict == "no" and check.counterexample is not None
        assert missed_by_all(check.counterexample, weights, PAPER)


@pytest.mark.parametrize(("dim", "at_least"), [(2, 5), (3, 46), (4, 20), (5, 1)])
def test_uniform_weights_are_the_lattice(dim: int, at_least: int) -> None:
    found = uniform_weights(dim, at_least)
    for parts in itertools.count(1):
        lattice = [
            tuple(x / parts for x in row)
            for row in itertools.product(range(parts + 1), repeat=dim)
            if sum(row) == parts
        ]
        if len(lattice) >= at_least:
            break
    assert sorted(map(tuple, found.tolist())) == sorted(lattice)


def test_a_check_without_time_is_undecided() -> None:
    assert is_cover(grid(3, PAPER), PAPER, time_limit=0).verdict == "undecided"


def test_weights_that_cover_nothing() -> None:
    check = is_cover([[50.0, 50.0, 1e300]], PAPER)
    assert check.verdict == "no"


def test_optimised_cover_of_the_papers_setting() -> None:
    cover = minimal_cover(3, PAPER)
    assert len(cover.weights) <= 36
    assert cover.lower_bound <= len(cover.weights)
    assert is_cover(cover.weights, PAPER).verdict == "yes"
    points = np.random.default_rng(1).dirichlet(np.full(3, 0.3), 200_000)
    assert PAPER.covers(cover.weights, points).any(1).all()
    assert np.ptp(cover.weights.sum(1)) > 0.01  # scale-free: raw weights


@pytest.mark.parametrize("eps_prime", [0.0, 0.3])
def test_two_traits_need_as_many_as_a_greedy_sweep(eps_prime: float) -> None:
    """On a line the fewest intervals are found by always taking the one that reaches furthest."""
    closeness = Closeness(eps_prime, 0.03)
    scan = np.linspace(0, 1.2, 601)
    low, high = closeness.box(scan)
    starts = np.maximum(low[:, None], 1 - high[None])  # of the interval in t of each (w1, w2)
    ends = np.minimum(high[:, None], 1 - low[None])
    reached, needed = 0.0, 0
    while reached < 1 - 1e-9:
        reached = ends[(starts <= reached + 1e-12) & (starts <= ends)].max()
        needed += 1
    found = len(minimal_cover(2, closeness, refinement=6).weights)
    assert needed - 1 <= found <= needed + 1


def test_greedy_and_exact_and_grid() -> None:
    closeness = Closeness(0.5, 0.05)
    exact = minimal_cover(4, closeness)
    greedy = minimal_cover(4, closeness, method="greedy")
    assert exact.lower_bound <= len(exact.weights) <= len(greedy.weights)
    assert len(exact.weights) <= len(grid(4, closeness))
    assert exact.check.verdict == greedy.check.verdict == "yes"
    again = minimal_cover(4, closeness, method="greedy")
    assert np.array_equal(greedy.weights, again.weights)


@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(1, 7))
@settings(deadline=None)
def test_cells_are_the_products_that_meet_the_simplex(seed: int, dim: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.uniform(0, 1, (2, number)), axis=1)
    low, high = np.minimum(low, high), np.maximum(low, high)
    names = np.arange(number, dtype=float)
    products = itertools.product(range(number), repeat=dim)
    wanted = [p for p in products if low[list(p)].sum() < 1 < high[list(p)].sum()]
    found = simplex_cells(names, low, high, dim)
    assert found.tolist() == [list(map(float, p)) for p in wanted]


def test_a_fine_grid_takes_no_more_memory_than_its_cells() -> None:
    closeness = Closeness(0.0, 2.5e-4)  # every pair of its 2000 levels: 32 MB an array
    tracemalloc.start()
    cells = grid(2, closeness)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cells) == 2000 and peak < 4e6


def test_without_a_relative_part_there_is_one_closeness(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Closeness] = []

    def watched(dim: int, closeness: Closeness) -> Any:
        asked.append(closeness)
        return grid(dim, closeness)

    monkeypatch.setattr(guarantee, "grid", watched)
    closeness_for(2, 0.0, 0.1, Scale(0.0, 2.0))
    assert len(asked) == 1


def test_without_time_the_grid_is_returned() -> None:
    cover = minimal_cover(3, PAPER, time_limit=0)
    assert np.array_equal(cover.weights, grid(3, PAPER))
    assert cover.check.verdict == "undecided"


@given(
    st.integers(2, 3),
    st.floats(0, 1.5),
    st.floats(0.2, 1),
    st.floats(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_chosen_closeness_keeps_the_guarantee_and_is_no_larger_than_others(
    dim: int, epsilon: float, delta: float, f_max: float
) -> None:
    scale = Scale(f_max, float(dim))
    chosen = closeness_for(dim, epsilon, delta, scale)
    found = scale.guarantee(chosen)
    assert found[0] <= epsilon + 1e-12 and found[1] <= delta + 1e-12
    for share in (0.0, 0.3, 0.6, 1.0):
        eps_prime = min(share * epsilon / 2, 0.95)
        delta_prime = (delta / 2 - eps_prime * f_max) / dim
        if delta_prime > 1e-3:
            # The search tries finitely many eps', so another may be a little better.
            assert len(grid(dim, chosen)) <= 1.1 * len(grid(dim, Closeness(eps_prime, delta_prime)))


def test_cover_of_a_size() -> None:
    scale = Scale(0.2, 3.0)
    losses = []
    for size in (3, 7, 15):
        cover = cover_of_size(3, size, 0.2, scale, method="greedy")
        assert len(cover.weights) <= size
        assert is_cover(cover.weights, cover.closeness).verdict == "yes"
        assert 2 * cover.closeness.eps_prime <= 0.2 + 1e-12
        losses.append(scale.guarantee(cover.closeness)[1])
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]


def test_the_tolerance_is_what_it_says() -> None:
    """A gap narrower than the widening is closed, and one twice as wide is not."""
    closeness = Closeness(0.0, 0.25)
    for gap, verdict in ((1.5 * TOLERANCE, "yes"), (5 * TOLERANCE, "no")):
        first = [[0.25, 0.75], [0.75 + gap, 0.25]]
        assert is_cover(first, closeness).verdict == verdict


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Closeness(1.0, 0.1), "eps_prime"),
        (lambda: Closeness(-0.1, 0.1), "eps_prime"),
        (lambda: Closeness(0.1, 0.0), "delta_prime"),
        (lambda: Closeness(0.1, float("nan")), "delta_prime"),
        (lambda: Scale(-1, 3), "f_max"),
        (lambda: Scale(1, 0), "r_max"),
        (lambda: grid(1, PAPER), "2 traits"),
        (lambda: grid(3, PAPER, "round"), "round"),  # type: ignore[arg-type]
        (lambda: grid(3, Closeness(0, 0.1), "multiplicative"), "eps' > 0"),
        (lambda: grid(8, Closeness(0.0, 0.01)), "more than"),
        (lambda: is_cover([], PAPER), "shape"),
        (lambda: is_cover([[0.5, -0.5]], PAPER), ">= 0"),
        (lambda: is_cover([[0.5, float("nan")]], PAPER), "finite"),
        (lambda: minimal_cover(3, PAPER, method="best"), "best"),  # type: ignore[arg-type]
        (lambda: minimal_cover(3, PAPER, refinement=0), "refinement"),
        (lambda: closeness_for(3, 0.5, 0.0, Scale(1, 3)), "delta"),
        (lambda: closeness_for(3, 0.5, -1.0, Scale(1, 3)), "delta"),
        (lambda: closeness_for(3, 2.0, 0.1, Scale(1, 3)), "epsilon"),
        (lambda: cover_of_size(3, 0, 0.1, Scale(1, 3)), "size"),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_random_weights_hang_on_their_seed() -> None:
    first, same, other = (random_weights(3, 400, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, same) and not np.isclose(first, other).any(1).all()
    assert (first >= 0).all() and first.sum(1) == pytest.approx(1)
    # Of an even distribution on the simplex each weight is Beta(1, 2).
    np.testing.assert_allclose((first < 0.5).mean(0), 0.75, atol=0.08)
