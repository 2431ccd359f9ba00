"""`steer.edits`: edits are values with arithmetic; what each does is checked on activations."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer.edits import ZERO, Edit, LayerEdit, additive, compose, two_step
from steer.errors import InputError

D = 5


def layer_edit(rng, k, d=D):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return LayerEdit(draw(d), draw(d, k), draw(d, k), draw(k), rng.random(k) < 0.5)


@st.composite
def edits(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks = draw(st.dictionaries(st.integers(0, 4), st.integers(0, 3), max_size=4))
    return Edit({layer: layer_edit(rng, k) for layer, k in ranks.items()})


factors = st.floats(-4, 4, width=32)
X = np.random.default_rng(99).standard_normal((7, D)).astype(np.float32)


def change(edit, layer, x=X):
    """What an edit adds to x at a layer, by plain loops; zero where it has no such layer."""
    part = edit.layers.get(layer)
    result = np.zeros(x.shape)
    if part is None:
        return result
    for n, row in enumerate(x.astype(np.float64)):
        result[n] += part.e
        for j in range(part.rank):
            projection = float(np.dot(part.v[:, j], row))
            if part.relu[j]:
                projection = max(projection, 0.0)
            result[n] += part.c[j] * projection * part.u[:, j]
    return result


def assert_same_change(actual, wanted_by_layer):
    for layer in range(5):
        np.testing.assert_allclose(
            change(actual, layer), wanted_by_layer(layer), atol=2e-3, rtol=1e-3
        )


@given(edits(), edits())
def test_a_sum_adds_the_changes(a, b):
    total = a + b
    assert set(total.layers) == set(a.layers) | set(b.layers)
    assert_same_change(total, lambda layer: change(a, layer) + change(b, layer))
    assert_same_change(b + a, lambda layer: change(a, layer) + change(b, layer))


@given(edits(), factors)
def test_a_factor_scales_the_change(a, factor):
    for scaled in (factor * a, a * factor):
        assert_same_change(scaled, lambda layer: factor * change(a, layer))


@given(edits())
def test_negation_and_difference(a):
    assert_same_change(-a, lambda layer: -change(a, layer))
    assert_same_change(a - a, lambda layer: np.zeros_like(X))
    assert_same_change(a - ZERO, lambda layer: change(a, layer))


@given(edits(), edits(), factors)
def test_scaling_distributes_over_a_sum(a, b, factor):
    split = factor * a + factor * b
    assert_same_change(factor * (a + b), lambda layer: change(split, layer))


@given(st.lists(st.tuples(edits(), factors), max_size=4))
def test_compose_is_the_weighted_sum(terms):
    composed = compose([edit for edit, _ in terms], [weight for _, weight in terms])
    zero = np.zeros_like(X, dtype=np.float64)
    assert_same_change(
        composed, lambda layer: sum((w * change(edit, layer) for edit, w in terms), zero)
    )


def test_compose_leaves_terms_of_weight_zero_out():
    a, b = additive({0: np.ones(D)}), two_step({1: np.ones(D)}, {1: np.arange(D)})
    assert set(compose([a, b], [1.0, 0.0]).layers) == {0}
    assert compose([a, b], [0.0, 0.0]).is_zero()


@given(edits(), edits())
def test_operands_are_not_changed(a, b):
    before = [change(edit, layer) for edit in (a, b) for layer in range(5)]
    _ = a + b, 2 * a, -a, a - b
    after = [change(edit, layer) for edit in (a, b) for layer in range(5)]
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


@given(edits())
def test_apply_adds_the_change(a):
    for layer, part in a.layers.items():
        np.testing.assert_allclose(part.apply(X), X + change(a, layer), atol=1e-4, rtol=1e-4)


@given(edits())
def test_is_zero_means_nothing_changes(a):
    assert (0.0 * a).is_zero()
    assert a.is_zero() == (not any(change(a, layer).any() for layer in range(5)))


def test_zero_by_its_parts():
    rng = np.random.default_rng(0)
    full = layer_edit(rng, 2)
    nothing = dataclasses.replace(full, e=np.zeros(D, np.float32), c=np.zeros(2, np.float32))
    assert Edit({0: nothing}).is_zero()
    assert not Edit({0: dataclasses.replace(nothing, e=full.e)}).is_zero()
    assert not Edit({0: nothing, 3: full}).is_zero()
    assert ZERO.is_zero()


def test_layers_are_in_order_and_read_only():
    edit = additive({3: np.ones(D), 0: np.ones(D)})
    assert list(edit.layers) == [0, 3]
    with pytest.raises(TypeError):
        edit.layers[1] = edit.layers[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.layers = {}


def test_arrays_are_read_only_copies():
    given = {name: np.array(array) for name, array in FITTING.items()}
    layer = LayerEdit(**given)
    digest = Edit({0: layer}).digest
    for name, array in given.items():
        with pytest.raises(ValueError, match="read-only"):
            getattr(layer, name)[...] = 0
        array[...] = 0  # the caller's own is the caller's own
    assert Edit({0: layer}).digest == digest


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_read_only_too(copied):
    edit = Edit({2: LayerEdit(**FITTING)})
    other = copied(edit)
    assert other.digest == edit.digest
    with pytest.raises(TypeError):
        other.layers[1] = other.layers[2]
    for name in FITTING:
        with pytest.raises(ValueError, match="read-only"):
            getattr(other.layers[2], name)[...] = 0


def test_an_edit_is_told_by_its_sizes():
    layer = LayerEdit(**FITTING)
    sizes = f"width={layer.width}, ranks={{2: {layer.rank}, 5: {layer.rank}}}"
    assert repr(Edit({2: layer, 5: layer})) == f"Edit({sizes})"
    assert repr(layer) == f"LayerEdit(width={layer.width}, rank={layer.rank})"
    assert repr(ZERO) == "Edit(width=None, ranks={})"


@given(edits())
def test_rank_is_the_largest(a):
    assert a.rank == max([layer.v.shape[1] for layer in a.layers.values()], default=0)


# --- The two-step edit ---------------------------------------------------------------------------


def unit(vector):
    return vector / np.sqrt(sum(x * x for x in vector))


directions = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).standard_normal((2, D))
)
amounts = st.floats(-3, 3)


@given(directions, amounts, amounts)
def test_plain_two_step_is_step_one_then_step_two(vectors, alpha, beta):
    p, n = map(unit, vectors)
    edit = two_step({2: vectors[0]}, {2: vectors[1]}, alpha=alpha, beta=beta)
    for x in X.astype(np.float64):
        first = x + alpha * np.dot(x, p) * p
        second = first - beta * np.dot(first, n) * n
        np.testing.assert_allclose(edit.layers[2].apply(x), second, atol=1e-3, rtol=1e-3)


@given(directions, amounts, amounts)
def test_sign_safe_form(vectors, alpha, beta):
    p, n = map(unit, vectors)
    edit = two_step({2: vectors[0]}, {2: vectors[1]}, alpha=alpha, beta=beta, sign_safe=True)
    for x in X.astype(np.float64):
        wanted = x + alpha * max(np.dot(x, p), 0) * p - beta * max(np.dot(x, n), 0) * n
        np.testing.assert_allclose(edit.layers[2].apply(x), wanted, atol=1e-3, rtol=1e-3)


@given(directions)
def test_sign_safe_never_amplifies_the_wrong_way(vectors):
    p, n = map(unit, vectors)
    n = unit(n - np.dot(n, p) * p)  # apart, so that each component shows one step
    edit = two_step({0: p}, {0: n}, alpha=2.0, beta=1.0, sign_safe=True).layers[0]
    after = edit.apply(X)
    assert (after @ p >= X @ p - 1e-4).all()
    assert (after @ n <= X @ n + 1e-4).all()
    against = X[X @ p < 0]
    np.testing.assert_allclose(edit.apply(against) @ p, against @ p, atol=1e-4)


@given(directions)
def test_beta_one_removes_all_of_the_negative_direction(vectors):
    edit = two_step({0: vectors[0]}, {0: vectors[1]}, alpha=2.0, beta=1.0).layers[0]
    np.testing.assert_allclose(edit.apply(X) @ unit(vectors[1]), 0, atol=1e-3)


def test_length_of_the_directions_does_not_matter():
    rng = np.random.default_rng(0)
    p, n = rng.standard_normal((2, D))
    a, b = two_step({0: p}, {0: n}), two_step({0: 7 * p}, {0: 0.1 * n})
    np.testing.assert_allclose(a.layers[0].apply(X), b.layers[0].apply(X), atol=1e-4)


# --- What is refused -----------------------------------------------------------------------------


def ones(*shape):
    return np.ones(shape, np.float32)


FITTING = {"e": ones(D), "v": ones(D, 2), "u": ones(D, 2), "c": ones(2), "relu": np.ones(2, bool)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"e": ones(D + 1)},
        {"e": ones(D, 1)},
        {"v": ones(D)},
        {"v": ones(2, D)},
        {"u": ones(D, 3)},
        {"c": ones(3)},
        {"c": ones(2, 1)},
        {"relu": np.ones(1, bool)},
    ],
)
def test_shapes_that_do_not_fit(wrong):
    LayerEdit(**FITTING)
    with pytest.raises(InputError, match="shapes"):
        LayerEdit(**{**FITTING, **wrong})


@pytest.mark.parametrize("part", ["e", "v", "u", "c"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(part, value):
    broken = FITTING[part].copy()
    broken.flat[-1] = value
    with pytest.raises(InputError, match="finite"):
        LayerEdit(**{**FITTING, part: broken})


@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf])
def test_factors_that_are_not_finite(factor):
    with pytest.raises(InputError, match="finite"):
        factor * additive({0: ones(D)})


def test_other_errors():
    with pytest.raises(InputError, match="-1"):
        additive({-1: ones(D)})
    with pytest.raises(InputError, match="width"):
        additive({0: ones(D), 1: ones(D + 1)})
    with pytest.raises(InputError, match=r"5.*6"):
        additive({0: ones(D)}) + additive({0: ones(D + 1)})
    with pytest.raises(InputError, match="same width"):
        additive({0: ones(D)}) + additive({1: ones(D + 1)})
    with pytest.raises(InputError, match="same layers"):
        two_step({0: ones(D)}, {1: ones(D)})
    with pytest.raises(InputError, match="zero vector"):
        two_step({0: ones(D)}, {0: 0 * ones(D)})
    with pytest.raises(InputError, match=r"1 edits and 2 weights"):
        compose([ZERO], [1.0, 2.0])


@given(edits(), factors)
def test_equal_edits_have_one_digest(edit, factor):
    assert (factor * edit).digest == (factor * Edit(dict(edit.layers))).digest
    assert (0.0 * edit).digest == ZERO.digest
    assert (edit + 0.0 * additive({7: X[0]})).digest == edit.digest


def test_what_an_edit_does_tells_its_digest_from_others():
    p, n = {1: X[0], 2: X[1]}, {1: X[2], 2: X[3]}
    plain, sign_safe = two_step(p, n, beta=0.0), two_step(p, n, beta=0.0, sign_safe=True)
    # Additive parts and what is written are alike: only phi differs.
    for layer in p:
        np.testing.assert_allclose(
            plain.layers[layer].u * plain.layers[layer].c,
            sign_safe.layers[layer].u * sign_safe.layers[layer].c,
            atol=1e-6,
        )
    swapped = {
        layer: dataclasses.replace(one, v=one.v[:, ::-1]) for layer, one in plain.layers.items()
    }
    every = [plain, sign_safe, Edit(swapped), 2.0 * plain, -plain, additive(p), additive(n)]
    every += [additive({2: X[0], 3: X[1]}), additive({1: X[0]}), ZERO]
    assert len({edit.digest for edit in every}) == len(every)
