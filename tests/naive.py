"""The plainest way to run a model under an edit, which all others are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steer.edits import ZERO, Edit, LayerEdit
from steer.models import LanguageModel


@contextmanager
def edited(language_model: LanguageModel, edit: Edit | None, first: int) -> Iterator[None]:
    """Hooks of the most obvious kind: NumPy, a position at a time, from position `first` on."""

    def hook_of(layer_edit: LayerEdit) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            h = output if isinstance(output, Tensor) else output[0]
            x = h.detach().numpy().copy()
            for row in range(x.shape[0]):
                for position in range(first, x.shape[1]):
                    x[row, position] = layer_edit.apply(x[row, position])
            new = torch.from_numpy(x)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return hook

    handles = [
        language_model.layers[index].register_forward_hook(hook_of(layer))
        for index, layer in (edit or ZERO).layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_of(
    language_model: LanguageModel, tokens: Sequence[int], edit: Edit | None, first: int
) -> Tensor:
    """Logits (T, vocabulary) of one unpadded row, from one pass over all of it."""
    with edited(language_model, edit, first), torch.no_grad():
        logits: Tensor = language_model.model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits
