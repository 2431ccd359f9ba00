"""Which of two answers is better? What a person can be asked, answered beforehand.

A portfolio's entries answered develop prompts while it was made, and rewards read the answers. Some
of those are kept in the bundle, so that a person can be asked without a model: two entries' answers
to one prompt, and by how much their rewards differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from steer.arrays import Rebuilt, read_only
from steer.errors import InputError

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answered(Rebuilt):
    """What each entry of a portfolio answers to a prompt.

    Attributes:
        prompt: The prompt.
        answers: K + 1 of them, the unsteered model's first, then the entries'.
        rewards: What they earn (K + 1, d), in [0, 1].
    """

    prompt: str
    answers: tuple[str, ...]
    rewards: Float64

    def __post_init__(self) -> None:
        rewards = np.asarray(self.rewards, np.float64)
        if rewards.ndim != 2 or len(rewards) != len(self.answers):
            raise InputError(
                f"answers: expected rewards of {len(self.answers)} answers, got {rewards.shape}"
            )
        if not ((rewards >= 0) & (rewards <= 1)).all():
            raise InputError("answers: expected rewards from 0 to 1")
        object.__setattr__(self, "rewards", read_only(rewards))


@dataclass(frozen=True, eq=False)
class Question:
    """Two answers to one prompt.

    Attributes:
        prompt: The prompt.
        first: One entry's answer.
        second: Another's.
        difference: Rewards of the first minus those of the second (d,).
    """

    prompt: str
    first: str
    second: str
    difference: Float64

    def preferred(self, first: bool) -> Float64:
        """Rewards of what was preferred minus those of the other (d,)."""
        return self.difference if first else -self.difference


def questions_of(answered: Sequence[Answered]) -> list[Question]:
    """Every two answers to a prompt that earn differently."""
    return [
        Question(one.prompt, one.answers[i], one.answers[j], one.rewards[i] - one.rewards[j])
        for one in answered
        for i, j in combinations(range(len(one.answers)), 2)
        if (one.rewards[i] != one.rewards[j]).any()
    ]


def most_telling(
    prompts: Sequence[str], texts: Sequence[Sequence[str]], rewards: Float64, number: int
) -> tuple[Answered, ...]:
    """The prompts whose answers differ most, with those answers.

    Args:
        prompts: P of them.
        texts: P answers of the unsteered model, and of each of the kept edits.
        rewards: Of those (K + 1, P, d).
        number: How many prompts; fewer if there are no more.
    """
    spread = rewards.var(axis=0).sum(-1)  # (P,)
    chosen = np.argsort(-spread, kind="stable")[:number].tolist()
    # Four digits are more than can be told of a text, and spare the file two thirds of its numbers.
    return tuple(
        Answered(prompts[i], tuple(row[i] for row in texts), rewards[:, i].round(4)) for i in chosen
    )
