"""What pushing one trait does to the others, and doses that counteract it.

An edit moves more than its trait: brief answers are colder, simple ones less formal. Where edits
are added, one trait's gain can be lost to another's side effect. A linear model says by how much a
dose of trait i closes the headroom of trait j (`steer.interference_fit` measures it),

    gain_j = sum_i c_i gains[i, j],    gain = (reward - unsteered) / (1 - unsteered).

The doses of a mixture are then the smallest c >= 0, in Euclidean length, of the weighted traits'
own edits for which gains are at least in proportion to the weights: a least distance problem,
solved exactly through non-negative least squares (Lawson and Hanson, Solving Least Squares
Problems, 1974, chapter 23), then scaled to length one as any composition (`steer.weights.doses`).
Traits without weight get no dose: nothing comes that was not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from steer.errors import InputError
from steer.fields import check_number, check_object, check_text, exact_keys
from steer.weights import doses

Float64 = NDArray[np.float64]

# A trait is asked for no more than its own edit can do: a weak one would take the whole dose.
_ASKED = 0.25
_FEASIBLE = 1e-9


@dataclass(frozen=True, eq=False)
class Interference:
    """How the edits of traits move each other's rewards.

    Attributes:
        traits: d of them.
        gains: (d, d): the share of trait j's headroom that the default dose of trait i closes, at
            [i, j]. A column of zeros: the trait's own edit does not surely move its reward, so
            nothing is known of what others do to it.
    """

    traits: tuple[str, ...]
    gains: Float64

    def __post_init__(self) -> None:
        gains = np.array(self.gains, np.float64)
        d = len(self.traits)
        if d < 2 or len(set(self.traits)) != d or gains.shape != (d, d):
            raise InputError(
                f"interference: expected two or more different traits and gains ({d}, {d}), got "
                f"{self.traits} and shape {gains.shape}"
            )
        known = gains.any(axis=0)
        if not np.isfinite(gains).all() or (gains.diagonal()[known] <= 0).any():
            raise InputError(
                "interference: expected finite gains, and a trait's own above 0 unless its whole "
                "column is 0"
            )
        gains.setflags(write=False)
        object.__setattr__(self, "gains", gains)

    def doses(self, shares: Mapping[str, float]) -> dict[str, float]:
        """By how much of its dose each trait's edit enters a composition, together of length one.

        A weighted trait is to gain at least w_j min(gains[j, j], 1/4), which is in proportion to
        the weights but for traits whose own edit does less than that. Where no doses are enough,
        since traits undo each other, they are those of `steer.weights.doses`.

        Args:
            shares: Numbers >= 0 by trait, not all of them zero; a trait of which nothing is known
                is taken not to interfere.
        """
        names = [name for name, share in shares.items() if share > 0]
        w = np.array([shares[name] for name in names])
        gains = self._among(names)
        asked = w * np.minimum(gains.diagonal(), _ASKED)
        c = _shortest(np.concatenate([gains.T, np.eye(len(names))]), np.append(asked, 0 * w))
        if c is None:
            return doses(shares)
        found = dict(zip(names, (c / np.linalg.norm(c)).tolist(), strict=True))
        return {name: found.get(name, 0.0) for name in shares}

    def _among(self, names: list[str]) -> Float64:
        """Gains of some traits by each other; of those that are not known, as if alone."""
        gains = np.zeros((len(names), len(names)))
        for j, name in enumerate(names):
            column = self.traits.index(name) if name in self.traits else None
            if column is None or not self.gains[column, column]:
                gains[j, j] = _ASKED
                continue
            for i, other in enumerate(names):
                if other in self.traits:
                    gains[i, j] = self.gains[self.traits.index(other), column]
        return gains


def to_json(interference: Interference | None) -> dict[str, Any] | None:
    """As JSON values."""
    if interference is None:
        return None
    return {"traits": list(interference.traits), "gains": interference.gains.tolist()}


def from_json(value: object) -> Interference | None:
    """From JSON values.

    Raises:
        InputError: If a field is missing, unknown or not usable.
    """
    if value is None:
        return None
    where = "field 'interference'"
    fields = check_object(value, where)
    exact_keys(fields, {"traits", "gains"}, where)
    traits, gains = fields["traits"], fields["gains"]
    rows = [traits, gains, *gains] if isinstance(gains, list) else [gains]
    if not all(isinstance(row, list) for row in rows) or len(set(map(len, rows))) > 1:
        raise InputError(f"{where}: expected a row and a column of 'gains' for each of 'traits'")
    return Interference(
        tuple(check_text(name, f"{where}, 'traits'") for name in traits),
        np.array([[check_number(x, f"{where}, 'gains'") for x in row] for row in gains]),
    )


def _shortest(g: Float64, h: Float64) -> Float64 | None:
    """The shortest c with g c >= h; None if there is none."""
    matrix = np.concatenate([g.T, h[None]])
    target = np.append(np.zeros(g.shape[1]), 1.0)
    u, distance = nnls(matrix, target)
    if distance < _FEASIBLE:
        return None
    residual = matrix @ u - target
    return np.asarray(np.maximum(-residual[:-1] / residual[-1], 0))
