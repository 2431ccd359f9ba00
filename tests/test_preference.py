"""`steer.preference`: two faces of what a person prefers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steer.bundle import Bundle
from steer.errors import DataError, InputError, WeightsError
from steer.posterior import Posterior
from steer.preference import Preference
from steer.questions import Answered, Question, questions_of
from steer.resources import default_bundle_path

POLES = {"brevity": "brief", "warmth": "warm", "humor": "funny", "safety": "careful"}


def a_preference(*concentration: float) -> Preference:
    return Preference(POLES, Posterior.prior(concentration or np.ones(4)))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(default_bundle_path())


def test_what_is_preferred_gains_weight() -> None:
    warm, brief = np.array([0.1, 0.9, 0.4, 0.4]), np.array([0.9, 0.1, 0.4, 0.4])
    before = a_preference()
    after = before.choose(warm, brief)
    assert after.weights["warmth"] > before.weights["warmth"] > after.weights["brevity"]
    assert sum(after.weights.values()) == pytest.approx(1)
    low, high = after.interval()["warmth"]
    assert low < after.weights["warmth"] < high
    question = Question("?", "warm", "brief", warm - brief)
    assert before.answered(question, first=True).weights == after.weights
    assert before.answered(question, first=False).weights == before.choose(brief, warm).weights


def test_weaker_signals_count_less() -> None:
    better, worse = np.array([0.1, 0.9, 0.4, 0.4]), np.full(4, 0.4)
    start = a_preference()
    chosen = start.choose(better, worse).weights["warmth"]
    for weaker in (start.thumb(better, worse, up=True), start.corrected(worse, better)):
        assert start.weights["warmth"] < weaker.weights["warmth"] < chosen
    assert start.thumb(better, worse, up=False).weights["warmth"] < start.weights["warmth"]


def test_later_what_was_said_counts_less() -> None:
    said = a_preference().choose(np.array([0.0, 1.0, 0.5, 0.5]), np.array([1.0, 0.0, 0.5, 0.5]))
    later = said.later(0.3)
    even = a_preference().weights["warmth"]
    assert even < later.weights["warmth"] < said.weights["warmth"]


@pytest.mark.parametrize(
    ("concentration", "summary"),
    [
        ((1, 1, 1, 1), "I like answers that are {all}, all about as much."),
        (
            (500, 1, 1, 1),
            "I like answers that are above all brief. Whether they are {rest} matters little.",
        ),
        (
            (500, 500, 250, 1),
            "I like answers that are above all {two}, and also funny. Whether they are careful "
            "matters little.",
        ),
    ],
)
def test_the_summary_says_what_the_weights_say(concentration, summary: str) -> None:
    preference = a_preference(*concentration)
    found = preference.summary
    for word in POLES.values():
        assert found.count(word) == 1
    pattern = summary
    ranked = [POLES[n] for n in sorted(POLES, key=lambda name: -preference.weights[name])]
    pattern = pattern.replace("{all}", f"{', '.join(ranked[:3])} and {ranked[3]}")
    pattern = pattern.replace("{rest}", f"{', '.join(ranked[1:3])} or {ranked[3]}")
    pattern = pattern.replace("{two}", f"{ranked[0]} and {ranked[1]}")
    assert found == pattern


def test_messages_for_any_model() -> None:
    preference = a_preference(500, 1, 1, 1)
    system, user = preference.messages("Why is the sky blue?")
    assert system == {"role": "system", "content": preference.summary}
    assert user == {"role": "user", "content": "Why is the sky blue?"}


def test_of_a_bundle(bundle: Bundle) -> None:
    portfolio = bundle.portfolio
    assert portfolio is not None
    preference = Preference.of(bundle)
    assert preference.traits == portfolio.traits
    assert preference.poles["brevity"] == "brief"
    told = Preference.of(bundle, {"warmth": 3, "brevity": 1}, worth=40)
    assert told.weights["warmth"] > 2 * told.weights["brevity"] > told.weights["formality"]
    unrouted = next(name for name in bundle.traits if name not in portfolio.traits)
    sliders = {"warmth": 3, "brevity": 1, unrouted: 0}
    assert Preference.of(bundle, sliders, worth=40).weights == told.weights
    for wrong in ({"zest": 1}, {"warmth": 1, "zest": 0}):
        with pytest.raises(WeightsError, match="zest"):
            Preference.of(bundle, wrong)
    with pytest.raises(WeightsError, match=unrouted):
        Preference.of(bundle, {unrouted: 1})
    for worth in (-1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="worth"):
            Preference.of(bundle, {"warmth": 1}, worth=worth)


def test_a_trait_without_names_for_its_poles_is_told_by_its_own(
    tmp_path: Path, bundle: Bundle
) -> None:
    """In a bundle of before, which calls them positive and negative."""
    calm = replace(bundle.traits["warmth"], name="calm", positive="positive", negative="negative")
    mine = replace(bundle, portfolio=None, interference=None, traits={"calm": calm})
    mine.save(tmp_path / "mine.safetensors")
    loaded = Bundle.load(tmp_path / "mine.safetensors")
    assert (loaded.traits["calm"].positive, loaded.traits["calm"].negative) == ("calm", "not calm")
    assert Preference.of(loaded).summary == "I like answers that are calm."


def test_a_bundle_without_a_portfolio_gives_all_its_traits(bundle: Bundle) -> None:
    preference = Preference.of(replace(bundle, portfolio=None))
    assert preference.traits == tuple(bundle.traits)


def test_it_is_kept_without_any_text(tmp_path: Path, bundle: Bundle) -> None:
    assert bundle.portfolio is not None
    preference = Preference.of(bundle, {"warmth": 1}, seed=3)
    asked = questions_of(bundle.portfolio.answered)
    for question in asked[:5]:
        preference = preference.answered(question, first=True)
    path = tmp_path / "me.json"
    preference.save(path)
    assert asked[0].prompt not in path.read_text() and asked[0].first not in path.read_text()
    loaded = Preference.load(path)
    assert loaded.poles == preference.poles
    assert loaded.weights == preference.weights
    np.testing.assert_array_equal(loaded.posterior.differences, preference.posterior.differences)


def change(key: str, value: object):
    return lambda content: {**content, key: value}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda content: [], "preference"),
        (change("format", 9), "format 1"),
        (change("poles", {"a": "b"}), "1 traits for weights of 4"),
        (change("differences", 1), "lists"),
        (change("differences", [[1.0]]), "1 reward differences and 0|finite"),
        (change("differences", [[1.0] * 4, [1.0]]), "4 reward differences in each"),
        (change("exponents", [1.0]), "0 reward differences and 1"),
        (
            lambda content: {**content, "differences": [[1.0] * 4], "exponents": [1e308]},
            "at most 1",
        ),
        (change("concentration", ["x"]), "concentration"),
        (change("slope", -1), "slope"),
        (change("particles", 10**13), "to 1000000, got 10000000000000"),
        (change("more", 1), "more"),
        (lambda content: {k: v for k, v in content.items() if k != "seed"}, "seed"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, wrong, match: str) -> None:
    path = tmp_path / "me.json"
    a_preference().save(path)
    path.write_text(json.dumps(wrong(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=match):
        Preference.load(path)
    for damaged in ("{", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(DataError, match="me.json"):
            Preference.load(path)
    with pytest.raises(DataError, match="nowhere"):
        Preference.load(tmp_path / "nowhere.json")


def test_rewards_that_are_refused() -> None:
    with pytest.raises(InputError, match="4 traits"):
        a_preference().choose([0.1, 0.2], [0.2, 0.1])
    with pytest.raises(InputError, match="1 traits for weights of 4"):
        Preference({"brevity": "brief"}, Posterior.prior(np.ones(4)))


def test_questions_are_every_two_different_answers() -> None:
    rewards = np.array([[0.1, 0.5], [0.1, 0.5], [0.9, 0.2]])
    asked = questions_of([Answered("Why?", ("a", "b", "c"), rewards)])
    assert [(one.first, one.second) for one in asked] == [("a", "c"), ("b", "c")]
    np.testing.assert_allclose(asked[0].difference, [-0.8, 0.3])
    np.testing.assert_allclose(asked[0].preferred(False), [0.8, -0.3])


@pytest.mark.parametrize(
    "rewards", [np.zeros((2, 2)), np.zeros(3), np.full((3, 2), 1.5), np.full((3, 2), np.nan)]
)
def test_answers_that_do_not_fit(rewards: np.ndarray) -> None:
    with pytest.raises(InputError, match="answers"):
        Answered("Why?", ("a", "b", "c"), rewards)
