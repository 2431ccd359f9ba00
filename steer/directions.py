"""Directions of a trait at one layer, from n contrast pairs, and how well the pairs agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from steer.arrays import (
    Float32,
    Float64,
    check_count,
    checked_matrix,
    checked_pairs,
    checked_vector,
    frozen,
    oriented,
)
from steer.errors import InputError

# With more dimensions than pairs the classes separate perfectly, so the penalty alone decides the
# direction; a stiff one keeps it near the difference of the class means.
_PROBE_C = 0.1


def mean_difference(positive: ArrayLike, negative: ArrayLike) -> Float32:
    """Mean of the pairs' differences, on the raw scale.

    Args:
        positive: (n, d) activations.
        negative: (n, d) activations.

    Returns:
        (d,) mean(H^P - H^N).

    Raises:
        InputError: If the arrays are not n >= `MINIMUM_PAIRS` finite rows of one shape.
    """
    h_p, h_n = checked_pairs(positive, negative)
    return frozen((h_p - h_n).mean(axis=0))


def svd_directions(
    x: ArrayLike,
    *,
    variance_share: float,
    max_rank: int,
    orient: ArrayLike | None = None,
) -> tuple[Float32, Float32]:
    """Leading right singular vectors, by an exact and unseeded decomposition.

    Nothing is centred. Centring H^P - H^N would remove the very shift that is looked for, and
    the raw form is the one of CHAMELEON (arXiv 2503.01048), theta_P.

    Args:
        x: (n, d) rows.
        variance_share: Keep as few vectors as together explain this share of the squared norm,
            in (0, 1].
        max_rank: But never more than this many, nor more than the rank of `x`.
        orient: (d,) vector with which no direction may have a negative inner product. Without
            one, or at a right angle to it, a direction's largest coordinate is made positive.

    Returns:
        (k, d) orthonormal rows and their (k,) shares of the squared norm, descending.

    Raises:
        InputError: If `x` is empty, not finite or all zero, or an option is out of range.
    """
    rows = checked_matrix("x", x)
    if not 0 < variance_share <= 1:
        raise InputError(f"expected variance_share in (0, 1], got {variance_share!r}")
    check_count("max_rank", max_rank)
    towards = None if orient is None else checked_vector("orient", orient, width=rows.shape[1])
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    if not s[0] > 0:
        raise InputError(
            "expected activations with some variation, got only zeros where directions should be "
            "found; check that the two sides of the pairs differ"
        )
    rank = int(np.sum(s > s[0] * max(rows.shape) * np.finfo(np.float64).eps))
    shares = (s / s[0]) ** 2
    shares = shares / shares.sum()
    # Half an ulp of the cumulative sum must not cost one more direction.
    enough = int(np.searchsorted(np.cumsum(shares), variance_share - 1e-12)) + 1
    k = min(enough, max_rank, rank)
    directions = oriented(vt[:k], towards)
    return frozen(directions), frozen(shares[:k])


def probe_direction(positive: ArrayLike, negative: ArrayLike) -> Float32:
    """Unit normal of a logistic regression between the two classes.

    Fitted on standardised activations, since a few dimensions of a transformer dwarf all others,
    and mapped back: with z = (x - m) / s, w.z = (w / s).x + const.

    Args:
        positive: (n, d) activations.
        negative: (n, d) activations.

    Returns:
        (d,) unit normal in raw space that points to the positives.

    Raises:
        InputError: If the arrays are not n >= `MINIMUM_PAIRS` finite rows of one shape, or the
            two classes cannot be told apart at all.
    """
    h_p, h_n = checked_pairs(positive, negative)
    scaler = StandardScaler()
    z = scaler.fit_transform(np.concatenate([h_p, h_n]))  # (2n, d)
    labels = np.repeat([1, 0], len(h_p))
    model = LogisticRegression(C=_PROBE_C, solver="lbfgs", max_iter=1000)
    normal: Float64 = model.fit(z, labels).coef_[0] / scaler.scale_
    norm = float(np.linalg.norm(normal))
    if not norm > 0:
        raise InputError(
            "expected two classes with different activations, got equal ones; check that the two "
            "sides of the pairs differ"
        )
    return frozen(normal / norm)


def reliability(positive: ArrayLike, negative: ArrayLike) -> float:
    """How well the pairs agree on one direction, before anything is steered.

    The mean cosine between each pair's difference and the mean of the *other* pairs' differences.
    Leaving the pair itself out makes 0 the expected value for pure noise; with it, n random
    vectors in many dimensions would already score 1 / sqrt(n). A pair without a difference
    counts as 0.

    Args:
        positive: (n, d) activations.
        negative: (n, d) activations.

    Returns:
        A number in [-1, 1].

    Raises:
        InputError: If the arrays are not n >= `MINIMUM_PAIRS` finite rows of one shape.
    """
    h_p, h_n = checked_pairs(positive, negative)
    differences = h_p - h_n  # (n, d)
    others = differences.sum(axis=0) - differences  # (n, d); a sum has the cosine of a mean
    dots = np.einsum("nd,nd->n", differences, others)
    norms = np.linalg.norm(differences, axis=1) * np.linalg.norm(others, axis=1)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return float(np.clip(cosines.mean(), -1.0, 1.0))
