"""What an edit is worth to a preference, as PALM (arXiv 2604.04144) has it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.certificate import Measured
from steer.errors import InputError

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """What an edit is worth to a preference: J_w = sum_i w_i u_i - f.

    u_i is the utility of the trait's mean reward r_i. Of what is left to gain over the unsteered
    model's r0_i, an edit closes the share h = (r_i - r0_i) / (1 - r0_i), and

        u_i = r0_i + (1 - r0_i) h^(1 - fairness)   where h > 0;   u_i = r_i   elsewhere.

    Without fairness u = r, which is PALM's objective, and the best edit for a mixture may spend one
    of its traits on another. Alpha-fair utilities (Mo and Walrand, 2000) have diminishing returns,
    so that a little of each weighted trait is worth more than much of one. Still 0 <= u <= 1 and J
    is linear in w, which is all that PALM's lemmas and the certificate rest on.

    f = min(penalty KL / kl_unit, f_max), with KL the mean divergence of the edited from the
    unedited model, in nats per token, on the edited model's own responses. A response that loops
    or is broken earns 0 on every trait, so r >= 0; and J >= 0 for the unsteered model, where f = 0.

    Attributes:
        fairness: From 0, what one trait earns counts as much as what another does, to below 1. At
            3/4 nearly every mixture of two or three traits gets some of each, for little of the
            whole (experiments/fairness.py).
        penalty: lambda.
        kl_unit: KL_0, in nats per token.
        f_max: Largest f.
    """

    fairness: float = 0.75
    penalty: float = 0.05
    kl_unit: float = 0.5
    f_max: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (("penalty", 0.0), ("kl_unit", 1e-9), ("f_max", 0.0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise InputError(f"{name}: expected a number of at least {least}, got {value}")
        if not 0 <= self.fairness < 1:
            raise InputError(f"fairness: expected a number from 0 to below 1, got {self.fairness}")

    def utility(self, rewards: ArrayLike) -> Float64:
        """The utilities u of mean rewards.

        Args:
            rewards: Mean rewards of the edits (n, d), in [0, 1]; the first of the unsteered model.

        Returns:
            (n, d).
        """
        r = np.asarray(rewards, np.float64)
        unsteered = r[:1]
        left = np.maximum(1 - unsteered, np.finfo(np.float64).tiny)
        share = np.maximum(r - unsteered, 0) / left
        return np.where(r > unsteered, unsteered + left * share ** (1 - self.fairness), r)

    def regulariser(self, kl: ArrayLike) -> Float64:
        """The regulariser f of divergences, of any shape."""
        return np.minimum(self.penalty * np.asarray(kl, np.float64) / self.kl_unit, self.f_max)

    def measured(self, rewards: ArrayLike, kl: ArrayLike) -> Measured:
        """What portfolios and certificates are made of.

        Args:
            rewards: Mean rewards of the edits (n, d); the first of the unsteered model.
            kl: Their mean divergences (n,), nats per token.

        Raises:
            InputError: If shapes differ, a number is no reward, or the first edit diverges.
        """
        return Measured(self.utility(rewards), self.regulariser(kl))
