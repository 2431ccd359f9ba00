"""Whether an answer is about its prompt: similarity of sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steer.sentence_encoder import embed

# Cosine above which an answer counts as relevant. Answers to other prompts exceed it in fewer
# than 5% of cases (experiments/report.py prints the share).
THRESHOLD = 0.3


def relevance(prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity of each answer with its prompt, shape (n,).

    Raises:
        ModelError: If the encoder's wheel is not installed.
    """
    similarity: NDArray[np.float32] = (_asked(tuple(prompts)) * embed(answers)).sum(1)
    return similarity


# The same prompts are answered under one edit after another.
@lru_cache(maxsize=8)
def _asked(prompts: tuple[str, ...]) -> NDArray[np.float32]:
    return embed(prompts)
