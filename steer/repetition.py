"""Penalties on what an answer has said before, as `transformers` logits processors.

They choose as `RepetitionPenaltyLogitsProcessor` and `NoRepeatNGramLogitsProcessor` of transformers
do (there are tests), which build several tensors as large as the scores: a good part of the time of
a large batch on a CPU (experiments/bench_writing.py). Here the scores of tokens that were said
before are changed, in place, and no others are looked at.
"""

from __future__ import annotations

from torch import Tensor, inf, where
from transformers import LogitsProcessor


class RepetitionPenalty(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Makes tokens of the answer less likely (CTRL, arXiv 1909.05858, section 4.1).

    transformers' `repetition_penalty` argument counts the prompt's tokens too. The tokens that end
    a turn stand in every chat prompt, so it would hold back the end of each answer, and with it the
    words that were asked about. Here it looks at the answer alone.
    """

    def __init__(self, penalty: float, prompt: int) -> None:
        """Set up for one batch.

        Args:
            penalty: Positive scores are divided by it, negative ones multiplied.
            prompt: Number of tokens before the answer, padding included.
        """
        self._penalty = penalty
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (B, vocabulary) of the tokens after `input_ids` (B, T), changed in place."""
        said = _scored(input_ids[:, self._prompt :], scores)
        each = scores.gather(1, said)
        return scores.scatter_(1, said, where(each < 0, each * self._penalty, each / self._penalty))


class NoRepeatedNGrams(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Rules out tokens that would end a sequence of n tokens which has come, the prompt included.

    The rule is fairseq's (Paulus et al., arXiv 1705.04304, section 2.5).
    """

    def __init__(self, size: int) -> None:
        """Set up.

        Args:
            size: The number n of tokens in a row that must not come twice.
        """
        self._size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (B, vocabulary) of the tokens after `input_ids` (B, T), changed in place."""
        columns = input_ids.shape[1]
        if columns < self._size:
            return scores
        last = input_ids[:, columns + 1 - self._size :]  # (B, n - 1)
        seen = input_ids.unfold(1, self._size, 1)  # (B, T - n + 1, n)
        ends = seen[..., -1]
        come = (seen[..., :-1] == last[:, None]).all(-1) & (ends < scores.shape[1])
        # The least of a token's score and these: its own where no sequence is completed.
        limits = scores.new_full(ends.shape, inf).masked_fill(come, -inf)
        return scores.scatter_reduce_(1, _scored(ends, scores), limits, "amin")


def _scored(tokens: Tensor, scores: Tensor) -> Tensor:
    """The tokens; those that have no score, as padding may, as another one.

    A model's embeddings may know more tokens than it can write. No answer that goes on has one.
    """
    return tokens.clamp(max=scores.shape[1] - 1)
