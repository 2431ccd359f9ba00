"""Minimum set cover, exactly by integer programming and greedily."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array


def set_cover(covers: NDArray[np.bool_], seconds: float) -> tuple[NDArray[np.intp] | None, int]:
    """A minimum set of columns that covers all rows, and a bound on its size.

    Args:
        covers: Which column covers which row (rows, columns).
        seconds: Time limit.

    Returns:
        Indices, or None if no set was found in time; and a number that no set is smaller than.
    """
    columns = covers.shape[1]
    found = milp(
        np.ones(columns),
        constraints=LinearConstraint(csr_array(covers.astype(np.float64)), lb=1),
        integrality=np.ones(columns),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds},
    )
    dual = found.mip_dual_bound
    bound = math.ceil(dual - 1e-6) if dual is not None and math.isfinite(dual) else 1
    return (None if found.x is None else np.flatnonzero(found.x > 0.5)), bound


def greedy_cover(covers: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Columns that cover all rows, each the best for what the former ones left.

    Args:
        covers: Which column covers which row (rows, columns); each row needs one.
    """
    left = np.ones(len(covers), bool)
    chosen: list[int] = []
    while left.any():
        chosen.append(int(covers[left].sum(0).argmax()))
        left &= ~covers[:, chosen[-1]]
    # Later choices may have made earlier ones unnecessary.
    for column in list(chosen):
        others = [one for one in chosen if one != column]
        if others and covers[:, others].any(1).all():
            chosen = others
    return np.array(chosen, np.intp)
