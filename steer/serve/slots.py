"""The edits of all requests in flight, as one table a layer.

Requests with the same edit share a slot, so that a small portfolio needs few; a slot is free again
when its last request has ended. Slot 0 is "no edit". Tables grow with what is asked for, or, for
engines whose graphs know their addresses, have a room that is reserved once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from steer.arrays import check_count
from steer.bundle import Bundle
from steer.edits import Edit, compose
from steer.errors import InputError, SteeringError
from steer.hooks import pack
from steer.kernel import Tables
from steer.mixture import of_profile
from steer.models import LanguageModel, execution_device

_FIRST = 8


@dataclass(frozen=True)
class Reserved:
    """Room for edits that is set aside once and never grows.

    Attributes:
        layers: The layers that can be edited.
        rank: Largest rank k.
        slots: How many different edits there can be, "no edit" included.
    """

    layers: tuple[int, ...]
    rank: int
    slots: int

    def __post_init__(self) -> None:
        check_count("slots", self.slots)

    @classmethod
    def of(cls, bundle: Bundle, slots: int) -> Reserved:
        """Room for whatever a bundle can be asked for: its layers, and its largest rank.

        Args:
            bundle: The bundle.
            slots: How many different edits there can be, "no edit" included.
        """
        own = [entry.edit for entry in bundle.traits.values()]
        kept = () if bundle.portfolio is None else bundle.portfolio.edits
        # A composition of all traits has the largest rank that a composition can have.
        edits = [bundle.behind_gate(edit) for edit in (compose(own, [1.0] * len(own)), *kept)]
        edits += [of_profile(bundle, one) for one in bundle.profiles.values()]
        layers = sorted({index for edit in edits for index in edit.layers})
        return cls(tuple(layers), max((edit.rank for edit in edits), default=0), slots)

    def check(self, edit: Edit) -> None:
        """Refuse an edit that has no room.

        Raises:
            InputError: If a layer or a rank is not reserved.
        """
        for index, layer in edit.layers.items():
            if not layer.is_zero() and (index not in self.layers or layer.rank > self.rank):
                raise InputError(
                    f"an edit of rank {layer.rank} at layer {index} has no room: the engine was "
                    f"started for rank {self.rank} at layers {list(self.layers)}; start it with a "
                    "bundle that has such edits"
                )


@dataclass(frozen=True, eq=False)
class Content:
    """The tables after a change.

    Attributes:
        tables: By layer, what `steer.kernel` reads.
        version: Counts the changes.
    """

    tables: dict[int, Tables]
    version: int


class Slots:
    """Tables of a model's layers; safe to use from several threads.

    Attributes:
        content: The tables as they are. Where they grow they are replaced, so that a forward pass
            that is under way keeps those it began with; with their version in one step, so that
            who reads them without the lock never sees those of another.
    """

    def __init__(
        self,
        width: int,
        devices: Mapping[int, torch.device],
        dtype: torch.dtype,
        reserved: Reserved | None = None,
    ) -> None:
        """Tables that hold no edit.

        Args:
            width: Width d of the model.
            devices: Of its layers, by index. Where room is reserved, layers that lie in another
                process may be left out.
            dtype: Of the activations.
            reserved: The room; None for tables that grow.
        """
        self._width = width
        self._devices = devices
        self._dtype = dtype
        self._reserved = reserved
        self._lock = threading.Lock()
        self._slot_of: dict[str, int] = {}
        self._users: dict[int, int] = {}
        self._digests: dict[int, str] = {}
        self._free: list[int] = []
        self._capacity = 1
        tables: dict[int, Tables] = {}
        if reserved is not None:
            self._capacity = reserved.slots
            self._free = list(range(reserved.slots - 1, 0, -1))
            tables = {
                index: self._room(index, None, reserved.slots, reserved.rank)
                for index in reserved.layers
                if index in devices
            }
        self.content = Content(tables, 0)

    @classmethod
    def of(cls, language_model: LanguageModel) -> Slots:
        """Tables for a model, which grow."""
        devices = dict(enumerate(map(execution_device, language_model.layers)))
        return cls(language_model.width, devices, language_model.model.dtype)

    @property
    def tables(self) -> dict[int, Tables]:
        """By layer, as they are; those of reserved room stay the same."""
        return self.content.tables

    @property
    def in_use(self) -> int:
        """How many different edits there are."""
        return len(self._slot_of)

    def take(self, edit: Edit) -> int:
        """The slot of an edit, for one request more.

        Raises:
            InputError: If the edit does not fit the model, or the room that is reserved.
            SteeringError: If all of that is in use.
        """
        if edit.is_zero():
            return 0
        self._check_fits(edit)
        digest = edit.digest
        with self._lock:
            slot = self._slot_of.get(digest)
            if slot is None:
                tables = self.content.tables
                if not self._free:
                    tables = self._grown(tables)
                slot = self._free.pop()
                if self._reserved is None:
                    tables = self._widened(tables, edit)
                self._write(tables, slot, edit)
                self.content = Content(tables, self.content.version + 1)
                self._slot_of[digest] = slot
                self._digests[slot] = digest
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

    def _check_fits(self, edit: Edit) -> None:
        if self._reserved is not None:
            self._reserved.check(edit)
        for index, layer in edit.layers.items():
            # What is reserved may lie in another process.
            known = index in self._devices or self._reserved is not None
            if not known or layer.width != self._width:
                raise InputError(
                    f"edit of width {layer.width} at layer {index} does not fit a model of "
                    f"{len(self._devices)} layers and width {self._width}"
                )

    def _grown(self, tables: dict[int, Tables]) -> dict[int, Tables]:
        """Tables with more slots."""
        if self._reserved is not None:
            raise SteeringError(f"all {self._capacity} slots for edits are in use")
        capacity = max(_FIRST, 2 * self._capacity)
        self._free += range(capacity - 1, self._capacity - 1, -1)
        self._capacity = capacity
        return {index: self._room(index, old, capacity, old.rank) for index, old in tables.items()}

    def _widened(self, tables: dict[int, Tables], edit: Edit) -> dict[int, Tables]:
        """Tables at the edit's layers too, of its rank at least."""
        wider = dict(tables)
        for index, layer in edit.layers.items():
            old = tables.get(index)
            if old is None or layer.rank > old.rank:
                wider[index] = self._room(index, old, self._capacity, layer.rank)
        return wider

    def _write(self, tables: dict[int, Tables], slot: int, edit: Edit) -> None:
        """In place: no row that is being computed reads a free slot."""
        with torch.inference_mode(False), torch.no_grad():
            # A layer that the edit leaves alone may hold another one's rest in this slot.
            for index, one in tables.items():
                row = pack([edit.layers.get(index)], self._width, one.rank)
                for part, values in zip(one, row, strict=True):
                    part[slot] = values[0].to(part)

    def _room(self, index: int, old: Tables | None, capacity: int, rank: int) -> Tables:
        """A copy with room for so many slots of such a rank."""
        with torch.inference_mode(False), torch.no_grad():
            parts = pack([None] * capacity, self._width, rank)
            new = Tables(*(part.to(self._devices[index], self._dtype) for part in parts))
            if old is not None:
                slots, _, k = old.floor.shape
                new.e[:slots] = old.e
                new.v[:slots, :, :k] = old.v
                new.u[:slots, :k] = old.u
                new.floor[:slots, :, :k] = old.floor
            return new
