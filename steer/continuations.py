"""Prompts that are read once, and the likelihood of what comes after them.

An edit of scope "response" changes nothing before a prompt's last position. So where many answers
to one prompt are judged, or many edits on the same answers, the keys and values of all positions
before it are read once and kept: each pass is as long as an answer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steer.activations import Tokens
from steer.batches import Sequences
from steer.errors import InputError
from steer.models import LanguageModel


class Continuations:
    """B prompts with responses of up to R tokens.

    Attributes:
        ids: (B, 1 + R) each prompt's last token and the response after it, padded on the right.
        mask: (B, R) 1 where a response has a token, else 0.
    """

    def __init__(self, language_model: LanguageModel, sequences: Sequences) -> None:
        """Read the prompts.

        Args:
            language_model: The model; edits must not act meanwhile.
            sequences: (prompt token ids, response token ids) pairs. If all prompts are the same
                it is read only once.

        Raises:
            InputError: If there are none, a prompt has fewer than two tokens, or a response none.
        """
        for index, (prompt, response) in enumerate(sequences):
            if len(prompt) < 2 or not response:
                raise InputError(
                    f"sequence {index}: expected a prompt of two tokens or more and a response"
                )
        if not sequences:
            raise InputError("expected prompts with responses, got none")
        self._model = language_model
        responses = [response for _, response in sequences]
        prompts = [list(prompt) for prompt, _ in sequences]
        shared = all(prompt == prompts[0] for prompt in prompts)
        filler = language_model.tokenizer.pad_token_id
        last = [
            [prompt[-1], *response] for prompt, response in zip(prompts, responses, strict=True)
        ]
        ids, mask = _padded(last, filler, left=False)
        before, known = _padded([p[:-1] for p in (prompts[:1] if shared else prompts)], filler)
        device = language_model.device
        before, known = before.to(device), known.to(device)
        with torch.no_grad():
            self._cache = language_model.model(
                input_ids=before,
                attention_mask=known,
                position_ids=(known.cumsum(1) - 1).clamp(min=0),
                use_cache=True,
                logits_to_keep=1,
            ).past_key_values
        if shared:
            self._cache.batch_repeat_interleave(len(prompts))
            known = known.expand(len(prompts), -1)
        self.ids = ids.to(device)
        self.mask = mask[:, 1:].float().to(device)
        self._attention = torch.cat([known, mask.to(device)], 1)
        self._positions = known.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=device)

    def logits(self) -> Tensor:
        """Logits (B, R, vocabulary) of what comes at each response position, in fp32.

        Gradients flow. Hooks see 1 + R columns, of which an edit acts on all: in
        `Hooks.steer`, `prompt_length=1`.
        """
        logits: Tensor = self._model.model(
            input_ids=self.ids,
            attention_mask=self._attention,
            position_ids=self._positions,
            # The model appends to what it is given.
            past_key_values=copy.deepcopy(self._cache),
            use_cache=True,
        ).logits
        return logits[:, :-1].float()

    def log_likelihood(self) -> Tensor:
        """Summed log-probability of each response, in nats, (B,)."""
        logits = self.logits()
        targets = self.ids[:, 1:, None]
        # Not by way of all log-probabilities, which are as large again as the logits.
        each = logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)
        return (each * self.mask).sum(1)


def _padded(rows: Sequence[Tokens], filler: int, *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of rows of token ids."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), filler)
    mask = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[index, columns] = row
        mask[index, columns] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
