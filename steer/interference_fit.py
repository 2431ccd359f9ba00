"""Measure what pushing one trait does to the others (`steer.interference`).

Every trait's edit alone, and every two of them together, answer develop prompts; gains that are
linear in the doses are fitted to what all traits earned, by least squares. Two at once is how edits
are used, and tells more of an edit than its dose alone, at which its own trait has no room left.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from steer.errors import InputError
from steer.evaluation import Evaluator
from steer.interference import Interference
from steer.portfolio import OWN, Candidate

# Standard errors that a trait's own gain is above zero, or nothing is known of it.
_SURE = 2.0


def measure_interference(evaluator: Evaluator, traits: tuple[str, ...]) -> Interference:
    """Measure each trait's edit alone, and every two at equal doses of length one.

    Args:
        evaluator: Mixes the traits' own edits, and rewards each trait, in their order.
        traits: d of them.

    Raises:
        InputError: If the evaluator's edits or rewards are not one a trait.
    """
    d = len(traits)
    if set(evaluator.families) != {OWN} or evaluator.dimensions != d or len(evaluator.rewards) != d:
        raise InputError(f"interference: expected one own edit and one reward for each of {traits}")
    # Rounded as a search rounds them.
    pairs = [
        np.round((np.eye(d)[i] + np.eye(d)[j]) / np.sqrt(2), 3)
        for i, j in combinations(range(d), 2)
    ]
    rows = np.stack([*np.eye(d), *pairs])  # (n, d)
    candidates = [Candidate(OWN, tuple(row.tolist())) for row in (np.zeros(d), *rows)]
    unsteered, *mixed = evaluator.evaluate(candidates)
    left = np.maximum(1 - unsteered.rewards.mean(0), np.finfo(np.float64).tiny)
    change = np.stack([one.rewards - unsteered.rewards for one in mixed]) / left  # (n, P, d)
    # Linear in the changes, so every prompt has a fit of its own, and the mean is the fit of means.
    each = np.einsum("in,npj->pij", np.linalg.pinv(rows), change)  # (P, d, d)
    gains = each.mean(0)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    sure = gains.diagonal() > _SURE * error.diagonal()
    return Interference(traits, np.where(sure, gains, 0.0))
