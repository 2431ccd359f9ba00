"""From traits to a bundle: contrast pairs, subspaces, layers, edits, doses.

Every step that takes long leaves its result in a work folder, so a build that was killed goes on
where it stopped and gives the same bundle.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from steer.activations import Pooling, read_activations
from steer.bundle import Bundle, TraitEntry
from steer.chat import render
from steer.contrast import SAMPLING, PairSet, generate_pairs
from steer.dose import (
    SEARCH_KLS,
    DoseSearch,
    DoseTrial,
    calibrate,
    reference_meter,
    search_dose,
)
from steer.edits import Edit, additive, two_step
from steer.errors import CalibrationError, DataError, InputError, LowReliabilityWarning
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import Scope
from steer.likelihood import KLMeter, log_ratio
from steer.measures import TRAIT_MEASURES
from steer.models import LanguageModel, load_model
from steer.portfolio import Portfolio
from steer.precompute import PortfolioRecipe, precompute
from steer.prompts import load_prompts
from steer.resources import atomic_path, cache_dir
from steer.rewards import default_reward
from steer.subspace import Subspace, choose_layers, fit_subspace
from steer.traits import Trait, load_traits
from steer.versions import versions

Method = Literal["mean-difference", "svd", "ccs", "probe", "two-step", "two-step-sign-safe"]
Layers = Literal["ccs-jump", "middle", "gain"]

# Below this cosine agreement a trait's differences hardly share a direction.
LOW_RELIABILITY = 0.1
# Tokens of an answer that the log-ratio reads: a trait shows early, and reading costs as much as
# writing.
_JUDGED = 128
# Of English prose, roughly: where an answer is cut.
_WORDS_PER_TOKEN = 0.75


@dataclass(frozen=True)
class Recipe:
    """How a bundle is built.

    Attributes:
        method: Which edit is made of a subspace.
        layers: Which layers are edited: "ccs-jump" (CHAMELEON's rule), "middle" (a fixed window
            of the model's depth), or "gain" (both are tried, the larger gain on develop prompts
            is kept).
        prompts: Number of extract prompts, and so of pairs before any are dropped.
        develop_prompts: Number of develop prompts on which every dose is tried.
        confirm_prompts: Number of further ones on which the leading dose is confirmed.
        pooling: How a response's activations become one vector.
        scope: Where edits act.
        kls: Doses that are tried, in nats per token.
        decoding: How develop prompts are answered.
        seed: Seeds sampling, CCS and its held-out pairs.
    """

    method: Method = "mean-difference"
    layers: Layers = "ccs-jump"
    prompts: int = 64
    develop_prompts: int = 40
    confirm_prompts: int = 60
    pooling: Pooling = "mean"
    scope: Scope = "response"
    kls: tuple[float, ...] = SEARCH_KLS
    decoding: Decoding = Decoding()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"method: expected one of {get_args(Method)}, got {self.method!r}")
        if self.layers not in get_args(Layers):
            raise InputError(f"layers: expected one of {get_args(Layers)}, got {self.layers!r}")
        for name, split in (("prompts", 300), ("develop_prompts", 100)):
            if not 8 <= getattr(self, name) <= split:
                raise InputError(f"{name}: expected 8 to {split}, got {getattr(self, name)}")
        left = 100 - self.develop_prompts
        if not 0 <= self.confirm_prompts <= left:
            raise InputError(
                f"confirm_prompts: expected 0 to {left}, the develop prompts that are left, got "
                f"{self.confirm_prompts}"
            )


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
    folder = Path(work_dir) if work_dir is not None else _work_dir(language_model, recipe)
    built = _build_traits(language_model, chosen, recipe, folder, progress, on_subspace)
    made = None
    if portfolio is not None:
        made = _portfolio(language_model, portfolio, recipe, folder, built, progress)
    return Bundle(
        model=language_model.name,
        fingerprint=language_model.fingerprint,
        scope=recipe.scope,
        traits=built.entries,
        settings=_json(
            {
                "recipe": asdict(recipe),
                "sampling": asdict(SAMPLING),
                "portfolio": None if portfolio is None else asdict(portfolio),
            }
        ),
        versions=versions(),
        portfolio=made,
    )


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """What a search for a portfolio mixes and asks, and what rewards can be fitted to.

    Attributes:
        families: By name, an edit a trait at its default dose; a family is a choice of layers.
        pairs: Contrast pairs by trait.
        prompts: Develop prompts.
        scope: Where edits act.
    """

    families: Mapping[str, tuple[Edit, ...]]
    pairs: Mapping[str, PairSet]
    prompts: tuple[str, ...]
    scope: Scope


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
    folder = Path(work_dir) if work_dir is not None else _work_dir(language_model, recipe)
    built = _build_traits(language_model, _traits(traits), recipe, folder, progress, None)
    return _search_space(language_model, tuple(built.entries), recipe, built)


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
    context: _Context


def _build_traits(
    language_model: LanguageModel,
    traits: Sequence[Trait],
    recipe: Recipe,
    folder: Path,
    progress: bool,
    on_subspace: Callable[[PairSet, Subspace], None] | None,
) -> _Built:
    context = _prepare(language_model, recipe, folder)
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
        subspace = _fit(language_model, pair_set, recipe, folder)
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
        entries[trait.name] = _build_trait(
            language_model, trait, recipe, folder, context, pair_set, subspace
        )
    return _Built(entries, sources, context)


def _search_space(
    language_model: LanguageModel, names: Sequence[str], recipe: Recipe, built: _Built
) -> SearchSpace:
    """The traits' own edits, and those at the middle layers."""
    families = {"own layers": tuple(built.entries[name].edit for name in names)}
    if recipe.layers != "middle":
        middle = []
        for name in names:
            subspace, dose = built.sources[name].subspace, built.entries[name].dose
            layers = candidate_layers(subspace, "middle")["middle"]
            edit = make_edit(subspace, layers, recipe.method)
            point = calibrate(language_model, edit, (), kl=dose, meter=built.context.meter)
            middle.append(point.factor * edit)
        families["middle layers"] = tuple(middle)
    pairs = {name: built.sources[name].pairs for name in names}
    develop = (*built.context.prompts, *built.context.confirm)
    return SearchSpace(families, pairs, develop, recipe.scope)


def plain_prompts(pair_set: PairSet) -> list[str]:
    """The extract prompts of contrast pairs, in their order, without instructions."""
    texts = {prompt.id: prompt.text for prompt in load_prompts("extract")}
    return [texts[pair.positive.prompt_id] for pair in pair_set.pairs]


def _portfolio(
    language_model: LanguageModel,
    wanted: PortfolioRecipe,
    recipe: Recipe,
    folder: Path,
    built: _Built,
    progress: bool,
) -> Portfolio:
    space = _search_space(language_model, wanted.traits, recipe, built)
    digest = hashlib.sha256(json.dumps([asdict(wanted), recipe.seed], sort_keys=True).encode())
    for edit in (edit for edits in space.families.values() for edit in edits):
        digest.update(_edit_bytes(edit))
    rewards = [
        default_reward(
            language_model,
            source.trait,
            plain_prompts(source.pairs),
            source.pairs,
            longest=_WORDS_PER_TOKEN * wanted.decoding.max_new_tokens,
        )
        for source in (built.sources[name] for name in wanted.traits)
    ]
    (folder / "portfolios").mkdir(parents=True, exist_ok=True)
    return precompute(
        language_model,
        space.families,
        rewards,
        space.prompts[: wanted.prompts],
        wanted,
        path=folder / "portfolios" / f"{digest.hexdigest()[:16]}.jsonl",
        scope=space.scope,
        seed=recipe.seed,
        progress=progress,
    )


def _edit_bytes(edit: Edit) -> bytes:
    """What tells an edit from others."""
    return b"".join(
        layer.e.tobytes() + (layer.u * layer.c).tobytes() + str(index).encode()
        for index, layer in edit.layers.items()
    )


@dataclass(frozen=True)
class _Context:
    """What all traits share: develop prompts, the unsteered answers, the divergence meter."""

    prompts: tuple[str, ...]
    confirm: tuple[str, ...]
    unsteered: tuple[str, ...]
    meter: KLMeter


def _prepare(language_model: LanguageModel, recipe: Recipe, folder: Path) -> _Context:
    number = recipe.develop_prompts
    prompts = [prompt.text for prompt in load_prompts("develop")[: number + recipe.confirm_prompts]]
    what = [prompts, asdict(recipe.decoding), language_model.fingerprint.to_dict()]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"unsteered-{key}.json"
    if not path.exists():
        texts = [render(language_model.tokenizer, prompt) for prompt in prompts]
        answers = generate_batch(language_model, texts, recipe.decoding)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps([answer.text for answer in answers]), encoding="utf-8")
    return _Context(
        tuple(prompts[:number]),
        tuple(prompts[number:]),
        _read_texts(path, len(prompts)),
        reference_meter(language_model, prompts[:8], scope=recipe.scope),
    )


def _read_texts(path: Path, number: int) -> tuple[str, ...]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not stored answers ({error}); delete it") from error
    if not isinstance(content, list) or len(content) != number:
        raise DataError(f"{path}: expected {number} stored answers; delete it")
    return tuple(map(str, content))


def _build_trait(
    language_model: LanguageModel,
    trait: Trait,
    recipe: Recipe,
    folder: Path,
    context: _Context,
    pair_set: PairSet,
    subspace: Subspace,
) -> TraitEntry:
    measure = TRAIT_MEASURES.get(trait.name)
    best: tuple[Edit, DoseSearch, str] | None = None
    for rule, layers in candidate_layers(subspace, recipe.layers).items():
        edit = make_edit(subspace, layers, recipe.method)
        search = _dose(language_model, trait, edit, recipe, folder, context)
        if best is None or search.chosen.gain > best[1].chosen.gain:
            best = (edit, search, rule)
    assert best is not None, "there is at least one layer rule"
    edit, search, rule = best
    kept = len(pair_set.pairs)
    return TraitEntry(
        name=trait.name,
        description=trait.description,
        positive=trait.positive.pole,
        negative=trait.negative.pole,
        edit=search.chosen.factor * edit,
        dose=search.chosen.kl,
        method=recipe.method,
        reliability=subspace.reliability,
        ccs_loss={index: layer.ccs.loss for index, layer in subspace.layers.items()},
        direction_norm={
            index: float(np.linalg.norm(layer.mean_difference))
            for index, layer in subspace.layers.items()
        },
        statistics={
            "layer rule": rule,
            "factor": search.chosen.factor,
            "measure": "log-ratio, nats per token" if measure is None else measure.name,
            "gain on develop prompts": search.chosen.gain,
            "develop prompts": search.chosen.prompts,
            "incoherent": search.chosen.incoherent,
            "incoherent, unsteered": search.unsteered.incoherent,
            "relevant": search.chosen.relevant,
            "relevant, unsteered": search.unsteered.relevant,
            "pairs kept": kept,
            **{f"pairs dropped, {why}": count for why, count in pair_set.dropped.items()},
        },
    )


def _fit(
    language_model: LanguageModel, pair_set: PairSet, recipe: Recipe, folder: Path
) -> Subspace:
    if len(pair_set.pairs) < 8:
        raise DataError(
            f"trait {pair_set.trait!r}: only {len(pair_set.pairs)} usable pairs (dropped: "
            f"{dict(pair_set.dropped)}); expected at least 8. Use more prompts, or instructions "
            "that this model follows"
        )
    depth = len(language_model.layers)
    layers = range(round(0.2 * depth), max(round(0.8 * depth), round(0.2 * depth) + 1))
    answers = [pair.positive for pair in pair_set.pairs]
    answers += [pair.negative for pair in pair_set.pairs]
    sequences = [
        (
            prompt_tokens(language_model, render(language_model.tokenizer, answer.request)),
            answer.tokens,
        )
        for answer in answers
    ]
    read = _read(language_model, pair_set.trait, sequences, layers, recipe, folder)
    half = len(pair_set.pairs)
    return fit_subspace(
        pair_set.trait,
        {layer: values[:half] for layer, values in read.items()},
        {layer: values[half:] for layer, values in read.items()},
        # The pairs of a trait differ by much the same vector everywhere; class-wise means would
        # subtract exactly that, and CCS then finds nothing (README, "How it works").
        normalisation="common",
        seed=recipe.seed,
    )


def _read(
    language_model: LanguageModel,
    trait: str,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    layers: Sequence[int],
    recipe: Recipe,
    folder: Path,
) -> dict[int, NDArray[np.float32]]:
    """Read activations, or load what an earlier run read of exactly these sequences."""
    what = [sequences, list(layers), recipe.pooling, language_model.fingerprint.to_dict()]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    path = folder / "activations" / f"{trait}-{key}.safetensors"
    if path.exists():
        try:
            return {int(layer): values for layer, values in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not stored activations ({error}); delete it") from error
    read = read_activations(language_model, sequences, layers, pooling=recipe.pooling)
    with atomic_path(path) as temporary:
        save_file({str(layer): values for layer, values in read.items()}, temporary)
    return read


def candidate_layers(subspace: Subspace, rule: Layers) -> dict[str, tuple[int, ...]]:
    """Layer sets by the name of the rule that proposes them; several for rule "gain".

    "middle" is the window from about a quarter to two thirds of the model's depth, the part of the
    network in which mean-difference edits are reported to work best (arXiv 2312.06681).
    """
    losses = {index: layer.ccs.loss for index, layer in subspace.layers.items()}
    first, last = min(losses), max(losses)
    middle = range(first + (last - first) // 8, first + round(0.75 * (last - first)) + 1)
    sets = {"ccs-jump": choose_layers(losses, rule="ccs-jump"), "middle": tuple(middle)}
    return sets if rule == "gain" else {rule: sets[rule]}


def make_edit(subspace: Subspace, layers: Sequence[int], method: Method) -> Edit:
    """The edit of a subspace at some layers, before its dose is set.

    Additive edits have the length of the mean difference at each layer, spread over the layers,
    whatever their direction: so factor 1 is of the size of the difference between the poles.
    """
    chosen = {layer: subspace.layers[layer] for layer in layers}
    if method in ("two-step", "two-step-sign-safe"):
        # CCS's normal points to the positive pole; what is to be removed lies the other way.
        return two_step(
            {layer: one.theta_p[0] for layer, one in chosen.items()},
            {layer: -one.theta_n for layer, one in chosen.items()},
            sign_safe=method == "two-step-sign-safe",
        )
    directions = {
        "mean-difference": lambda one: one.mean_difference / np.linalg.norm(one.mean_difference),
        "svd": lambda one: one.theta_p[0],
        "ccs": lambda one: one.theta_n,
        "probe": lambda one: one.probe,
    }
    return additive(
        {
            layer: directions[method](one)
            * np.float32(np.linalg.norm(one.mean_difference) / len(chosen))
            for layer, one in chosen.items()
        }
    )


def _dose(
    language_model: LanguageModel,
    trait: Trait,
    edit: Edit,
    recipe: Recipe,
    folder: Path,
    context: _Context,
) -> DoseSearch:
    """Search the dose, going on from what an earlier run tried with exactly this edit."""
    # Everything that a dose's answers hang on, but not which doses are asked for.
    settings = asdict(recipe)
    del settings["kls"], settings["confirm_prompts"]
    key = hashlib.sha256(
        json.dumps(
            [asdict(trait), settings, language_model.fingerprint.to_dict()], sort_keys=True
        ).encode()
        + _edit_bytes(edit)
    ).hexdigest()[:16]
    path = folder / "doses" / f"{trait.name}-{key}.json"
    tried = _read_trials(path) if path.exists() else {}
    measure = TRAIT_MEASURES.get(trait.name)

    def gain(prompts: Sequence[str], answers: Sequence[str]) -> float:
        if measure is None:
            return _mean_log_ratio(language_model, trait, prompts, answers, folder)
        return measure.sign * float(np.mean([measure.value(answer) for answer in answers]))

    def keep() -> None:
        trials = {str(kl): asdict(trial) for kl, trial in tried.items()}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(trials, indent=1), encoding="utf-8")

    try:
        return search_dose(
            language_model,
            edit,
            context.prompts,
            gain,
            meter=context.meter,
            kls=recipe.kls,
            decoding=recipe.decoding,
            scope=recipe.scope,
            confirm=context.confirm,
            unsteered=context.unsteered,
            tried=tried,
            on_trial=keep,
        )
    except CalibrationError as error:
        raise CalibrationError(f"trait {trait.name!r}: {error}") from error


def _mean_log_ratio(
    language_model: LanguageModel,
    trait: Trait,
    prompts: Sequence[str],
    answers: Sequence[str],
    folder: Path,
) -> float:
    """The model's opinion of answers, kept: it takes a minute, also of the unsteered model's."""
    what = [asdict(trait), list(prompts), list(answers), _JUDGED]
    what.append(language_model.fingerprint.to_dict())
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "log-ratios" / f"{trait.name}-{key}.json"
    if path.exists():
        try:
            return float(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a stored log-ratio ({error}); delete it") from error
    ratios = log_ratio(language_model, trait, prompts, answers, max_tokens=_JUDGED)
    mean = float(np.mean(ratios))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(mean), encoding="utf-8")
    return mean


def _read_trials(path: Path) -> dict[float, DoseTrial]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {float(kl): DoseTrial(**trial) for kl, trial in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: not stored dose trials ({error}); delete it") from error


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


def _work_dir(language_model: LanguageModel, recipe: Recipe) -> Path:
    # Everything that pairs depend on, so that a changed setting finds an empty folder.
    key = json.dumps([recipe.prompts, recipe.seed, versions()], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:8]
    return cache_dir() / "builds" / f"{language_model.fingerprint.weights[:12]}-{name}"


def _json(value: Any) -> Mapping[str, Any]:
    parsed: Mapping[str, Any] = json.loads(json.dumps(value))
    return parsed
