"""Doses at which the trait that gains least, in proportion to what is asked of it, gains most.

    max min_j gain_j(c) / asked_j   over   |c| = 1,   least <= c <= most

with gains as `steer.interference` has them. The least gain has several local maxima, and kinks
where two traits gain alike. So it is the last variable of a smooth problem with constraints, which
is solved from the best of many random doses for each trait that they favour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from steer.cover import random_weights

Float64 = NDArray[np.float64]

_TRIED = 512


@dataclass(frozen=True, eq=False)
class FairDoses:
    """What doses c of k traits gain, and between which bounds they are sought.

    Attributes:
        linear: (k, k): what a dose of trait i does to the gain of trait j, at [i, j].
        quadratic: (k, k, k): what doses of i and k do together, at [i, k, j]; symmetric in i and k.
        asked: (k,) gains that are equally good.
        alone: (k,) doses of length one that others are compared with.
        least: (k,) lower bounds, at most `alone`.
        most: (k,) upper bounds, at least `alone`.
    """

    linear: Float64
    quadratic: Float64
    asked: Float64
    alone: Float64
    least: Float64
    most: Float64

    def gains(self, c: Float64) -> Float64:
        """Gains (..., k) at doses (..., k)."""
        together = np.einsum("...i,...k,ikj->...j", c, c, self.quadratic)
        return np.asarray(c @ self.linear + together)

    def slopes(self, c: Float64) -> Float64:
        """Derivatives (k, k) of the gains, a row a gain, at doses (k,)."""
        return np.asarray((self.linear + 2 * np.einsum("k,ikj->ij", c, self.quadratic)).T)

    def fairness(self, c: Float64) -> Float64:
        """The least gain (...) in proportion to what is asked, at doses (..., k)."""
        return np.asarray((self.gains(c) / self.asked).min(-1))

    def best(self) -> Float64:
        """The doses (k,)."""
        starts = list(self._starts())
        found = np.stack([*starts, *map(self._refined, starts)])
        return np.asarray(found[self.fairness(found).argmax()])

    def _starts(self) -> Iterator[Float64]:
        """For each trait the best of the doses, drawn within the bounds, that favour it most."""
        room = 1 - self.least @ self.least
        drawn = random_weights(len(self.alone), _TRIED, 0)
        # From the lower bounds along each direction up to the sphere.
        reach = drawn @ self.least
        squares = (drawn**2).sum(1)
        step = (np.sqrt(reach**2 + squares * room) - reach) / squares
        tried = self.least + step[:, None] * drawn
        tried = np.concatenate([self.alone[None], tried[(tried <= self.most).all(1)]])
        favoured, value = (tried / self.alone).argmax(1), self.fairness(tried)
        for trait in np.unique(favoured):
            yield tried[np.where(favoured == trait, value, -np.inf).argmax()]

    def _refined(self, start: Float64) -> Float64:
        """Doses c with the least gain t, as large as can be from there."""
        found = minimize(
            lambda x: -x[-1],
            np.append(start, self.fairness(start)),
            jac=lambda x: np.append(np.zeros(len(start)), -1.0),
            method="SLSQP",
            bounds=[*zip(self.least, self.most, strict=True), (None, None)],
            constraints=[
                # In units of gains: in proportion to what is asked, those of which little is
                # dwarf the others.
                {
                    "type": "ineq",
                    "fun": lambda x: self.gains(x[:-1]) - self.asked * x[-1],
                    "jac": lambda x: np.column_stack([self.slopes(x[:-1]), -self.asked]),
                },
                {
                    "type": "eq",
                    "fun": lambda x: x[:-1] @ x[:-1] - 1,
                    "jac": lambda x: np.append(2 * x[:-1], 0.0),
                },
            ],
            options={"maxiter": 200, "ftol": 1e-9},
        )
        c = np.clip(found.x[:-1], self.least, self.most)
        return np.asarray(c / np.linalg.norm(c))
