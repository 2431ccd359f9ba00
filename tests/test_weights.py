"""`steer.weights`: what a user asks for, scaled to sum to one, or refused with a reason."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from steer.errors import InputError, WeightsError
from steer.weights import check_strength, doses, normalise_weights

KNOWN = ["warmth", "brevity", "humor", "safety"]

numbers = st.one_of(
    st.integers(0, 10**6),
    st.floats(0, allow_nan=False, allow_infinity=False),
    st.floats(0, 100, width=32).map(np.float32),
)
mappings = st.dictionaries(st.sampled_from(KNOWN), numbers, min_size=1).filter(
    lambda weights: any(weight > 0 for weight in weights.values())
)


@given(mappings)
def test_weights_are_shares_of_the_exact_sum(weights):
    result = normalise_weights(weights, KNOWN)
    total = sum(Fraction(float(weight)) for weight in weights.values())
    assert list(result) == sorted(name for name, weight in weights.items() if weight > 0)
    for name, share in result.items():
        assert type(share) is float
        assert share == pytest.approx(float(Fraction(float(weights[name])) / total), rel=1e-12)
    assert math.fsum(result.values()) == pytest.approx(1, abs=1e-12)


@given(mappings)
def test_doses_point_where_the_weights_do_and_have_length_one(weights):
    shares = normalise_weights(weights, KNOWN)
    result = doses(shares)
    assert sum(Fraction(dose) ** 2 for dose in result.values()) == pytest.approx(1, rel=1e-12)
    scale = max(shares.values()) / max(result.values())
    assert {name: dose * scale for name, dose in result.items()} == pytest.approx(shares, rel=1e-12)


@given(mappings)
def test_normalising_again_changes_nothing(weights):
    once = normalise_weights(weights, KNOWN)
    assert normalise_weights(once, KNOWN) == pytest.approx(once, rel=1e-12)


@given(mappings, st.floats(1e-6, 1e6))
def test_only_proportions_count(weights, factor):
    weights = {name: float(weight) for name, weight in weights.items()}
    assume(all(1e-200 < weight < 1e200 for weight in weights.values() if weight))
    scaled = {name: factor * weight for name, weight in weights.items()}
    expected = normalise_weights(weights, KNOWN)
    assert normalise_weights(scaled, KNOWN) == pytest.approx(expected, rel=1e-9)


@given(mappings)
def test_order_and_zeros_do_not_count(weights):
    backwards = dict(reversed([*weights.items()]))
    without_zeros = {name: weight for name, weight in weights.items() if weight > 0}
    result = normalise_weights(weights, KNOWN)
    assert list(normalise_weights(backwards, KNOWN).items()) == list(result.items())
    assert normalise_weights(without_zeros, KNOWN) == result


def test_the_extremes_of_floats():
    tiny, huge = 5e-324, 1.7e308
    assert normalise_weights({"humor": tiny}, KNOWN) == {"humor": 1.0}
    halves = {"humor": 0.5, "warmth": 0.5}
    assert normalise_weights({"humor": huge, "warmth": huge}, KNOWN) == halves
    assert normalise_weights({"humor": tiny, "warmth": tiny}, KNOWN) == halves


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"warm": 1.0}, "'warm'"),
        ({"warmth": -0.5}, "-0.5"),
        ({"warmth": float("nan")}, "nan"),
        ({"warmth": float("inf"), "humor": 1.0}, "inf"),
        ({"warmth": "1"}, "'1'"),
        ({"warmth": None}, "None"),
        ({"warmth": True}, "True"),
        ({"warmth": 10**400}, "over 300 digits"),
        ({"warmth": "1" * 1000}, "'1111"),
        ({"warmth": 1j}, "1j"),
        ({"warmth": 0, "humor": 0.0}, "all weights are zero"),
        ({}, "all weights are zero"),
        ([("warmth", 1.0)], "mapping"),
        ("warmth", "mapping"),
        (1.0, "mapping"),
    ],
)
def test_what_is_refused(weights, says):
    with pytest.raises(WeightsError) as error:
        normalise_weights(weights, KNOWN)
    assert says in str(error.value)
    assert isinstance(error.value, InputError)


@pytest.mark.parametrize("weights", [{"warm": 1.0}, {"warmth": -1}, {}, "warmth"])
def test_refusals_name_the_known_traits(weights):
    with pytest.raises(WeightsError) as error:
        normalise_weights(weights, KNOWN)
    assert all(name in str(error.value) for name in KNOWN)


def test_refusals_are_short():
    for weights in ({"warmth": "1" * 1000}, [1.0] * 1000):
        with pytest.raises(WeightsError) as error:
            normalise_weights(weights, KNOWN)
        assert len(str(error.value)) < 300


@given(numbers)
def test_strengths_that_are_accepted(strength):
    result = check_strength(strength)
    assert type(result) is float
    assert result == float(strength)


@pytest.mark.parametrize(
    "strength", [-0.1, float("nan"), float("inf"), "1", None, True, [1.0], 10**400]
)
def test_strengths_that_are_refused(strength):
    with pytest.raises(WeightsError, match="strength"):
        check_strength(strength)
