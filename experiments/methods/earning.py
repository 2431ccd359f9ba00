"""How much of what users want a setting's answers have, and how whole they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contestants import Told, User
from numpy.typing import NDArray

# What traits are read by is the arena's.
sys.path.append(str(Path(__file__).parents[1] / "arena"))
from judging import Coherence, interval  # noqa: E402

from steer.measures import distinct_ngrams, is_broken, is_coherent  # noqa: E402
from steer.relevance import THRESHOLD, relevance  # noqa: E402
from steer.rewards import Reward  # noqa: E402

Float64 = NDArray[np.float64]

DRAWS = 2000
LEAST_ROOM = 0.05


def earned(rewards: Mapping[str, Reward], prompts: Sequence[str], told: Sequence[Told]) -> Float64:
    """Scaled measures (U, P, d) of each user's answers; 0 where one loops or is broken."""
    texts = [text for one in told for text in one.texts]
    fluent = np.array([is_coherent(text) for text in texts], float)
    many = [*prompts] * len(told)
    columns = [reward(many, texts) * fluent for reward in rewards.values()]
    return np.stack(columns, axis=1).reshape(len(told), len(prompts), len(rewards))


def headroom(unsteered: Float64) -> Float64:
    """What is left to gain of each trait (d,), of measures (U, P, d); never less than a twentieth.

    Once for all draws: a share of next to nothing is noise.
    """
    return np.maximum(1 - unsteered.mean((0, 1)), LEAST_ROOM)


@dataclass(frozen=True, eq=False)
class Gain:
    """Mean over users, with its bootstrap over users and prompts.

    Attributes:
        value: On all.
        drawn: (DRAWS,) on users and prompts drawn anew, the same for all settings.
    """

    value: float
    drawn: Float64

    @property
    def interval(self) -> tuple[float, float]:
        """95%."""
        return interval(self.drawn)


def gains(steered: Float64, unsteered: Float64, people: Sequence[User], seed: int) -> Gain:
    """Weighted share of the headroom that is closed, of measures (U, P, d)."""
    weights = np.array([list(user.weights.values()) for user in people])  # (U, d)
    weights = weights / weights.sum(1, keepdims=True)
    closed = (steered - unsteered) / headroom(unsteered)  # (U, P, d)
    each = (closed * weights[:, None]).sum(-1)  # (U, P)
    rng = np.random.default_rng(seed)
    drawn = np.empty(DRAWS)
    for i in range(DRAWS):
        who = rng.integers(each.shape[0], size=each.shape[0])
        what = rng.integers(each.shape[1], size=each.shape[1])
        drawn[i] = each[np.ix_(who, what)].mean()
    return Gain(float(each.mean()), drawn)


def wholeness(prompts: Sequence[str], told: Sequence[Told]) -> Coherence:
    """How whole the answers are, over all users."""
    texts = [text for one in told for text in one.texts]
    return Coherence(
        float(np.mean([not is_coherent(text) for text in texts])),
        float(np.mean([is_broken(text) for text in texts])),
        float(np.mean([distinct_ngrams(text) for text in texts])),
        float(np.mean(relevance([*prompts] * len(told), texts) >= THRESHOLD)),
        float(np.mean([value for one in told for value in one.log_likelihood])),
    )
