"""Edits for engines that lay the tokens of all requests side by side: (1, N, d), one edit a token.

The same kernel as in `steer.hooks`, which has one edit a row. Which request a token belongs to, and
whether its response has begun, the engine says before each forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steer.errors import EditNeverFiredError
from steer.kernel import Tables, apply
from steer.models import LanguageModel, execution_device


@dataclass(frozen=True, eq=False)
class Step:
    """What one forward pass edits.

    Attributes:
        slots: Slot of each token (N,); 0 is no edit.
        gate: Whether each token is edited (N,), as 0 or 1.
        tables: By layer.
    """

    slots: Tensor
    gate: Tensor
    tables: dict[int, Tables]


class _Site:
    """The hook of one decoder layer."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._index = torch.empty(0, dtype=torch.long)
        self._gate = torch.empty(0)
        self._tables: Tables | None = None
        self.fired = False

    def begin(self, step: Step, tables: Tables | None) -> None:
        self._tables = tables
        self.fired = False
        if tables is not None:
            self._index = step.slots.to(self._device)
            self._gate = step.gate.to(self._device, self._dtype).unsqueeze(1)  # (N, 1)

    @property
    def silent(self) -> bool:
        """Whether it should have acted and did not."""
        return self._tables is not None and not self.fired

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._tables is None:
            return None
        h = output if isinstance(output, Tensor) else output[0]  # (1, N, d)
        edited = apply(h[0], self._index, self._tables, self._gate).unsqueeze(0)
        self.fired = True
        return edited if isinstance(output, Tensor) else (edited, *output[1:])


class PackedHooks:
    """The hooks of one model that an engine has for itself."""

    def __init__(self, language_model: LanguageModel) -> None:
        """Put them on the model; until a step begins they do nothing."""
        dtype = language_model.model.dtype
        self._sites = [_Site(execution_device(layer), dtype) for layer in language_model.layers]
        self._handles = [
            layer.register_forward_hook(site)
            for layer, site in zip(language_model.layers, self._sites, strict=True)
        ]

    def begin(self, step: Step | None) -> None:
        """Say what the next forward pass edits; None if nothing."""
        for index, site in enumerate(self._sites):
            if step is None:
                site.begin(_NOTHING, None)
            else:
                site.begin(step, step.tables.get(index))

    def check(self) -> None:
        """After a forward pass: refuse an edit that did not act.

        Raises:
            EditNeverFiredError: If a layer's never did.
        """
        silent = [index for index, site in enumerate(self._sites) if site.silent]
        if silent:
            raise EditNeverFiredError(f"the edit never acted at layers {silent}")

    def remove(self) -> None:
        """Take them off the model."""
        for handle in self._handles:
            handle.remove()


_NOTHING = Step(torch.empty(0, dtype=torch.long), torch.empty(0), {})
