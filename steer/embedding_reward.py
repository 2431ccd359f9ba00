"""A reward that is not judged by the steered model: a probe on sentence embeddings.

Given pairs of which one text shows more of something, a trait's contrast pairs or people's
preferences, a direction in the space of all-MiniLM-L6-v2 (see `steer.relevance`) is fitted so that
the better text lies further along it: the Bradley-Terry model, a logistic regression on differences
of embeddings. It reads meaning and tone rather than single words, and costs far less than the
model's own log-ratio. Its scale is set on pairs that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from steer.errors import InputError
from steer.relevance import embed
from steer.rewards import Range, check_lengths

Float64 = NDArray[np.float64]

_FOLDS = 5
# Inverse of the weight decay: of a few hundred numbers fitted to as many pairs, most are noise.
_C = 0.3


@dataclass(frozen=True, eq=False)
class EmbeddingReward:
    """How far the embedding of a response lies along a direction.

    Attributes:
        name: What is rewarded.
        direction: Unit vector (384,).
        range: What earns 0 and 1, in projections on it.
        accuracy: Share of held-out pairs whose better text lies further along it.
    """

    name: str
    direction: Float64
    range: Range
    accuracy: float

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """Scaled projections (n,)."""
        check_lengths(prompts, responses)
        return self.range.scale(embed(responses) @ self.direction)

    @classmethod
    def fitted(
        cls, name: str, better: Sequence[str], worse: Sequence[str], *, seed: int = 0
    ) -> EmbeddingReward:
        """Fit to pairs of texts.

        Args:
            name: What is rewarded.
            better: The texts that show more of it, at least ten.
            worse: The others, in the same order.
            seed: Seeds which pairs are held out together.

        Raises:
            InputError: If there are too few pairs, or held-out pairs are not told apart.
        """
        check_lengths(better, worse)
        if len(better) < 2 * _FOLDS:
            raise InputError(f"{name}: expected at least {2 * _FOLDS} pairs, got {len(better)}")
        high, low = embed(better), embed(worse)
        held_out = np.empty((2, len(better)))
        for fit, rest in KFold(_FOLDS, shuffle=True, random_state=seed).split(high):
            direction = _direction(high[fit] - low[fit])
            held_out[:, rest] = high[rest] @ direction, low[rest] @ direction
        accuracy = float((held_out[0] > held_out[1]).mean())
        if held_out[0].mean() <= held_out[1].mean():
            raise InputError(
                f"{name}: sentence embeddings do not tell the better texts from the worse "
                f"({accuracy:.0%} of held-out pairs)"
            )
        scale = Range.between(held_out[1], held_out[0])
        return cls(f"embedding probe of {name}", _direction(high - low), scale, accuracy)


def _direction(differences: NDArray[np.float32]) -> Float64:
    """Unit vector (384,) along which most differences (n, 384) are positive."""
    both = np.concatenate([differences, -differences])
    signs = np.repeat([1, 0], len(differences))
    found = LogisticRegression(C=_C, fit_intercept=False, max_iter=1000).fit(both, signs)
    # Its length grows with the number of pairs: the scale of folds would not fit the whole.
    return np.asarray(found.coef_[0] / np.linalg.norm(found.coef_[0]), np.float64)
