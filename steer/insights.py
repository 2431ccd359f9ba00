"""Insights: in words, how a person writes, and how nobody in particular does.

CHAMELEON (arXiv 2503.01048) lets the model write both from a person's history, and then answer
prompts under each. A small model's insight is often no use: it may tell the history over again,
break off, or fit anybody. So an insight is held against what the person wrote: asked to write by
it, the model must find that likelier than when it is asked to write by the neutral one. If it does
not, an insight made of measures of the history takes its place, and `Insights` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal, get_args

import numpy as np
import yaml

from steer.arrays import check_choice
from steer.chat import render
from steer.contrast import instructed
from steer.fields import check_text
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.history import HistoryItem, beginning
from steer.likelihood import mean_log_likelihood, response_tokens
from steer.measures import (
    casual_markers,
    coleman_liau,
    distinct_ngrams,
    is_coherent,
    sentiment,
    words,
)
from steer.models import LanguageModel
from steer.resources import data_dir

Author = Literal["model", "measures"]

_WRITING = Decoding(max_new_tokens=80)
# Words of an insight: fewer say nothing, more are cut off.
_FEWEST, _MOST = 6, 70
# Tokens of an item by which an insight is judged.
_JUDGED = 256
# Share of its four-word sequences that an insight may have from the history.
_RETOLD = 0.2
_NEUTRAL = (
    "The text is of ordinary length, in ordinary words, neither formal nor casual, and in an even "
    "mood."
)


@dataclass(frozen=True)
class Insights:
    """How a person writes, and how nobody in particular does.

    Attributes:
        personal: In words.
        neutral: In words.
        personal_by: Who wrote it: the model, or a template from measures of the history.
        neutral_by: The same.
        refused: Why the model's personal insight was not taken; "" if it was.
    """

    personal: str
    neutral: str
    personal_by: Author
    neutral_by: Author
    refused: str = ""

    def __post_init__(self) -> None:
        """Validate."""
        for one in fields(self):
            check_text(getattr(self, one.name), f"insights, {one.name!r}")
        for name in ("personal_by", "neutral_by"):
            check_choice(name, getattr(self, name), get_args(Author))


@cache
def templates() -> dict[str, str]:
    """What the model is asked, by name (`data/insights.yaml`)."""
    content = yaml.safe_load((data_dir() / "insights.yaml").read_text(encoding="utf-8"))
    return {str(name): str(text) for name, text in content.items()}


def write_insights(language_model: LanguageModel, items: Sequence[HistoryItem]) -> Insights:
    """Let the model write both insights, and replace those that are no use.

    Args:
        language_model: The model, which must not be steered meanwhile.
        items: What it is shown of a person's history.
    """
    asked = [templates()["personal"].format(history=shown(items)), templates()["neutral"]]
    texts = [render(language_model.tokenizer, text) for text in asked]
    personal, neutral = (
        " ".join(answer.text.split()) for answer in generate_batch(language_model, texts, _WRITING)
    )
    neutral_by: Author = "model"
    if unusable(neutral, ()):
        neutral, neutral_by = _NEUTRAL, "measures"
    refused = unusable(personal, items)
    if not refused and fit(language_model, items, personal, neutral) <= 0:
        refused = "it makes what the person wrote no likelier than the neutral one does"
    if refused:
        personal = measured_insight([item.text for item in items])
    return Insights(personal, neutral, "measures" if refused else "model", neutral_by, refused)


def measured_insights(items: Sequence[HistoryItem]) -> Insights:
    """Both insights from templates that are filled in with measures; no model is asked.

    Args:
        items: Of a person's history.
    """
    personal = measured_insight([item.text for item in items])
    return Insights(personal, _NEUTRAL, "measures", "measures")


def shown(items: Sequence[HistoryItem]) -> str:
    """A history as the model is shown it: the beginnings of its texts, a line each."""
    return "\n".join("- " + beginning(item.text) for item in items)


def unusable(insight: str, items: Sequence[HistoryItem]) -> str:
    """What is wrong with an insight as a text; "" if nothing is."""
    said = words(insight)
    if not _FEWEST <= len(said) <= _MOST:
        return f"it has {len(said)} words, expected {_FEWEST} to {_MOST}"
    if not is_coherent(insight):
        return "it loops or is broken"
    if not insight.rstrip().endswith((".", "!", '"')):
        return "it breaks off"
    retold = {run for item in items for run in _runs(words(item.text))}
    runs = _runs(said)
    if sum(run in retold for run in runs) > _RETOLD * len(runs):
        return "it tells the history over again"
    return ""


def fit(
    language_model: LanguageModel, items: Sequence[HistoryItem], personal: str, neutral: str
) -> float:
    """How much likelier the person's texts are by one insight than by another, nats per token."""
    ways = (("as_personal", personal), ("as_neutral", neutral))
    written = [response_tokens(language_model, item.text)[:_JUDGED] for item in items]
    by_way = []
    for way, insight in ways:
        asked = [
            render(
                language_model.tokenizer,
                instructed(prompt_of(item), templates()[way].format(insight=insight)),
            )
            for item in items
        ]
        sequences = [
            (prompt_tokens(language_model, text), tokens)
            for text, tokens in zip(asked, written, strict=True)
        ]
        by_way.append(mean_log_likelihood(language_model, sequences))
    return float(np.mean(by_way[0] - by_way[1]))


def prompt_of(item: HistoryItem) -> str:
    """What an item answers."""
    return item.prompt or templates()["alone"]


def measured_insight(texts: Sequence[str]) -> str:
    """How a person writes, by length, readability, mood, register and vocabulary.

    Args:
        texts: What they wrote.
    """
    length = float(np.mean([len(words(text)) for text in texts]))
    many = max(1, round(length))
    mood = float(np.mean([sentiment(text) for text in texts]))
    together = "\n".join(texts)
    # Of so many words, since of more of them fewer are new.
    variety = distinct_ngrams(" ".join(words(together)[:100]), 1)
    sized = _step(length, (20, 60), ("very short", "short", "long"))
    plain = _step(coleman_liau(together), (6, 11), ("plain", "ordinary", "learned"))
    varied = _step(variety, (0.6, 0.75), ("often the same", "varied", "seldom the same"))
    tone = _step(
        casual_markers(together), (3, 9), ("formal", "neither formal nor casual", "casual")
    )
    mooded = _step(mood, (-0.05, 0.25), ("gloomy", "even", "cheerful"))
    return (
        f"The text is {sized}, about {many} word{'s' * (many > 1)}. The words are {plain} and "
        f"{varied}. The tone is {tone}, the mood {mooded}."
    )


def _step(value: float, limits: tuple[float, float], names: tuple[str, str, str]) -> str:
    low, high = limits
    return names[0] if value < low else names[1] if value < high else names[2]


def _runs(found: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
