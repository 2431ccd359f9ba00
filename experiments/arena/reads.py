"""What is read of a trait: one measure to search with, and another to report.

The measure that is reported took part neither in extraction nor in the choice of settings. Each is
scaled to [0, 1]: what earns 1 is the ceiling of the standardised gain.

    trait        search                     report
    brevity      words, 15 earn 1           sentences, 1 earns 1; both logarithmic
    simplicity   Coleman-Liau, grade 2      probe on the middle layer's activations, fitted to
                                            OneStopEnglish
    positivity   VADER, 0.8                 probe on sentence embeddings, fitted to Positive
                                            Psychology Frames
    warmth       packaged probe on style    probe on the middle layer's activations, fitted to the
                                            outer quarters of Stanford politeness and to answers
                                            to instructions in other words than the trait's
    formality    contractions, you and I,   probe on style, fitted to answers to instructions in
                 none                       other words than the trait's

Where the packaged probe of a trait is fitted to some of people's pairs, the report is fitted to the
others. Of the probes that people's texts are at hand for, the one that tells held-out pairs apart
best reports (experiments/validate_rewards.py): of simplicity that on activations, 0.94, where one
on style has 0.91 and one on sentence embeddings 0.83; of positivity that on embeddings, 0.97.

A probe's ceiling is the upper tenth of the better texts that it is fitted to. Warm words do not
search for warmth: they follow people's labels no better than chance
(experiments/validate_rewards.py). Nor does what people call a polite request report it alone: by
that a formal answer is warmer than one that was asked to be kind. The model's answers add what is
asked of an answer, in half the weight, and take nothing from the agreement with people. Slang and
exclamation marks do not search for formality: the unsteered model hardly writes any, so that every
method closes that headroom. Nobody's labels of formality are at hand, so the model's own answers
report it; the style probe tells the poles of 30 held-out pairs apart in 73% (57 to 87%), one on
sentence embeddings in 83% (70 to 97%): too few to tell which of them is better.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# The loaders of people's preferences are one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from people import FITTED_TO, Pairs, for_judging, onestop  # noqa: E402
from probes import fitted, poles  # noqa: E402

from steer.contrast import PairSet, generate_pairs
from steer.measures import coleman_liau, familiar_markers, sentences
from steer.models import LanguageModel
from steer.probe_reward import (
    SENTENCES,
    STYLE,
    Encoder,
    ProbeReward,
    activation_encoder,
    packaged_probe,
)
from steer.prompts import load_prompts
from steer.rewards import (
    Range,
    Reward,
    TextReward,
    length_reward,
    sentiment_reward,
)
from steer.traits import Trait

PAIRS = 1000
# Of which people's pairs the packaged probes are fitted to (fit_probes.py).
PACKAGED_SEED = 0
LEAST_PROMPTS = 20
KINDNESS = Trait(
    "kindness",
    positive=[
        "Write like a kind grandmother who is fond of the reader.",
        "Comfort the reader and let them feel understood.",
        "Be tender and considerate, and take the reader's worries to heart.",
        "Let the reader feel cared for, and wish them well.",
    ],
    negative=[
        "Write like an indifferent clerk who wants to go home.",
        "Be aloof and unmoved by what the reader goes through.",
        "Be stern and dismissive, as towards somebody who wastes your time.",
        "Let the reader feel that nobody here is interested in them.",
    ],
)
"""Warmth in other words than those that edits are made with."""
OFFICIALDOM = Trait(
    "officialdom",
    positive=[
        "Write as in an official letter to a minister.",
        "Answer in the impersonal register of a legal notice.",
        "Phrase it as an encyclopedia would.",
        "Choose elevated words, as in a speech at a state banquet.",
    ],
    negative=[
        "Write as in a text message to an old friend.",
        "Answer the way people talk over a beer.",
        "Phrase it as a teenager on the phone would.",
        "Choose offhand words, as in a chat at the bus stop.",
    ],
)
"""Formality in other words."""


@dataclass(frozen=True)
class People:
    """What people prefer, to fit probes to.

    Attributes:
        data: Folder of the data sets.
        seed: Of which pairs are drawn.
        work_dir: Where answers of the model are kept.
        pairs: At most so many; the model answers a tenth as many prompts, but enough for a probe.
    """

    data: Path
    seed: int
    work_dir: Path
    pairs: int = PAIRS


@dataclass(frozen=True)
class Reads:
    """The two measures of a trait."""

    search: Reward
    report: Reward


def _unseen(trait: str, people: People) -> Pairs:
    """What people prefer, without the pairs that the packaged probe of the trait is fitted to.

    A portfolio is searched by that probe: what reports must not have learnt from the same people.
    """
    found = for_judging(FITTED_TO[trait](people.data, PACKAGED_SEED))
    return found.rows(range(min(people.pairs, len(found.better))))


def _probe(trait: str, found: Pairs, encoder: Encoder, people: People) -> ProbeReward:
    return ProbeReward.fitted(trait, found.better, found.worse, encoder=encoder, seed=people.seed)


def _brevity(model: LanguageModel, people: People) -> Reads:
    scale = Range(math.log(30), 0.0)
    count = TextReward("sentences, 30 to 1", lambda text: math.log(sentences(text)), scale)
    return Reads(length_reward(15, 400), count)


def _simplicity(model: LanguageModel, people: People) -> Reads:
    grade = TextReward("Coleman-Liau grade, 16 to 2", coleman_liau, Range(16, 2))
    found = onestop(people.data, people.pairs, people.seed)
    report = _probe("simplicity", found, activation_encoder(model), people)
    return Reads(grade, report)


def _positivity(model: LanguageModel, people: People) -> Reads:
    report = _probe("positivity", _unseen("positivity", people), SENTENCES, people)
    return Reads(sentiment_reward(), report)


def _warmth(model: LanguageModel, people: People) -> Reads:
    encoder = activation_encoder(model)
    search = packaged_probe("warmth")
    assert search is not None, "it is packaged"
    contrast = in_other_words(model, KINDNESS, people)
    found = _unseen("warmth", people)
    return Reads(search, fitted("warmth", found, [poles(contrast)], encoder, people.seed))


def _formality(model: LanguageModel, people: People) -> Reads:
    search = TextReward(
        "contractions, you and I per 100 words, 10 to 0", familiar_markers, Range(10, 0)
    )
    contrast = in_other_words(model, OFFICIALDOM, people)
    report = ProbeReward.fitted(
        "formality", contrast.positive, contrast.negative, encoder=STYLE, seed=people.seed
    )
    return Reads(search, report)


def in_other_words(model: LanguageModel, trait: Trait, people: People) -> PairSet:
    """What the model writes under instructions that no edit is made with.

    Args:
        model: The model.
        trait: The instructions: `KINDNESS` or `OFFICIALDOM`.
        people: Where answers are kept, and how many are wanted.
    """
    # Of the extract prompts the last: neither edits nor packaged probes are made at them.
    prompts = load_prompts("extract")[-max(people.pairs // 10, LEAST_PROMPTS) :]
    path = people.work_dir / f"{trait.name}.jsonl"
    return generate_pairs(model, trait, prompts, path, seed=people.seed, progress=True)


READS: Mapping[str, Callable[[LanguageModel, People], Reads]] = {
    "brevity": _brevity,
    "simplicity": _simplicity,
    "formality": _formality,
    "warmth": _warmth,
    "positivity": _positivity,
}
"""By trait, from the model and what people prefer."""
