"""Prompts that are read once, and the likelihood of what comes after them.

An edit of scope "response" changes nothing before a prompt's last position. So where many answers
to one prompt are judged, or many edits on the same answers, the keys and values of all positions
before it are read once and kept: each pass is as long as an answer.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from steer.batches import Sequences, pad
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
        # What an edit may change begins with a prompt's last token.
        parts = [(list(prompt[:-1]), [prompt[-1], *response]) for prompt, response in sequences]
        batch = pad(language_model, parts, list(range(len(parts))))
        begin = batch.prompt_length
        shared = all(prompt == parts[0][0] for prompt, _ in parts)
        rows = slice(1 if shared else None)
        with torch.no_grad():
            self._cache = language_model.model(
                input_ids=batch.ids[rows, :begin],
                attention_mask=batch.mask[rows, :begin],
                position_ids=batch.positions[rows, :begin],
                use_cache=True,
                logits_to_keep=1,
            ).past_key_values
        if shared:
            self._cache.batch_repeat_interleave(len(parts))
        self.ids = batch.ids[:, begin:]
        self.mask = batch.response_mask[:, 1:]
        self._attention = batch.mask
        self._positions = batch.positions[:, begin:]

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
