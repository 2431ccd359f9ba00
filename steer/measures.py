"""Measures of a text that need no model: length, readability, mood, register, coherence.

Each is a plain function of the text. `TRAIT_MEASURES` says which of them stands for a trait, and
in which direction; a trait without one is measured by the model's own log-ratio
(`steer.likelihood`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# Pictographs that an answer may have whatever its length.
_FEW_PICTOGRAPHS = 10
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$|[\"'”)])|\n+")

# Marks of a casual register: slang, fillers, clipped forms.
# fmt: off
_CASUAL = frozenset(
    {
        "hey", "hi", "yeah", "yep", "yup", "nope", "nah", "gonna", "wanna", "gotta", "kinda",
        "sorta", "dunno", "lemme", "ya", "yo", "dude", "bro", "buddy", "pal", "guys", "guy",
        "folks", "cool", "awesome", "super", "totally", "literally", "basically", "stuff",
        "lot", "lots", "ok", "okay", "oh", "wow", "haha", "lol", "omg", "btw", "well", "just",
        "really", "pretty", "crazy", "chill", "hang", "grab", "cuz", "huh", "ugh", "whoa",
        "damn", "kid", "kids", "mom", "dad",
    }
)
# Words of care and kindness towards a reader.
_WARM = frozenset(
    {
        "love", "loved", "loving", "lovely", "dear", "friend", "friends", "hug", "hugs",
        "heart", "heartfelt", "warm", "warmly", "warmth", "care", "cares", "caring", "kind",
        "kindly", "kindness", "gentle", "gently", "sweet", "hope", "hopes", "wish", "wishes",
        "thank", "thanks", "grateful", "gratitude", "appreciate", "appreciated", "sorry",
        "glad", "happy", "joy", "proud", "support", "supportive", "supported", "encourage",
        "encouraging", "encouragement", "understand", "understanding", "comfort", "comforting",
        "together", "share", "sharing", "beautiful", "wonderful", "precious", "special",
        "cherish", "smile", "smiles", "blessed", "welcome", "feel", "feelings", "safe", "peace",
        "bless", "hugging", "compassion", "compassionate", "empathy",
    }
)
# fmt: on


def words(text: str) -> list[str]:
    """Words of a text, in lower case; contractions stay whole."""
    return [match.group().lower() for match in _WORD.finditer(text)]


def sentences(text: str) -> int:
    """Number of sentences; a line of its own, such as a list item, counts as one."""
    pieces = _SENTENCE_END.split(text)
    return max(1, sum(1 for piece in pieces if _WORD.search(piece)))


def coleman_liau(text: str) -> float:
    """Coleman-Liau index: the US school grade needed to read a text.

    0.0588 L - 0.296 S - 15.8 with L letters and S sentences per 100 words (Coleman and Liau,
    1975). 0 for a text without words.
    """
    found = words(text)
    if not found:
        return 0.0
    letters = _letters(found)
    per_100 = 100 / len(found)
    return 0.0588 * letters * per_100 - 0.296 * sentences(text) * per_100 - 15.8


def automated_readability(text: str) -> float:
    """Automated readability index: the US school grade needed to read a text.

    4.71 letters per word + 0.5 words per sentence - 21.43 (Smith and Senter, 1967). 0 for a text
    without words.
    """
    found = words(text)
    if not found:
        return 0.0
    return 4.71 * _letters(found) / len(found) + 0.5 * len(found) / sentences(text) - 21.43


def _letters(found: Sequence[str]) -> int:
    return sum(sum(character.isalnum() for character in word) for word in found)


@cache
def _vader() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def sentiment(text: str) -> float:
    """Mean VADER compound score of the sentences, -1 to 1 (Hutto and Gilbert, 2014).

    The mean over sentences does not saturate on long texts as the score of the whole does.
    """
    pieces = [piece for piece in re.split(r"(?<=[.!?])\s+|\n+", text) if _WORD.search(piece)]
    if not pieces:
        return 0.0
    return float(sum(_vader().polarity_scores(piece)["compound"] for piece in pieces) / len(pieces))


def _is_contraction(word: str) -> bool:
    return bool(re.search(r"['’](?:s|t|re|ve|ll|d|m)$", word))


def casual_markers(text: str) -> float:
    """Casual marks per 100 words: contractions, slang, exclamation marks, you and I."""
    found = words(text)
    slang = sum(word in _CASUAL for word in found) + text.count("!")
    return _per_100(slang + _familiar(found), found)


def familiar_markers(text: str) -> float:
    """The casual marks of speaking to someone per 100 words: contractions, you and I."""
    found = words(text)
    return _per_100(_familiar(found), found)


def warm_markers(text: str) -> float:
    """Marks of warmth per 100 words: words of care, and speaking to the reader."""
    found = words(text)
    return _per_100(sum(word in _WARM for word in found), found)


def _familiar(found: Sequence[str]) -> int:
    own = ("i", "you", "your", "me", "my")
    return sum(_is_contraction(word) or word in own for word in found)


def _per_100(marks: int, found: Sequence[str]) -> float:
    return 100 * marks / len(found) if found else 0.0


def distinct_ngrams(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that are distinct; 1 for a text shorter than n words."""
    found = words(text)
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def is_looping(text: str) -> bool:
    """Whether a text goes round in circles.

    True if fewer than 65% of its word trigrams are distinct, if one sentence of four words or
    more comes three times, or if a character or a short string is repeated without end.
    """
    if re.search(r"(.{1,12}?)\1{9,}", text, flags=re.DOTALL):
        return True
    if len(words(text)) >= 12 and distinct_ngrams(text, 3) < 0.65:
        return True
    pieces = [" ".join(words(piece)) for piece in re.split(r"[.!?]\s+|\n+", text)]
    long = [piece for piece in pieces if piece.count(" ") >= 3]
    return any(long.count(piece) >= 3 for piece in set(long))


def is_broken(text: str) -> bool:
    """Whether a text is damaged: empty, broken unicode, stray template marks, or word salad.

    Word salad: words glued or stretched beyond 30 letters, fewer than half of the characters
    letters and spaces, or a flood of pictographs: more than a few, and more than one for every two
    words. No two of them need be alike, so that a flood is no loop.
    """
    stripped = text.strip()
    found = words(stripped)
    if not found:
        return True
    if "\ufffd" in stripped or "<|" in stripped:
        return True
    if any(unicodedata.category(c) in ("Cc", "Co", "Cn") for c in stripped if c not in "\n\t\r"):
        return True
    if any(len(word) > 30 for word in found):
        return True
    if sum(map(is_pictograph, stripped)) > max(_FEW_PICTOGRAPHS, 0.5 * len(found)):
        return True
    plain = sum(c.isalpha() or c.isspace() for c in stripped)
    return plain < 0.5 * len(stripped)


def is_pictograph(character: str) -> bool:
    """Whether a character is a pictograph: a "symbol, other" of Unicode, as U+FFFD is too."""
    return unicodedata.category(character) == "So"


def is_coherent(text: str) -> bool:
    """Neither looping nor broken."""
    return not is_looping(text) and not is_broken(text)


@dataclass(frozen=True)
class Measure:
    """A number for how a text stands on a trait.

    Attributes:
        name: What is measured, with its unit.
        value: The measure of a text.
        sign: 1 if more of the measure is more of the trait, -1 if less is.
    """

    name: str
    value: Callable[[str], float]
    sign: int

    def gain(self, before: Sequence[str], after: Sequence[str]) -> float:
        """Mean change towards the trait from one list of texts to another."""

        def mean(texts: Sequence[str]) -> float:
            return sum(self.value(text) for text in texts) / max(1, len(texts))

        return self.sign * (mean(after) - mean(before))


TRAIT_MEASURES: Mapping[str, Measure] = {
    "brevity": Measure("words", lambda text: float(len(words(text))), -1),
    "simplicity": Measure("Coleman-Liau grade", coleman_liau, -1),
    "formality": Measure("casual marks per 100 words", casual_markers, -1),
    "warmth": Measure("warm words per 100 words", warm_markers, 1),
    "positivity": Measure("VADER sentiment of sentences", sentiment, 1),
}
