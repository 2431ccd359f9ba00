"""Make a portfolio: search for edits at the weights of a cover, prune, certify.

cover (PALM's weights)  ->  lazy search  ->  shortlist  ->  confirm  ->  prune  ->  certificate

A search measures hundreds of edits, so their answers are few and cut short, and the best of them
owes some of its lead to chance. A shortlist therefore answers other prompts, more of them and at
full length. What these show decides, and is what the certificate is about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from steer.certificate import Measured, certify
from steer.cover import Closeness, minimal_cover
from steer.edits import Edit
from steer.errors import InputError
from steer.evaluation import Evaluation, Evaluator, mean_rewards, measured
from steer.gate import Gate
from steer.generation import Decoding
from steer.hooks import Scope
from steer.models import LanguageModel
from steer.objective import Objective
from steer.portfolio import Candidate, Portfolio, Trial
from steer.prompts import check_develop_left
from steer.prune import prune, prune_to_size
from steer.questions import most_telling
from steer.resources import content_key
from steer.rewards import Reward
from steer.search import Effort, search
from steer.soundness import Soundness
from steer.workers import Workers

# Seconds. Edits are chosen in one minute or two; were time to run out, what is kept would hang on
# how fast a machine is. Measuring takes hours.
_PATIENCE = 3600.0


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
        shortlist: Edits, beside each trait's own, that the search puts up for confirmation.
        confirm_prompts: Number of further prompts that those answer at full length; what they show
            there decides. 0: the search decides.
        confirm_decoding: How those are answered.
        objective: J.
        questions: Number of prompts whose answers are kept, to ask people about.
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
    shortlist: int = 24
    confirm_prompts: int = 40
    confirm_decoding: Decoding = Decoding()
    objective: Objective = Objective()
    questions: int = 12
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
        for name, least in (("size", self.size), ("shortlist", self.shortlist)):
            if least is not None and least < 1:
                raise InputError(f"portfolio {name}: expected at least 1, got {least}")
        if self.epsilon is not None and not 0 <= self.epsilon <= 1:
            raise InputError(f"portfolio epsilon: expected 0 to 1, got {self.epsilon}")
        if self.delta is not None and not 0 <= self.delta < math.inf:
            raise InputError(f"portfolio delta: expected a number >= 0, got {self.delta}")
        if self.questions < 0:
            raise InputError(f"portfolio questions: expected 0 or more, got {self.questions}")
        if not 4 <= self.prompts <= 100:
            raise InputError(f"portfolio prompts: expected 4 to 100, got {self.prompts}")
        check_develop_left("portfolio confirm_prompts", self.confirm_prompts, self.prompts)


def precompute(
    language_model: LanguageModel,
    families: Mapping[str, Sequence[Edit]],
    rewards: Sequence[Reward],
    prompts: Sequence[str],
    recipe: PortfolioRecipe,
    *,
    path: Path,
    compositions: Sequence[Candidate] = (),
    searched: Sequence[Trial] = (),
    scope: Scope = "response",
    gate: Gate | None = None,
    seed: int = 0,
    workers: Workers | None = None,
    progress: bool = False,
) -> Portfolio:
    """Search, confirm, prune and certify.

    Args:
        language_model: The model.
        families: By name, an edit a trait of the recipe, at its default dose.
        rewards: What each trait earns, in their order.
        prompts: Develop prompts, as many as the recipe's two numbers of them or more.
        recipe: How it is made.
        path: Where every evaluation is kept, so that a later call goes on; those that confirm are
            in a file beside it.
        compositions: What would serve some mixtures without a portfolio. They stand beside what
            the search finds, so that no such mixture is served by less.
        searched: What an earlier search of these edits found, which is not searched for again but
            confirmed anew; none to search.
        scope: Where edits act.
        gate: Behind which, if behind one.
        seed: Seeds the cover and the search.
        workers: Who answers; None for this process.
        progress: Show progress bars when on a terminal.

    Raises:
        InputError: If edits, rewards or prompts do not fit the recipe.
        DataError: If the file belongs to a search with other settings.
        CertificateError: If no portfolio was found in time.
    """
    d, wanted = len(recipe.traits), recipe.prompts + recipe.confirm_prompts
    if len(rewards) != d or any(len(edits) != d for edits in families.values()):
        raise InputError(f"portfolio: expected {d} rewards, and {d} edits in every family")
    if len(prompts) < wanted:
        raise InputError(f"portfolio: expected at least {wanted} prompts, got {len(prompts)}")

    def evaluator(part: Sequence[str], decoding: Decoding, file: Path) -> Evaluator:
        return Evaluator(
            language_model,
            families,
            part,
            rewards,
            path=file,
            decoding=decoding,
            scope=scope,
            gate=gate,
            workers=workers,
            progress=progress,
        )

    deciding = evaluator(prompts[: recipe.prompts], recipe.decoding, path)
    evaluations: Sequence[Evaluation] = ()
    trials = _checked(searched, recipe)
    if not trials:
        evaluations = search(
            deciding,
            minimal_cover(d, recipe.closeness, seed=seed).weights,
            recipe.objective,
            delta=recipe.served,
            effort=recipe.effort,
            seed=seed,
        ).evaluations
        trials = tuple(
            Trial(one.candidate, tuple(one.rewards.mean(0).tolist()), float(one.kl.mean()))
            for one in evaluations
        )
    if recipe.confirm_prompts:
        deciding = evaluator(
            prompts[recipe.prompts : wanted],
            recipe.confirm_decoding,
            _confirm_path(path, recipe),
        )
        evaluations = _confirmed(deciding, _beside(_shortlist(trials, recipe), compositions))
    else:
        found = [one.candidate for one in evaluations]
        evaluations = deciding.evaluate(_beside(found, compositions))
    data = measured(evaluations, recipe.objective)
    kept = _prune(data, recipe)
    served = [evaluations[i] for i in (0, *kept)]
    return Portfolio(
        traits=recipe.traits,
        rewards=tuple(reward.name for reward in rewards),
        objective=recipe.objective,
        candidates=tuple(one.candidate for one in evaluations),
        mean_rewards=mean_rewards(evaluations),
        kl=np.array([one.kl.mean() for one in evaluations]),
        kept=kept,
        edits=tuple(deciding.edit(evaluations[i].candidate) for i in kept),
        certificate=certify(data, kept),
        searched=trials if recipe.confirm_prompts else (),
        answered=most_telling(
            deciding.prompts,
            [one.texts for one in served],
            np.stack([one.rewards for one in served]),
            recipe.questions,
        ),
    )


def _confirm_path(path: Path, recipe: PortfolioRecipe) -> Path:
    """A file beside another, of its own for each way to confirm."""
    key = content_key([recipe.confirm_prompts, asdict(recipe.confirm_decoding)])[:8]
    return path.with_name(f"{path.stem}-confirm-{key}{path.suffix}")


def _prune(data: Measured, recipe: PortfolioRecipe) -> tuple[int, ...]:
    if recipe.size is not None:
        return prune_to_size(data, recipe.size, time_limit=_PATIENCE)
    return prune(
        data, epsilon=recipe.epsilon or 0.0, delta=recipe.delta or 0.0, time_limit=_PATIENCE
    )


def _checked(searched: Sequence[Trial], recipe: PortfolioRecipe) -> tuple[Trial, ...]:
    """What an earlier search found, if it fits the recipe."""
    if not searched:
        return ()
    if not recipe.confirm_prompts:
        raise InputError("portfolio: what was searched before is confirmed anew; confirm_prompts=0")
    d = len(recipe.traits)
    if not searched[0].candidate.is_unsteered() or any(len(one.rewards) != d for one in searched):
        raise InputError(f"portfolio: expected what a search of {d} traits found")
    return tuple(searched)


def _shortlist(trials: Sequence[Trial], recipe: PortfolioRecipe) -> list[Candidate]:
    """The unsteered model, each trait's own edits, and so many that serve best together."""
    candidates = [one.candidate for one in trials]
    data = recipe.objective.measured([one.rewards for one in trials], [one.kl for one in trials])
    kept = prune_to_size(data, recipe.shortlist, time_limit=_PATIENCE)
    best = {candidates[index] for index in kept}
    return [one for one in candidates if one.is_unsteered() or one.is_one_trait() or one in best]


def _beside(found: Sequence[Candidate], others: Sequence[Candidate]) -> list[Candidate]:
    """Candidates, each once."""
    return list(dict.fromkeys([*found, *others]))


def _confirmed(evaluator: Evaluator, candidates: Sequence[Candidate]) -> list[Evaluation]:
    """What the evaluator finds of candidates that leave answers as whole as the first's.

    One answer more may fall apart. That is what an edit that breaks one answer in a hundred does to
    40 in every third case, and some of the many that are tried here would be refused for it.
    """
    one_answer = 1 / len(evaluator.prompts)
    found = evaluator.evaluate(candidates)
    whole = [Soundness.of(evaluator.prompts, one.texts) for one in found]
    return [
        one
        for one, soundness in zip(found, whole, strict=True)
        if soundness.holds_against(whole[0], one_answer)
    ]
