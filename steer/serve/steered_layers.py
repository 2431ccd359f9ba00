"""Decoder layers that edit what they give, by buffers of their own: tables, and each token's slot.

For engines that compile a model before the first request and lay the tokens of all requests side by
side. The edit is always a part of the layer, and what it does is a matter of what stands in the
buffers, whose addresses never change: no graph is ever made anew. The formula is
`steer.kernel.apply`.

A layer of vLLM gives (hidden, residual), whose sum is the residual stream x; a layer of Hugging
Face, and some of vLLM, give x itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steer.errors import UnsupportedModelError
from steer.kernel import Tables, apply

_SITE = "steer_site"


class Site(nn.Module):
    """The edit behind one layer.

    Buffers rather than attributes: a graph that was stored finds them again by their names.
    """

    e: Tensor
    v: Tensor
    u: Tensor
    floor: Tensor
    slots: Tensor
    gate: Tensor

    def __init__(self, tables: Tables, slots: Tensor, *, last: bool) -> None:
        """Buffers that are shared with whoever fills them.

        Args:
            tables: Of the layer.
            slots: Of each token, for as many tokens as a step can have.
            last: Whether no layer follows here: the residual must then be a tensor.
        """
        super().__init__()
        for name, part in zip(Tables._fields, tables, strict=True):
            self.register_buffer(name, part, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        # Which tokens are edited is said by their slots.
        self.register_buffer("gate", torch.ones_like(tables.e[0, :, :1]), persistent=False)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """The stream (..., d) of N tokens, edited."""
        flat = x.reshape(-1, x.shape[-1])  # (N, d)
        tables = Tables(self.e, self.v, self.u, self.floor)
        return apply(flat, self.slots[: flat.shape[0]], tables, self.gate).reshape(x.shape)

    def after(self, output: Any) -> Any:
        """What a layer gives, edited."""
        if isinstance(output, Tensor):
            return self(output)
        hidden, residual = output
        x = self(hidden if residual is None else hidden + residual)
        # The next layer takes a stream without a residual as it takes the embeddings: the edited x
        # is rounded once, as behind a hook, and not split up again.
        return x, torch.zeros_like(x) if self.last else None


def steer_layers(
    layers: Mapping[int, nn.Module], tables: Mapping[int, Tables], slots: Tensor
) -> None:
    """Put the edit into layers, before anything is compiled.

    Args:
        layers: The decoder layers that lie in this process, by their index in the model.
        tables: By index, of the layers that are edited; others are left alone.
        slots: Of each token.
    """
    for index in sorted(tables.keys() & layers.keys()):
        layer = layers[index]
        setattr(layer, _SITE, Site(tables[index], slots, last=index == max(layers)))
        layer.__class__ = _steered(type(layer))


def decoder_layers(model: nn.Module, count: int) -> dict[int, nn.Module]:
    """The decoder layers of a model that lie in this process.

    Args:
        model: The model, as an engine built it.
        count: How many it has in all; those of other processes are placeholders here.

    Raises:
        UnsupportedModelError: If there is no one list of so many layers.
    """
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        raise UnsupportedModelError(
            f"expected one list of {count} decoder layers in {type(model).__name__}, found "
            f"{len(lists)}"
        )
    # A placeholder has no weights.
    return {i: layer for i, layer in enumerate(lists[0]) if any(True for _ in layer.parameters())}


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _steered(kind: type[nn.Module]) -> type[nn.Module]:
    """A layer class whose output goes through its site; one for each class."""
    if kind not in _CLASSES:

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            site: Site = getattr(self, _SITE)
            return site.after(kind.forward(self, *args, **kwargs))

        _CLASSES[kind] = type(f"Steered{kind.__name__}", (kind,), {"forward": forward})
    return _CLASSES[kind]
