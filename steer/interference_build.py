"""What a build measures of interference: which traits, by which rewards, at which prompts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from steer.default_rewards import WORDS_PER_TOKEN, text_reward
from steer.errors import InputError
from steer.evaluation import Evaluator
from steer.interference import Interference
from steer.interference_fit import measure_interference
from steer.models import LanguageModel
from steer.portfolio import OWN
from steer.portfolio_build import Built
from steer.prompts import load_prompts
from steer.recipe import Recipe
from steer.resources import content_key
from steer.rewards import Reward
from steer.workers import Workers

# Tokens of an answer in which traits show what they do to each other.
_INTERFERING = 128


def make_interference(
    language_model: LanguageModel,
    recipe: Recipe,
    folder: Path,
    built: Built,
    workers: Workers,
    progress: bool,
) -> Interference | None:
    """Measure what the traits do to those of them that have a text to be read by.

    The model's own opinion, by which any trait can be rewarded, does not follow people (README,
    "Results"), and asking for it takes longer than all the rest.

    Args:
        language_model: The model.
        recipe: How the traits are built, and at how many prompts they are measured.
        folder: Work folder; what it already holds is not measured again.
        built: The traits.
        workers: Who answers.
        progress: Show a progress bar when on a terminal.

    Returns:
        What was measured; None if the recipe asks for none, or there are too few traits.
    """
    if not recipe.interference_prompts or len(built.entries) < 2:
        return None
    tokens = min(recipe.decoding.max_new_tokens, _INTERFERING)
    least = min(recipe.decoding.min_new_tokens or 0, tokens) or None
    decoding = replace(recipe.decoding, max_new_tokens=tokens, min_new_tokens=least)
    rewards: dict[str, Reward] = {}
    for name, source in built.sources.items():
        try:
            reward = text_reward(name, source.pairs, longest=WORDS_PER_TOKEN * tokens)
        except InputError:
            # It does not tell this trait's pairs apart.
            continue
        if reward is not None:
            rewards[name] = reward
    if not rewards:
        return None
    edits = tuple(entry.edit for entry in built.entries.values())
    prompts = [prompt.text for prompt in load_prompts("develop")[: recipe.interference_prompts]]
    asked = [list(built.entries), [reward.key for reward in rewards.values()], prompts]
    key = content_key([asked, [edit.digest for edit in edits], asdict(decoding), recipe.scope])
    (folder / "interference").mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(
        language_model,
        {OWN: edits},
        prompts,
        list(rewards.values()),
        path=folder / "interference" / f"{key}.jsonl",
        decoding=decoding,
        scope=recipe.scope,
        gate=built.gate,
        workers=workers,
        progress=progress,
    )
    return measure_interference(evaluator, tuple(built.entries), list(rewards))
