"""What a portfolio does, in numbers: who serves which mixtures, and how far it can fall short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.certificate import Certificate
from steer.cover import random_weights
from steer.portfolio import Candidate, Portfolio
from steer.route import route

_MIXTURES = 20_000


def served(portfolio: Portfolio, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each entry serves of the mixtures, which are uniform on the simplex.

    Returns:
        Shares (K + 1,), the unsteered model first, and the mean of the mixtures that each serves
        (K + 1, d), NaN where it serves none. What an entry serves is convex, so it serves that mean
        as well.
    """
    weights = random_weights(len(portfolio.traits), _MIXTURES, seed)
    chosen = route(portfolio.measured, portfolio.kept, weights)
    mine = [chosen == index for index in (0, *portfolio.kept)]
    nowhere = np.full(len(portfolio.traits), np.nan)
    return (
        np.array([float(rows.mean()) for rows in mine]),
        np.array([weights[rows].mean(0) if rows.any() else nowhere for rows in mine]),
    )


def summary(portfolio: Portfolio) -> dict[str, Any]:
    """All of a portfolio but its edits, as JSON values; rows of d numbers bear the traits' names.

    J weighs a candidate's `utilities` and subtracts its `f`. Of an entry, `serves` is its share of
    all mixtures, and `weights` the mean of those, or null.
    """

    def named(row: Sequence[float]) -> dict[str, float]:
        return dict(zip(portfolio.traits, row, strict=True))

    def row(candidate: Candidate, rewards: Sequence[float], kl: float) -> dict[str, Any]:
        return {
            "family": candidate.family,
            "coefficients": named(candidate.coefficients),
            "rewards": named(rewards),
            "kl": kl,
            "f": float(portfolio.objective.regulariser(kl)),
        }

    candidates = [
        {**row(candidate, rewards, kl), "utilities": named(utilities)}
        for candidate, rewards, kl, utilities in zip(
            portfolio.candidates,
            portfolio.mean_rewards.tolist(),
            portfolio.kl.tolist(),
            portfolio.measured.utilities.tolist(),
            strict=True,
        )
    ]
    shares, centres = served(portfolio)
    return {
        "traits": list(portfolio.traits),
        "rewards": dict(zip(portfolio.traits, portfolio.rewards, strict=True)),
        "objective": asdict(portfolio.objective),
        "entries": [
            {
                "entry": number,
                "candidate": index,
                "serves": share,
                "weights": named(centre) if share else None,
                **candidates[index],
            }
            for number, (index, share, centre) in enumerate(
                zip((0, *portfolio.kept), shares.tolist(), centres.tolist(), strict=True)
            )
        ],
        "candidates": candidates,
        "searched": [row(one.candidate, one.rewards, one.kl) for one in portfolio.searched],
        "certificate": _certificate(portfolio.certificate, portfolio.traits),
    }


def _certificate(certificate: Certificate, traits: Sequence[str]) -> dict[str, Any]:
    worst = {"epsilon": certificate.epsilon, "delta": certificate.delta}
    return {
        **{name: one.loss for name, one in worst.items()},
        "worst_w": {
            name: dict(zip(traits, one.weights.tolist(), strict=True))
            for name, one in worst.items()
        },
        "better_there": {name: one.edit for name, one in worst.items()},
        "curve": [list(point) for point in certificate.curve],
        "candidates": certificate.candidates,
        "words": str(certificate),
    }
