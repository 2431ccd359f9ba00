"""Does a model that is personalised still know what it knew? Questions with choices.

A choice is scored by its log-probability after the question, as the method would write it: edits
act on it, a method of prompts is told what it tells, and combined logits are combined. Best of n
and reward guidance choose among what the unsteered model writes and are not defined by a
likelihood, so for them nothing is said.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from contestants import COMPOSED, ROUTED, Setting, User
from numpy.typing import NDArray

# Tasks are the arena's.
sys.path.append(str(Path(__file__).parents[1] / "arena"))
from capability_tasks import Document  # noqa: E402

from steer.baselines import Request  # noqa: E402
from steer.baselines.combined import Combination, Combining  # noqa: E402
from steer.baselines.prompting import Telling  # noqa: E402
from steer.batches import pad, response_logits  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.edits import ZERO  # noqa: E402
from steer.generation import prompt_tokens  # noqa: E402
from steer.hooks import attach  # noqa: E402
from steer.likelihood import response_tokens  # noqa: E402
from steer.steerer import Steerer  # noqa: E402
from steer.weights import normalise_weights  # noqa: E402

ROWS = 48  # of the model at once
DEFINED = (ROUTED, COMPOSED, "system prompt", "few-shot", "logit rectification", "multi-objective")


def accuracy(
    steerer: Steerer, setting: Setting, user: User, documents: Sequence[Document]
) -> NDArray[np.bool_]:
    """Which questions are answered right (n,), in a chat, by the likelihood of each character."""
    items = [(i, choice) for i, one in enumerate(documents) for choice in one["choices"]]
    asked = [documents[i]["question"] for i, _ in items]
    scores = _scores(steerer, setting, user, asked, [choice for _, choice in items])
    by_character = scores / np.array([max(len(choice), 1) for _, choice in items])
    right, place = np.empty(len(documents), bool), 0
    for i, one in enumerate(documents):
        mine = by_character[place : place + len(one["choices"])]
        right[i] = int(mine.argmax()) == one["gold"]
        place += len(mine)
    return right


def _scores(
    steerer: Steerer,
    setting: Setting,
    user: User,
    asked: Sequence[str],
    choices: Sequence[str],
) -> NDArray[np.float64]:
    """Log-probability of each choice after its question (n,)."""
    model = steerer.language_model
    weights = user.weights if setting.weighted else None
    shares = None if weights is None else normalise_weights(weights, steerer.bundle.traits)
    requests = [Request(prompt, shares, setting.strength) for prompt in asked]
    edit = ZERO
    if isinstance(setting.by, Telling):
        chats = [setting.by.chat(steerer.bundle, request) for request in requests]
        made = Combination([render(model.tokenizer, one) for one in chats], [1.0] * len(asked), [])
    elif isinstance(setting.by, Combining):
        made = setting.by.combination(model, requests)
    else:
        edit = steerer.resolve(weights, setting.strength, compose=setting.compose)
        texts = [render(model.tokenizer, prompt) for prompt in asked]
        made = Combination(texts, [1.0] * len(asked), [])
    tokens = [response_tokens(model, choice) for choice in choices]
    by_row: list[list[tuple[str, float]]] = [
        [(text, one)] for text, one in zip(made.texts, made.own, strict=True)
    ]
    for view in made.views:
        by_row[view.row].append((view.text, view.coefficient))
    order = sorted(range(len(asked)), key=lambda i: len(tokens[i]))
    result = np.empty(len(asked))
    at_once = max(1, ROWS // max(map(len, by_row)))
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        flat = [(i, text, one) for i in part for text, one in by_row[i]]
        sequences = [(prompt_tokens(model, text), tokens[i]) for i, text, _ in flat]
        batch = pad(model, sequences, list(range(len(sequences))))
        hooks = attach(model)
        with (
            torch.inference_mode(),
            hooks.steer(edit, scope=steerer.bundle.scope, prompt_length=batch.prompt_length),
        ):
            parts = response_logits(model, batch).log_softmax(-1)  # (rows, R, vocabulary)
        place = {i: row for row, i in enumerate(part)}
        owner = torch.tensor([place[i] for i, _, _ in flat])
        coefficient = torch.tensor([one for _, _, one in flat])[:, None, None]
        scores = torch.zeros(len(part), *parts.shape[1:])
        scores.index_add_(0, owner, coefficient * parts.cpu())
        scores = scores.log_softmax(-1)
        for row, i in enumerate(part):
            ids = torch.tensor(tokens[i])
            result[i] = float(scores[row, torch.arange(len(ids)), ids].sum())
    return result
