"""Attach edits to a model: one forward hook a layer, one edit a row.

The hooks are installed once and stay for the model's life; outside a `Hooks.steer` block they
return at once and the model computes exactly what it computes without them. A block fills
preallocated buffers (row by row, the edit of each layer) before the first forward pass; the hooks
only read them. They allocate no masks, never wait for the device, and run no Python per row, so
`torch.compile` traces them into the layers and never has to trace again when weights change.

**Which positions.** With scope "response" an edit acts from the last prompt position on: its
output is the first generated token. A model pre-hook sets one gate value a column before each
forward pass; batches are padded on the left, so the response starts in the same column in every
row. Inside `model.generate` the prompt's length is known from the call. In a loop of one's own
the first pass is the prompt, unless `prompt_length` says otherwise.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from steer.edits import Edit, LayerEdit
from steer.errors import (
    ConcurrentSteeringError,
    EditNeverFiredError,
    InputError,
    SteeringError,
)
from steer.kernel import Tables, edit_rows, gather
from steer.models import LanguageModel, execution_device

Scope = Literal["response", "all"]

# transformers 4 reads a chunked prompt by calling `model.forward` itself.
_CHUNKS_SKIP_HOOKS = transformers.__version__.startswith("4.")
_MIN_ROWS = 32
_MIN_COLUMNS = 2048


def pack(edits: Sequence[LayerEdit | None], width: int, rank: int) -> Tables:
    """Stack the edits of one layer into tables, padded to one rank; None is "no edit".

    Args:
        edits: One per slot.
        width: Width d.
        rank: Rank k >= every edit's rank.

    Returns:
        fp32 tables on the CPU.
    """
    slots = len(edits)
    e = np.zeros((slots, 1, width), dtype=np.float32)
    v = np.zeros((slots, width, rank), dtype=np.float32)
    u = np.zeros((slots, rank, width), dtype=np.float32)
    floor = np.full((slots, 1, rank), -np.inf, dtype=np.float32)
    for slot, edit in enumerate(edits):
        if edit is None:
            continue
        e[slot, 0] = edit.e
        v[slot, :, : edit.rank] = edit.v
        u[slot, : edit.rank] = (edit.u * edit.c).T
        floor[slot, 0, : edit.rank][edit.relu] = 0.0
    return Tables(*(torch.from_numpy(part) for part in (e, v, u, floor)))


class _Site:
    """The hook of one decoder layer, with the buffers it reads."""

    def __init__(self, index: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.index = index
        self.width = width
        self.device = device
        self.dtype = dtype
        self.active = False
        self.fired = False
        self.gate = torch.empty(0)
        self.rows = self._allocate(_MIN_ROWS, 0)
        self.batch = self.rows  # views of the leading rows that the current batch uses

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        # While a graph is traced the edit is always part of it (an inactive one adds zeros), so
        # that entering or leaving a block does not need another graph.
        if not torch.compiler.is_compiling() and not self.active:
            return None
        # Decoder layers return a tensor, or, in older transformers, a tuple that begins with it.
        h = output if isinstance(output, Tensor) else output[0]  # (B, T, d)
        # Buffers grow before a layer is edited. A traced one that is not has nothing to add.
        small = len(self.rows.e) < h.shape[0] or len(self.gate) < h.shape[1]
        if small and not self.active:
            return None
        # Taking four views costs as much as an additive edit, so they are kept from step to step. A
        # graph takes its own, of the buffers, whose addresses it knows.
        if torch.compiler.is_compiling() or self.batch.e.shape[0] != h.shape[0]:
            rows = self._leading(h.shape[0])
        else:
            rows = self.batch
        edited = edit_rows(h, rows, self.gate[: h.shape[1]])
        # Written, never read here: a compiled graph replays the write without a guard.
        self.fired = True
        return edited if isinstance(output, Tensor) else (edited, *output[1:])

    def reserve(self, rows: int, rank: int) -> None:
        """Make room; buffers grow, and never shrink, so that their addresses stay."""
        capacity, _, width_rank = self.rows.floor.shape
        if rows > capacity or rank > width_rank:
            self.rows = self._allocate(max(_power_of_two(rows), capacity), max(rank, width_rank))
            self.batch = self.rows

    def fill(self, tables: Tables, row_index: Tensor) -> None:
        """Copy each row's edit into the buffers."""
        self.batch = self._leading(len(row_index))
        for view, part in zip(self.batch, gather(tables, row_index), strict=True):
            view.copy_(part)

    def clear(self) -> None:
        """Forget the edit: a compiled graph then adds zeros."""
        self.active = False
        self.rows.e.zero_()
        self.rows.u.zero_()
        self.rows.v.zero_()  # in fp16 a projection may overflow, and infinity times 0 is not 0

    def _leading(self, rows: int) -> Tables:
        return Tables(*(part[:rows] for part in self.rows))

    def _allocate(self, rows: int, rank: int) -> Tables:
        d = self.width
        parts = [
            torch.zeros(shape, device=self.device, dtype=self.dtype)
            for shape in ((rows, 1, d), (rows, d, rank), (rows, rank, d), (rows, 1, rank))
        ]
        return Tables(*(_static(part) for part in parts))


class _Call:
    """One `steer` block: the rows' edits, and how far the current sequence has been read."""

    def __init__(
        self, slots: Sequence[Edit], row_index: Tensor, scope: Scope, prompt_length: int | None
    ) -> None:
        self.slots = slots
        self.row_index = row_index  # (rows,)
        self.scope = scope
        self.given_prompt_length = prompt_length
        self.prompt_length = prompt_length
        self.in_generate = False
        self.seen = 0
        self.thread = threading.get_ident()
        self.filled_rows = 0
        self.tables: dict[int, Tables] = {}
        self.opened = False
        self.own_generate: Any = None  # what stood in the model's own `generate` attribute

    @property
    def mine(self) -> bool:
        """Whether it is of the thread that asks."""
        return threading.get_ident() == self.thread

    def refuse_others(self) -> None:
        """Refuse the model to threads without a block of their own.

        Raises:
            ConcurrentSteeringError: If this is one.
        """
        if not self.mine:
            raise ConcurrentSteeringError(
                "another thread is steering this model; a call from this thread would be steered "
                "too. Make it inside a steer block of its own, which waits for its turn"
            )

    def begin(self, prompt_length: int | None, seen: int) -> None:
        """Start a new sequence of which `seen` columns are in the cache already."""
        self.prompt_length = prompt_length
        self.seen = seen
        self.opened = False

    def response_start(self, columns: int, cache: Any) -> int:
        """First column of this pass that is edited, in 0..columns."""
        if self.scope == "all":
            return 0
        if cache is None:
            self.seen = 0
            if not self.in_generate:
                self.prompt_length = self.given_prompt_length
        elif not self.in_generate and self.seen and _is_empty(cache):
            self.begin(self.given_prompt_length, 0)
        if self.prompt_length is None:
            self.prompt_length = self.seen + columns
        start = self.prompt_length - 1 - self.seen
        self.seen += columns
        return min(max(start, 0), columns)


class Hooks:
    """The hooks of one model. Get them with `attach`, so that a model has one set."""

    def __init__(self, language_model: LanguageModel) -> None:
        model = language_model.model
        self._model: PreTrainedModel = model
        self._lock = threading.Lock()
        self._call: _Call | None = None
        self._sites = [
            _Site(index, language_model.width, execution_device(layer), model.dtype)
            for index, layer in enumerate(language_model.layers)
        ]
        self._gates: dict[torch.device, Tensor] = {}
        self._columns = 0  # length of the gates
        self._closed_columns = 0  # leading zeros in the gates
        self._reserve_columns(_MIN_COLUMNS)
        self._handles = [
            layer.register_forward_hook(site)
            for layer, site in zip(language_model.layers, self._sites, strict=True)
        ]
        self._handles.append(
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        )

    @contextmanager
    def steer(
        self,
        edits: Edit | Sequence[Edit | None],
        *,
        scope: Scope = "response",
        prompt_length: int | None = None,
    ) -> Iterator[None]:
        """Edit every forward pass of the model inside the block.

        Args:
            edits: One edit for all rows, or one (or None) per row. Rows that a call repeats
                (beams, several return sequences) follow their prompt.
            scope: "response", from the last prompt position on, or "all" positions.
            prompt_length: For loops of one's own: columns of the prompt, padding included, when
                the first forward pass is not exactly the prompt. Needed when no cache is used.

        Raises:
            InputError: If an edit does not fit the model.
            ConcurrentSteeringError: If this thread is steering the model already. Another
                thread's block waits for this one to end.
            EditNeverFiredError: On leaving, or on leaving `model.generate`, if the edit of a
                layer never acted.
        """
        rows = [edits] if isinstance(edits, Edit) else list(edits)
        call = self._prepare(rows, scope, prompt_length)
        self.refuse_nested()
        with self._lock:
            try:
                self._enter(call)
                yield
                self._check_fired(call)
            finally:
                self._leave(call)

    @contextmanager
    def dwindling(self, rows: int) -> Iterator[Callable[[Tensor], None]]:
        """Let rows of a batch leave within the current `steer` block, while others go on.

        Outside a block of this thread, and in one that edits nothing, nothing happens.

        Args:
            rows: Number of rows of the batch.

        Yields:
            What is told the indices of the rows that the next forward pass still has. After the
            block the edits are those of the whole batch again.
        """
        call = self._call
        if call is None or not call.slots or not call.mine:
            yield lambda kept: None
            return
        whole = call.row_index
        left = whole.repeat_interleave(rows // len(whole))

        def keep(kept: Tensor) -> None:
            nonlocal left
            left = call.row_index = left[kept.to(left.device)]
            call.filled_rows = 0

        try:
            yield keep
        finally:
            call.row_index = whole
            call.filled_rows = 0

    def refuse_nested(self) -> None:
        """Refuse to steer where this thread does already.

        Raises:
            ConcurrentSteeringError: If it does.
        """
        current = self._call
        if current is not None and current.mine:
            raise ConcurrentSteeringError(
                "this thread is already steering the model; add the edits and steer once"
            )

    def __getstate__(self) -> dict[str, Any]:
        # So that a copy of the model is a model with hooks of its own.
        if self._call is not None:
            raise ConcurrentSteeringError(
                "a model cannot be copied while it is being steered; leave the block first"
            )
        state = self.__dict__.copy()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def remove(self) -> None:
        """Take the hooks off the model; other hooks of the model are left alone.

        Raises:
            ConcurrentSteeringError: If the model is being steered.
        """
        if not self._lock.acquire(blocking=False):
            raise ConcurrentSteeringError("the model is being steered; leave the block first")
        try:
            for handle in self._handles:
                handle.remove()
            self._model.__dict__.pop(_ATTRIBUTE, None)
        finally:
            self._lock.release()

    def _prepare(
        self, rows: Sequence[Edit | None], scope: Scope, prompt_length: int | None
    ) -> _Call:
        if not rows:
            raise InputError("expected at least one edit")
        if scope not in ("response", "all"):
            raise InputError(f"unknown scope {scope!r}; expected 'response' or 'all'")
        slots: list[Edit] = []
        slot_of: dict[int, int] = {}
        indices = []
        for edit in rows:
            if edit is None or edit.is_zero():
                indices.append(0)
                continue
            if id(edit) not in slot_of:
                self._check_fits(edit)
                slots.append(edit)
                slot_of[id(edit)] = len(slots)  # slot 0 is "no edit"
            indices.append(slot_of[id(edit)])
        if not slots:
            indices = [0]  # that nothing is done goes for any number of rows
        return _Call(slots, torch.tensor(indices), scope, prompt_length)

    def _check_fits(self, edit: Edit) -> None:
        for index, layer in edit.layers.items():
            if index >= len(self._sites) or layer.width != self._sites[index].width:
                raise InputError(
                    f"edit of width {layer.width} at layer {index} does not fit a model of "
                    f"{len(self._sites)} layers and width {self._sites[0].width}"
                )

    def _enter(self, call: _Call) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for index in sorted({index for edit in call.slots for index in edit.layers}):
                site = self._sites[index]
                layers = [None, *(edit.layers.get(index) for edit in call.slots)]
                rank = max(layer.rank for layer in layers if layer is not None)
                site.reserve(len(call.row_index), rank)
                tables = pack(layers, site.width, site.rows.v.shape[-1])
                call.tables[index] = Tables(
                    *(part.to(device=site.device, dtype=site.dtype) for part in tables)
                )
                site.fired = False
                site.active = True
        call.own_generate = self._model.__dict__.get("generate")
        self._model.generate = self._watch_generate(self._model.generate, call)
        self._call = call

    def _leave(self, call: _Call) -> None:
        if self._call is call:
            self._call = None
            del self._model.generate
            if call.own_generate is not None:
                self._model.generate = call.own_generate
        with torch.inference_mode(False), torch.no_grad():
            for site in self._sites:
                if site.active:
                    site.clear()

    def _watch_generate(self, generate: Any, call: _Call) -> Any:
        """`model.generate`, telling the call where the prompt ends."""

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            # Before the call is told of this prompt, which is not its own.
            call.refuse_others()
            named = (kwargs.get(key) for key in ("inputs", "input_ids", "inputs_embeds"))
            inputs = next((x for x in (*args[:1], *named) if x is not None), None)
            config = kwargs.get("generation_config") or self._model.generation_config
            if _CHUNKS_SKIP_HOOKS and (
                kwargs.get("prefill_chunk_size") or config.prefill_chunk_size
            ):
                raise SteeringError(
                    "this version of transformers runs no hooks for a prompt that is read in "
                    "chunks; drop prefill_chunk_size, or use transformers 5"
                )
            cache = kwargs.get("past_key_values")
            call.begin(
                prompt_length=1 if inputs is None else inputs.shape[1],
                seen=0 if cache is None else int(cache.get_seq_length()),
            )
            for site in self._sites:
                site.fired = False
            call.in_generate = True
            try:
                result = generate(*args, **kwargs)
            finally:
                call.in_generate = False
            self._check_fired(call)
            return result

        return watched

    # Python bookkeeping that must run before every pass, also before a compiled one.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        call = self._call
        if call is None:
            return
        call.refuse_others()
        inputs = args[0] if args else kwargs.get("input_ids")
        if inputs is None:
            inputs = kwargs["inputs_embeds"]
        rows, columns = inputs.shape[:2]
        with torch.inference_mode(False), torch.no_grad():
            if rows != call.filled_rows:
                self._fill(call, rows)
            start = call.response_start(columns, kwargs.get("past_key_values"))
            call.opened |= start < columns
            self._set_gates(start, columns)

    def _fill(self, call: _Call, rows: int) -> None:
        given = len(call.row_index)
        if rows % given:
            raise SteeringError(
                f"{given} edits were given for a batch of {rows} rows; expected one edit, one "
                "per row, or rows repeated a whole number of times"
            )
        row_index = call.row_index.repeat_interleave(rows // given)
        for index, tables in call.tables.items():
            site = self._sites[index]
            site.reserve(rows, 0)
            site.fill(tables, row_index.to(site.device))
        call.filled_rows = rows

    def _set_gates(self, start: int, columns: int) -> None:
        """Zeros in the first `start` columns, ones in the rest; a no-op from step to step."""
        self._reserve_columns(columns)
        if start == self._closed_columns:
            return
        for gate in self._gates.values():
            gate[:start] = 0.0
            gate[start : max(self._closed_columns, start)] = 1.0
        self._closed_columns = start

    def _reserve_columns(self, columns: int) -> None:
        if columns <= self._columns:
            return
        self._columns = _power_of_two(columns)
        gates: dict[torch.device, Tensor] = {}
        for site in self._sites:
            if site.device not in gates:
                gate = torch.ones((self._columns, 1), device=site.device, dtype=site.dtype)
                gate[: self._closed_columns] = 0.0
                gates[site.device] = _static(gate)
            site.gate = gates[site.device]
        self._gates = gates

    def _check_fired(self, call: _Call) -> None:
        silent = [site.index for site in self._sites if site.active and not site.fired]
        if call.tables and (silent or not call.opened):
            where = f"layers {silent}" if silent else "any response position"
            raise EditNeverFiredError(
                f"the edit never acted at {where}: the model was not called, or runs code that "
                "was compiled before the hooks were attached (attach first, then compile)"
            )


_ATTRIBUTE = "_steer_hooks"


def attach(language_model: LanguageModel) -> Hooks:
    """The hooks of a model, installed on the first call."""
    existing: Hooks | None = language_model.model.__dict__.get(_ATTRIBUTE)
    if existing is None:
        # The buffers are written outside inference mode too, which forbids tensors made in it.
        with torch.inference_mode(False):
            existing = Hooks(language_model)
        language_model.model.__dict__[_ATTRIBUTE] = existing
    return existing


def _static(tensor: Tensor) -> Tensor:
    """Promise CUDA graphs that the buffer stays where it is, so that they need not copy it."""
    if tensor.device.type == "cuda":
        torch._dynamo.mark_static_address(tensor)
    return tensor


def _is_empty(cache: Any) -> bool:
    length = cache.get_seq_length()
    # Some caches keep their length on the device; reading it would stall every step.
    return isinstance(length, int) and length == 0


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
