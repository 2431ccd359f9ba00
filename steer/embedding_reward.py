"""A reward for any trait that is not judged by the steered model: a probe on sentence embeddings.

A logistic regression tells the embeddings of a trait's positive answers from those of its negative
ones (all-MiniLM-L6-v2, see `steer.relevance`). It reads meaning and tone rather than single words,
and costs far less than the model's own log-ratio. Its scale is set on pairs that it was not fitted
to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from steer.contrast import PairSet
from steer.errors import InputError
from steer.relevance import embed
from steer.rewards import Range, check_lengths

Float64 = NDArray[np.float64]

_FOLDS = 5


@dataclass(frozen=True, eq=False)
class EmbeddingReward:
    """How much the embedding of a response is like those of a trait's positive answers.

    Attributes:
        name: What is rewarded.
        direction: Unit normal of the regression (384,).
        range: What earns 0 and 1, in projections on it.
        accuracy: Share of held-out pairs whose positive answer projects further.
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
    def fitted(cls, pairs: PairSet, *, seed: int = 0) -> EmbeddingReward:
        """Fit to a trait's contrast pairs.

        Args:
            pairs: At least ten.
            seed: Seeds which pairs are held out together.

        Raises:
            InputError: If there are too few pairs, or held-out pairs are not told apart.
        """
        number = len(pairs.pairs)
        if number < 2 * _FOLDS:
            raise InputError(
                f"trait {pairs.trait!r}: expected at least {2 * _FOLDS} pairs, got {number}"
            )
        positive = embed([pair.positive.text for pair in pairs.pairs])
        negative = embed([pair.negative.text for pair in pairs.pairs])
        held_out = np.empty((2, number))
        for fit, rest in KFold(_FOLDS, shuffle=True, random_state=seed).split(positive):
            direction = _normal(positive[fit], negative[fit])
            held_out[:, rest] = positive[rest] @ direction, negative[rest] @ direction
        accuracy = float((held_out[0] > held_out[1]).mean())
        if held_out[0].mean() <= held_out[1].mean():
            raise InputError(
                f"trait {pairs.trait!r}: sentence embeddings do not tell its poles apart "
                f"({accuracy:.0%} of held-out pairs)"
            )
        return cls(
            f"embedding probe of {pairs.trait}",
            _normal(positive, negative),
            Range.between(held_out[1], held_out[0]),
            accuracy,
        )


def _normal(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> Float64:
    """Unit normal (384,) of the plane between two sets of embeddings."""
    both = np.concatenate([positive, negative])
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    found = LogisticRegression(max_iter=1000).fit(both, labels)
    # Its length grows with the number of pairs: the scale of folds would not fit the whole.
    return np.asarray(found.coef_[0] / np.linalg.norm(found.coef_[0]), np.float64)
