"""Directions, CCS and layer choice against plain loops, other solvers and planted directions."""

import dataclasses
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD

from steer import ccs
from steer.ccs import ccs_loss, fit_ccs
from steer.directions import mean_difference, probe_direction, reliability, svd_directions
from steer.errors import InputError
from steer.subspace import choose_layers, fit_subspace

seeds = st.integers(0, 2**32 - 1)


def rng(seed):
    return np.random.default_rng(seed)


def unit(v):
    return v / np.linalg.norm(v)


def planted(seed, *, n=96, d=48, strength=4.0, varying=True, topic=1.0, offset=3.0):
    """Pairs that share a topic and differ along one direction, by the same or varying amounts."""
    g = rng(seed)
    direction = unit(g.standard_normal(d))
    amount = strength * (g.uniform(0, 2, n) if varying else np.ones(n))
    shared = offset + topic * g.standard_normal((n, d))
    positive = shared + g.standard_normal((n, d)) + amount[:, None] * direction
    negative = shared + g.standard_normal((n, d)) - amount[:, None] * direction
    return positive, negative, direction


def noise(seed, n, d):
    g = rng(seed)
    return g.standard_normal((n, d)), g.standard_normal((n, d))


def relabelled(positive, negative, seed):
    """All 2n items dealt out anew."""
    items = rng(seed).permutation(np.concatenate([positive, negative]))
    return items[: len(positive)], items[len(positive) :]


# --- singular vectors


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(2, 20), d=st.integers(2, 20), rank=st.integers(1, 5))
def test_svd_is_the_eigenbasis_of_the_gram_matrix(seed, n, d, rank):
    x = rng(seed).standard_normal((n, d)) + 0.5
    directions, shares = svd_directions(x, variance_share=1.0, max_rank=rank)
    k = min(rank, n, d)
    assert directions.shape == (k, d) and directions.dtype == shares.dtype == np.float32
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = values[::-1], vectors[:, ::-1]
    np.testing.assert_allclose(shares, values[:k] / values.sum(), atol=1e-5)
    np.testing.assert_allclose(directions @ directions.T, np.eye(k), atol=1e-5)
    gaps = -np.diff(values)
    for i in range(k):  # a vector is defined only as well as its eigenvalue is apart
        apart = min(gaps[max(i - 1, 0) : i + 1], default=np.inf)
        if apart > 1e-2 * values[0]:
            assert abs(directions[i] @ vectors[:, i]) > 0.9999


def test_svd_agrees_with_scikit_learn_and_does_not_centre():
    x = rng(0).standard_normal((40, 12)) * np.linspace(3, 0.5, 12) + 2.0
    directions, _ = svd_directions(x, variance_share=1.0, max_rank=3)
    other = TruncatedSVD(n_components=3, algorithm="arpack", random_state=0).fit(x).components_
    np.testing.assert_allclose(np.abs(np.sum(directions * other, axis=1)), 1.0, atol=1e-5)
    assert abs(directions[0] @ unit(np.ones(12))) > 0.9  # centring would have removed this


@pytest.mark.parametrize(
    ("share", "cap", "k"), [(0.5, 4, 1), (0.64, 4, 1), (0.65, 4, 2), (0.97, 4, 3), (0.97, 2, 2)]
)
def test_rank_is_the_fewest_that_explain_the_share_up_to_the_cap(share, cap, k):
    x = np.diag([8.0, 5.0, 3.0, np.sqrt(2.0)])  # squares 64, 25, 9, 2
    directions, shares = svd_directions(x, variance_share=share, max_rank=cap)
    np.testing.assert_allclose(shares, np.array([0.64, 0.25, 0.09, 0.02])[:k], atol=1e-6)
    np.testing.assert_allclose(directions, np.eye(4)[:k], atol=1e-6)


def test_rank_never_exceeds_that_of_the_data():
    x = np.outer(np.arange(1.0, 9.0), [3.0, 4.0])
    directions, shares = svd_directions(x, variance_share=1.0, max_rank=4)
    np.testing.assert_allclose(directions, [[0.6, 0.8]], atol=1e-6)
    np.testing.assert_allclose(shares, [1.0])


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_directions_turn_towards_orient_and_flip_with_it(seed):
    g = rng(seed)
    x, towards = g.standard_normal((10, 6)), g.standard_normal(6)
    there, _ = svd_directions(x, variance_share=1.0, max_rank=3, orient=towards)
    back, _ = svd_directions(x, variance_share=1.0, max_rank=3, orient=-towards)
    assert np.all(there @ towards > 0)
    np.testing.assert_array_equal(there, -back)


# --- simple directions


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(8, 15), d=st.integers(1, 6))
def test_mean_difference_is_the_plain_loop(seed, n, d):
    positive, negative = noise(seed, n, d)
    expected = [sum(positive[i][j] - negative[i][j] for i in range(n)) / n for j in range(d)]
    got = mean_difference(positive, negative)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(mean_difference(negative, positive), -got)


def test_probe_is_the_direction_of_the_class_means_on_isotropic_data():
    g = rng(0)
    shift = np.zeros(8)
    shift[2] = 2.0
    positive, negative = g.standard_normal((400, 8)) + shift, g.standard_normal((400, 8)) - shift
    probe = probe_direction(positive, negative)
    assert abs(np.linalg.norm(probe) - 1) < 1e-6
    assert probe @ unit(mean_difference(positive, negative)) > 0.99


def test_probe_weighs_noisy_dimensions_down_where_the_mean_difference_does_not():
    g = rng(1)
    sigma = np.array([10.0, 1.0])
    positive = g.standard_normal((600, 2)) * sigma + [4.0, 1.0]
    negative = g.standard_normal((600, 2)) * sigma - [4.0, 1.0]
    probe = probe_direction(positive, negative)
    # Fisher: the optimum is Sigma^-1 (mu_P - mu_N), proportional to (8 / 100, 2 / 1).
    assert probe @ unit(np.array([0.08, 2.0])) > 0.99
    assert unit(mean_difference(positive, negative))[0] > 0.9


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.sampled_from([1e-3, 0.5, 1.0, 1e4]))
def test_probe_does_not_depend_on_the_unit_and_flips_with_the_classes(seed, scale):
    positive, negative, _ = planted(seed, n=16, d=6)
    probe = probe_direction(positive, negative)
    scaled = probe_direction(positive * scale, negative * scale)
    assert probe @ scaled > 1 - 1e-4
    assert probe @ probe_direction(negative, positive) < -1 + 1e-4


# --- reliability


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(8, 14), d=st.integers(1, 6))
def test_reliability_is_the_plain_leave_one_out_loop(seed, n, d):
    positive, negative = noise(seed, n, d)
    differences = positive - negative
    cosines = []
    for i in range(n):
        others = np.mean([differences[j] for j in range(n) if j != i], axis=0)
        cosines.append(unit(differences[i]) @ unit(others))
    assert reliability(positive, negative) == pytest.approx(np.mean(cosines), abs=1e-9)


def test_reliability_is_one_for_identical_differences_and_zero_for_noise():
    negative = rng(0).standard_normal((20, 30))
    assert reliability(negative + np.arange(30), negative) == pytest.approx(1.0, abs=1e-9)
    assert abs(reliability(*noise(1, 200, 400))) < 0.02  # 1 / sqrt(200) = 0.07 with itself left in
    assert reliability(negative, negative) == 0.0


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_reliability_ignores_unit_offset_and_which_side_is_positive(seed, scale):
    positive, negative, _ = planted(seed, n=10, d=5)
    value = reliability(positive, negative)
    assert reliability(positive * scale, negative * scale) == pytest.approx(value, abs=1e-9)
    assert reliability(positive + 7, negative + 7) == pytest.approx(value, abs=1e-9)
    assert reliability(negative, positive) == pytest.approx(value, abs=1e-9)


# --- contrast-consistent search

probabilities = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20)


@given(pairs=probabilities)
def test_ccs_loss_is_the_formula_of_the_paper_and_symmetric(pairs):
    total = 0.0
    for p1, p0 in pairs:
        total += min(p0, p1) ** 2 + (p0 - (1 - p1)) ** 2
    p1, p0 = zip(*pairs, strict=True)
    assert math.isclose(ccs_loss(p1, p0), total / len(pairs), abs_tol=1e-12)
    # The reason why swapping labels within pairs is no control.
    assert math.isclose(ccs_loss(p0, p1), ccs_loss(p1, p0), abs_tol=1e-12)


def test_ccs_loss_at_landmarks():
    assert ccs_loss([1.0, 0.0], [0.0, 1.0]) == 0.0
    assert ccs_loss([1.0], [1.0]) == 2.0
    constants = [ccs_loss([p], [p]) for p in np.linspace(0, 1, 1001)]
    assert min(constants) == pytest.approx(0.2, abs=1e-9)  # the level `CCSProbe` quotes


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_the_gradient_written_by_hand_is_that_of_autograd(seed):
    positive, negative, _ = planted(seed, n=12, d=3, offset=0.0)
    theta = rng(seed).standard_normal((4, 4))  # four restarts: three weights and a bias each
    got = ccs._gradient(np.concatenate([positive, negative]), theta, 0.3)
    for row, gradient in zip(theta, got, strict=True):
        free = torch.tensor(row, requires_grad=True)
        p1 = torch.sigmoid(torch.tensor(positive) @ free[:-1] + free[-1])
        p0 = torch.sigmoid(torch.tensor(negative) @ free[:-1] + free[-1])
        loss = (torch.minimum(p0, p1) ** 2 + (p0 - (1 - p1)) ** 2).mean()
        (loss + 0.3 * (free[:-1] ** 2).sum()).backward()
        np.testing.assert_allclose(gradient, free.grad.numpy(), atol=1e-9)


def test_directions_bound_to_a_line_stay_on_it():
    positive, negative, _ = planted(0, n=40, d=5, offset=0.0)
    along = ccs._unit_rows(rng(0), 4, 5)
    weights, biases = ccs._minimise(positive, negative, along, 0.02, along=along)
    lengths = np.sum(weights * along, axis=1)
    np.testing.assert_allclose(weights, lengths[:, None] * along, atol=1e-9)
    assert np.all(np.abs(lengths - 1) > 1e-3) and np.all(biases != 0)  # scale and bias were fitted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("normalisation", "varying"), [("class", True), ("common", True), ("common", False)]
)
def test_ccs_recovers_a_planted_direction_and_beats_its_controls(seed, normalisation, varying):
    positive, negative, direction = planted(seed, n=240, d=24, varying=varying)
    probe = fit_ccs(positive, negative, normalisation=normalisation)
    assert abs(np.linalg.norm(probe.normal) - 1) < 1e-6 and probe.normal.dtype == np.float32
    assert probe.normal @ direction > 0.9
    assert probe.accuracy > 0.9
    assert probe.loss < 0.15 < 0.16 < probe.shuffled_loss
    assert probe.loss < probe.shuffled_loss - 0.03
    # The control is fitted anew: the probe of the true labels would be sure of itself, and at 0.7.
    assert probe.shuffled_loss < 0.3
    assert probe.loss < probe.random_loss


def test_class_means_take_a_constant_trait_away_and_a_common_mean_keeps_it():
    positive, negative, direction = planted(0, n=240, d=24, varying=False)
    by_class = fit_ccs(positive, negative, normalisation="class")
    common = fit_ccs(positive, negative, normalisation="common")
    assert by_class.loss > 0.15 and by_class.normal @ direction < 0.7
    assert common.loss < 0.05 and common.normal @ direction > 0.9


def test_true_labels_beat_shuffled_ones_in_loss_and_accuracy():
    positive, negative, _ = planted(5, n=240, d=24)
    true = fit_ccs(positive, negative)
    shuffled = [fit_ccs(*relabelled(positive, negative, seed)) for seed in range(6)]
    assert min(probe.loss for probe in shuffled) > true.loss + 0.03
    assert np.mean([probe.accuracy for probe in shuffled]) < 0.75 < 0.95 < true.accuracy


@pytest.mark.parametrize("normalisation", ["class", "common"])
def test_few_pairs_in_many_dimensions_of_noise_stay_near_chance(normalisation):
    probes = [fit_ccs(*noise(s, 32, 256), seed=s, normalisation=normalisation) for s in range(8)]
    assert 0.3 < np.mean([probe.accuracy for probe in probes]) < 0.7
    assert np.mean([probe.loss for probe in probes]) > 0.16


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_swapping_the_sides_turns_the_normal_round_and_nothing_else(seed):
    positive, negative, _ = planted(seed, n=40, d=8)
    there, back = fit_ccs(positive, negative), fit_ccs(negative, positive)
    assert there.normal @ back.normal < -1 + 1e-5
    assert back.loss == pytest.approx(there.loss, abs=1e-5)
    assert back.accuracy == there.accuracy


@settings(max_examples=6, deadline=None)
@given(seed=seeds, scale=st.sampled_from([1e-3, 0.25, 1.0, 1e4]), offset=st.floats(-5, 5))
def test_ccs_does_not_depend_on_unit_or_offset(seed, scale, offset):
    positive, negative, _ = planted(seed, n=40, d=8)
    plain = fit_ccs(positive, negative)
    moved = fit_ccs(scale * positive + offset * scale, scale * negative + offset * scale)
    assert plain.normal @ moved.normal > 1 - 1e-5
    for field in ("loss", "accuracy", "shuffled_loss", "random_loss"):
        assert getattr(moved, field) == pytest.approx(getattr(plain, field), abs=1e-4)


def test_the_fit_never_sees_the_held_out_pairs():
    positive, negative, _ = planted(0, n=40, d=8)
    held = np.random.default_rng([3, 0]).permutation(40)[:10]
    changed_p, changed_n = positive.copy(), negative.copy()
    changed_p[held], changed_n[held] = negative[held] * 9, positive[held] * 9
    before = fit_ccs(positive, negative, seed=3)
    after = fit_ccs(changed_p, changed_n, seed=3)
    np.testing.assert_array_equal(before.normal, after.normal)
    assert before.loss != after.loss and before.accuracy > 0.5 > after.accuracy


def test_two_runs_agree_and_another_seed_holds_out_other_pairs():
    positive, negative, _ = planted(2, n=40, d=32)
    first, second = fit_ccs(positive, negative), fit_ccs(positive, negative)
    np.testing.assert_allclose(first.normal, second.normal, atol=1e-6)
    for field in ("loss", "accuracy", "shuffled_loss", "random_loss"):
        assert abs(getattr(first, field) - getattr(second, field)) < 1e-6
    assert fit_ccs(positive, negative, seed=1).loss != first.loss


# --- all of it


def layers_of(seed, *, n=24, d=10, layers=(7, 2)):
    pairs = {layer: planted(seed + layer, n=n, d=d) for layer in layers}
    return {k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()}


def test_fit_subspace_collects_each_part():
    positive, negative = layers_of(0)
    fitted = fit_subspace("warm", positive, negative, variance_share=0.9, max_rank=3)
    assert (fitted.trait, fitted.pairs, tuple(fitted.layers)) == ("warm", 24, (2, 7))
    for layer, part in fitted.layers.items():
        p, q = positive[layer], negative[layer]
        theta, shares = svd_directions(
            p - q, variance_share=0.9, max_rank=3, orient=part.mean_difference
        )
        np.testing.assert_allclose(part.theta_p, theta, atol=1e-6)
        np.testing.assert_allclose(part.variance_share, shares, atol=1e-6)
        np.testing.assert_array_equal(part.mean_difference, mean_difference(p, q))
        np.testing.assert_array_equal(part.probe, probe_direction(p, q))
        np.testing.assert_array_equal(part.theta_n, fit_ccs(p, q).normal)
        assert part.reliability == reliability(p, q)
        assert part.theta_p[0] @ part.mean_difference > 0
    expected = np.mean([part.reliability for part in fitted.layers.values()])
    assert fitted.reliability == pytest.approx(expected)


def test_raw_positives_find_what_all_activations_share():
    positive, negative, direction = planted(0, n=60, d=20, offset=10.0)
    sides = {4: positive}, {4: negative}
    by_difference = fit_subspace("t", *sides).layers[4]
    raw = fit_subspace("t", *sides, source="positives").layers[4]
    common = unit((positive.mean(axis=0) + negative.mean(axis=0)) / 2)
    assert by_difference.theta_p[0] @ direction > 0.95
    assert abs(raw.theta_p[0] @ common) > 0.95 and abs(raw.theta_p[0] @ direction) < 0.5
    first = np.linalg.svd(positive)[2][0]
    for part in (by_difference, raw):
        assert part.common_cosine == pytest.approx(abs(first @ common), abs=1e-5)
    # Where nothing is shared, the first vector of the positives is the trait itself.
    free = planted(0, n=60, d=20, offset=0.0)
    assert fit_subspace("t", {0: free[0]}, {0: free[1]}).layers[0].common_cosine < 0.5


def test_swapping_the_poles_negates_every_direction():
    positive, negative = layers_of(3, layers=(1,))
    there = fit_subspace("t", positive, negative, max_rank=1).layers[1]
    back = fit_subspace("t", negative, positive, max_rank=1).layers[1]
    for name in ("mean_difference", "theta_p", "theta_n", "probe"):
        np.testing.assert_allclose(getattr(there, name), -getattr(back, name), atol=1e-4)


def test_results_are_float32_unit_vectors_that_cannot_be_changed():
    positive, negative = layers_of(0, layers=(0,))
    float32 = {0: positive[0].astype(np.float32)}, {0: negative[0].astype(np.float32)}
    part = fit_subspace("t", *float32).layers[0]
    for name in ("mean_difference", "theta_p", "variance_share", "theta_n", "probe"):
        array = getattr(part, name)
        assert array.dtype == np.float32 and not array.flags.writeable
    for vector in (*part.theta_p, part.theta_n, part.probe):
        assert abs(np.linalg.norm(vector) - 1) < 1e-6
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.reliability = 1.0


# --- layers


def brute_force_jump(losses):
    ranked = sorted(losses.items(), key=lambda item: (item[1], item[0]))
    best, keep = -math.inf, 1
    for k in range(1, len(ranked)):
        before = math.fsum(loss for _, loss in ranked[:k]) / k
        after = math.fsum(loss for _, loss in ranked[: k + 1]) / (k + 1)
        if after - before > best + 1e-12:
            best, keep = after - before, k
    return tuple(sorted(layer for layer, _ in ranked[:keep]))


@settings(max_examples=200)
@given(losses=st.dictionaries(st.integers(0, 40), st.integers(0, 50), min_size=1, max_size=12))
def test_jump_is_the_brute_force_search(losses):
    # Sixty-fourths are exact floats: a tie of the hand calculation is a tie of the numbers.
    losses = {layer: loss / 64 for layer, loss in losses.items()}
    assert choose_layers(losses) == brute_force_jump(losses)


def test_jump_by_hand_and_with_equal_losses():
    # Sorted 0.10 0.12 0.14 0.50 0.60, running means 0.10 0.11 0.12 0.215 0.292: after the third.
    assert choose_layers({3: 0.5, 9: 0.12, 5: 0.1, 1: 0.6, 7: 0.14}) == (5, 7, 9)
    assert choose_layers({4: 0.1, 2: 0.1, 3: 0.1}) == (2,)
    assert choose_layers({6: 0.3}) == (6,)


@settings(max_examples=60)
@given(
    values=st.dictionaries(st.integers(0, 30), st.integers(-3, 3), min_size=1, max_size=8),
    data=st.data(),
)
def test_lowest_and_gain_are_the_best_sets_of_their_size(values, data):
    count = data.draw(st.integers(1, len(values)))
    total = {
        chosen: sum(values[layer] for layer in chosen)
        for chosen in itertools.combinations(sorted(values), count)
    }
    # Combinations come in lexical order, and of equal sets the one of the lowest layers wins.
    assert choose_layers(values, rule="ccs-lowest", count=count) == min(total, key=total.get)
    assert choose_layers(values, rule="gain", count=count) == max(total, key=total.get)


# --- refusals

good = noise(0, 10, 4)


def with_value(value):
    bad = good[0].copy()
    bad[3, 2] = value
    return bad


@pytest.mark.parametrize("function", [mean_difference, probe_direction, reliability, fit_ccs])
@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (good[0], good[1][:9], r"one shape \(n, d\), got \(10, 4\) and \(9, 4\)"),
        (good[0][:7], good[1][:7], "at least 8 pairs, got 7; make more"),
        (good[0][0], good[1][0], r"shape \(n, d\), got shape \(4,\)"),
        (good[0][:, :0], good[1][:, :0], r"got shape \(10, 0\)"),
        (with_value(np.nan), good[1], "positive: expected finite numbers, got 1 NaN"),
        (good[0], with_value(np.inf), "negative: expected finite numbers, got 1 NaN or infinite"),
        ([["a"] * 4] * 10, good[1], "positive: expected an array of numbers, got list"),
    ],
)
def test_bad_pairs_are_refused(function, positive, negative, message):
    with pytest.raises(InputError, match=message):
        function(positive, negative)


@pytest.mark.parametrize(
    ("positive", "negative", "options", "message"),
    [
        ({1: good[0]}, {2: good[1]}, {}, r"same layers on both sides, got \[1\] .* \[2\]"),
        ({}, {}, {}, "positive: expected a mapping .* got dict without entries"),
        (good[0], {1: good[1]}, {}, "positive: expected a mapping .* got ndarray"),
        ({-1: good[0]}, {-1: good[1]}, {}, "layer indices >= 0, got -1"),
        ({3: good[0]}, {3: good[1][:8]}, {}, "layer 3: expected positive and negative of one"),
        ({0: good[0], 1: good[0][:9]}, {0: good[1], 1: good[1][:9]}, {}, "layer 1: expected 10"),
        ({0: good[0]}, {0: good[0]}, {}, "layer 0: expected activations with some variation"),
        ({0: good[0]}, {0: good[1]}, {"source": "sums"}, "source to be one of differences"),
        ({0: good[0]}, {0: good[1]}, {"variance_share": 0.0}, r"variance_share in \(0, 1\]"),
        ({0: good[0]}, {0: good[1]}, {"max_rank": 0}, "max_rank to be a whole number >= 1"),
        ({0: good[0]}, {0: good[1]}, {"normalisation": "z"}, "normalisation to be one of class"),
    ],
)
def test_fit_subspace_refuses(positive, negative, options, message):
    with pytest.raises(InputError, match=message):
        fit_subspace("t", positive, negative, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: expected a whole number >= 0 and below .*, got -1"),
        ({"restarts": 0}, "restarts to be a whole number >= 1"),
        ({"components": 1.5}, "components to be a whole number >= 1, got 1.5"),
        ({"weight_decay": -1.0}, "weight_decay >= 0"),
        ({"held_out": 1.0}, r"held_out in \(0, 1\)"),
    ],
)
def test_fit_ccs_refuses(options, message):
    with pytest.raises(InputError, match=message):
        fit_ccs(*good, **options)


def test_activations_that_do_not_vary_are_refused():
    flat = np.full((10, 4), 0.1)
    with pytest.raises(InputError, match="vary from pair to pair"):
        fit_ccs(flat + 1, flat)
    with pytest.raises(InputError, match="two classes with different activations"):
        probe_direction(flat, flat)
    with pytest.raises(InputError, match="only zeros"):
        svd_directions(np.zeros((3, 2)), variance_share=0.5, max_rank=1)
    with pytest.raises(InputError, match=r"orient: expected shape \(2,\), got \(3,\)"):
        svd_directions(np.eye(2), variance_share=0.5, max_rank=1, orient=np.ones(3))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {}, "at least one layer"),
        ({1: math.nan}, {}, "layer 1: expected a finite value, got nan"),
        ({1: 0.1}, {"count": 1}, "no count with rule 'ccs-jump'"),
        ({1: 0.1}, {"rule": "gain"}, "a count with rule 'gain', got None"),
        ({1: 0.1}, {"rule": "ccs-lowest", "count": 2}, "count <= 1, the layers given, got 2"),
        ({1: 0.1}, {"rule": "ccs-lowest", "count": 0}, "count to be a whole number >= 1, got 0"),
        ({1: 0.1}, {"rule": "best"}, "rule to be one of ccs-jump, ccs-lowest, gain"),
    ],
)
def test_choose_layers_refuses(values, options, message):
    with pytest.raises(InputError, match=message):
        choose_layers(values, **options)


def test_every_option_is_keyword_only():
    for function in (fit_subspace, svd_directions, fit_ccs, choose_layers):
        for parameter in inspect.signature(function).parameters.values():
            has_default = parameter.default is not inspect.Parameter.empty
            assert not has_default or parameter.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(("share", "held"), [(0.01, 2), (0.5, 4), (0.99, 4)])
def test_at_least_two_pairs_are_held_out_and_four_are_left(share, held):
    positive, negative, _ = planted(0, n=8, d=6)
    before = fit_ccs(positive, negative, seed=3, held_out=share).normal
    order = np.random.default_rng([3, 0]).permutation(8)
    for place, pair in enumerate(order):
        changed = positive.copy()
        changed[pair] *= 3
        after = fit_ccs(changed, negative, seed=3, held_out=share).normal
        assert np.array_equal(before, after) == (place < held)


def test_components_are_at_most_a_third_of_the_training_pairs():
    positive, negative = noise(0, 32, 64)  # 24 pairs are left for training
    third = fit_ccs(positive, negative, components=8)
    for components in (9, 16, 1000):
        more = fit_ccs(positive, negative, components=components)
        np.testing.assert_array_equal(more.normal, third.normal)
    assert abs(fit_ccs(positive, negative, components=7).normal @ third.normal) < 0.9999


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_of_several_restarts_the_one_of_the_lowest_loss_wins(seed):
    positive, negative, _ = planted(seed, n=12, d=3, offset=0.0)
    weights, biases = rng(seed).standard_normal((5, 3)), rng(seed + 1).standard_normal(5)
    losses = [
        ccs_loss(1 / (1 + np.exp(-positive @ w - b)), 1 / (1 + np.exp(-negative @ w - b)))
        for w, b in zip(weights, biases, strict=True)
    ]
    w, b = ccs._best(positive, negative, weights, biases)
    np.testing.assert_array_equal(w, weights[np.argmin(losses)])
    assert b == biases[np.argmin(losses)]


def test_the_seed_reaches_the_fit_of_every_layer():
    positive, negative = layers_of(0)
    for seed in (0, 3):
        fitted = fit_subspace("t", positive, negative, seed=seed)
        for layer, part in fitted.layers.items():
            expected = fit_ccs(positive[layer], negative[layer], seed=seed)
            np.testing.assert_array_equal(part.theta_n, expected.normal)
            assert dataclasses.astuple(part.ccs)[1:] == dataclasses.astuple(expected)[1:]


def test_half_an_ulp_does_not_cost_another_direction():
    # Ten equal shares: 0.1 ten times is 0.9999999999999999 in floats.
    for kept in range(1, 11):
        directions, _ = svd_directions(np.eye(10), variance_share=kept / 10, max_rank=10)
        assert len(directions) == kept


def test_the_control_shuffles_training_and_held_out_items_apart(monkeypatch):
    positive, negative, _ = planted(0, n=40, d=8)
    order = np.random.default_rng([3, 0]).permutation(40)
    shuffle, met = ccs._shuffle_labels, []

    def watched(one, other, generator):
        mixed = shuffle(one, other, generator)
        met.append((np.concatenate([one, other]), np.concatenate(mixed), len(one)))
        return mixed

    monkeypatch.setattr(ccs, "_shuffle_labels", watched)
    fit_ccs(positive, negative, seed=3)
    for (before, after, number), part in zip(met, (order[10:], order[:10]), strict=True):
        items = np.concatenate([positive[part], negative[part]])
        np.testing.assert_array_equal(before, items)
        np.testing.assert_array_equal(np.sort(after, axis=0), np.sort(items, axis=0))
        sides = [(row == positive[part]).all(1).any() for row in after]
        pairs = list(zip(sides[:number], sides[number:], strict=True))
        # Neither as they were nor swapped within pairs: two items of one side come together.
        assert any(one == other for one, other in pairs)
