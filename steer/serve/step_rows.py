"""Which slot each token of a step has, for engines that tell a step by its requests.

vLLM names the requests of a step, and for each of its tokens the request and the position. What
each request asks for is known since it began; a token before its answer has slot 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.edits import Edit
from steer.hooks import Scope
from steer.serve.slots import Slots

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Begun:
    """What is known of a request when it begins.

    Attributes:
        prompt: How many tokens it has.
        fields: Its extra arguments.
    """

    prompt: int
    fields: Mapping[str, Any]


class StepRows:
    """Keeps the slots of the requests that are in the batch."""

    def __init__(
        self,
        slots: Slots,
        resolve: Callable[[Mapping[str, Any]], Edit],
        scope: Scope,
        buffer: Tensor,
    ) -> None:
        """None yet.

        Args:
            slots: Where edits lie.
            resolve: The edit of a request's extra arguments.
            scope: Where edits act.
            buffer: What the layers read (most tokens of a step,), int64.
        """
        self._slots = slots
        self._resolve = resolve
        self._scope = scope
        self._buffer = buffer
        self._rows: dict[str, tuple[int, int]] = {}  # slot, and the first position that is edited
        self._filled = 0  # how much of the buffer is not 0

    def fill(
        self,
        names: Sequence[str],
        begun: Callable[[str], Begun],
        request: Int64,
        position: Int64,
    ) -> None:
        """Write each token's slot, for the coming step.

        Args:
            names: The requests in the batch; those that were there before and are not now give
                their slots back.
            begun: What is known of one that is new.
            request: Of each token (N,), its place among the names.
            position: Of each token (N,), in its request.
        """
        for name in self._rows.keys() - set(names):
            self._slots.give_back(self._rows.pop(name)[0])
        for name in names:
            if name not in self._rows:
                self._rows[name] = self._begin(begun(name))
        rows = np.array([self._rows[name] for name in names], np.int64).reshape(-1, 2)
        steered = bool(rows[:, 0].any())
        if not steered and not self._filled:
            return
        of_token = np.zeros(max(len(request), self._filled), np.int64)
        of_token[: len(request)] = rows[request, 0] * (position >= rows[request, 1])
        self._write(of_token)
        self._filled = len(request) if steered else 0

    def _begin(self, begun: Begun) -> tuple[int, int]:
        # The last position of the prompt gives the answer's first token.
        first = begun.prompt - 1 if self._scope == "response" else 0
        return self._slots.take(self._resolve(begun.fields)), first

    def _write(self, of_token: Int64) -> None:
        source = torch.from_numpy(of_token)
        if self._buffer.is_cuda:
            # Pinned, it is copied behind the kernels that are queued, and nobody waits.
            source = source.pin_memory()
        self._buffer[: len(of_token)].copy_(source, non_blocking=True)
