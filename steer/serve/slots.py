"""The edits of all requests in flight, as one table a layer.

Requests with the same edit share a slot, so that a small portfolio needs few; a slot is free again
when its last request has ended. Slot 0 is "no edit".
"""

from __future__ import annotations

import threading

import torch

from steer.edits import Edit
from steer.errors import InputError
from steer.hooks import pack
from steer.kernel import Tables
from steer.models import LanguageModel, execution_device

_FIRST = 8


class Slots:
    """Tables of a model's layers; safe to use from several threads.

    Attributes:
        tables: By layer, what `steer.kernel` reads. Where they grow they are replaced, so that a
            forward pass that is under way keeps those it began with.
        version: Counts the changes of their content.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        """Tables that hold no edit."""
        self._width = language_model.width
        self._devices = [execution_device(layer) for layer in language_model.layers]
        self._dtype = language_model.model.dtype
        self._lock = threading.Lock()
        self._slot_of: dict[str, int] = {}
        self._users: dict[int, int] = {}
        self._digests: dict[int, str] = {}
        self._free: list[int] = []
        self._capacity = 1
        self.tables: dict[int, Tables] = {}
        self.version = 0

    @property
    def in_use(self) -> int:
        """How many different edits there are."""
        return len(self._slot_of)

    def take(self, edit: Edit) -> int:
        """The slot of an edit, for one request more.

        Raises:
            InputError: If the edit does not fit the model.
        """
        if edit.is_zero():
            return 0
        for index, layer in edit.layers.items():
            if index >= len(self._devices) or layer.width != self._width:
                raise InputError(
                    f"edit of width {layer.width} at layer {index} does not fit a model of "
                    f"{len(self._devices)} layers and width {self._width}"
                )
        with self._lock:
            slot = self._slot_of.get(edit.digest)
            if slot is None:
                if not self._free:
                    self._grow()
                slot = self._free.pop()
                self._write(slot, edit)
                self._slot_of[edit.digest] = slot
                self._digests[slot] = edit.digest
                self._users[slot] = 0
            self._users[slot] += 1
            return slot

    def give_back(self, slot: int) -> None:
        """A request that used a slot has ended."""
        if slot == 0:
            return
        with self._lock:
            self._users[slot] -= 1
            if self._users[slot] == 0:
                # What stands in the tables is left there: no row reads it, and the next edit
                # overwrites all of it.
                del self._users[slot]
                del self._slot_of[self._digests.pop(slot)]
                self._free.append(slot)

    def _grow(self) -> None:
        capacity = max(_FIRST, 2 * self._capacity)
        self._free += range(capacity - 1, self._capacity - 1, -1)
        self.tables = {
            index: self._room(index, tables, capacity, tables.rank)
            for index, tables in self.tables.items()
        }
        self._capacity = capacity

    def _write(self, slot: int, edit: Edit) -> None:
        """In place: no row that is being computed reads a free slot."""
        self.version += 1
        wider = {}
        for index, layer in edit.layers.items():
            old = self.tables.get(index)
            if old is None or layer.rank > old.rank:
                wider[index] = self._room(index, old, self._capacity, layer.rank)
        if wider:
            self.tables = {**self.tables, **wider}
        with torch.inference_mode(False), torch.no_grad():
            # A layer that the edit leaves alone may hold another one's rest in this slot.
            for index, tables in self.tables.items():
                row = pack([edit.layers.get(index)], self._width, tables.rank)
                for part, values in zip(tables, row, strict=True):
                    part[slot] = values[0].to(part)

    def _room(self, index: int, old: Tables | None, capacity: int, rank: int) -> Tables:
        """A copy with room for so many slots of such a rank."""
        with torch.inference_mode(False), torch.no_grad():
            parts = pack([None] * capacity, self._width, rank)
            new = Tables(*(part.to(self._devices[index], self._dtype) for part in parts))
            if old is not None:
                slots, k = old.floor.shape
                new.e[:slots] = old.e
                new.v[:slots, :, :k] = old.v
                new.u[:slots, :, :k] = old.u
                new.floor[:slots, :k] = old.floor
            return new
