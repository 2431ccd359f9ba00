"""Which of the kept edits serves a preference."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.certificate import Measured

Float64 = NDArray[np.float64]


def route(measured: Measured, kept: tuple[int, ...], weights: ArrayLike) -> NDArray[np.int64]:
    """The kept edit that serves each preference best.

    Args:
        measured: Every measured edit.
        kept: Indices of the edits kept; the unsteered model is one whether it is named or not.
        weights: Preferences (m, d), scaled to sum to one.

    Returns:
        Indices into the measured edits (m,). Ties go to the edit that is named first, and to the
        unsteered model before all.
    """
    order = np.array((0, *(index for index in kept if index != 0)))
    values = np.asarray(weights, np.float64) @ measured.utilities[order].T
    values -= measured.regulariser[order]
    return np.asarray(order[values.argmax(1)])


def usage(measured: Measured, kept: tuple[int, ...], weights: ArrayLike) -> tuple[Float64, float]:
    """Share of preferences that each kept edit serves, and the perplexity of those shares.

    Args:
        measured: Every measured edit.
        kept: Indices without the unsteered model, whose share is not counted.
        weights: Preferences (m, d).

    Returns:
        Shares (K,) of all preferences, and exp of their entropy once scaled to sum to one: K when
        all are used evenly, 0 when none is used.
    """
    served = route(measured, kept, weights)
    shares = np.array([float((served == index).mean()) for index in kept])
    if not shares.sum():
        return shares, 0.0
    scaled = shares[shares > 0] / shares.sum()
    return shares, float(np.exp(-(scaled * np.log(scaled)).sum()))
