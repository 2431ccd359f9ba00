"""The one formula that edits activations, shared by every engine.

    x <- x + g * (e + U (phi(V^T x) * c))

with `e` (d,), `U` and `V` (d, k), `c` (k,), `phi` the identity or relu per column, and `g` a
scalar per row and token. The additive edit x + c*theta is k = 0; CHAMELEON's two-step projection
(arXiv 2503.01048) is k = 2 with e = 0.

Pure tensor operations on padded tables, without branches on values, host synchronisation or
Python per row: an engine may call it eagerly, compile it, or capture it in a graph. Slot 0 of
every table means "no edit".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tables(NamedTuple):
    """The edits of one layer, stacked by slot; S slots, width d, rank k (0 for additive edits).

    They lie as the formula takes them: on one token of one request a view costs as much as a sum.

    Attributes:
        e: (S, 1, d) additive part.
        v: (S, d, k) directions that are read.
        u: (S, k, d) directions that are written, with the coefficients c multiplied in.
        floor: (S, 1, k) lower bound of V^T x: 0 where phi is relu, -inf where it is the identity,
            so that phi is a single `maximum`.
    """

    e: Tensor
    v: Tensor
    u: Tensor
    floor: Tensor

    @property
    def rank(self) -> int:
        """Rank k of the projection part."""
        return self.v.shape[-1]


def gather(tables: Tables, row_index: Tensor) -> Tables:
    """Pick each row's slot: (S, ...) tables and (N,) indices give (N, ...) tables."""
    return Tables(*(part[row_index] for part in tables))


def edit_rows(h: Tensor, rows: Tables, gate: Tensor) -> Tensor:
    """Edit activations with one gathered table row per batch row.

    Args:
        h: (B, T, d) activations.
        rows: Tables whose first dimension is B.
        gate: g, broadcastable to (B, T, 1).

    Returns:
        (B, T, d) edited activations; `h` is not changed.
    """
    delta = rows.e  # (B, 1, d)
    if rows.rank:
        projection = torch.maximum(torch.bmm(h, rows.v), rows.floor)  # (B, T, k)
        delta = torch.baddbmm(delta, projection, rows.u)  # (B, T, d)
    return torch.addcmul(h, delta, gate)


def apply(h: Tensor, row_index: Tensor, tables: Tables, gate: Tensor) -> Tensor:
    """Edit activations, looking each row's edit up by its slot.

    Args:
        h: (B, T, d) activations, or (N, d) for engines that flatten rows and tokens.
        row_index: (B,) or (N,) slots; 0 leaves the row as it is.
        tables: Tables of the layer.
        gate: g, broadcastable to (B, T, 1) or (N, 1).

    Returns:
        Edited activations in the shape of `h`.
    """
    rows = gather(tables, row_index)
    if h.dim() == 2:
        return edit_rows(h.unsqueeze(1), rows, gate.unsqueeze(1)).squeeze(1)
    return edit_rows(h, rows, gate)
