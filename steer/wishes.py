"""From words to weights: what "keep it short and be kind" asks for.

A text is taken apart into sentences and those into clauses, and of each a classifier tells which
trait it asks for: one of the built-in ones, at its positive or its negative pole, or none. It is a
logistic regression on sentence embeddings (`steer.sentence_encoder`, both depths), fitted by
experiments/fit_wishes.py to the wordings of `data/wishes.yaml`. An embedding hardly says whether
something is wished or refused, so what is said with a "not" has coefficients of its own. To what
is said without, nearness to a trait's positive instructions is added, which knows more wordings
than the classifier was fitted to.

Other readers, such as the model's own scoring of the poles, are held against it in
experiments/results/preferences.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.special import softmax

from steer.errors import DataError, InputError
from steer.fields import check_text
from steer.resources import data_dir
from steer.sentence_encoder import embed, embed_style
from steer.traits import load_traits

Float64 = NDArray[np.float64]

NOTHING = "nothing"
FILE = "wishes.safetensors"

_NEGATED = re.compile(
    r"\b(?:no|not|never|nothing|neither|nor|without|stop|hate|stand|cannot|avoid|spare|enough"
    r"|(?:tired|sick|instead) of|rather than|fed up|too|less|anything but)\b|n't\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+")
_CLAUSE = re.compile(
    r"[,;:–]| - |(?=\bnor\b)"
    r"|\b(?:and|but|or|that|with|while|because|since|in|who|so|as|for)\b",
    re.IGNORECASE,
)
# Somebody else's wish, or one of the past.
_NOT_MINE = re.compile(
    r"\b(?:my|our|the|a|an|one of)\s+(?:\w+\s+){1,5}?(?:thinks?|says?|said|wants?|would like|told"
    r"|tells?|asks?|asked|propos\w+|suggest\w*|keeps)\b"
    r"|\bused to\b|\bat first\b|\bin the beginning\b|\bI (?:once |also )?asked\b",
    re.IGNORECASE,
)
# What a clause counts beside its sentence, a second sentence beside the clearest, and a sentence
# that is not the reader's own wish: chosen on experiments/preferences/develop_statements.yaml.
_PART, _SECOND, _THEIRS = 0.8, 0.3, 0.3
# Of nearness beside the classifier's probability, and how sharply the nearest trait stands out.
_NEAR, _SHARPNESS = 0.25, 15.0
# The probability of its negative pole from which on a trait is not asked for: "long answers" lie as
# near to the instructions of brevity as "short answers" do, and are likelier its opposite than not.
_OPPOSITE = 0.5
# Words up to which a clause takes over the "not" of the one before, "not long or complicated",
# unless it begins anew: "don't be long, be clear".
_SHORT = 2
_ANEW = re.compile(r"(?:be|keep|make|give|tell|show|just|please|only|i|it|you)\b", re.IGNORECASE)
# Below it a trait is not wished, nor below this share of the clearest one.
_LEAST, _SHARE = 0.2, 0.4


@dataclass(frozen=True)
class Wish:
    """A trait that a text asks for.

    Attributes:
        trait: Its name.
        clarity: How clearly it is asked for, from 0 to below 2.
        words: Those that ask for it most clearly.
    """

    trait: str
    clarity: float
    words: str


def read_wishes(text: str) -> list[Wish]:
    """How clearly a text asks for each of the built-in traits, the clearest first.

    Args:
        text: In English, of any length.

    Raises:
        InputError: If it is no text, or an empty one.
        ModelError: If the sentence encoder is not installed.
    """
    check_text(text, "wish")
    groups = [clauses(sentence) for sentence in _SENTENCE.split(text) if sentence.strip()]
    if not groups:
        raise InputError("wish: expected some words, got none")
    spans = [span for group in groups for span in group]
    reader = _reader()
    asked = reader.asked(spans)  # (n, d)
    clear, said = [], []
    start = 0
    for group in groups:
        mine = asked[start : start + len(group)].copy()
        mine[1:] *= _PART
        if _NOT_MINE.search(group[0]):
            mine *= _THEIRS
        clear.append(mine.max(0))
        said.append([group[i] for i in mine.argmax(0).tolist()])
        start += len(group)
    by_sentence = np.array(clear)  # (sentences, d)
    ranked = np.sort(by_sentence, axis=0)[::-1][:3]
    total = _SECOND ** np.arange(len(ranked)) @ ranked
    clearest = by_sentence.argmax(0).tolist()
    found = [
        Wish(trait, float(total[i]), said[clearest[i]][i]) for i, trait in enumerate(reader.traits)
    ]
    return sorted(found, key=lambda wish: -wish.clarity)


def weights_from_words(text: str, known: Collection[str] | None = None) -> dict[str, float]:
    """Weights that a text asks for, which sum to one.

    Args:
        text: What a person says that they want, in English.
        known: The traits that there are; default: all built-in ones.

    Raises:
        InputError: If no trait is asked for.
        ModelError: If the sentence encoder is not installed.
    """
    wishes = [wish for wish in read_wishes(text) if known is None or wish.trait in known]
    if not wishes or wishes[0].clarity < _LEAST:
        names = ", ".join(sorted(_reader().traits if known is None else known))
        raise InputError(
            f"found no wish for more of a trait in {text!r:.80}; known traits: {names}"
        )
    least = max(_LEAST, _SHARE * wishes[0].clarity)
    taken = {wish.trait: wish.clarity for wish in wishes if wish.clarity >= least}
    total = sum(taken.values())
    return {trait: clarity / total for trait, clarity in taken.items()}


def clauses(sentence: str) -> list[str]:
    """A sentence, and its parts if it has more than one."""
    parts = []
    negated = False
    for part in _CLAUSE.split(sentence):
        words = part.strip(" ,.!?;:")
        if not words:
            continue
        begins = len(words.split()) > _SHORT or _NEGATED.search(words) or _ANEW.match(words)
        if negated and not begins:
            words = f"not {words}"
        negated = bool(_NEGATED.search(words))
        parts.append(words)
    return [sentence, *parts] if len(parts) > 1 else [sentence]


def features(texts: Sequence[str]) -> Float64:
    """What the classifier sees of clauses (n, 1537): both embeddings, again if negated, and if."""
    points = np.concatenate([embed(texts), embed_style(texts)], axis=1)
    negated = np.array([[bool(_NEGATED.search(text))] for text in texts], np.float64)
    return np.concatenate([points, negated * points, negated], axis=1)


@dataclass(frozen=True, eq=False)
class Reader:
    """The classifier.

    Attributes:
        traits: d of them.
        coefficients: Of each class, (2 d + 1, 1537): traits at their positive poles, then at their
            negative ones, then none.
        intercept: (2 d + 1,).
        instructions: Of `instructed` (d, 384).
    """

    traits: tuple[str, ...]
    coefficients: Float64
    intercept: Float64
    instructions: Float64

    def asked(self, texts: Sequence[str]) -> Float64:
        """How clearly clauses ask for each trait's positive pole (n, d); 0 for its opposite."""
        seen = features(texts)
        chance = softmax(seen @ self.coefficients.T + self.intercept, axis=1)
        about = seen[:, : self.instructions.shape[1]]  # what it is about: the first embedding
        near = softmax(_SHARPNESS * about @ self.instructions.T, axis=1)
        negated = seen[:, -1:]
        positive, negative = np.split(chance[:, :-1], 2, axis=1)
        clarity = positive + _NEAR * (1 - negated) * near
        return np.where(negative > _OPPOSITE, 0.0, clarity)


@cache
def _reader() -> Reader:
    path = data_dir() / FILE
    try:
        return _load(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path}: not the reader of wishes ({error})") from error


def _load(path: Path) -> Reader:
    arrays = load_file(path)
    rows = {
        name: np.asarray(array, np.float64) for name, array in arrays.items() if name != NOTHING
    }
    traits = tuple(sorted({name.rpartition("/")[0] for name in rows}))
    table = np.array(
        [rows[f"{trait}/{pole}"] for pole in ("positive", "negative") for trait in traits]
        + [arrays[NOTHING].astype(np.float64)]
    )
    return Reader(traits, table[:, :-1], table[:, -1], instructed(traits))


def instructed(traits: Sequence[str]) -> Float64:
    """Where built-in traits lie by their positive instructions: less their mean (d, 384)."""
    catalogue = load_traits()
    points = np.array([embed(catalogue[name].positive.instructions).mean(0) for name in traits])
    return np.asarray(points - points.mean(0))
