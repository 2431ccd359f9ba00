"""Likelihoods and divergences of given answers, under whatever edits are asked for.

In a batch (`steer.batches`) all responses start in one column, so an edit of scope "response" acts
on the same positions as in generation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.batches import Batch, Sequences, batches, response_logits
from steer.chat import render
from steer.contrast import instructed
from steer.edits import Edit
from steer.errors import InputError
from steer.generation import prompt_tokens
from steer.hooks import Scope, attach
from steer.models import LanguageModel
from steer.traits import Trait


def response_tokens(language_model: LanguageModel, text: str) -> tuple[int, ...]:
    """Token ids of an answer, without special tokens."""
    ids = language_model.tokenizer(text, add_special_tokens=False).input_ids
    return tuple(ids)


def mean_log_likelihood(
    language_model: LanguageModel, sequences: Sequences, *, batch_tokens: int = 4096
) -> NDArray[np.float64]:
    """Mean log-probability (nats per token) of each response given its prompt, shape (n,)."""
    result = np.empty(len(sequences))
    for batch in batches(language_model, sequences, batch_tokens):
        logits = _logits(language_model, batch)
        targets = batch.ids[:, batch.prompt_length :, None]
        # Not by way of all log-probabilities, which are as large again as the logits.
        chosen = logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)
        chosen = chosen * batch.response_mask
        result[batch.indices] = (chosen.sum(1) / batch.response_mask.sum(1)).cpu().numpy()
    return result


def log_ratio(
    language_model: LanguageModel,
    trait: Trait,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    max_tokens: int | None = None,
    batch_tokens: int = 4096,
) -> NDArray[np.float64]:
    """How much a response sounds like a trait to the unedited model, in nats per token (n,).

    mean log p(y | x, positive instruction) - mean log p(y | x, negative instruction), with the
    first instruction of each pole. An empty response has no tokens to judge and gets 0.

    Args:
        language_model: The model; edits must not be attached.
        trait: Whose instructions are compared.
        prompts: What was asked, n of them.
        responses: What was answered.
        max_tokens: Judge the beginning of each response, of this many tokens; None for all of it.
        batch_tokens: Tokens in one forward pass.
    """
    tokens = [response_tokens(language_model, text)[:max_tokens] for text in responses]
    kept = [i for i, ids in enumerate(tokens) if ids]
    values = []
    for pole in (trait.positive, trait.negative):
        sequences = []
        for i in kept:
            text = render(language_model.tokenizer, instructed(prompts[i], pole.instructions[0]))
            sequences.append((prompt_tokens(language_model, text), tokens[i]))
        values.append(mean_log_likelihood(language_model, sequences, batch_tokens=batch_tokens))
    result = np.zeros(len(responses))
    result[kept] = values[0] - values[1]
    return result


def divergence(
    language_model: LanguageModel,
    edits: Sequence[Edit],
    sequences: Sequences,
    *,
    scope: Scope = "response",
    batch_tokens: int = 2048,
) -> NDArray[np.float64]:
    """KL(edited || unedited) of each response under an edit of its own.

    Args:
        language_model: The model.
        edits: One a sequence, n of them.
        sequences: (prompt token ids, response token ids) pairs.
        scope: Where the edits act.
        batch_tokens: Tokens in one forward pass.

    Returns:
        (n,) mean over each response's tokens, in nats per token.
    """
    if len(edits) != len(sequences):
        raise InputError(f"got {len(edits)} edits for {len(sequences)} sequences")
    result = np.zeros(len(sequences))
    hooks = attach(language_model)
    for batch in batches(language_model, sequences, batch_tokens):
        rows = [edits[i] for i in batch.indices]
        if all(edit.is_zero() for edit in rows):
            continue
        reference = _log_probs(language_model, batch)
        with hooks.steer(rows, scope=scope, prompt_length=batch.prompt_length):
            edited = _log_probs(language_model, batch)
        total = token_divergence(edited, reference, batch).sum(1)
        result[batch.indices] = (total / batch.response_mask.sum(1)).cpu().numpy()
    return result


class KLMeter:
    """Measures how far an edit takes the model from itself, on a fixed set of answers.

    The divergence is KL(edited || unedited) of the next-token distributions, in nats per token,
    averaged over the response tokens. The unedited model's distributions are computed once.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        sequences: Sequences,
        *,
        scope: Scope = "response",
        batch_tokens: int = 2048,
    ) -> None:
        """Compute the unedited model's side.

        Args:
            language_model: The model.
            sequences: (prompt token ids, response token ids) pairs.
            scope: Where edits act.
            batch_tokens: Tokens in one forward pass.
        """
        self._language_model = language_model
        self._scope = scope
        self._batches = list(batches(language_model, sequences, batch_tokens))
        self._reference = [_log_probs(language_model, batch) for batch in self._batches]

    def kl(self, edit: Edit) -> float:
        """KL(edited || unedited) in nats per token."""
        if edit.is_zero():
            return 0.0
        hooks = attach(self._language_model)
        total = tokens = 0.0
        for batch, reference in zip(self._batches, self._reference, strict=True):
            with hooks.steer(edit, scope=self._scope, prompt_length=batch.prompt_length):
                edited = _log_probs(self._language_model, batch)
            total += float(token_divergence(edited, reference, batch).sum())
            tokens += float(batch.response_mask.sum())
        return total / tokens


def token_divergence(edited: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """KL (B, R) of log-probabilities (B, R, vocabulary), 0 where a response has ended."""
    return (edited.exp() * (edited - reference)).sum(-1) * batch.response_mask


def _log_probs(language_model: LanguageModel, batch: Batch) -> Tensor:
    """Log-probabilities (B, R, vocabulary) of what comes at each response position, in fp32."""
    return _logits(language_model, batch).log_softmax(-1)


def _logits(language_model: LanguageModel, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return response_logits(language_model, batch)
