"""`steer.repetition` against transformers' own processors and against plain loops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from steer.repetition import NoRepeatedNGrams, RepetitionPenalty

VOCABULARY = 5  # few, so that much comes twice

scores_of = st.integers(0, 2**31).map(
    lambda seed: torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(seed))
)
ids_of = st.integers(1, 24).flatmap(
    lambda columns: st.lists(
        st.lists(st.integers(0, VOCABULARY - 1), min_size=columns, max_size=columns),
        min_size=3,
        max_size=3,
    ).map(torch.tensor)
)


@given(ids_of, scores_of, st.integers(0, 24), st.sampled_from([0.5, 1.1, 3.0]))
def test_the_penalty_is_that_of_transformers(ids, scores, prompt, penalty) -> None:
    theirs = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt)(ids, scores)
    assert torch.equal(RepetitionPenalty(penalty, prompt)(ids, scores), theirs)


@given(ids_of, scores_of, st.integers(1, 6))
def test_sequences_that_come_twice_are_ruled_out_as_in_transformers(ids, scores, size) -> None:
    theirs = NoRepeatNGramLogitsProcessor(size)(ids, scores)
    assert torch.equal(NoRepeatedNGrams(size)(ids, scores), theirs)


@given(ids_of, scores_of, st.integers(1, 6))
def test_no_sequence_comes_twice(ids, scores, size) -> None:
    """By writing every token down."""
    result = NoRepeatedNGrams(size)(ids, scores.clone())
    for row in range(3):
        written = ids[row].tolist()
        come = {tuple(written[i : i + size]) for i in range(len(written) - size + 1)}
        for token in range(VOCABULARY):
            new = tuple([*written, token][-size:])
            twice = len(new) == size and new in come
            assert result[row, token] == (-torch.inf if twice else scores[row, token])


def test_tokens_that_have_no_score() -> None:
    """A prompt's, and the padding of answers that have ended, change nothing of other rows."""
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    ids = torch.tensor([[9, 0, 9, 0], [9, 1, 9, 9]])
    assert NoRepeatedNGrams(2)(ids, scores.clone())[0].tolist() == [1, 2, 3]
    penalty = RepetitionPenalty(2.0, 1)
    assert penalty(ids[:1, [0, 1, 1]], scores[:1].clone()).tolist() == [[0.5, 2, 3]]
    assert penalty(ids, scores.clone())[1].tolist()[:2] == [1, 1]
