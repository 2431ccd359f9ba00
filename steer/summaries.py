"""From a history to a sentence: what a person likes, for the prompt of any model.

POPI (arXiv 2510.17881) lets an inference model write a short summary s of a person's signals; a
generator is given (x, s). A summary is worth what it does to the likelihood of what the person
preferred: with margins

    m = [log pi(y_w | s, x) - log pi(y_l | s, x)] - [log pi(y_w | x) - log pi(y_l | x)]

its loss is the mean of -log sigmoid(beta m) / beta over preference pairs. Here the inference model
is the model itself, the best of several sampled summaries is taken by that loss on the history,
and what was read and written is counted in tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import yaml
from numpy.typing import NDArray

from steer.arrays import check_count
from steer.baselines.prompting import Place, said
from steer.chat import Chat, render
from steer.errors import InputError
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.history import History, HistoryItem, beginning, read_history
from steer.insights import prompt_of
from steer.likelihood import mean_log_likelihood, response_tokens
from steer.measures import is_coherent
from steer.models import LanguageModel
from steer.resources import data_dir

Float64 = NDArray[np.float64]

_TEMPERATURE = 1.0


@dataclass(frozen=True)
class Summary:
    """What a person likes, in words.

    Attributes:
        text: One sentence.
        tokens: Of the text.
        items: Of the history that the model was shown: the last ones that fit.
        read: Prompt tokens that it read for it.
        loss: POPI's, on the preference pairs of the history, in nats; None where there are none.
        tried: How many summaries it was chosen among.
    """

    text: str
    tokens: int
    items: int
    read: int
    loss: float | None
    tried: int


@cache
def wordings() -> dict[str, str]:
    """What the model is asked, by name (`data/summaries.yaml`)."""
    content = yaml.safe_load((data_dir() / "summaries.yaml").read_text(encoding="utf-8"))
    return {str(name): str(text) for name, text in content.items()}


def summarise(
    language_model: LanguageModel,
    history: History,
    *,
    number: int = 8,
    max_tokens: int = 32,
    context: int = 1024,
    beta: float = 0.1,
    place: Place = "user",
    judged: int | None = 96,
    seed: int = 0,
) -> Summary:
    """Let the model say what a person likes.

    Args:
        language_model: The model, which must not be steered meanwhile.
        history: What they liked, in the order of time; items with a disliked response are
            preference pairs.
        number: How many summaries are written: the first greedily, the others sampled. The one
            with the smallest loss is taken; the first if the history holds no pairs.
        max_tokens: Longest summary.
        context: Most prompt tokens that are read: the last items that fit are shown.
        beta: Of the loss.
        place: Where the generator will be told the summary.
        judged: Tokens of an answer that the loss is of, from its beginning; None for all.
        seed: Of sampling.

    Raises:
        InputError: If a number is not usable, or not even one item fits.
    """
    for name, value in (("number", number), ("max_tokens", max_tokens), ("context", context)):
        check_count(name, value)
    items = read_history(history)
    text, used = fitting(language_model, items, context)
    texts = written(language_model, text, number, max_tokens, seed)
    pairs = [item for item in items if item.disliked is not None]
    best, least = 0, None
    if pairs:
        losses = loss(
            margins(language_model, texts, pairs, place=place, judged=judged), beta
        )  # (n,)
        best, least = int(losses.argmin()), float(losses.min())
    return Summary(
        texts[best],
        len(response_tokens(language_model, texts[best])),
        used,
        len(prompt_tokens(language_model, text)),
        least,
        len(texts),
    )


def fitting(
    language_model: LanguageModel, items: Sequence[HistoryItem], context: int
) -> tuple[str, int]:
    """The rendered request with the last items that fit in so many tokens, and their number.

    Raises:
        InputError: If not even one fits.
    """
    for first in range(len(items)):
        text = request(language_model, items[first:])
        if len(prompt_tokens(language_model, text)) <= context:
            return text, len(items) - first
    raise InputError(f"context: not even one item fits in {context} tokens")


def request(language_model: LanguageModel, items: Sequence[HistoryItem]) -> str:
    """The rendered prompt after which a summary begins."""
    shown = "\n\n".join(_item(item) for item in items)
    asked = wordings()["asked"].format(history=shown)
    return render(language_model.tokenizer, asked) + wordings()["begin"]


def _item(item: HistoryItem) -> str:
    liked = beginning(item.text)
    if item.disliked is None:
        return wordings()["only_liked"].format(liked=liked)
    return wordings()["item"].format(liked=liked, disliked=beginning(item.disliked))


def written(
    language_model: LanguageModel, text: str, number: int, max_tokens: int, seed: int
) -> list[str]:
    """Summaries, each once: the greedy one, then sampled ones that are whole.

    Args:
        language_model: The model.
        text: The rendered request, with the summary's beginning.
        number: How many are written; fewer are left where some are alike or broken.
        max_tokens: Of each.
        seed: Of sampling.
    """
    greedy = Decoding(max_new_tokens=max_tokens)
    answers = generate_batch(language_model, [text], greedy)
    if number > 1:
        sampling = Decoding(max_new_tokens=max_tokens, do_sample=True, temperature=_TEMPERATURE)
        answers += generate_batch(language_model, [text] * (number - 1), sampling, seed=seed)
    texts = [f"{wordings()['begin']} {first_sentence(answer.text)}" for answer in answers]
    whole = [one for one in texts[1:] if is_coherent(one)]
    return list(dict.fromkeys([texts[0], *whole]))


def first_sentence(text: str) -> str:
    """The beginning of a text up to its first sentence's end, which is added if there is none."""
    line = " ".join(text.strip().split())
    found = re.match(r".*?[.!?](?=\s|$)", line)
    return found.group() if found else f"{line.rstrip(',;: ')}."


def margins(
    language_model: LanguageModel,
    texts: Sequence[str],
    pairs: Sequence[HistoryItem],
    *,
    place: Place = "user",
    judged: int | None = 96,
    reference: LanguageModel | None = None,
    batch_tokens: int = 4096,
) -> Float64:
    """By how much each summary makes what was preferred likelier than what was not (n, m), nats.

    Args:
        language_model: The generator, which must not be steered meanwhile.
        texts: n summaries.
        pairs: m items with a disliked response.
        place: Where it is told the summary.
        judged: Tokens of an answer that count, from its beginning; None for all.
        reference: The generator that is told nothing, of the same tokens; None for the same one.
        batch_tokens: Tokens in one forward pass.

    Raises:
        InputError: If an item has no disliked response.
    """
    return told_margins(
        language_model,
        [[said(text, prompt_of(item), place) for item in pairs] for text in texts],
        pairs,
        judged=judged,
        reference=reference,
        batch_tokens=batch_tokens,
    )


def told_margins(
    language_model: LanguageModel,
    told: Sequence[Sequence[str | Chat]],
    pairs: Sequence[HistoryItem],
    *,
    judged: int | None = 96,
    reference: LanguageModel | None = None,
    batch_tokens: int = 4096,
) -> Float64:
    """`margins` (n, m) of any ways to tell the generator of a person.

    Args:
        language_model: The generator, which must not be steered meanwhile.
        told: n ways, each the m prompts that tell of the person.
        pairs: m items with a disliked response.
        judged: Tokens of an answer that count, from its beginning; None for all.
        reference: The generator that is told nothing, of the same tokens; None for the same one.
        batch_tokens: Tokens in one forward pass.

    Raises:
        InputError: If an item has no disliked response, or a way has not as many prompts.
    """
    if any(item.disliked is None for item in pairs) or not pairs:
        raise InputError("expected items with a disliked response, and at least one")
    if any(len(prompts) != len(pairs) for prompts in told):
        raise InputError(f"expected {len(pairs)} prompts that tell of the person, one for a pair")
    answers = [
        response_tokens(language_model, text)[:judged]
        for item in pairs
        for text in (item.text, item.disliked or "")
    ]
    lengths = np.array([len(one) for one in answers], np.float64)
    tokenizer = language_model.tokenizer
    found: list[Float64] = []
    for chats in ([prompt_of(item) for item in pairs], *told):
        asked = [prompt_tokens(language_model, render(tokenizer, chat)) for chat in chats]
        sequences = [(asked[i // 2], one) for i, one in enumerate(answers)]
        reader = reference if reference is not None and not found else language_model
        means = mean_log_likelihood(reader, sequences, batch_tokens=batch_tokens)
        sums = (means * lengths).reshape(len(pairs), 2)
        found.append(sums[:, 0] - sums[:, 1])
    return np.stack(found[1:]) - found[0] if told else np.empty((0, len(pairs)))


def loss(margin: Float64, beta: float = 0.1) -> Float64:
    """Mean of -log sigmoid(beta m) / beta over margins (..., m): lower is better (POPI).

    Raises:
        InputError: If beta is not above 0.
    """
    if not 0 < beta < np.inf:
        raise InputError(f"beta: expected a finite number above 0, got {beta}")
    return np.asarray(np.logaddexp(0, -beta * margin).mean(-1) / beta)
