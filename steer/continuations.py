"""Prompts that are read once, and the likelihood of what comes after them.

An edit of scope "response" changes nothing before a prompt's last position. So where many answers
to one prompt are judged, or many edits on the same answers, the keys and values of all positions
before it are read once and kept: each pass is as long as an answer.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from steer.batches import Sequences, check_sequences, pad
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
            sequences: (prompt token ids, response token ids) pairs. Each different prompt is read
                once.

        Raises:
            InputError: If there are none, or a prompt or a response is empty.
        """
        if not sequences:
            raise InputError("expected prompts with responses, got none")
        check_sequences(sequences)
        self._model = language_model
        # What an edit may change begins with a prompt's last token.
        parts = [(tuple(prompt[:-1]), (prompt[-1], *response)) for prompt, response in sequences]
        batch = pad(language_model, parts, list(range(len(parts))))
        begin = batch.prompt_length
        self._cache = None  # if every prompt is one token, nothing is before the last
        if begin:
            place: dict[tuple[int, ...], int] = {}
            row_of = [place.setdefault(prompt, len(place)) for prompt, _ in parts]
            first = [row_of.index(number) for number in place.values()]
            with torch.no_grad():
                self._cache = language_model.model(
                    input_ids=batch.ids[first, :begin],
                    attention_mask=batch.mask[first, :begin],
                    position_ids=batch.positions[first, :begin],
                    use_cache=True,
                    logits_to_keep=1,
                ).past_key_values
            if len(first) < len(parts):
                # On the CPU, wherever the layers' keys and values are.
                self._cache.batch_select_indices(torch.tensor(row_of))
        self.ids = batch.ids[:, begin:]
        self.mask = batch.response_mask[:, 1:]
        self._attention = batch.mask
        self._positions = batch.positions[:, begin:]

    def logits(self) -> Tensor:
        """Logits (B, R, vocabulary) of what comes at each response position, as the model has them.

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
        return logits[:, :-1]

    def log_likelihood(self) -> Tensor:
        """Summed log-probability of each response, in nats, (B,)."""
        logits = self.logits().float()
        targets = self.ids[:, 1:, None]
        # Not by way of all log-probabilities, which are as large again as the logits.
        each = logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)
        return (each * self.mask).sum(1)
