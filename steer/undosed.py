"""A trait's edit before its dose is set: where it acts, and in which direction.

It is read off the trait's subspace, or distilled from what its instructions do (`steer.distill`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from steer.contrast import PairSet
from steer.distill import Distillation, distill
from steer.edits import Edit, additive, two_step
from steer.generation import who_answers
from steer.models import LanguageModel
from steer.prompts import load_prompts
from steer.recipe import Layers, Method, Methods, Reading
from steer.resources import content_key
from steer.stored import ByLayer, stored_by_layer
from steer.subspace import Subspace, choose_layers


def candidate_layers(subspace: Subspace, rule: Layers) -> dict[str, tuple[int, ...]]:
    """Layer sets by the name of the rule that proposes them; several for rule "gain".

    "middle" is the window from about a quarter to two thirds of the model's depth, the part of the
    network in which mean-difference edits are reported to work best (arXiv 2312.06681).
    """
    losses = {index: layer.ccs.loss for index, layer in subspace.layers.items()}
    middle = middle_layers(min(losses), max(losses))
    sets = {"ccs-jump": choose_layers(losses, rule="ccs-jump"), "middle": middle}
    return sets if rule == "gain" else {rule: sets[rule]}


def middle_layers(first: int, last: int) -> tuple[int, ...]:
    """The window "middle" of the layers that a subspace spans.

    Args:
        first: The lowest of them.
        last: The highest.
    """
    return tuple(range(first + (last - first) // 8, first + round(0.75 * (last - first)) + 1))


def candidate_methods(method: Methods) -> tuple[Method, ...]:
    """The ways to find an edit that are tried; several for "gain"."""
    return ("mean-difference", "distilled") if method == "gain" else (method,)


def undosed_edit(
    language_model: LanguageModel,
    pair_set: PairSet,
    subspace: Subspace,
    layers: Sequence[int],
    method: Method,
    folder: Path,
    *,
    distillation: Distillation = Distillation(),  # noqa: B008  (frozen)
    progress: bool = False,
) -> Edit:
    """The edit of a trait at some layers, before its dose is set.

    Args:
        language_model: The model.
        pair_set: The trait's contrast pairs.
        subspace: From `fit`.
        layers: The layers that are edited.
        method: How it is found.
        folder: Work folder, where distilled edits are kept.
        distillation: How it is fitted where it is.
        progress: Show a progress bar when on a terminal.

    Raises:
        DataError: If what the folder holds is damaged.
        CalibrationError: If the trait's instructions make no difference to the model.
    """
    if method != "distilled":
        return make_edit(subspace, layers, method)
    answers = [
        (pair.positive.request, pair.negative.request, pair.positive.tokens)
        for pair in pair_set.pairs
    ]
    prompts = plain_prompts(pair_set)
    what = [answers, prompts, list(layers), asdict(distillation), *who_answers(language_model)]
    path = folder / "distilled" / f"{pair_set.trait}-{content_key(what)}.safetensors"

    def fitted() -> ByLayer:
        edit = distill(language_model, pair_set, prompts, layers, distillation, progress=progress)
        return {index: layer.e for index, layer in edit.layers.items()}

    return additive(stored_by_layer(path, "a stored edit", fitted))


def plain_prompts(pair_set: PairSet) -> list[str]:
    """The extract prompts of contrast pairs, in their order, without instructions."""
    texts = {prompt.id: prompt.text for prompt in load_prompts("extract")}
    return [texts[pair.positive.prompt_id] for pair in pair_set.pairs]


def make_edit(subspace: Subspace, layers: Sequence[int], method: Reading) -> Edit:
    """The edit that is read off a subspace at some layers, before its dose is set.

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
