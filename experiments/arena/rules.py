"""What else may become of an edit's change: bent, or weighed token by token.

The kernel of `steer` adds the same vector at every token of an answer. A rule takes what an edit
has added to a layer's output and says what is added instead. It comes after the edit's own hook, so
doses are read, and answers given, as without it. What wins here belongs into the kernel; as it
stands these are slower than it, and nothing exports or serves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

from steer.hooks import attach
from steer.models import LanguageModel

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Activations before the edit (B, T, d), what it added (B, T, d), the columns' token ids (B, T) and
their places in the answer (T,), 0 for the last token of the prompt; what is added instead."""

HALF_LIFE = 32  # tokens
ELSEWHERE = 0.25  # of the dose, where no content word is read
_SHORT = 3  # letters of a word without content


def norm_preserving(before: Tensor, change: Tensor, ids: Tensor, place: Tensor) -> Tensor:
    """Turn the activation towards where the edit takes it, and keep its length."""
    after = before + change
    return after * (before.norm(dim=-1, keepdim=True) / after.norm(dim=-1, keepdim=True)) - before


def decaying(before: Tensor, change: Tensor, ids: Tensor, place: Tensor) -> Tensor:
    """Half as much every so many tokens."""
    return change * 0.5 ** (place.to(change.dtype) / HALF_LIFE)[:, None]


def content_words(language_model: LanguageModel) -> Rule:
    """Less where the token that is read belongs to no content word.

    Args:
        language_model: Whose tokens are told apart.
    """
    tokenizer = language_model.tokenizer
    words = (tokenizer.decode([i]).strip().lower() for i in range(len(tokenizer)))
    content = [
        word.isalpha() and len(word) > _SHORT and word not in ENGLISH_STOP_WORDS for word in words
    ]
    weights = torch.where(torch.tensor(content, device=language_model.device), 1.0, ELSEWHERE)

    def rule(before: Tensor, change: Tensor, ids: Tensor, place: Tensor) -> Tensor:
        return change * weights[ids].to(change.dtype)[..., None]

    return rule


@contextmanager
def ruled(
    language_model: LanguageModel, layers: Sequence[int], rule: Rule | None
) -> Iterator[None]:
    """Within, edits of these layers do what a rule says; the edit is the same for all rows.

    Args:
        language_model: The model.
        layers: 0-based decoder layers.
        rule: The rule; None leaves edits as they are.
    """
    if rule is None:
        yield
        return
    attach(language_model)  # its hooks come first
    state = _State()

    def look(module: Any, args: Any, kwargs: Any) -> None:
        state.begin(kwargs["input_ids"])

    handles = [language_model.model.register_forward_pre_hook(look, with_kwargs=True)]
    for index in layers:
        before: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any, before: list[Tensor] = before) -> None:
            before[:] = [output if isinstance(output, Tensor) else output[0]]

        def change(module: Any, args: Any, output: Any, before: list[Tensor] = before) -> Any:
            (h,) = before
            edited = output if isinstance(output, Tensor) else output[0]
            added = edited - h
            place = state.places(added)
            ruled = torch.where(place[:, None] >= 0, h + rule(h, added, state.ids, place), edited)
            return ruled if isinstance(output, Tensor) else (ruled, *output[1:])

        layer = language_model.layers[index]
        handles += [
            layer.register_forward_hook(keep, prepend=True),
            layer.register_forward_hook(change),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _State:
    """Where in the answers a forward pass stands."""

    ids: Tensor

    def __init__(self) -> None:
        self._done = 0  # positions of the answer before this pass
        self._first: int | None = None  # the pass's first column that is edited

    def begin(self, ids: Tensor) -> None:
        """A pass over tokens (B, T): one on, or a new text."""
        if ids.shape[1] > 1:
            self._done, self._first = 0, None
        else:
            self._done, self._first = self._done + self._edited_before(), 0
        self.ids = ids

    def _edited_before(self) -> int:
        return 0 if self._first is None else self.ids.shape[1] - self._first

    def places(self, added: Tensor) -> Tensor:
        """By column (T,) its place in the answer; below 0 before it."""
        columns = added.shape[1]
        if self._first is None:
            edited = (added != 0).any(dim=-1).any(dim=0)  # (T,)
            self._first = int(edited.float().argmax()) if edited.any() else columns
        return torch.arange(columns, device=added.device) - self._first + self._done
