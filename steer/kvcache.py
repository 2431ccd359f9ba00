"""A key-value cache that grows in place.

The cache of `transformers` concatenates: every step copies all keys and values to add one column.
On a CPU that is a third of the time of a long answer in a large batch. The layers here keep room
for further columns and copy only when it is used up.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # columns


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """A layer whose keys and values (B, heads, T, d) are the beginnings of larger buffers."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add columns; as in `transformers`, whose further arguments concern other caches."""
        seen = self.get_seq_length()
        if not seen:
            super().update(key_states, value_states, *args, **kwargs)
            return self.keys, self.values
        end = seen + key_states.shape[-2]
        buffers = self._buffers
        # Rows may have been selected, repeated or reordered since: then the keys are a copy.
        if (
            buffers is None
            or buffers[0].data_ptr() != self.keys.data_ptr()
            or buffers[0].shape[0] != self.keys.shape[0]
            or buffers[0].shape[-2] < end
        ):
            buffers = (_roomy(self.keys, end), _roomy(self.values, end))
            self._buffers = buffers
        buffers[0][..., seen:end, :] = key_states
        buffers[1][..., seen:end, :] = value_states
        self.keys, self.values = buffers[0][..., :end, :], buffers[1][..., :end, :]
        return self.keys, self.values


def _roomy(states: Tensor, columns: int) -> Tensor:
    """A larger buffer that begins with the states."""
    shape = list(states.shape)
    shape[-2] = columns + _ROOM
    buffer = states.new_empty(shape)
    buffer[..., : states.shape[-2], :] = states
    return buffer


def growing_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for a model; layers of another kind, such as sliding windows, stay theirs."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
