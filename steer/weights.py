"""Trait weights: what a user asks for, checked and scaled to sum to one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Real

from steer.errors import WeightsError


def normalise_weights(weights: Mapping[str, float], known: Collection[str]) -> dict[str, float]:
    """Weights scaled to sum to one, in the order of the names; zero weights are left out.

    Args:
        weights: Trait names with numbers >= 0.
        known: The traits that exist.

    Raises:
        WeightsError: If a trait is unknown, or a weight is not a number, negative or not finite,
            or all are zero. The message names the known traits.
    """
    names = ", ".join(sorted(known))
    if not isinstance(weights, Mapping):
        raise WeightsError(
            f"expected weights as a mapping such as {{'brevity': 1.0}}, got {weights!r}; "
            f"known traits: {names}"
        )
    for name, weight in weights.items():
        if name not in known:
            raise WeightsError(f"unknown trait {name!r}; known traits: {names}")
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise WeightsError(f"weight of {name!r}: expected a number, got {weight!r}")
        if not math.isfinite(weight) or weight < 0:
            raise WeightsError(
                f"weight of {name!r}: expected a finite number >= 0, got {weight}; "
                f"known traits: {names}"
            )
    largest = max(map(float, weights.values()), default=0.0)
    if largest == 0:
        raise WeightsError(f"all weights are zero; give at least one of {names} a weight > 0")
    # Divided by the largest first: neither very large nor very small weights can overflow.
    scaled = {name: float(w) / largest for name, w in sorted(weights.items()) if w > 0}
    total = math.fsum(scaled.values())
    return {name: weight / total for name, weight in scaled.items()}


def doses(shares: Mapping[str, float]) -> dict[str, float]:
    """By how much of its dose each trait's edit enters a composition: shares, scaled to length one.

    Divergence grows with the square of a dose, and edits of different traits hardly overlap, so the
    divergence of a composition is about the sum of those of its parts. Scaled so, it is as large as
    one trait's; shares that sum to one would leave a half of it to two traits, a third to three.

    Args:
        shares: Numbers >= 0 by trait, not all of them zero.
    """
    length = math.hypot(*shares.values())
    return {name: share / length for name, share in shares.items()}


def check_strength(strength: float) -> float:
    """A strength that is a finite number >= 0.

    Raises:
        WeightsError: If it is not.
    """
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise WeightsError(f"strength: expected a number >= 0, got {strength!r}")
    if not math.isfinite(strength) or strength < 0:
        raise WeightsError(
            f"strength: expected a finite number >= 0, got {strength} "
            "(0 is the unsteered model, 1 the default dose)"
        )
    return float(strength)
