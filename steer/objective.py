"""What an edit is worth to a preference, as PALM (arXiv 2604.04144) has it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.errors import InputError

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """What an edit is worth to a preference: J_w = sum_i w_i r_i - f.

    f = min(penalty KL / kl_unit, f_max), with KL the mean divergence of the edited from the
    unedited model, in nats per token, on the edited model's own responses. A response that loops
    or is broken earns 0 on every trait, so r >= 0; and J >= 0 for the unsteered model, where f = 0.

    Attributes:
        penalty: lambda.
        kl_unit: KL_0, in nats per token.
        f_max: Largest f.
    """

    penalty: float = 0.1
    kl_unit: float = 0.5
    f_max: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (("penalty", 0.0), ("kl_unit", 1e-9), ("f_max", 0.0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise InputError(f"{name}: expected a number of at least {least}, got {value}")

    def regulariser(self, kl: ArrayLike) -> Float64:
        """The regulariser f of divergences, of any shape."""
        return np.minimum(self.penalty * np.asarray(kl, np.float64) / self.kl_unit, self.f_max)

    def value(self, weights: ArrayLike, rewards: ArrayLike, kl: ArrayLike) -> Float64:
        """J of every edit for every weight.

        Args:
            weights: Raw weights (m, d), not normalised.
            rewards: Mean rewards of the edits (n, d).
            kl: Divergences of the edits (n,), nats per token.

        Returns:
            (m, n).
        """
        r = np.asarray(rewards, np.float64)
        return np.asarray(np.asarray(weights, np.float64) @ r.T - self.regulariser(kl))
