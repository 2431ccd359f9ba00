"""Trait weights: what a user asks for, checked and scaled to sum to one."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping

from steer.errors import InputError, WeightsError
from steer.fields import check_number


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
            "expected weights as a mapping such as {'brevity': 1.0}, got "
            f"{reprlib.repr(weights)}; known traits: {names}"
        )
    amounts = {}
    for name, weight in weights.items():
        if name not in known:
            raise WeightsError(f"unknown trait {name!r}; known traits: {names}")
        amounts[name] = _amount(weight, f"weight of {name!r}", f"; known traits: {names}")
    largest = max(amounts.values(), default=0.0)
    if largest == 0:
        raise WeightsError(f"all weights are zero; give at least one of {names} a weight > 0")
    # Divided by the largest first: neither very large nor very small weights can overflow.
    scaled = {name: w / largest for name, w in sorted(amounts.items()) if w > 0}
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
    return _amount(strength, "strength", " (0 is the unsteered model, 1 the default dose)")


def _amount(value: object, where: str, told: str) -> float:
    """A finite number >= 0; `told` ends the error."""
    try:
        number = check_number(value, where)
    except InputError as error:
        raise WeightsError(f"{error}{told}") from None
    if number < 0:
        raise WeightsError(f"{where}: expected a number >= 0, got {number}{told}")
    return number
