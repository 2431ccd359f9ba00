"""From a trait's contrast pairs to its edit: activations, subspace, layers, dose.

What takes long, activations, dose trials and the model's opinions, is left in a work folder and
not made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from steer.activations import read_activations
from steer.chat import render
from steer.contrast import PairSet
from steer.distill import Distillation
from steer.dose import DoseSearch, DoseTrial, reference_meter, search_dose
from steer.edits import Edit
from steer.errors import CalibrationError, DataError
from steer.gate import Gate, behind, fit_gate
from steer.generation import generate_batch, prompt_tokens, who_answers
from steer.likelihood import KLMeter, log_ratio, response_tokens
from steer.measures import TRAIT_MEASURES
from steer.models import LanguageModel
from steer.prompts import load_prompts
from steer.recipe import Method, Recipe
from steer.resources import atomic_path, content_key
from steer.stored import ByLayer, stored_by_layer
from steer.subspace import Subspace, fit_subspace
from steer.trait_entry import TraitEntry
from steer.traits import Trait
from steer.undosed import candidate_layers, candidate_methods, undosed_edit

# Tokens of an answer that the log-ratio reads: a trait shows early, and reading costs as much as
# writing.
_JUDGED = 128
# Tokens of an answer that a gate is fitted to.
_GATED = 128


@dataclass(frozen=True)
class Context:
    """What all traits share.

    Attributes:
        prompts: On which every dose is tried.
        confirm: On which the leading one is confirmed.
        unsteered: Answers to both.
        gate: Behind which edits act; None if they act everywhere.
    """

    prompts: tuple[str, ...]
    confirm: tuple[str, ...]
    unsteered: tuple[str, ...]
    gate: Gate | None


def prepare(language_model: LanguageModel, recipe: Recipe, folder: Path) -> Context:
    """What all traits of a build share.

    Args:
        language_model: The model.
        recipe: How the bundle is built.
        folder: Work folder, where the unsteered answers are kept.

    Raises:
        DataError: If what the folder holds is damaged.
    """
    number = recipe.develop_prompts
    prompts = [prompt.text for prompt in load_prompts("develop")[: number + recipe.confirm_prompts]]
    what = [prompts, asdict(recipe.decoding), *who_answers(language_model)]
    path = folder / f"unsteered-{content_key(what)}.json"
    if not path.exists():
        texts = [render(language_model.tokenizer, prompt) for prompt in prompts]
        answers = generate_batch(language_model, texts, recipe.decoding)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps([answer.text for answer in answers]), encoding="utf-8")
    unsteered = _read_texts(path, len(prompts))
    gated = recipe.gated and recipe.is_additive and language_model.tokenizer.chat_template
    return Context(
        tuple(prompts[:number]),
        tuple(prompts[number:]),
        unsteered,
        _gate(language_model, prompts, unsteered, folder) if gated else None,
    )


def dose_meter(language_model: LanguageModel, recipe: Recipe) -> KLMeter:
    """What all doses of a build are measured with.

    Args:
        language_model: The model.
        recipe: How the bundle is built.
    """
    prompts = [prompt.text for prompt in load_prompts("develop")[:8]]
    return reference_meter(language_model, prompts, scope=recipe.scope)


def _gate(
    language_model: LanguageModel, prompts: Sequence[str], answers: Sequence[str], folder: Path
) -> Gate:
    """Where answers are, fitted once and then kept."""
    layers = spanned_layers(language_model)
    sequences = [
        (
            prompt_tokens(language_model, render(language_model.tokenizer, prompt)),
            response_tokens(language_model, answer)[:_GATED],
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    what = [sequences, list(layers), language_model.fingerprint.to_dict()]
    return Gate(
        stored_by_layer(
            folder / f"gate-{content_key(what)}.safetensors",
            "a stored gate",
            lambda: fit_gate(language_model, sequences, layers).directions,
        )
    )


def spanned_layers(language_model: LanguageModel) -> range:
    """The layers that a subspace spans: from a fifth to four fifths of the model's depth."""
    depth = len(language_model.layers)
    return range(round(0.2 * depth), max(round(0.8 * depth), round(0.2 * depth) + 1))


def _read_texts(path: Path, number: int) -> tuple[str, ...]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not stored answers ({error}); delete it") from error
    if not isinstance(content, list) or len(content) != number:
        raise DataError(f"{path}: expected {number} stored answers; delete it")
    return tuple(map(str, content))


def build_trait(
    language_model: LanguageModel,
    trait: Trait,
    recipe: Recipe,
    folder: Path,
    context: Context,
    pair_set: PairSet,
    subspace: Subspace,
    *,
    progress: bool = False,
) -> TraitEntry:
    """A trait's edit at its dose, with what a bundle tells of it.

    Args:
        language_model: The model.
        trait: The trait.
        recipe: How the bundle is built.
        folder: Work folder, where dose trials are kept.
        context: From `prepare`.
        pair_set: The trait's contrast pairs.
        subspace: From `fit`.
        progress: Show a progress bar of what is fitted when on a terminal.

    Raises:
        CalibrationError: If no dose of any edit that is tried leaves the answers whole.
        DataError: If what the folder holds is damaged.
    """
    measure = TRAIT_MEASURES.get(trait.name)
    meter = dose_meter(language_model, recipe)
    best: tuple[Edit, DoseSearch, str, Method] | None = None
    refused: CalibrationError | None = None
    rules = candidate_layers(subspace, recipe.layers)
    for method, (rule, layers) in product(candidate_methods(recipe.method), rules.items()):
        try:
            edit = undosed_edit(
                language_model,
                pair_set,
                subspace,
                layers,
                method,
                folder,
                distillation=Distillation(pictographs=trait.pictographs, seed=recipe.seed),
                progress=progress,
            )
            acting = behind(context.gate, edit)
            search = _dose(language_model, trait, acting, recipe, folder, context, meter)
        except CalibrationError as error:
            # Another method or other layers may do.
            refused = error
            continue
        if best is None or search.chosen.gain > best[1].chosen.gain:
            best = (edit, search, rule, method)
    if best is None:
        assert refused is not None, "there is at least one method and one layer rule"
        raise refused
    edit, search, rule, method = best
    kept = len(pair_set.pairs)
    return TraitEntry(
        name=trait.name,
        description=trait.description,
        positive=trait.positive.pole,
        negative=trait.negative.pole,
        edit=search.chosen.factor * edit,
        dose=search.chosen.kl,
        method=method,
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


def fit(language_model: LanguageModel, pair_set: PairSet, recipe: Recipe, folder: Path) -> Subspace:
    """A trait's directions at the layers from a fifth to four fifths of the model's depth.

    Args:
        language_model: The model.
        pair_set: The trait's contrast pairs.
        recipe: How the bundle is built.
        folder: Work folder, where activations are kept.

    Raises:
        DataError: If there are fewer than eight pairs, or what the folder holds is damaged.
    """
    if len(pair_set.pairs) < 8:
        raise DataError(
            f"trait {pair_set.trait!r}: only {len(pair_set.pairs)} usable pairs (dropped: "
            f"{dict(pair_set.dropped)}); expected at least 8. Use more prompts, or instructions "
            "that this model follows"
        )
    layers = spanned_layers(language_model)
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
) -> ByLayer:
    """Read activations, or load what an earlier run read of exactly these sequences."""
    what = [sequences, list(layers), recipe.pooling, language_model.fingerprint.to_dict()]
    path = folder / "activations" / f"{trait}-{content_key(what)}.safetensors"
    return stored_by_layer(
        path,
        "stored activations",
        lambda: read_activations(language_model, sequences, layers, pooling=recipe.pooling),
    )


def _dose(
    language_model: LanguageModel,
    trait: Trait,
    edit: Edit,
    recipe: Recipe,
    folder: Path,
    context: Context,
    meter: KLMeter,
) -> DoseSearch:
    """Search the dose, going on from what an earlier run tried with exactly this edit."""
    # Everything that a dose's answers hang on, but not which doses are asked for.
    prompts = [recipe.develop_prompts, recipe.confirm_prompts]
    settings = [asdict(recipe.decoding), recipe.scope, prompts]
    what = [trait.asked, edit.digest, settings, *who_answers(language_model)]
    path = folder / "doses" / f"{trait.name}-{content_key(what)}.json"
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
            meter=meter,
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
    what = [trait.asked, list(prompts), list(answers), _JUDGED, *who_answers(language_model)]
    path = folder / "log-ratios" / f"{trait.name}-{content_key(what)}.json"
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
