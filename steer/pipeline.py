"""From traits to a bundle: contrast pairs, edits (`steer.trait_edit`), and a portfolio of them.

Every step that takes long leaves its result in a work folder, so a build that was killed goes on
where it stopped and gives the same bundle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from steer.bundle import Bundle
from steer.contrast import SAMPLING, PairSet, PairsFile
from steer.errors import FingerprintError, InputError, LowReliabilityWarning
from steer.generation import Decoding, chat_key
from steer.interference_build import make_interference
from steer.models import LanguageModel, load_model
from steer.portfolio_build import Built, SearchSpace, Source, make_portfolio, space_of
from steer.precompute import PortfolioRecipe
from steer.prompts import load_prompts
from steer.recipe import Recipe
from steer.resources import cache_dir, content_key
from steer.subspace import Subspace
from steer.trait_edit import build_trait, fit, prepare
from steer.traits import Trait, load_traits
from steer.versions import versions
from steer.workers import Alone, Unit, Workers

# Below this cosine agreement a trait's differences hardly share a direction.
LOW_RELIABILITY = 0.1


def build(
    model: str | Path | LanguageModel | None = None,
    traits: Sequence[Trait | str] | None = None,
    *,
    recipe: Recipe | None = None,
    portfolio: PortfolioRecipe | None = None,
    work_dir: str | Path | None = None,
    workers: Workers | None = None,
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
        workers: Who does the work, with this very model; None for this process. The bundle is the
            same whoever does it, as far as the numbers of their processors are.
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
    workers = Alone(language_model) if workers is None else workers
    built = _build_traits(language_model, chosen, recipe, folder, workers, progress, on_subspace)
    interference = make_interference(language_model, recipe, folder, built, workers, progress)
    made = None
    if portfolio is not None:
        made = make_portfolio(
            language_model,
            portfolio,
            recipe,
            folder,
            built,
            interference=interference,
            workers=workers,
            progress=progress,
        )
    # A folder in full, or elsewhere its name could be taken for an id on the hub.
    name, local = language_model.name, Path(language_model.name)
    return Bundle(
        model=str(local.absolute()) if local.is_dir() else name,
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
        gate=built.gate,
        interference=interference,
    )


def build_portfolio(
    bundle: Bundle,
    portfolio: PortfolioRecipe,
    model: str | Path | LanguageModel | None = None,
    traits: Sequence[Trait | str] | None = None,
    *,
    search: bool = True,
    work_dir: str | Path | None = None,
    workers: Workers | None = None,
    progress: bool = False,
) -> Bundle:
    """Make a portfolio of a bundle's edits, as the build of the bundle would have.

    What else is in the bundle stays as it is, bit for bit. Contrast pairs, which a bundle does not
    hold, are generated again by its recipe: rewards are fitted to them.

    Args:
        bundle: From `build`. A portfolio that it has is replaced.
        portfolio: How the portfolio is made.
        model: The one that the bundle was built on: local folder, hub id or loaded model; None for
            the packaged SmolLM2.
        traits: Definitions of those of the portfolio's traits that are not built in.
        search: Search for edits; or else only confirm anew what the search for the bundle's
            portfolio found, which takes a third of the time: where the measure of whether an
            answer is whole has become stricter since.
        work_dir: As `build`'s; what it already holds is not made again.
        workers: As `build`'s.
        progress: Show progress bars when on a terminal.

    Returns:
        The bundle with the portfolio. Its settings tell that this was made on its own, and with
        which precision and versions.

    Raises:
        ModelError: If the model cannot be loaded.
        FingerprintError: If the bundle was built on another model.
        InputError: If the bundle does not say how it was built, or a trait is not the bundle's, or
            the model has no chat, which the bundle's gate acts in, or there was no search of the
            same traits by the same rewards.
        DataError: As `build`.
        CertificateError: If no portfolio was found in time.
    """
    before = None if search else bundle.portfolio
    if not search and (before is None or not before.searched):
        raise InputError("the bundle holds no search that could be confirmed anew; search")
    recipe = _recipe_of(bundle)
    language_model, folder, workers, sources = _begin_again(
        bundle, portfolio.traits, recipe, model, traits, work_dir, workers, progress
    )
    built = _built_again(bundle, sources, recipe, folder, workers)
    made = make_portfolio(
        language_model,
        portfolio,
        recipe,
        folder,
        built,
        interference=bundle.interference,
        searched=before,
        workers=workers,
        progress=progress,
    )
    told = {
        "portfolio": asdict(portfolio),
        "portfolio_made_with": {
            "precision": language_model.precision,
            "versions": versions(),
            "searched anew": search,
        },
    }
    return replace(bundle, portfolio=made, settings={**bundle.settings, **_json(told)})


def build_interference(
    bundle: Bundle,
    prompts: int,
    model: str | Path | LanguageModel | None = None,
    traits: Sequence[Trait | str] | None = None,
    *,
    work_dir: str | Path | None = None,
    workers: Workers | None = None,
    progress: bool = False,
) -> Bundle:
    """Measure anew what a bundle's traits do to each other, by which compositions are dosed.

    What else is in the bundle stays as it is, bit for bit. Contrast pairs are generated again, as
    for `build_portfolio`.

    Args:
        bundle: From `build`, of two or more traits.
        prompts: Number of develop prompts, 4 to 100.
        model: As `build_portfolio`'s.
        traits: Definitions of those of the bundle's traits that are not built in.
        work_dir: As `build`'s; what it already holds is not made again.
        workers: As `build`'s.
        progress: Show progress bars when on a terminal.

    Returns:
        The bundle with what was measured. Its settings tell that this was made on its own, and with
        which precision and versions.

    Raises:
        ModelError: If the model cannot be loaded.
        FingerprintError: If the bundle was built on another model.
        InputError: If the bundle does not say how it was built, or holds a trait that is not built
            in and not given, or the model has no chat, which the bundle's gate acts in, or there
            are too few traits or prompts.
        DataError: As `build`.
    """
    recipe = replace(_recipe_of(bundle), interference_prompts=prompts)
    if not prompts or len(bundle.traits) < 2:
        raise InputError(
            f"interference: expected two or more traits and 4 to 100 prompts, got "
            f"{len(bundle.traits)} and {prompts}"
        )
    language_model, folder, workers, sources = _begin_again(
        bundle, tuple(bundle.traits), recipe, model, traits, work_dir, workers, progress
    )
    built = Built(bundle.traits, sources, {}, bundle.gate)
    found = make_interference(language_model, recipe, folder, built, workers, progress)
    told = {
        "interference_made_with": {
            "precision": language_model.precision,
            "versions": versions(),
            "prompts": prompts,
        }
    }
    return replace(bundle, interference=found, settings={**bundle.settings, **_json(told)})


def _recipe_of(bundle: Bundle) -> Recipe:
    """How a bundle was built."""
    return Recipe.from_json(bundle.settings.get("recipe"), "the bundle's settings, 'recipe'")


def _begin_again(
    bundle: Bundle,
    names: Sequence[str],
    recipe: Recipe,
    model: str | Path | LanguageModel | None,
    traits: Sequence[Trait | str] | None,
    work_dir: str | Path | None,
    workers: Workers | None,
    progress: bool,
) -> tuple[LanguageModel, Path, Workers, dict[str, Source]]:
    """The model, the work folder, the workers, and what some of a bundle's traits were made of."""
    sampling = Decoding.from_json(
        bundle.settings.get("sampling"), "the bundle's settings, 'sampling'"
    )
    known = load_traits() | {trait.name: trait for trait in _traits(traits)}
    chosen = [_trait_of(bundle, name, known) for name in names]
    language_model = model if isinstance(model, LanguageModel) else load_model(model)
    _check_same_model(bundle, language_model)
    folder = _work_dir(language_model, recipe, work_dir)
    workers = Alone(language_model) if workers is None else workers
    pairs = _pairs(
        language_model, chosen, recipe, folder, workers, sampling=sampling, progress=progress
    )
    sources = {trait.name: Source(trait, pairs[trait.name]) for trait in chosen}
    return language_model, folder, workers, sources


def _built_again(
    bundle: Bundle, sources: Mapping[str, Source], recipe: Recipe, folder: Path, workers: Workers
) -> Built:
    """A bundle's traits, as a portfolio of them is searched with."""
    subspaces: dict[str, Subspace] = {}
    if recipe.layers != "middle":
        fits = [
            partial(fit, pair_set=one.pairs, recipe=recipe, folder=folder)
            for one in sources.values()
        ]
        subspaces = dict(zip(sources, workers.each(fits), strict=True))
    return Built(bundle.traits, sources, subspaces, bundle.gate)


def _trait_of(bundle: Bundle, name: str, known: Mapping[str, Trait]) -> Trait:
    """The definition of a trait of a bundle."""
    if name not in bundle.traits:
        raise InputError(
            f"portfolio: {name!r} is not a trait of the bundle; it has {', '.join(bundle.traits)}"
        )
    if name not in known:
        raise InputError(f"{name!r} is not a built-in trait; give its definition too")
    entry, trait = bundle.traits[name], known[name]
    poles, expected = (trait.positive.pole, trait.negative.pole), (entry.positive, entry.negative)
    if poles != expected:
        raise InputError(
            f"trait {name!r}: expected the poles that the bundle was built with, {expected}, got "
            f"{poles}; give the definition that it was built with"
        )
    return trait


def _check_same_model(bundle: Bundle, language_model: LanguageModel) -> None:
    if language_model.fingerprint != bundle.fingerprint:
        raise FingerprintError(
            f"the bundle was built on {bundle.model!r}, fingerprint {bundle.fingerprint}, but the "
            f"model is {language_model.fingerprint}; give the model that it was built on"
        )
    if bundle.gate is not None and language_model.tokenizer.chat_template is None:
        raise InputError(
            "the bundle's edits act on answers in a chat, and the model's tokenizer has no chat "
            "template; give the tokenizer that the bundle was built with"
        )


def search_space(
    bundle: Bundle,
    names: Sequence[str],
    model: str | Path | LanguageModel | None = None,
    traits: Sequence[Trait | str] | None = None,
    *,
    work_dir: str | Path | None = None,
    progress: bool = False,
) -> SearchSpace:
    """What `build_portfolio` searches with, for searches of one's own.

    Args:
        bundle: From `build`.
        names: Whose edits are mixed.
        model: As `build_portfolio`'s.
        traits: As `build_portfolio`'s.
        work_dir: As `build`'s; what it already holds is not made again.
        progress: Show progress bars when on a terminal.

    Raises:
        ModelError: If the model cannot be loaded.
        FingerprintError: If the bundle was built on another model.
        InputError: As `build_portfolio`.
        DataError: As `build`.
        CalibrationError: If an edit at the middle layers does not reach the trait's dose.
    """
    recipe = _recipe_of(bundle)
    language_model, folder, workers, sources = _begin_again(
        bundle, names, recipe, model, traits, work_dir, None, progress
    )
    built = _built_again(bundle, sources, recipe, folder, workers)
    return space_of(language_model, names, recipe, folder, built, progress=progress)


def _build_traits(
    language_model: LanguageModel,
    traits: Sequence[Trait],
    recipe: Recipe,
    folder: Path,
    workers: Workers,
    progress: bool,
    on_subspace: Callable[[PairSet, Subspace], None] | None,
) -> Built:
    def done(units: Sequence[Unit[Any]], what: str) -> Iterator[Any]:
        bar = tqdm(total=len(units), desc=what, disable=None if progress else True)
        with bar:
            for given in workers.each(units):
                bar.update()
                yield given

    pairs = _pairs(language_model, traits, recipe, folder, workers, progress=progress)
    shared: list[Unit[Any]] = [partial(prepare, recipe=recipe, folder=folder)]
    fits = [partial(fit, pair_set=one, recipe=recipe, folder=folder) for one in pairs.values()]
    results = done([*shared, *fits], "subspaces")
    context = next(results)
    subspaces: dict[str, Subspace] = {}
    for trait, subspace in zip(traits, results, strict=True):
        subspaces[trait.name] = subspace
        if on_subspace is not None:
            on_subspace(pairs[trait.name], subspace)
        if subspace.reliability < LOW_RELIABILITY:
            warnings.warn(
                f"trait {trait.name!r}: its pairs hardly agree on a direction (reliability "
                f"{subspace.reliability:.2f} < {LOW_RELIABILITY}); expect a weak or uneven effect",
                LowReliabilityWarning,
                stacklevel=3,
            )
    edits = [
        partial(
            build_trait,
            trait=trait,
            recipe=recipe,
            folder=folder,
            context=context,
            pair_set=pairs[trait.name],
            subspace=subspaces[trait.name],
            progress=progress,
        )
        for trait in traits
    ]
    entries = {entry.name: entry for entry in done(edits, "edits")}
    sources = {trait.name: Source(trait, pairs[trait.name]) for trait in traits}
    return Built(entries, sources, subspaces, context.gate)


def _pairs(
    language_model: LanguageModel,
    traits: Sequence[Trait],
    recipe: Recipe,
    folder: Path,
    workers: Workers,
    *,
    sampling: Decoding = SAMPLING,
    progress: bool,
) -> dict[str, PairSet]:
    """The contrast pairs of all traits; a unit of work is a batch of prompts."""
    prompts = load_prompts("extract")[: recipe.prompts]
    known = load_traits()
    files = [
        PairsFile(
            language_model,
            trait,
            prompts,
            folder / "pairs" / _pairs_name(trait, known),
            seed=recipe.seed,
            sampling=sampling,
        )
        for trait in traits
    ]
    units = [(file, unit) for file in files for unit in file.left]
    given = workers.each([unit for _, unit in units])
    bar = tqdm(given, desc="pairs", total=len(units), disable=None if progress else True)
    for (file, _), answers in zip(units, bar, strict=True):
        file.add(answers)
    return {trait.name: file.pairs for trait, file in zip(traits, files, strict=True)}


def _pairs_name(trait: Trait, known: Mapping[str, Trait]) -> str:
    """The file of a trait's pairs; one of somebody's own changes, and has others then."""
    if trait.name in known and trait.asked == known[trait.name].asked:
        return f"{trait.name}.jsonl"
    return f"{trait.name}-{content_key(trait.asked)[:8]}.jsonl"


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
    name = content_key([recipe.prompts, recipe.seed, versions(), chat_key(language_model)])[:8]
    builds = cache_dir() / "builds"
    return builds / f"{language_model.fingerprint.weights[:12]}-{name}" / language_model.precision


def _json(value: Any) -> Mapping[str, Any]:
    parsed: Mapping[str, Any] = json.loads(json.dumps(value))
    return parsed
