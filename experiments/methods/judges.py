"""Which of two answers would a person prefer? A judge that reads the person's summary.

local    the model under test itself: log p(answer | prompt, summary) - log p(answer | prompt),
         nats per token. It judges itself, and tables say so.
remote   any OpenAI-compatible model: it is shown both answers, in both orders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from contestants import Told, User
from numpy.typing import NDArray

from steer.baselines.prompting import said
from steer.chat import render
from steer.generation import prompt_tokens
from steer.likelihood import mean_log_likelihood, response_tokens
from steer.models import LanguageModel
from steer.preference import in_words
from steer.remote import RemoteModel

Float64 = NDArray[np.float64]

QUESTION = """A person says: "{summary}"

They asked: {prompt}

Answer A:
{first}

Answer B:
{second}

Which answer does this person prefer? Reply with A or B alone."""


def summary(user: User, poles: dict[str, str]) -> str:
    """What the person says of themselves."""
    total = sum(user.weights.values())
    return in_words(poles, {name: weight / total for name, weight in user.weights.items()})


def local_opinion(
    language_model: LanguageModel, text: str, prompts: Sequence[str], told: Told
) -> Float64:
    """By how much a summary makes each answer likelier (P,), nats per token."""
    tokenizer = language_model.tokenizer
    found = []
    for asked in (list(prompts), [said(text, prompt, "user") for prompt in prompts]):
        rows = [prompt_tokens(language_model, render(tokenizer, one)) for one in asked]
        # An empty answer has no tokens; any one stands for it, and both times the same.
        answers = [response_tokens(language_model, one) or (0,) for one in told.texts]
        sequences = list(zip(rows, answers, strict=True))
        found.append(mean_log_likelihood(language_model, sequences, batch_tokens=2048))
    return np.asarray(found[1] - found[0])


def remote_preference(
    judge: RemoteModel, text: str, prompt: str, first: str, second: str
) -> float | None:
    """1 if the first answer is preferred in both orders, 0 if the second, 0.5 if they disagree.

    None if the judge names neither.
    """
    votes = []
    for swapped in (False, True):
        pair = (second, first) if swapped else (first, second)
        asked = QUESTION.format(summary=text, prompt=prompt, first=pair[0], second=pair[1])
        reply = judge.answer([{"role": "user", "content": asked}], max_tokens=4)
        letter = re.match(r"\W*([AB])\b", reply, re.IGNORECASE)
        if letter is None:
            return None
        votes.append((letter.group(1).upper() == "A") != swapped)
    return float(np.mean(votes))


def agreement(opinions: Sequence[Float64], worth: Sequence[Float64]) -> tuple[float, int]:
    """Share of pairs of answers to one prompt that two scores order alike, and their number.

    Args:
        opinions: Of each setting's answers (n,), in one order.
        worth: The other score of the same.
    """
    same, number = 0, 0
    for i in range(len(opinions)):
        for j in range(i):
            first, second = opinions[i] - opinions[j], worth[i] - worth[j]
            clear = (first != 0) & (second != 0)
            same += int(((first > 0) == (second > 0))[clear].sum())
            number += int(clear.sum())
    return same / max(number, 1), number
