"""Edits for engines that lay the tokens of all requests side by side: (1, N, d), one edit a token.

The same kernel as in `steer.hooks`, which has one edit a row. Which edit each token gets, and that
those before a response get none, the engine says before each forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steer.errors import EditNeverFiredError
from steer.kernel import Tables, edit_rows, gather
from steer.models import LanguageModel, execution_device

# No model's activations come near it; norms and attention behind it stay finite.
_LARGEST = 1e8


@dataclass(frozen=True, eq=False)
class Step:
    """What one forward pass edits.

    Attributes:
        slots: Slot of each token (N,); 0 is no edit.
        tables: By layer.
        version: Of the tables' content.
    """

    slots: tuple[int, ...]
    tables: dict[int, Tables]
    version: int


class _Site:
    """The hook of one decoder layer that some edit is for."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.rows: Tables | None = None  # of each token (N, ...)
        self.gate = torch.ones((), device=device, dtype=dtype)  # slots say who is edited
        self.largest = min(_LARGEST, torch.finfo(dtype).max / 2)
        self.active = False
        self.fired = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.active or self.rows is None:
            return None
        h = output if isinstance(output, Tensor) else output[0]  # (1, N, d)
        edited = edit_rows(h.transpose(0, 1), self.rows, self.gate).transpose(0, 1)
        # Attention reads the keys and values of all requests before a mask, through which a NaN
        # comes; so no edit may give one, or what a later layer makes one of.
        edited.nan_to_num_(0.0).clamp_(-self.largest, self.largest)
        self.fired = True
        return edited if isinstance(output, Tensor) else (edited, *output[1:])


class PackedHooks:
    """The hooks of one model that an engine has for itself."""

    def __init__(self, language_model: LanguageModel) -> None:
        """Begin without any: a layer gets one with the first edit that it is of."""
        self._language_model = language_model
        self._sites: dict[int, _Site] = {}
        self._handles: list[RemovableHandle] = []
        self._gathered: tuple[tuple[int, ...], int] | None = None

    def begin(self, step: Step | None) -> None:
        """Say what the next forward pass edits; None if nothing."""
        for site in self._sites.values():
            site.active = False
        if step is None:
            return
        # While the same requests are written on, token by token, their rows stay.
        same = self._gathered == (step.slots, step.version)
        indices: dict[torch.device, Tensor] = {}
        for layer, tables in step.tables.items():
            site = self._sites.get(layer) or self._hooked(layer)
            if not same:
                if site.device not in indices:
                    indices[site.device] = torch.tensor(step.slots, device=site.device)
                site.rows = gather(tables, indices[site.device])
            site.active, site.fired = True, False
        self._gathered = (step.slots, step.version)

    def check(self) -> None:
        """After a forward pass: refuse an edit that did not act.

        Raises:
            EditNeverFiredError: If a layer's never did.
        """
        silent = [i for i, site in self._sites.items() if site.active and not site.fired]
        if silent:
            raise EditNeverFiredError(f"the edit never acted at layers {silent}")

    def _hooked(self, layer: int) -> _Site:
        module = self._language_model.layers[layer]
        site = self._sites[layer] = _Site(
            execution_device(module), self._language_model.model.dtype
        )
        self._handles.append(module.register_forward_hook(site))
        return site

    def remove(self) -> None:
        """Take them off the model."""
        for handle in self._handles:
            handle.remove()
