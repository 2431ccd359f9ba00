"""`steer.wishes`: what people's words ask for."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import steer
from steer.errors import DataError, InputError
from steer.resources import data_dir
from steer.wishes import _load, clauses, features, read_wishes, weights_from_words

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from fit_wishes import examples


@pytest.mark.parametrize(
    ("text", "traits"),
    [
        ("Please keep it short.", {"brevity"}),
        ("Short and kind, please.", {"brevity", "warmth"}),
        ("Don't be formal, be funny.", {"humor"}),
        ("I want simple words and lots of examples.", {"simplicity", "detail-by-example"}),
        ("No long answers!", {"brevity"}),
        ("Warn me about the dangers.", {"safety"}),
        ("Your answers are too long.", {"brevity"}),
        ("Anything but jargon.", {"simplicity"}),
        ("I'm tired of gloomy answers.", {"positivity"}),
        ("I don't need jokes. Just be warm.", {"warmth"}),
    ],
)
def test_plain_words(text: str, traits: set[str]) -> None:
    weights = weights_from_words(text)
    assert set(sorted(weights, key=lambda name: -weights[name])[: len(traits)]) == traits
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "trait"),
    [
        ("I want long answers", "brevity"),
        ("less brief", "brevity"),
        ("you are too brief", "brevity"),
        ("informal please", "formality"),
        ("be pessimistic", "positivity"),
        ("serious please", "humor"),
        ("technical language please", "simplicity"),
    ],
)
def test_the_opposite_of_a_trait_is_no_wish_for_it(text: str, trait: str) -> None:
    assert {wish.trait: wish.clarity for wish in read_wishes(text)}[trait] == 0
    with pytest.raises(InputError, match="more of a trait"):
        weights_from_words(text, [trait])


def test_it_says_by_which_words() -> None:
    wishes = {wish.trait: wish for wish in read_wishes("I live in Rome. Be brief and be funny.")}
    assert "brief" in wishes["brevity"].words and "funny" in wishes["humor"].words
    asked = [wishes.pop(name).clarity for name in ("brevity", "humor")]
    assert min(asked) > 2 * max(wish.clarity for wish in wishes.values())
    clear = [wish.clarity for wish in read_wishes("Be brief.")]
    assert clear == sorted(clear, reverse=True)


def test_somebody_elses_wish_counts_less() -> None:
    mine = {wish.trait: wish.clarity for wish in read_wishes("Be funny.")}
    theirs = read_wishes("My editor always says that it should be funny.")
    assert {wish.trait: wish.clarity for wish in theirs}["humor"] < 0.5 * mine["humor"]


def test_only_known_traits() -> None:
    assert set(weights_from_words("Short and kind, please.", ["warmth", "zest"])) == {"warmth"}


@pytest.mark.parametrize("text", ["The train was late again.", "What is the capital of France?"])
def test_no_wish_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="known traits: assertiveness, brevity"):
        weights_from_words(text)
    with pytest.raises(InputError, match="known traits: zest"):
        weights_from_words("Be brief.", ["zest"])


@pytest.mark.parametrize("text", ["", "  ", 3])
def test_no_words(text) -> None:
    with pytest.raises(InputError, match="wish"):
        read_wishes(text)


@pytest.mark.parametrize(
    ("sentence", "parts"),
    [
        ("Be brief.", ["Be brief."]),
        ("Be brief, and kind!", ["Be brief, and kind!", "Be brief", "kind"]),
        ("Don't be cold and harsh.", ["Don't be cold and harsh.", "Don't be cold", "not harsh"]),
        ("Don't be long, be clear.", ["Don't be long, be clear.", "Don't be long", "be clear"]),
        (
            "Neither long nor hard.",
            ["Neither long nor hard.", "Neither long", "nor hard"],
        ),
    ],
)
def test_clauses(sentence: str, parts: list[str]) -> None:
    assert clauses(sentence) == parts


def test_what_is_negated_is_seen_apart() -> None:
    plain, negated = features(["Be brief.", "Don't be brief."])
    half = len(plain) // 2
    assert plain[half:].tolist() == [0.0] * (half + 1)
    np.testing.assert_array_equal(negated[:half], negated[half:-1])
    assert negated[-1] == 1


def test_every_built_in_trait_can_be_wished() -> None:
    reader = _load(data_dir() / "wishes.safetensors")
    assert set(reader.traits) == set(steer.load_traits())
    assert reader.coefficients.shape == (2 * len(reader.traits) + 1, 1537)


def test_a_damaged_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steer import wishes

    (tmp_path / "wishes.safetensors").write_bytes(b"nonsense")
    monkeypatch.setattr(wishes, "data_dir", lambda: tmp_path)
    wishes._reader.cache_clear()
    try:
        with pytest.raises(DataError, match=r"wishes\.safetensors"):
            read_wishes("Be brief.")
    finally:
        wishes._reader.cache_clear()


def test_examples_turn_about_what_is_refused() -> None:
    wordings = {
        "nothing": ["It rains."],
        "brevity": {
            "positive": {
                "adjectives": ["brief"],
                "nouns": [],
                "verbs": [],
                "scenes": ["One line!"],
            },
            "negative": {"adjectives": ["long"], "nouns": [], "verbs": [], "scenes": []},
        },
    }
    made = {one.text: one for one in examples(wordings)}
    assert made["It rains."].label == "nothing"
    assert made["Be brief."].label == made["Don't be long."].label == "brevity/positive"
    assert made["Be long."].label == made["not brief"].label == "brevity/negative"
    assert made["You needn't be brief."].label == "nothing"
    counted = sum(one.count for one in made.values() if one.label == "brevity/positive")
    assert counted == pytest.approx(1 + 1 + 4)


def test_report_statements_are_not_among_the_wordings() -> None:
    folder = Path(__file__).parents[1] / "experiments" / "preferences"
    statements = yaml.safe_load((folder / "statements.yaml").read_text())
    wordings = yaml.safe_load((data_dir() / "wishes.yaml").read_text())
    fitted = {one.text.lower().strip(" .!") for one in examples(wordings)}
    assert sum(len(found) for found in statements.values()) == 110
    for found in statements.values():
        for one in found:
            assert one["text"].lower().strip(" .!") not in fitted
            assert len(one["traits"]) == len(set(one["traits"])) > 0
            assert set(one["traits"]) <= set(steer.load_traits())
    assert all(len(one["text"].split()) >= 150 for one in statements["long"])
