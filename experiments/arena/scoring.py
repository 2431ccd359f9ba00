"""Log-probabilities of continuations under an edit; continuations of one context read it once.

The choices of a question differ in a few tokens after a context of many. Contexts, all but their
last token, are read into a cache, padded on the left; the last token and the continuations follow,
padded on the right. So the response starts in one column, as in generation, and an edit of scope
"response" acts on the same positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.activations import Tokens
from steer.edits import ZERO, Edit
from steer.errors import InputError
from steer.hooks import Scope, attach
from steer.kvcache import growing_cache
from steer.models import LanguageModel

Pairs = Sequence[tuple[Tokens, Tokens]]


@dataclass(frozen=True)
class Scored:
    """What a model thinks of a continuation of R tokens.

    Attributes:
        log_probs: (R,) in nats.
        greedy: (R,) whether the token is the likeliest one.
    """

    log_probs: NDArray[np.float64]
    greedy: NDArray[np.bool_]


def score(
    language_model: LanguageModel,
    pairs: Pairs,
    edit: Edit = ZERO,
    *,
    scope: Scope = "response",
    skip: int = 0,
    batch_tokens: int = 2048,
) -> list[Scored]:
    """Score continuations given their contexts.

    Args:
        language_model: The model.
        pairs: (context token ids, continuation token ids).
        edit: What is done to every one of them.
        scope: Where the edit acts: "response" is from the last context token on, whose output is
            the first continuation token.
        skip: Positions of a response that are left alone before the edit sets in.
        batch_tokens: Most tokens in a batch, padding included.

    Returns:
        One a pair, in their order.
    """
    for index, pair in enumerate(pairs):
        if not all(map(len, pair)):
            raise InputError(f"pair {index}: expected a context and a continuation with tokens")
    hooks = attach(language_model)
    result: dict[int, Scored] = {}
    with torch.inference_mode():
        for batch in _batches(pairs, batch_tokens):
            chosen = [pairs[i] for i in batch]
            # An edit that sets in after the last position would be an error of the hooks.
            acts = scope == "all" or max(len(continuation) for _, continuation in chosen) > skip
            start = max(len(context) for context, _ in chosen) + skip
            with hooks.steer(edit if acts else ZERO, scope=scope, prompt_length=start):
                result |= zip(batch, _score(language_model, chosen), strict=True)
    return [result[i] for i in range(len(pairs))]


def _batches(pairs: Pairs, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of pairs that go together: alike in length, with equal contexts side by side."""
    longest: dict[tuple[int, ...], int] = {}
    for context, continuation in pairs:
        key = tuple(context)
        longest[key] = max(longest.get(key, 0), len(continuation))

    def place(index: int) -> tuple[int, int, tuple[int, ...], int]:
        context, continuation = tuple(pairs[index][0]), pairs[index][1]
        # Short continuations must not be padded to long ones, nor short contexts to long ones.
        return longest[context].bit_length(), len(context), context, len(continuation)

    batch: list[int] = []
    for index in sorted(range(len(pairs)), key=place):
        widths = [max(len(pairs[i][side]) for i in (*batch, index)) for side in (0, 1)]
        if batch and (len(batch) + 1) * sum(widths) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _score(language_model: LanguageModel, pairs: Pairs) -> Iterator[Scored]:
    device = language_model.device
    model, padding = language_model.model, language_model.tokenizer.pad_token_id
    contexts = list(dict.fromkeys(tuple(context) for context, _ in pairs))
    place = torch.tensor([contexts.index(tuple(context)) for context, _ in pairs], device=device)
    prefix, prefix_mask = _padded([c[:-1] for c in contexts], padding, left=True)
    read = [[context[-1], *continuation[:-1]] for context, continuation in pairs]
    ids, mask = (part.to(device) for part in _padded(read, padding, left=False))  # (n, R)
    prefix, prefix_mask = prefix.to(device), prefix_mask.to(device)  # (contexts, P - 1)
    cache = None
    if prefix.shape[1]:
        cache = growing_cache(model)
        model(
            input_ids=prefix,
            attention_mask=prefix_mask,
            position_ids=_positions(prefix_mask),
            past_key_values=cache,
            logits_to_keep=1,
        )
        cache.batch_select_indices(place)
    whole = torch.cat([prefix_mask[place], mask], dim=1)
    logits = model(
        input_ids=ids,
        attention_mask=whole,
        position_ids=_positions(whole)[:, prefix.shape[1] :],
        past_key_values=cache,
        use_cache=cache is not None,
    ).logits.float()  # (n, R, vocabulary)
    targets, _ = _padded([continuation for _, continuation in pairs], padding, left=False)
    targets = targets.to(device)
    # Not by way of all log-probabilities, which are as large again as the logits.
    log_probs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    greedy = logits.argmax(-1) == targets
    for row, (_, continuation) in enumerate(pairs):
        end = len(continuation)
        yield Scored(
            log_probs[row, :end].cpu().numpy().astype(np.float64), greedy[row, :end].cpu().numpy()
        )


def _padded(rows: Sequence[Tokens], padding: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask (rows, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, columns] = torch.tensor(row, dtype=ids.dtype)
        mask[i, columns] = 1
    return ids, mask


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)
