"""From edits that are built to a portfolio of them: what is mixed, what is rewarded, the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from steer.contrast import PairSet
from steer.default_rewards import WORDS_PER_TOKEN, default_reward
from steer.distill import Distillation
from steer.dose import calibrate
from steer.edits import Edit
from steer.errors import InputError
from steer.gate import Gate, behind
from steer.hooks import Scope
from steer.interference import Interference, composed_doses
from steer.models import LanguageModel
from steer.portfolio import OWN, Candidate, Portfolio
from steer.precompute import PortfolioRecipe, precompute
from steer.prompts import load_prompts
from steer.recipe import Recipe
from steer.resources import content_key
from steer.subspace import Subspace
from steer.trait_edit import dose_meter
from steer.trait_entry import TraitEntry
from steer.traits import Trait
from steer.undosed import candidate_layers, candidate_methods, plain_prompts, undosed_edit
from steer.workers import Workers

MIDDLE = "middle layers"
"""The family of the traits' edits made anew at the middle layers, at their default doses."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a trait's edit was made of, and its reward is fitted to."""

    trait: Trait
    pairs: PairSet


@dataclass(frozen=True, eq=False)
class Built:
    """Traits with what their edits were made of.

    Attributes:
        entries: By name.
        sources: By the same names.
        subspaces: By the same names; none are needed where all edits are at the middle layers.
        gate: Behind which the edits act; None if they act everywhere.
    """

    entries: Mapping[str, TraitEntry]
    sources: Mapping[str, Source]
    subspaces: Mapping[str, Subspace]
    gate: Gate | None


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """What a search for a portfolio mixes, and what rewards can be fitted to.

    Attributes:
        families: By name, an edit a trait at its default dose; a family is a choice of layers.
        pairs: Contrast pairs by trait.
        scope: Where edits act.
        gate: Behind which, if behind one.
    """

    families: Mapping[str, tuple[Edit, ...]]
    pairs: Mapping[str, PairSet]
    scope: Scope
    gate: Gate | None


def space_of(
    language_model: LanguageModel,
    names: Sequence[str],
    recipe: Recipe,
    folder: Path,
    built: Built,
    *,
    progress: bool = False,
) -> SearchSpace:
    """The traits' own edits, and those at the middle layers.

    Args:
        language_model: The model.
        names: Whose edits are mixed.
        recipe: How they were built.
        folder: Work folder of a build.
        built: The edits.
        progress: Show progress bars when on a terminal.

    Raises:
        DataError: If what the folder holds is damaged.
        CalibrationError: If an edit at the middle layers does not reach the trait's dose.
    """
    families = {OWN: tuple(built.entries[name].edit for name in names)}
    if recipe.layers != "middle":
        meter = dose_meter(language_model, recipe)
        middle = []
        for name in names:
            entry, subspace = built.entries[name], built.subspaces[name]
            (method,) = (m for m in candidate_methods(recipe.method) if m == entry.method)
            edit = undosed_edit(
                language_model,
                built.sources[name].pairs,
                subspace,
                candidate_layers(subspace, "middle")["middle"],
                method,
                folder,
                distillation=Distillation(
                    pictographs=built.sources[name].trait.pictographs, seed=recipe.seed
                ),
                progress=progress,
            )
            acting = behind(built.gate, edit)
            point = calibrate(language_model, acting, (), kl=entry.dose, meter=meter)
            middle.append(point.factor * edit)
        families[MIDDLE] = tuple(middle)
    pairs = {name: built.sources[name].pairs for name in names}
    return SearchSpace(families, pairs, recipe.scope, built.gate)


def make_portfolio(
    language_model: LanguageModel,
    wanted: PortfolioRecipe,
    recipe: Recipe,
    folder: Path,
    built: Built,
    *,
    interference: Interference | None = None,
    searched: Portfolio | None = None,
    workers: Workers | None = None,
    progress: bool = False,
) -> Portfolio:
    """Search for a portfolio of built edits, by their traits' default rewards.

    Args:
        language_model: The model.
        wanted: How it is made.
        recipe: How the edits were built.
        folder: Work folder of a build, where every evaluation is kept.
        built: The edits.
        interference: By which compositions are dosed, if it was measured.
        searched: A portfolio of the same edits, whose search is confirmed anew; None to search.
        workers: Who answers; None for this process.
        progress: Show progress bars when on a terminal.

    Raises:
        InputError: If a trait's reward does not tell the poles of its contrast pairs apart, or what
            was searched was rewarded by others.
        DataError: If what the folder holds is damaged.
        CalibrationError: As `space_of`.
        CertificateError: If no portfolio was found in time.
    """
    space = space_of(language_model, wanted.traits, recipe, folder, built, progress=progress)
    rewards = [
        default_reward(
            language_model,
            source.trait,
            plain_prompts(source.pairs),
            source.pairs,
            longest=WORDS_PER_TOKEN * wanted.decoding.max_new_tokens,
        )
        for source in (built.sources[name] for name in wanted.traits)
    ]
    names = [reward.name for reward in rewards]
    if searched is not None and (searched.traits, list(searched.rewards)) != (wanted.traits, names):
        raise InputError(
            f"portfolio: what was searched is of {searched.traits} by {searched.rewards}, expected "
            f"{wanted.traits} by {names}; search anew"
        )
    # What measurements hang on, but not what is made of them: another size costs no new ones.
    keys = [reward.key for reward in rewards]
    asked = [wanted.traits, keys, wanted.prompts, asdict(wanted.decoding), recipe.seed]
    mixed = [edit.digest for edits in space.families.values() for edit in edits]
    (folder / "portfolios").mkdir(parents=True, exist_ok=True)
    return precompute(
        language_model,
        space.families,
        rewards,
        [prompt.text for prompt in load_prompts("develop")],
        wanted,
        path=folder / "portfolios" / f"{content_key([asked, mixed])}.jsonl",
        compositions=equal_compositions(wanted.traits, interference),
        searched=() if searched is None else searched.searched,
        scope=space.scope,
        gate=space.gate,
        seed=recipe.seed,
        workers=workers,
        progress=progress,
    )


def equal_compositions(traits: Sequence[str], interference: Interference | None) -> list[Candidate]:
    """What serves two or three traits at equal weights where there is no portfolio.

    Args:
        traits: Of the portfolio.
        interference: By which compositions are dosed, if it was measured.
    """
    found = []
    for number in (2, 3):
        for chosen in combinations(traits, number):
            parts = composed_doses(dict.fromkeys(chosen, 1.0), interference)
            found.append(Candidate.rounded(OWN, [parts.get(name, 0.0) for name in traits]))
    return found
