"""Measure what pushing one trait does to the others (`steer.interference`).

Every trait's edit alone, at its dose and at a half of it, and every two of them together answer
develop prompts; gains that are quadratic in the doses are fitted to what all rewarded traits
earned, by least squares. Two at once is how edits are used, and tells more of an edit than its dose
alone, at which its own trait has no room left.
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
# Of a dose, so that its effect need not be in proportion to it.
_HALF = 0.5
# Shares of two traits, by how many of them are rewarded.
_MIXTURES: tuple[tuple[tuple[int, int], ...], ...] = ((), ((1, 1),), ((2, 1), (1, 1), (1, 2)))
# Of a term: what is measured is less sure.
_DIGITS = 4


def measure_interference(
    evaluator: Evaluator, traits: tuple[str, ...], rewarded: Sequence[str]
) -> Interference:
    """Measure each trait's edit alone, and every two at doses of length one.

    Two traits that are rewarded are measured at equal and at unequal doses, since a composition of
    them looks for a balance; one that is with one that is not at equal doses, and two that are not
    not at all.

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
    alone = np.eye(d)
    mixed = [
        (a * alone[i] + b * alone[j]) / np.hypot(a, b)
        for i, j in combinations(range(d), 2)
        for a, b in _MIXTURES[len({traits[i], traits[j]} & set(rewarded))]
    ]
    # Rounded as a search rounds them.
    rows = np.round(np.stack([*alone, *(_HALF * alone), *mixed]), 3)  # (n, d)
    candidates = [Candidate(OWN, tuple(row.tolist())) for row in (np.zeros(d), *rows)]
    unsteered, *steered = evaluator.evaluate(candidates)
    left = np.maximum(1 - unsteered.rewards.mean(0), np.finfo(np.float64).tiny)
    change = np.stack([one.rewards - unsteered.rewards for one in steered]) / left  # (n, P, m)
    first, second = np.triu_indices(d)
    terms = np.concatenate([rows, rows[:, first] * rows[:, second]], axis=1)
    # Linear in the changes, so every prompt has a fit of its own, and the mean is the fit of means.
    each = np.einsum("in,npj->pij", np.linalg.pinv(terms), change)  # (P, d + d(d+1)/2, m)
    linear, quadratic = np.zeros((d, d)), np.zeros((d, d, d))
    for j, name in enumerate(rewarded):
        trait = traits.index(name)
        square = d + int(np.flatnonzero((first == trait) & (second == trait))[0])
        own = each[:, trait, j] + each[:, square, j]  # (P,) of its own dose
        fitted = np.round(each[:, :, j].mean(0), _DIGITS)
        # An edit that does nothing leaves a rounding error, which is sure of its sign.
        surely = own.mean() > _SURE * own.std(ddof=1) / np.sqrt(len(own))
        if surely and fitted[trait] + fitted[square] > 0:
            linear[:, trait] = fitted[:d]
            # A term of two traits is one number, and stands on both sides of the diagonal.
            quadratic[first, second, trait] += fitted[d:] / 2
            quadratic[second, first, trait] += fitted[d:] / 2
    return Interference(traits, linear, quadratic)
