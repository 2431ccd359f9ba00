"""Measure what pushing one trait does to the others (`steer.interference`).

Every trait's edit alone, and every two of them together, answer develop prompts; gains that are
linear in the doses are fitted to what all traits earned, by least squares. Two at once is how edits
are used, and tells more of an edit than its dose alone, at which its own trait has no room left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from steer.errors import InputError
from steer.evaluation import Evaluator
from steer.interference import Interference
from steer.portfolio import OWN, Candidate

# Standard errors that a trait's own gain is above zero, or nothing is known of it.
_SURE = 2.0


def measure_interference(
    evaluator: Evaluator, traits: tuple[str, ...], rewarded: Sequence[str]
) -> Interference:
    """Measure each trait's edit alone, and every two at equal doses of length one.

    Args:
        evaluator: Mixes the traits' own edits, in their order.
        traits: d of them.
        rewarded: Those that the evaluator rewards, in the order of its rewards; what is done to the
            others stays unknown.

    Raises:
        InputError: If the evaluator's edits are not one a trait, or its rewards one for each that
            is rewarded.
    """
    d = len(traits)
    if set(evaluator.families) != {OWN} or evaluator.dimensions != d:
        raise InputError(f"interference: expected one own edit for each of {traits}")
    if len(evaluator.rewards) != len(rewarded) or not set(rewarded) <= set(traits):
        raise InputError(f"interference: expected one reward for each of {tuple(rewarded)}")
    # Rounded as a search rounds them.
    pairs = [
        np.round((np.eye(d)[i] + np.eye(d)[j]) / np.sqrt(2), 3)
        for i, j in combinations(range(d), 2)
    ]
    rows = np.stack([*np.eye(d), *pairs])  # (n, d)
    candidates = [Candidate(OWN, tuple(row.tolist())) for row in (np.zeros(d), *rows)]
    unsteered, *mixed = evaluator.evaluate(candidates)
    left = np.maximum(1 - unsteered.rewards.mean(0), np.finfo(np.float64).tiny)
    change = np.stack([one.rewards - unsteered.rewards for one in mixed]) / left  # (n, P, m)
    # Linear in the changes, so every prompt has a fit of its own, and the mean is the fit of means.
    each = np.einsum("in,npj->pij", np.linalg.pinv(rows), change)  # (P, d, m)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    gains = np.zeros((d, d))
    for j, name in enumerate(rewarded):
        own = traits.index(name)
        if each[:, own, j].mean() > _SURE * error[own, j]:
            gains[:, own] = each[:, :, j].mean(0)
    return Interference(traits, gains)
