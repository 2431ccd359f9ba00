"""What a trait earns where nothing else is asked for, chosen by how well it follows people.

The table that the choice was made by is experiments/results/rewards/validation.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from steer.contrast import PairSet
from steer.models import LanguageModel
from steer.probe_reward import packaged_probe
from steer.rewards import (
    LogRatioReward,
    Reward,
    formality_reward,
    length_reward,
    readability_reward,
)
from steer.traits import Trait

WORDS_PER_TOKEN = 0.75
"""Of English prose, roughly: a budget of tokens in words, as `longest` below."""


def default_reward(
    language_model: LanguageModel,
    trait: Trait,
    prompts: Sequence[str],
    pairs: PairSet,
    *,
    longest: float = 400,
) -> Reward:
    """What a trait earns: by its text where that can be read, else in the model's own opinion.

    Args:
        language_model: The judge of a trait that cannot be read off a text.
        trait: The trait.
        prompts: The plain prompts of the pairs, in their order.
        pairs: Its contrast pairs.
        longest: Words at which brevity earns nothing: where answers are cut, as many as fit, since
            an answer that was cut is not brief.

    Raises:
        InputError: If a probe or the model's opinion does not tell the poles of the contrast pairs
            apart.
    """
    known = text_reward(trait.name, pairs, longest=longest)
    if known is not None:
        return known
    return LogRatioReward.calibrated(language_model, trait, prompts, pairs)


def text_reward(trait: str, pairs: PairSet, *, longest: float = 400) -> Reward | None:
    """The reward of a built-in trait that is read off a text; None for any other.

    Args:
        trait: Its name.
        pairs: Its contrast pairs, which set the scale of what has no natural one.
        longest: As `default_reward`'s.

    Raises:
        InputError: If a probe does not tell the poles of the contrast pairs apart. What is counted
            (words, grades, casual marks) has a scale of its own and is not held against them.
    """
    if trait == "brevity":
        return length_reward(min(20, longest / 5), longest)
    if trait == "simplicity":
        return readability_reward()
    if trait == "formality":
        return formality_reward()
    probe = packaged_probe(trait)
    if probe is None:
        return None
    return probe.between(pairs.negative, pairs.positive)
