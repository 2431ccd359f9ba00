"""Which edit a request's weights, or its profile, mean with a bundle."""

from __future__ import annotations

from collections.abc import Mapping

from steer.bundle import Bundle
from steer.edits import Edit
from steer.edits import compose as mix
from steer.errors import InputError
from steer.interference import composed_doses
from steer.profile import Profile
from steer.weights import check_strength, normalise_weights


def mixture(
    bundle: Bundle,
    weights: Mapping[str, float],
    strength: float = 1.0,
    *,
    compose: bool = False,
) -> Edit:
    """The edit of weights, without the bundle's gate: an entry, or a mixture of own edits.

    Args:
        bundle: The edits.
        weights: Trait names with numbers >= 0, scaled to sum to one.
        strength: 0 is the unsteered model, 1 the default dose.
        compose: Mix the traits' edits by their weights, also where a portfolio would serve.

    Raises:
        WeightsError: If a trait is unknown or a number is not usable.
    """
    strength = check_strength(strength)
    shares = normalise_weights(weights, bundle.traits)
    portfolio = None if compose else bundle.portfolio
    served = None if portfolio is None else portfolio.served(shares)
    if served is not None:
        return strength * served
    edits = [bundle.traits[name].edit for name in shares]
    parts = composed_doses(shares, bundle.interference)
    return mix(edits, [strength * parts[name] for name in shares])


def of_profile(bundle: Bundle, profile: Profile, strength: float = 1.0) -> Edit:
    """The edit of a profile, as it acts on the model.

    Args:
        bundle: Whose gate it may act behind.
        profile: The profile.
        strength: 0 is the unsteered model, 1 the profile's dose.

    Raises:
        InputError: If it acts behind a gate, and the bundle has none.
    """
    if profile.gated and bundle.gate is None:
        raise InputError("the profile acts behind a gate, and the bundle has none")
    edit = strength * profile.edit
    return bundle.behind_gate(edit) if profile.gated else edit
