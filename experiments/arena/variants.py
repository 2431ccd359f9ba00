"""Ideas for better edits: the plain mean difference, and what changes one thing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import rules
from contenders import MIDDLE, Source, Workshop
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from steer.activations import Tokens, read_activations
from steer.chat import render
from steer.contrast import PairSet
from steer.edits import Array, Edit, additive
from steer.generation import prompt_tokens
from steer.hooks import Scope
from steer.likelihood import log_ratio
from steer.models import LanguageModel
from steer.recipe import Reading, Recipe
from steer.subspace import Subspace
from steer.trait_edit import fit
from steer.undosed import candidate_layers, make_edit, plain_prompts

BASE = "mean difference"


@dataclass(frozen=True, eq=False)
class Variant:
    """An idea, made for a trait.

    Attributes:
        edit: Before its dose is set.
        scope: Where it acts.
        rule: What becomes of its change; None for what the kernel does.
        each_prompt: Whether every prompt has a dose of its own, for the same divergence on the
            unedited model's answer to it.
    """

    edit: Edit
    scope: Scope = "response"
    rule: rules.Rule | None = None
    each_prompt: bool = False


Maker = Callable[[Workshop, Source], Variant]


def variants(others: Mapping[str, Source], quick: bool) -> dict[str, Maker]:
    """By name, the base and what changes one thing of it.

    Args:
        others: All traits' sources; an edit can be kept clear of those of the other traits.
        quick: Only some.
    """
    made: dict[str, Maker] = {
        BASE: base,
        "first layers of the window": partial(base, window=(0.27, 0.47)),
        "later layers": partial(base, window=(0.47, 0.8)),
        "all layers of the subspace": partial(base, window=(0.2, 0.8)),
        "one layer, in the middle": partial(base, window=(0.47, 0.5)),
        "layers by CCS loss": by_ccs_loss,
        "layers dosed as the distilled edit's": dosed_by_layer,
        "prompt edited too": partial(base, scope="all"),
        "first singular vector": partial(base, reading="svd"),
        "within the singular vectors": within_subspace,
        "CCS normal": partial(base, reading="ccs"),
        "logistic probe": partial(base, reading="probe"),
        "whitened": whitened,
        "two-step": partial(base, reading="two-step"),
        "two-step, sign-safe": partial(base, reading="two-step-sign-safe"),
        "clear of the other traits": partial(clear_of, others=others),
        "last token instead of mean": last_token,
        "middle of the answer": middle_tokens,
        "half of the pairs, by log-ratio": better_half,
        "pairs weighted by log-ratio": weighted_pairs,
        "length of activations kept": partial(base, rule=rules.norm_preserving),
        "decaying over the answer": partial(base, rule=rules.decaying),
        "more at content words": content_words,
        "a dose for each prompt": partial(base, each_prompt=True),
        "gated": partial(base, gated=True),
        "distilled": distilled,
        "distilled, sharper teacher": partial(distilled, teacher=1.0),
        "distilled, gated": partial(distilled, gated=True),
    }
    if len(others) < 2:
        del made["clear of the other traits"]
    some = (BASE, "whitened", "decaying over the answer", "a dose for each prompt", "gated")
    return {name: made[name] for name in some} if quick else made


def base(
    workshop: Workshop,
    source: Source,
    *,
    window: tuple[float, float] = MIDDLE,
    reading: Reading = "mean-difference",
    scope: Scope = "response",
    gated: bool = False,
    rule: rules.Rule | None = None,
    each_prompt: bool = False,
) -> Variant:
    """Read off the trait's subspace."""
    edit = make_edit(source.subspace, workshop.layers(window), reading)
    return Variant(workshop.gate()(edit) if gated else edit, scope, rule, each_prompt)


def content_words(workshop: Workshop, source: Source) -> Variant:
    """The whole dose only at words that say something."""
    return base(workshop, source, rule=rules.content_words(workshop.language_model))


def by_ccs_loss(workshop: Workshop, source: Source) -> Variant:
    """CHAMELEON's choice of layers."""
    (layers,) = candidate_layers(source.subspace, "ccs-jump").values()
    return Variant(make_edit(source.subspace, layers, "mean-difference"))


def dosed_by_layer(workshop: Workshop, source: Source) -> Variant:
    """Directions of the mean difference, each as long as what is distilled at its layer."""
    plain, fitted = base(workshop, source).edit, distilled(workshop, source).edit
    return Variant(
        additive(
            {
                index: layer.e * _length(fitted.layers[index].e) / _length(layer.e)
                for index, layer in plain.layers.items()
            }
        )
    )


def within_subspace(workshop: Workshop, source: Source) -> Variant:
    """The mean difference's part in the span of the leading singular vectors."""
    vectors = {}
    for index, layer in base(workshop, source).edit.layers.items():
        rows = source.subspace.layers[index].theta_p  # (k, d), orthonormal
        vectors[index] = rows.T @ (rows @ layer.e)
    return Variant(additive(vectors))


def whitened(workshop: Workshop, source: Source) -> Variant:
    """Linear discriminant: differences count less in directions in which answers vary anyway."""
    vectors = {}
    for index, (more, less) in _read(workshop, source).items():
        spread = np.concatenate([more - more.mean(0), less - less.mean(0)])
        covariance = LedoitWolf(assume_centered=True).fit(spread).covariance_
        direction = np.linalg.solve(covariance, (more - less).mean(0))
        vectors[index] = direction * (_length((more - less).mean(0)) / _length(direction))
    return Variant(additive(vectors))


def clear_of(workshop: Workshop, source: Source, *, others: Mapping[str, Source]) -> Variant:
    """Without the part in the span of the other traits' mean differences."""
    vectors = {}
    for index, layer in base(workshop, source).edit.layers.items():
        span = np.stack(
            [
                one.subspace.layers[index].mean_difference
                for one in others.values()
                if one.trait.name != source.trait.name
            ],
            axis=1,
        )  # (d, traits - 1)
        weights, *_ = np.linalg.lstsq(span, layer.e, rcond=None)
        vectors[index] = layer.e - span @ weights
    return Variant(additive(vectors))


def last_token(workshop: Workshop, source: Source) -> Variant:
    """Activations of each answer's last token."""
    return _refitted(workshop, source.pairs, Recipe(seed=workshop.seed, pooling="last"))


def middle_tokens(workshop: Workshop, source: Source) -> Variant:
    """Activations of the middle half of each answer's tokens."""
    read = _read(workshop, source, middle=True)
    return Variant(additive({i: (more - less).mean(0) for i, (more, less) in read.items()}))


def better_half(workshop: Workshop, source: Source) -> Variant:
    """Pairs in whose answers the model itself hears the trait best."""
    pairs = source.pairs.pairs
    order = np.argsort(-_heard(workshop, source), kind="stable")
    kept = sorted(order[: max(8, len(pairs) // 2)].tolist())
    half = replace(source.pairs, pairs=tuple(pairs[i] for i in kept))
    return _refitted(workshop, half, Recipe(seed=workshop.seed))


def weighted_pairs(workshop: Workshop, source: Source) -> Variant:
    """Each pair counts as much as the model hears the trait in its answers; none counts less."""
    weights = np.maximum(_heard(workshop, source), 0)[:, None]
    read = _read(workshop, source)
    return Variant(
        additive({i: (weights * (more - less)).mean(0) for i, (more, less) in read.items()})
    )


def distilled(
    workshop: Workshop, source: Source, *, teacher: float = 0.5, gated: bool = False
) -> Variant:
    """Fitted to what the instructions do."""
    edit = workshop.distilled_edit(source, teacher)
    return Variant(workshop.gate()(edit) if gated else edit)


def _refitted(workshop: Workshop, pairs: PairSet, recipe: Recipe) -> Variant:
    subspace: Subspace = fit(
        workshop.language_model, pairs, recipe, workshop.work_dir / "ablations"
    )
    return Variant(make_edit(subspace, workshop.layers(MIDDLE), "mean-difference"))


# Several variants of a trait, one after the other, want the same.
@lru_cache(maxsize=1)
def _heard(workshop: Workshop, source: Source) -> NDArray[np.float64]:
    """By pair, how much more of the trait the model hears in the positive answer (n,)."""
    pairs, asked = source.pairs.pairs, plain_prompts(source.pairs)
    more, less = (
        log_ratio(
            workshop.language_model, source.trait, asked, [getattr(p, pole).text for p in pairs]
        )
        for pole in ("positive", "negative")
    )
    return more - less


@lru_cache(maxsize=2)
def _read(
    workshop: Workshop, source: Source, *, middle: bool = False
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Activations (n, d) of both poles by layer, read after the request that was answered."""
    layers = workshop.layers(MIDDLE)
    poles = [
        read_activations(
            workshop.language_model,
            [
                _tokens(workshop.language_model, answer.request, answer.tokens, middle)
                for answer in (getattr(pair, pole) for pair in source.pairs.pairs)
            ],
            layers,
        )
        for pole in ("positive", "negative")
    ]
    more, less = ({i: x.astype(np.float64) for i, x in pole.items()} for pole in poles)
    return {i: (more[i], less[i]) for i in layers}


def _tokens(
    model: LanguageModel, request: str, answer: Sequence[int], middle: bool
) -> tuple[Tokens, Tokens]:
    """What is read before the tokens that are pooled, and these."""
    prompt = prompt_tokens(model, render(model.tokenizer, request))
    first = len(answer) // 4 if middle else 0
    stop = len(answer) - first
    return [*prompt, *answer[:first]], answer[first:stop]


def _length(vector: Array | NDArray[np.float64]) -> np.float32:
    return np.float32(np.linalg.norm(vector))
