"""Whether answers are whole, how much of a trait they gained, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steer.measures import distinct_ngrams, is_broken, is_coherent
from steer.relevance import THRESHOLD, relevance
from steer.rewards import Reward
from steer.soundness import LESS_RELEVANT

Float64 = NDArray[np.float64]

# At equal coherence: by how much a method's answers may be worse than the unsteered model's.
MORE_INCOHERENT = 0.05
# Of likelihood, nats per token. The packaged model's own answers, sampled when a trait is asked for
# in words, are 0.6 to 1.1 less likely after the plain prompt than its greedy ones: a manner is no
# damage. But of two that gain the same, the one that stays closer is the cleaner steering.
BANDS = (0.25, 0.5, 1.0)
DRAWS = 2000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Coherence:
    """How whole answers are. No one of these can be bought with another.

    Attributes:
        incoherent: Share that loops or is broken.
        broken: Share that is broken: empty, damaged unicode, word salad.
        distinct: Mean share of distinct word trigrams.
        relevant: Share about the prompt.
        log_likelihood: Mean under the unedited model after the plain prompt, nats per token.
    """

    incoherent: float
    broken: float
    distinct: float
    relevant: float
    log_likelihood: float

    def holds_against(self, unsteered: Coherence, less_likely: float) -> bool:
        """Whether it is equal, within the bounds above.

        Args:
            unsteered: Of the unsteered model.
            less_likely: Nats per token by which answers may be less likely.
        """
        return (
            self.incoherent <= unsteered.incoherent + MORE_INCOHERENT + _ROUNDING
            and self.relevant >= unsteered.relevant - LESS_RELEVANT - _ROUNDING
            and self.log_likelihood >= unsteered.log_likelihood - less_likely - _ROUNDING
        )


def coherence(
    prompts: Sequence[str], texts: Sequence[str], log_likelihood: Sequence[float]
) -> Coherence:
    """Of answers to as many prompts, with their log-likelihood under the unedited model."""
    return Coherence(
        float(np.mean([not is_coherent(text) for text in texts])),
        float(np.mean([is_broken(text) for text in texts])),
        float(np.mean([distinct_ngrams(text) for text in texts])),
        float(np.mean(relevance(prompts, texts) >= THRESHOLD)),
        float(np.mean(log_likelihood)),
    )


def values(reward: Reward, prompts: Sequence[str], texts: Sequence[str]) -> Float64:
    """Scaled measures (P,) of answers; 0 where one loops or is broken."""
    fluent = np.array([is_coherent(text) for text in texts], float)
    return reward(prompts, texts) * fluent


def standardised(steered: Float64, unsteered: Float64) -> Float64:
    """The share of the headroom that is closed, of means (...): 1 is the ceiling.

    0 where the unsteered model leaves no headroom.
    """
    room = 1 - unsteered
    return np.where(room > _ROUNDING, (steered - unsteered) / np.maximum(room, _ROUNDING), 0.0)


def draws(prompts: int, seed: int) -> NDArray[np.int64]:
    """(DRAWS, P) prompts drawn anew: the same for all methods and traits, so that they pair."""
    return np.random.default_rng(seed).integers(prompts, size=(DRAWS, prompts))


@dataclass(frozen=True, eq=False)
class Gain:
    """A standardised gain with its bootstrap.

    Attributes:
        value: On all prompts.
        drawn: (DRAWS,) on prompts drawn anew.
    """

    value: float
    drawn: Float64

    @property
    def interval(self) -> tuple[float, float]:
        """95%."""
        return interval(self.drawn)


NO_GAIN = Gain(0.0, np.zeros(DRAWS))
"""Of a method without an admissible setting."""


def gain(steered: Float64, unsteered: Float64, drawn: NDArray[np.int64]) -> Gain:
    """From values (P,) on the same prompts."""
    return Gain(
        float(standardised(steered.mean(), unsteered.mean())),
        standardised(steered[drawn].mean(1), unsteered[drawn].mean(1)),
    )


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """Over traits, each of which counts alike."""
    return Gain(
        float(np.mean([one.value for one in gains])), np.mean([one.drawn for one in gains], axis=0)
    )


def ratio(ours: Gain, theirs: Gain) -> tuple[float, float, float]:
    """How many times as large a gain is, with its paired interval.

    Infinite where the other gains nothing and this one something.
    """
    drawn = _divided(ours.drawn, theirs.drawn)
    value = float(_divided(np.array([ours.value]), np.array([theirs.value]))[0])
    return (value, *interval(drawn))


def _divided(ours: Float64, theirs: Float64) -> Float64:
    result = np.where(ours > 0, np.inf, 0.0)
    np.divide(ours, theirs, out=result, where=theirs > 0)
    return result


def difference(ours: Gain, theirs: Gain) -> tuple[float, float, float]:
    """How much larger a gain is, with its paired interval."""
    return (ours.value - theirs.value, *interval(ours.drawn - theirs.drawn))


def interval(drawn: Float64) -> tuple[float, float]:
    """95%; whole steps, since an infinite draw has no neighbours to interpolate with."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest").tolist()
    return low, high
