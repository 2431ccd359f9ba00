"""Likelihoods and divergences of given answers, under whatever edits are asked for.

In a batch (`steer.batches`) all responses start in one column, so an edit of scope "response" acts
on the same positions as in generation. Where such edits are measured the prompts are read once
(`steer.continuations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.batches import (
    Sequences,
    alike,
    batches,
    check_sequences,
    pad,
    response_logits,
)
from steer.chat import render
from steer.continuations import Continuations
from steer.contrast import instructed
from steer.edits import Edit
from steer.errors import InputError
from steer.generation import prompt_tokens
from steer.hooks import Scope, attach
from steer.models import LanguageModel
from steer.traits import Trait

# Numbers of one of the two sets of logits that are compared at once.
_CPU_NUMBERS = 2**19
_GPU_NUMBERS = 2**26


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
        with torch.inference_mode():
            logits = response_logits(language_model, batch)
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

    Raises:
        InputError: If numbers differ, or a prompt or a response is empty.
    """
    if len(edits) != len(sequences):
        raise InputError(f"got {len(edits)} edits for {len(sequences)} sequences")
    check_sequences(sequences)
    result = np.zeros(len(sequences))
    moved = [i for i, edit in enumerate(edits) if not edit.is_zero()]
    for part in _parts(language_model, [sequences[i] for i in moved], batch_tokens, scope):
        rows = [moved[i] for i in part.indices]
        edited = part.edited([edits[row] for row in rows])
        total = token_divergence(edited, part.unedited(), part.mask).sum(1)
        result[rows] = (total / part.mask.sum(1)).cpu().numpy()
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
        self._parts = list(_parts(language_model, sequences, batch_tokens, scope))
        self._reference = [part.unedited() for part in self._parts]

    def kl(self, edit: Edit) -> float:
        """KL(edited || unedited) in nats per token."""
        if edit.is_zero():
            return 0.0
        total = tokens = 0.0
        for part, reference in zip(self._parts, self._reference, strict=True):
            total += float(token_divergence(part.edited(edit), reference, part.mask).sum())
            tokens += float(part.mask.sum())
        return total / tokens


def token_divergence(edited: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """KL(edited || reference) of the next token at each position of responses.

    Log-probabilities of a vocabulary take much memory, and time to write and read back. So a few
    positions are taken at a time, as many as a cache holds.

    Args:
        edited: Logits (B, R, vocabulary) in any precision; log-probabilities are logits too.
        reference: The other ones.
        mask: (B, R) 1 where a response has a token, else 0.

    Returns:
        (B, R) in fp32, 0 where a response has no token.
    """
    vocabulary = edited.shape[-1]
    at_once = max(1, (_GPU_NUMBERS if edited.is_cuda else _CPU_NUMBERS) // vocabulary)
    parts = []
    for p, q in zip(
        torch.split(edited.reshape(-1, vocabulary), at_once),
        torch.split(reference.reshape(-1, vocabulary), at_once),
        strict=True,
    ):
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts).view(mask.shape) * mask


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the sequences, as they are read without an edit and under some.

    Attributes:
        indices: Which B sequences these are.
        mask: (B, R) 1 where a response has a token, else 0.
        logits: Reads them once: logits (B, R, vocabulary) of what comes at each position.
        steered: A block in which they are read under one edit, or one each.
    """

    indices: list[int]
    mask: Tensor
    logits: Callable[[], Tensor]
    steered: Callable[[Edit | Sequence[Edit]], AbstractContextManager[None]]

    def unedited(self) -> Tensor:
        """Logits without an edit."""
        with torch.inference_mode():
            return self.logits()

    def edited(self, edits: Edit | Sequence[Edit]) -> Tensor:
        """Logits under one edit, or one a row."""
        with self.steered(edits):
            return self.unedited()


def _parts(
    language_model: LanguageModel, sequences: Sequences, batch_tokens: int, scope: Scope
) -> Iterator[_Part]:
    """The sequences in batches; prompts that edits leave alone are read here, once."""
    # In `Continuations` an edit acts on every column that hooks see.
    steered = partial(attach(language_model).steer, scope=scope, prompt_length=1)
    for indices in alike(sequences, batch_tokens):
        if scope == "response":
            texts = Continuations(language_model, [sequences[i] for i in indices])
            yield _Part(indices, texts.mask, texts.logits, steered)
        else:
            batch = pad(language_model, sequences, indices)
            logits = partial(response_logits, language_model, batch)
            yield _Part(indices, batch.response_mask, logits, steered)
