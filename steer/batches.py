"""Prompts with responses as padded batches.

Prompts are padded on the left and responses on the right, so that all responses of a batch start in
one column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steer.activations import Tokens
from steer.errors import InputError
from steer.models import LanguageModel, check_positions

Sequences = Sequence[tuple[Tokens, Tokens]]
"""(prompt token ids, response token ids) pairs."""


@dataclass(frozen=True)
class Batch:
    """Some of the sequences, with prompts of P and responses of R tokens after padding.

    Attributes:
        indices: Which sequences these B are.
        ids: Token ids (B, P + R).
        mask: Attention mask (B, P + R).
        positions: Position ids (B, P + R).
        prompt_length: P.
        response_mask: Which response positions hold a token (B, R).
    """

    indices: list[int]
    ids: Tensor
    mask: Tensor
    positions: Tensor
    prompt_length: int
    response_mask: Tensor


def batches(
    language_model: LanguageModel, sequences: Sequences, batch_tokens: int
) -> Iterator[Batch]:
    """All sequences in batches of similar length, so that little is padded.

    Args:
        language_model: Whose device and padding token are used.
        sequences: Prompts with responses.
        batch_tokens: Tokens of a batch, padding included; a longer sequence is a batch alone.

    Raises:
        InputError: If a prompt or a response is empty.
    """
    for indices in alike(sequences, batch_tokens):
        yield pad(language_model, sequences, indices)


def alike(sequences: Sequences, batch_tokens: int) -> Iterator[list[int]]:
    """The indices of all sequences, in groups of similar length.

    Args:
        sequences: Prompts with responses.
        batch_tokens: Tokens of a group, padding included; a longer sequence is a group alone.

    Raises:
        InputError: If a prompt or a response is empty.
    """
    check_sequences(sequences)
    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    batch: list[int] = []
    for index in order:
        widths = [max(len(sequences[i][side]) for i in (*batch, index)) for side in (0, 1)]
        if batch and (len(batch) + 1) * sum(widths) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def check_sequences(sequences: Sequences) -> None:
    """Refuse what has no tokens.

    Raises:
        InputError: If a prompt or a response is empty.
    """
    for index, (prompt, response) in enumerate(sequences):
        if not prompt or not response:
            raise InputError(f"sequence {index}: expected a prompt and a response with tokens")


def pad(language_model: LanguageModel, sequences: Sequences, indices: list[int]) -> Batch:
    """The sequences at some indices as one batch.

    Raises:
        InputError: If the model has no positions for one.
    """
    prompts = [sequences[i][0] for i in indices]
    responses = [sequences[i][1] for i in indices]
    for prompt, response in zip(prompts, responses, strict=True):
        check_positions(language_model, len(prompt), len(response))
    p, r = max(map(len, prompts)), max(map(len, responses))
    ids = np.full((len(indices), p + r), language_model.tokenizer.pad_token_id)
    mask = np.zeros((len(indices), p + r), np.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        columns = slice(p - len(prompt), p + len(response))
        ids[row, columns] = [*prompt, *response]
        mask[row, columns] = 1
    device = language_model.device
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    return Batch(
        indices,
        torch.from_numpy(ids).to(device),
        torch.from_numpy(mask).to(device),
        torch.from_numpy(positions).to(device),
        p,
        torch.from_numpy(mask[:, p:].astype(np.float32)).to(device),
    )


def response_logits(language_model: LanguageModel, batch: Batch) -> Tensor:
    """Logits (B, R, vocabulary) of what comes at each response position, in fp32."""
    logits = language_model.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=batch.response_mask.shape[1] + 1,
    ).logits
    before: Tensor = logits[:, :-1].float()
    return before
