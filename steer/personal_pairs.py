"""Contrast pairs of one person: how they would answer, and how nobody in particular would.

There are three ways to a contrast.

    insights   CHAMELEON (arXiv 2503.01048): the model answers prompts under the personal and under
               the neutral insight
    style      StyleVector (arXiv 2503.05213): what the person wrote, against what the model writes
               to the same prompt; it follows no instruction
    history    the model answers prompts with the history before them, and without
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from steer.chat import render
from steer.contrast import SAMPLING, Answer, PairSet, instructed, select_pairs
from steer.errors import InputError
from steer.generation import generate_batch
from steer.history import HistoryItem
from steer.insights import Insights, prompt_of, shown, templates
from steer.likelihood import response_tokens
from steer.models import LanguageModel
from steer.prompts import load_prompts

Contrast = Literal["insights", "style", "history"]

NAME = "person"
"""What the pairs of a person bear in place of a trait's name."""


def personal_pairs(
    language_model: LanguageModel,
    items: Sequence[HistoryItem],
    contrast: Contrast,
    insights: Insights | None,
    *,
    prompts: int = 24,
    seed: int = 0,
) -> tuple[PairSet, list[str]]:
    """The pairs that are kept, and the plain prompts that they answer.

    Args:
        language_model: The model, which must not be steered meanwhile.
        items: What is shown to the model of a history, or contrasted.
        contrast: The way.
        insights: Of the person; needed by "insights" alone.
        prompts: Number of prompts that are answered, by "insights" and "history": those of the
            items first, then extract prompts.
        seed: Seeds the sampling of answers.

    Raises:
        InputError: If "insights" has none.
    """
    if contrast == "style":
        return _style(language_model, items, seed)
    asked = [item.prompt for item in items if item.prompt is not None]
    asked += [prompt.text for prompt in load_prompts("extract")]
    asked = asked[:prompts]
    if contrast == "insights":
        if insights is None:
            raise InputError("the contrast 'insights' needs insights")
        ways = (("as_personal", insights.personal), ("as_neutral", insights.neutral))
        requests = [
            instructed(one, templates()[way].format(insight=text))
            for way, text in ways
            for one in asked
        ]
    else:
        history = shown(items)
        requests = [templates()["shown"].format(history=history, text=one) for one in asked]
        requests += asked
    texts = [render(language_model.tokenizer, text) for text in requests]
    written = generate_batch(language_model, texts, SAMPLING, seed=seed)
    answers = []
    for i in range(len(asked)):
        for pole, row in (("positive", i), ("negative", len(asked) + i)):
            one = written[row]
            answers.append(Answer(str(i), pole, requests[row], one.text, one.tokens))
    found = select_pairs(NAME, answers)
    return found, [asked[int(pair.positive.prompt_id)] for pair in found.pairs]


def _style(
    language_model: LanguageModel, items: Sequence[HistoryItem], seed: int
) -> tuple[PairSet, list[str]]:
    """What was liked, against what was not; where that is unknown, against the model's own words.

    A text that stands alone answers no prompt, so the model says the same in its own words.
    """
    missing = [i for i, item in enumerate(items) if item.disliked is None]
    asked = [items[i].prompt or templates()["reworded"].format(text=items[i].text) for i in missing]
    texts = [render(language_model.tokenizer, text) for text in asked]
    written = generate_batch(language_model, texts, SAMPLING, seed=seed) if texts else []
    neutral = {i: answer.text for i, answer in zip(missing, written, strict=True)}
    plain = [prompt_of(item) for item in items]
    answers = []
    for i, item in enumerate(items):
        other = neutral[i] if item.disliked is None else item.disliked
        for pole, text in (("positive", item.text), ("negative", other)):
            tokens = tuple(response_tokens(language_model, text))
            answers.append(Answer(str(i), pole, plain[i], text, tokens))
    found = select_pairs(NAME, answers)
    return found, [plain[int(pair.positive.prompt_id)] for pair in found.pairs]
