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
from steer.kernel import Tables, edit_rows, gather
from steer.models import LanguageModel, execution_device


@dataclass(frozen=True, eq=False)
class Step:
    """What one forward pass edits.

    Attributes:
        slots: Slot of each token (N,); 0 is no edit.
        gate: Whether each token is edited (N,), as 0 or 1.
        tables: By layer.
        version: Of the tables' content.
    """

    slots: tuple[int, ...]
    gate: Tensor
    tables: dict[int, Tables]
    version: int


class _Site:
    """The hook of one decoder layer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: Tables | None = None  # of each token (N, ...)
        self.gate = torch.empty(0)
        self.active = False
        self.fired = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.active or self.rows is None:
            return None
        h = output if isinstance(output, Tensor) else output[0]  # (1, N, d)
        edited = edit_rows(h.transpose(0, 1), self.rows, self.gate).transpose(0, 1)
        self.fired = True
        return edited if isinstance(output, Tensor) else (edited, *output[1:])


class PackedHooks:
    """The hooks of one model that an engine has for itself."""

    def __init__(self, language_model: LanguageModel) -> None:
        """Put them on the model; until a step begins they do nothing."""
        self._dtype = language_model.model.dtype
        self._sites = [_Site(execution_device(layer)) for layer in language_model.layers]
        self._handles = [
            layer.register_forward_hook(site)
            for layer, site in zip(language_model.layers, self._sites, strict=True)
        ]
        self._gathered: tuple[tuple[int, ...], int] | None = None

    def begin(self, step: Step | None) -> None:
        """Say what the next forward pass edits; None if nothing."""
        for site in self._sites:
            site.active = False
        if step is None:
            return
        # While the same requests are written on, token by token, their rows stay.
        same = self._gathered == (step.slots, step.version)
        gates: dict[torch.device, Tensor] = {}
        indices: dict[torch.device, Tensor] = {}
        for layer, tables in step.tables.items():
            site = self._sites[layer]
            if site.device not in gates:
                gate = step.gate.to(site.device, self._dtype)
                gates[site.device] = gate[:, None, None]  # (N, 1, 1)
                indices[site.device] = torch.tensor(step.slots, device=site.device)
            if not same:
                site.rows = gather(tables, indices[site.device])
            site.gate = gates[site.device]
            site.active, site.fired = True, False
        self._gathered = (step.slots, step.version)

    def check(self) -> None:
        """After a forward pass: refuse an edit that did not act.

        Raises:
            EditNeverFiredError: If a layer's never did.
        """
        silent = [i for i, site in enumerate(self._sites) if site.active and not site.fired]
        if silent:
            raise EditNeverFiredError(f"the edit never acted at layers {silent}")

    def remove(self) -> None:
        """Take them off the model."""
        for handle in self._handles:
            handle.remove()
