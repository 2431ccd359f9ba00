"""Probes that are fitted to what people prefer and to what the model writes when it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from people import Pairs

from steer.contrast import PairSet
from steer.measures import sentences
from steer.probe_reward import Encoder, ProbeReward
from steer.summaries import first_sentence

# How much the model's answers count, all together, beside people's pairs (see fit_probes.py).
MODEL_SHARE = 0.5

Contrast = list[tuple[str, str]]
"""Pairs of answers of which the first shows more of a trait."""


def poles(pairs: PairSet) -> Contrast:
    """Answers under the positive against those under the negative instructions."""
    return list(zip(pairs.positive, pairs.negative, strict=True))


def against(mine: PairSet, others: PairSet) -> Contrast:
    """Answers under the positive instructions of two traits to the same prompts."""
    theirs = {pair.positive.prompt_id: pair.positive.text for pair in others.pairs}
    return [
        (pair.positive.text, theirs[pair.positive.prompt_id])
        for pair in mine.pairs
        if pair.positive.prompt_id in theirs
    ]


def shortened(contrasts: Iterable[PairSet]) -> list[tuple[str, str]]:
    """The first sentences of answers, and the answers."""
    texts = [text for pairs in contrasts for text in (*pairs.positive, *pairs.negative)]
    return [(first_sentence(text), text) for text in texts if sentences(text) > 1]


def fitted(
    name: str,
    people: Pairs,
    contrasts: Sequence[Contrast],
    encoder: Encoder,
    seed: int,
    *,
    neutral: Sequence[tuple[str, str]] = (),
) -> ProbeReward:
    """A probe fitted to people's pairs and to contrasts, which count alike however long they are.

    Args:
        name: What is rewarded.
        people: What people prefer.
        contrasts: Of the model's answers.
        encoder: Makes points of texts.
        seed: Seeds which pairs are held out together.
        neutral: Pairs that differ in what should earn nothing.
    """
    better, worse = [*people.better], [*people.worse]
    counts = [1.0] * len(better)
    for contrast in contrasts:
        each = MODEL_SHARE * len(people.better) / len(contrasts) / len(contrast)
        better += [more for more, _ in contrast]
        worse += [less for _, less in contrast]
        counts += [each] * len(contrast)
    return ProbeReward.fitted(
        name, better, worse, counts=counts, neutral=neutral, encoder=encoder, seed=seed
    )
