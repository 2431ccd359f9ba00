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
from judging import Coherence, coherence, interval, values  # noqa: E402

from steer.rewards import Reward  # noqa: E402

Float64 = NDArray[np.float64]

DRAWS = 2000
# Traits with less headroom are left out.
LEAST_ROOM = 0.1


def earned(rewards: Mapping[str, Reward], prompts: Sequence[str], told: Sequence[Told]) -> Float64:
    """Scaled measures (U, P, d) of each user's answers; 0 where one loops or is broken."""
    texts = [text for one in told for text in one.texts]
    many = [*prompts] * len(told)
    columns = [values(reward, many, texts) for reward in rewards.values()]
    return np.stack(columns, axis=1).reshape(len(told), len(prompts), len(rewards))


def room(unsteered: Float64) -> Float64:
    """What the unsteered model leaves to gain of each trait (d,), of its measures (U, P, d)."""
    return np.asarray(1 - unsteered.mean((0, 1)))


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


def each_gain(steered: Float64, unsteered: Float64, people: Sequence[User]) -> Float64:
    """Weighted share of the headroom that is closed (U, P), of measures (U, P, d).

    Traits that leave next to no headroom are left out, as what they weigh is: a share of nothing is
    noise. Somebody who wants only such traits gains nothing.
    """
    left = room(unsteered)
    counted = left >= LEAST_ROOM
    weights = np.array([list(user.weights.values()) for user in people]) * counted  # (U, d)
    sums = weights.sum(1, keepdims=True)
    weights = weights / np.where(sums > 0, sums, 1.0)
    closed = (steered - unsteered) / np.where(counted, left, 1.0)  # (U, P, d)
    return np.asarray((closed * weights[:, None]).sum(-1))


def gains(steered: Float64, unsteered: Float64, people: Sequence[User], seed: int) -> Gain:
    """The mean of `each_gain`, drawn anew."""
    each = each_gain(steered, unsteered, people)
    rng = np.random.default_rng(seed)
    drawn = np.empty(DRAWS)
    for i in range(DRAWS):
        who = rng.integers(each.shape[0], size=each.shape[0])
        what = rng.integers(each.shape[1], size=each.shape[1])
        drawn[i] = each[np.ix_(who, what)].mean()
    return Gain(float(each.mean()), drawn)


def wholeness(prompts: Sequence[str], told: Sequence[Told]) -> Coherence:
    """How whole the answers are, over all users."""
    return coherence(
        [*prompts] * len(told),
        [text for one in told for text in one.texts],
        [value for one in told for value in one.log_likelihood],
    )
