"""From traits to a bundle: contrast pairs, edits (`steer.trait_edit`), and a portfolio of them.

Every step that takes long leaves its result in a work folder, so a build that was killed goes on
where it stopped and gives the same bundle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from steer.bundle import Bundle
from steer.contrast import SAMPLING, PairSet, generate_pairs
from steer.default_rewards import default_reward, text_reward
from steer.distill import Distillation
from steer.dose import calibrate
from steer.edits import Edit
from steer.errors import InputError, LowReliabilityWarning
from steer.evaluation import Evaluator
from steer.gate import Gate, behind
from steer.hooks import Scope
from steer.interference import Interference
from steer.interference_fit import measure_interference
from steer.models import LanguageModel, load_model
from steer.portfolio import OWN, Portfolio
from steer.precompute import PortfolioRecipe, precompute
from steer.prompts import load_prompts
from steer.recipe import Recipe
from steer.resources import cache_dir, content_key
from steer.rewards import Reward
from steer.subspace import Subspace
from steer.trait_edit import (
    Context,
    build_trait,
    fit,
    prepare,
)
from steer.trait_entry import TraitEntry
from steer.traits import Trait, load_traits
from steer.undosed import candidate_layers, candidate_methods, plain_prompts, undosed_edit
from steer.versions import versions

# Below this cosine agreement a trait's differences hardly share a direction.
LOW_RELIABILITY = 0.1
# Of English prose, roughly: where an answer is cut.
WORDS_PER_TOKEN = 0.75
# Tokens of an answer in which traits show what they do to each other.
_INTERFERING = 128


def build(
    model: str | Path | LanguageModel | None = None,
    traits: Sequence[Trait | str] | None = None,
    *,
    recipe: Recipe | None = None,
    portfolio: PortfolioRecipe | None = None,
    work_dir: str | Path | None = None,
    progress: bool = False,
    on_subspace: Callable[[PairSet, Subspace], None] | None = None,
) -> Bundle:
    """Build a bundle: everything from the model's own answers, no training.

    Args:
        model: Local folder, hub id or loaded model; None for the packaged SmolLM2.
        traits: `Trait` values or names of built-in ones; None for all built-in traits.
        recipe: How it is built.
        portfolio: Make a portfolio too, of traits that are built; None for none.
        work_dir: Where pairs, doses and measured edits are kept, so that a later call goes on;
            None for a folder in the user cache that belongs to the model and the recipe.
        progress: Show progress bars when on a terminal.
        on_subspace: Called with each trait's pairs and subspace before its edit is made, to
            report how many pairs were kept and how reliable the trait is.

    Raises:
        ModelError: If the model cannot be loaded.
        InputError: If a trait is not known.
        DataError: If a trait leaves too few usable pairs, or the work folder belongs to a build
            with other settings.
        CalibrationError: If no dose leaves a trait's answers whole.

    Warns:
        LowReliabilityWarning: If a trait's pairs hardly agree on a direction.
    """
    recipe = recipe or Recipe()
    chosen = _traits(traits)
    names = [trait.name for trait in chosen]
    if portfolio is not None and (missing := [n for n in portfolio.traits if n not in names]):
        raise InputError(f"portfolio: {missing[0]!r} is not among the traits that are built")
    language_model = model if isinstance(model, LanguageModel) else load_model(model)
    folder = _work_dir(language_model, recipe, work_dir)
    built = _build_traits(language_model, chosen, recipe, folder, progress, on_subspace)
    made = None
    if portfolio is not None:
        made = _portfolio(language_model, portfolio, recipe, folder, built, progress)
    interference = _interference(language_model, recipe, folder, built, progress)
    return Bundle(
        model=language_model.name,
        fingerprint=language_model.fingerprint,
        scope=recipe.scope,
        traits=built.entries,
        settings=_json(
            {
                "recipe": asdict(recipe),
                "precision": language_model.precision,
                "sampling": asdict(SAMPLING),
                "portfolio": None if portfolio is None else asdict(portfolio),
            }
        ),
        versions=versions(),
        portfolio=made,
        gate=built.context.gate,
        interference=interference,
    )


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


def search_space(
    language_model: LanguageModel,
    traits: Sequence[Trait | str],
    *,
    recipe: Recipe | None = None,
    work_dir: str | Path | None = None,
    progress: bool = False,
) -> SearchSpace:
    """What `build` searches for a portfolio with, for searches of one's own.

    Args:
        language_model: The model.
        traits: Whose edits are mixed.
        recipe: How they are built.
        work_dir: Of a build; what it already holds is not made again.
        progress: Show progress bars when on a terminal.

    Raises:
        InputError: As `build`.
        DataError: As `build`.
        CalibrationError: As `build`.
    """
    recipe = recipe or Recipe()
    folder = _work_dir(language_model, recipe, work_dir)
    built = _build_traits(language_model, _traits(traits), recipe, folder, progress, None)
    return _search_space(language_model, tuple(built.entries), recipe, folder, built, progress)


@dataclass(frozen=True, eq=False)
class _Source:
    """What a trait's edit was made of."""

    trait: Trait
    pairs: PairSet
    subspace: Subspace


@dataclass(frozen=True, eq=False)
class _Built:
    """Traits with what their edits were made of."""

    entries: Mapping[str, TraitEntry]
    sources: Mapping[str, _Source]
    context: Context


def _build_traits(
    language_model: LanguageModel,
    traits: Sequence[Trait],
    recipe: Recipe,
    folder: Path,
    progress: bool,
    on_subspace: Callable[[PairSet, Subspace], None] | None,
) -> _Built:
    context = prepare(language_model, recipe, folder)
    entries: dict[str, TraitEntry] = {}
    sources: dict[str, _Source] = {}
    bar = tqdm(traits, desc="traits", disable=None if progress else True)
    for trait in bar:
        bar.set_postfix_str(trait.name)
        pair_set = generate_pairs(
            language_model,
            trait,
            load_prompts("extract")[: recipe.prompts],
            folder / "pairs" / f"{trait.name}.jsonl",
            seed=recipe.seed,
            progress=progress,
        )
        subspace = fit(language_model, pair_set, recipe, folder)
        if on_subspace is not None:
            on_subspace(pair_set, subspace)
        if subspace.reliability < LOW_RELIABILITY:
            warnings.warn(
                f"trait {trait.name!r}: its pairs hardly agree on a direction (reliability "
                f"{subspace.reliability:.2f} < {LOW_RELIABILITY}); expect a weak or uneven effect",
                LowReliabilityWarning,
                stacklevel=3,
            )
        sources[trait.name] = _Source(trait, pair_set, subspace)
        entries[trait.name] = build_trait(
            language_model, trait, recipe, folder, context, pair_set, subspace, progress=progress
        )
    return _Built(entries, sources, context)


def _search_space(
    language_model: LanguageModel,
    names: Sequence[str],
    recipe: Recipe,
    folder: Path,
    built: _Built,
    progress: bool,
) -> SearchSpace:
    """The traits' own edits, and those at the middle layers."""
    families = {OWN: tuple(built.entries[name].edit for name in names)}
    gate, meter = built.context.gate, built.context.meter
    if recipe.layers != "middle":
        middle = []
        for name in names:
            source, entry = built.sources[name], built.entries[name]
            layers = candidate_layers(source.subspace, "middle")["middle"]
            (method,) = (m for m in candidate_methods(recipe.method) if m == entry.method)
            edit = undosed_edit(
                language_model,
                source.pairs,
                source.subspace,
                layers,
                method,
                folder,
                distillation=Distillation(seed=recipe.seed),
                progress=progress,
            )
            acting = behind(gate, edit)
            point = calibrate(language_model, acting, (), kl=entry.dose, meter=meter)
            middle.append(point.factor * edit)
        families["middle layers"] = tuple(middle)
    pairs = {name: built.sources[name].pairs for name in names}
    return SearchSpace(families, pairs, recipe.scope, gate)


def _portfolio(
    language_model: LanguageModel,
    wanted: PortfolioRecipe,
    recipe: Recipe,
    folder: Path,
    built: _Built,
    progress: bool,
) -> Portfolio:
    space = _search_space(language_model, wanted.traits, recipe, folder, built, progress)
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
    # What measurements hang on, but not what is made of them: another size costs no new ones.
    names = [reward.name for reward in rewards]
    asked = [wanted.traits, names, wanted.prompts, asdict(wanted.decoding), recipe.seed]
    mixed = [edit.digest for edits in space.families.values() for edit in edits]
    (folder / "portfolios").mkdir(parents=True, exist_ok=True)
    return precompute(
        language_model,
        space.families,
        rewards,
        [prompt.text for prompt in load_prompts("develop")],
        wanted,
        path=folder / "portfolios" / f"{content_key([asked, mixed])}.jsonl",
        scope=space.scope,
        gate=space.gate,
        seed=recipe.seed,
        progress=progress,
    )


def _interference(
    language_model: LanguageModel, recipe: Recipe, folder: Path, built: _Built, progress: bool
) -> Interference | None:
    """What the traits do to those of them that have a text to be read by; None if unasked for.

    The model's own opinion, by which any trait can be rewarded, does not follow people (README,
    "Results"), and asking for it takes longer than all the rest.
    """
    if not recipe.interference_prompts or len(built.entries) < 2:
        return None
    tokens = min(recipe.decoding.max_new_tokens, _INTERFERING)
    decoding = replace(recipe.decoding, max_new_tokens=tokens)
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
    asked = [list(built.entries), [reward.name for reward in rewards.values()], prompts]
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
        gate=built.context.gate,
        progress=progress,
    )
    return measure_interference(evaluator, tuple(built.entries), list(rewards))


def _traits(traits: Sequence[Trait | str] | None) -> list[Trait]:
    known = load_traits()
    if traits is None:
        return list(known.values())
    if isinstance(traits, str) or not traits:
        raise InputError(f"traits: expected a non-empty list, got {traits!r}")
    chosen: dict[str, Trait] = {}
    for trait in traits:
        if isinstance(trait, str):
            if trait not in known:
                raise InputError(f"unknown trait {trait!r}; known traits: {', '.join(known)}")
            trait = known[trait]
        if trait.name in chosen:
            raise InputError(f"trait {trait.name!r} is given twice")
        chosen[trait.name] = trait
    return list(chosen.values())


def _work_dir(language_model: LanguageModel, recipe: Recipe, given: str | Path | None) -> Path:
    """Where a build's work is kept: answers of another precision are other answers."""
    if given is not None:
        return Path(given) / language_model.precision
    # Everything that pairs depend on, so that a changed setting finds an empty folder.
    name = content_key([recipe.prompts, recipe.seed, versions()])[:8]
    builds = cache_dir() / "builds"
    return builds / f"{language_model.fingerprint.weights[:12]}-{name}" / language_model.precision


def _json(value: Any) -> Mapping[str, Any]:
    parsed: Mapping[str, Any] = json.loads(json.dumps(value))
    return parsed
