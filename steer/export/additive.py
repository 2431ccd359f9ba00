"""What of an edit can be exported: the vectors that it adds."""

from __future__ import annotations

import numpy as np

from steer.edits import Array, Edit
from steer.errors import InputError


def offsets(edit: Edit) -> dict[int, Array]:
    """The vectors e (d,) that an edit adds, by 0-based layer.

    Args:
        edit: Without a gate (`steer.mixture`).

    Raises:
        InputError: If it does nothing, or reads the stream.
    """
    if edit.is_zero():
        raise InputError("the edit does nothing, so there is nothing to export")
    reading = [index for index, layer in edit.layers.items() if layer.rank]
    if reading:
        raise InputError(
            f"the edit reads the stream at layers {reading}; only additive edits can be exported, "
            "such as those of the methods mean-difference and distilled"
        )
    return {i: layer.e.astype(np.float32) for i, layer in edit.layers.items() if layer.e.any()}
