"""Text measures: hand-computed values and the failures they must catch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer.measures import (
    TRAIT_MEASURES,
    automated_readability,
    casual_markers,
    coleman_liau,
    distinct_ngrams,
    is_broken,
    is_coherent,
    is_looping,
    sentences,
    sentiment,
    warm_markers,
    words,
)

PLAIN = (
    "Go to bed at the same time each night. Keep the room dark and cool. Put your phone away an "
    "hour before sleep, and read a book instead."
)


def test_words_keep_contractions_and_drop_punctuation() -> None:
    assert words("Don't stop -- it's 3 o’clock!") == ["don't", "stop", "it's", "3", "o’clock"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("No full stop", 1),
        ("- first item\n- second item\n\n", 2),
        ("It costs 3.50 in all. Fine.", 2),
        ('He said "stop." Then he left.', 2),
        ("", 1),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


def test_coleman_liau_by_hand() -> None:
    # 10 words, 2 sentences, 36 letters: L = 360, S = 20.
    text = "The cat sat on the mat. Then it slept deeply."
    letters = sum(c.isalpha() for c in text)
    expected = 0.0588 * (letters * 10) - 0.296 * 20 - 15.8
    assert coleman_liau(text) == pytest.approx(expected)


def test_automated_readability_by_hand() -> None:
    # 10 words of 34 letters in 2 sentences.
    text = "The cat sat on the mat. Then it slept deeply."
    assert automated_readability(text) == pytest.approx(4.71 * 3.4 + 0.5 * 5 - 21.43)
    assert automated_readability("...") == 0.0


def test_readability_orders_easy_and_hard_prose() -> None:
    hard = (
        "Physiological homeostasis necessitates comprehensive synchronisation of circadian "
        "oscillations with environmental illumination throughout successive generations."
    )
    assert coleman_liau(hard) > coleman_liau(PLAIN) + 8
    assert automated_readability(hard) > automated_readability(PLAIN) + 8


def test_sentiment_does_not_saturate_with_length() -> None:
    mixed = "This is great. This is awful. " * 4
    assert abs(sentiment(mixed)) < 0.1
    assert sentiment("What a wonderful, happy day!") > 0.5 > -0.5 > sentiment("I hate this mess.")


def test_registers() -> None:
    casual = "Hey dude, you're gonna love this stuff, it's kinda cool!"
    formal = "The committee has considered the request and regrets that it cannot be granted."
    assert casual_markers(casual) > 50 > 1 > casual_markers(formal)
    assert warm_markers("I hope you feel loved, dear friend.") > 40 > warm_markers(formal) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I am going to be okay. " * 6,
        "Soooooooooooooooooooo good",
        "You can do it and you can do it and you can do it and you can do it",
        "Rest well tonight, friend. Eat. Rest well tonight, friend. Rest well tonight, friend.",
        "ha ha ha ha ha ha ha ha ha ha ha ha ha ha",
    ],
)
def test_loops_are_found(text: str) -> None:
    assert is_looping(text)
    assert not is_coherent(text)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "Sleep early.",
        "1. Eat well\n2. Sleep well\n3. Move a little every day\n",
        "Well done! 🎉🌟💖 You did it 🌈🌞🌻 today. 🎈🐝🌱",
        f"{PLAIN} " + "🎉🌟💖🌈🌞🌻🎈🐝🌱🌊🏰",
    ],
)
def test_sound_text_is_coherent(text: str) -> None:
    assert is_coherent(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "...",
        "A \ufffd b",
        "Yes<|im_end|>",
        "x" * 31,
        "a\x00b",
        "!!! ??? ### 12 $$ a",
        "Hello friends! It is so wonderful to celebrate together. 🌟💖🎉👨😜🏰📚💬💡🌈🌱🌞🌊",
    ],
)
def test_broken_text_is_found(text: str) -> None:
    assert is_broken(text)


@given(st.lists(st.sampled_from("abcdef"), min_size=3, max_size=30))
def test_distinct_ngrams_against_a_plain_count(letters: list[str]) -> None:
    text = " ".join(letters)
    grams = [" ".join(letters[i : i + 3]) for i in range(len(letters) - 2)]
    seen: list[str] = []
    for gram in grams:
        if gram not in seen:
            seen.append(gram)
    assert distinct_ngrams(text) == pytest.approx(len(seen) / len(grams))


@given(st.text())
def test_measures_never_fail(text: str) -> None:
    for measure in TRAIT_MEASURES.values():
        assert isinstance(measure.value(text), float)
    assert is_looping(text) in (True, False)
    assert is_broken(text) in (True, False)


def test_gain_is_positive_towards_the_trait() -> None:
    long, short = PLAIN, "Sleep at ten."
    assert TRAIT_MEASURES["brevity"].gain([long], [short]) > 0
    assert TRAIT_MEASURES["brevity"].gain([short], [long]) < 0
    assert TRAIT_MEASURES["positivity"].gain(["Awful."], ["Wonderful!"]) > 0
