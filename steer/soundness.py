"""Whether steered answers are as whole as the unsteered model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steer.measures import is_coherent
from steer.relevance import THRESHOLD, relevance

# Share of answers about their prompt that an edit may cost: a noisy measure of short answers.
LESS_RELEVANT = 0.1


@dataclass(frozen=True)
class Soundness:
    """How whole answers are.

    Attributes:
        incoherent: Share of answers that loop or are broken.
        relevant: Share of answers about their prompt.
    """

    incoherent: float
    relevant: float

    @classmethod
    def of(cls, prompts: Sequence[str], answers: Sequence[str]) -> Soundness:
        """Of answers to as many prompts."""
        return cls(
            float(np.mean([not is_coherent(text) for text in answers])),
            float(np.mean(relevance(prompts, answers) >= THRESHOLD)),
        )

    def holds_against(self, unsteered: Soundness, more_incoherent: float = 0.0) -> bool:
        """Whether no larger share loops or breaks, and hardly fewer are about their prompt.

        Args:
            unsteered: The unsteered model's.
            more_incoherent: Share of answers by which more may loop or break.
        """
        # The small number is for shares that are equal but for rounding.
        return (
            self.incoherent <= unsteered.incoherent + more_incoherent + 1e-9
            and self.relevant >= unsteered.relevant - LESS_RELEVANT - 1e-9
        )
