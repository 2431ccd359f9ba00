"""Make a portfolio: search for edits at the weights of a cover, prune, certify.

cover (PALM's weights)  ->  lazy search (measured edits)  ->  prune  ->  certificate
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steer.certificate import certify
from steer.cover import Closeness, minimal_cover
from steer.edits import Edit
from steer.errors import InputError
from steer.evaluation import Evaluator
from steer.generation import Decoding
from steer.hooks import Scope
from steer.models import LanguageModel
from steer.objective import Objective
from steer.portfolio import Portfolio
from steer.prune import prune, prune_to_size
from steer.rewards import Reward
from steer.search import Effort, search


@dataclass(frozen=True)
class PortfolioRecipe:
    """How a portfolio is made. Give a size, or a guarantee.

    Attributes:
        traits: Whose mixtures are served; two to eight.
        size: Most edits that are kept, beside the unsteered model.
        epsilon: Relative loss that is allowed, where no size is given.
        delta: Absolute loss that is allowed, where no size is given.
        closeness: How near a weight of the cover is to the preferences that it stands for.
        prompts: Number of develop prompts that every candidate answers.
        decoding: How they are answered.
        objective: J.
        effort: How hard each weight is searched for.
        served: Loss of J at which a weight needs no search of its own.
    """

    traits: tuple[str, ...]
    size: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    closeness: Closeness = Closeness(0.5, 0.05)
    prompts: int = 16
    decoding: Decoding = Decoding(max_new_tokens=128)
    objective: Objective = Objective()
    effort: Effort = Effort()
    served: float = 0.02

    def __post_init__(self) -> None:
        if not 2 <= len(set(self.traits)) == len(self.traits) <= 8:
            raise InputError(
                f"portfolio: expected two to eight different traits, got {self.traits}"
            )
        guarantee = (self.epsilon, self.delta)
        if (self.size is None) == (guarantee == (None, None)):
            raise InputError("portfolio: give a size, or epsilon and delta, and not both")
        if self.size is not None and self.size < 1:
            raise InputError(f"portfolio size: expected at least 1, got {self.size}")
        for name, number in zip(("epsilon", "delta"), guarantee, strict=True):
            if number is not None and not 0 <= number < math.inf:
                raise InputError(f"portfolio {name}: expected a number >= 0, got {number}")
        if not 4 <= self.prompts <= 100:
            raise InputError(f"portfolio prompts: expected 4 to 100, got {self.prompts}")


def precompute(
    language_model: LanguageModel,
    families: Mapping[str, Sequence[Edit]],
    rewards: Sequence[Reward],
    prompts: Sequence[str],
    recipe: PortfolioRecipe,
    *,
    path: Path,
    scope: Scope = "response",
    seed: int = 0,
    progress: bool = False,
) -> Portfolio:
    """Search, prune and certify.

    Args:
        language_model: The model.
        families: By name, an edit a trait of the recipe, at its default dose.
        rewards: What each trait earns, in their order.
        prompts: Develop prompts.
        recipe: How it is made.
        path: Where every evaluation is kept, so that a later call goes on.
        scope: Where edits act.
        seed: Seeds the cover and the search.
        progress: Show progress bars when on a terminal.

    Raises:
        InputError: If edits or rewards do not fit the traits.
        DataError: If the file belongs to a search with other settings.
        CertificateError: If no portfolio was found in time.
    """
    d = len(recipe.traits)
    if len(rewards) != d or any(len(edits) != d for edits in families.values()):
        raise InputError(f"portfolio: expected {d} rewards, and {d} edits in every family")
    evaluator = Evaluator(
        language_model,
        families,
        prompts,
        rewards,
        path=path,
        decoding=recipe.decoding,
        scope=scope,
        progress=progress,
    )
    cover = minimal_cover(d, recipe.closeness, seed=seed)
    found = search(
        evaluator,
        cover.weights,
        recipe.objective,
        delta=recipe.served,
        effort=recipe.effort,
        seed=seed,
    )
    if recipe.size is not None:
        kept = prune_to_size(found.measured, recipe.size)
    else:
        kept = prune(found.measured, epsilon=recipe.epsilon or 0.0, delta=recipe.delta or 0.0)
    candidates = tuple(one.candidate for one in found.evaluations)
    return Portfolio(
        traits=recipe.traits,
        rewards=tuple(reward.name for reward in rewards),
        objective=recipe.objective,
        candidates=candidates,
        mean_rewards=found.measured.rewards,
        kl=np.array([one.kl.mean() for one in found.evaluations]),
        kept=kept,
        edits=tuple(evaluator.edit(candidates[i]) for i in kept),
        certificate=certify(found.measured, kept),
    )
