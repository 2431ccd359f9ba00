"""The methods that are compared, each with its settings for a trait.

All are given the same budget: at most `BUDGET` settings a trait, of which one is chosen on develop
prompts. Edits, this engine's and the peers', are tried in the same windows of layers at the same
doses; a dose is a divergence from the unedited model, so that methods of different length are
compared at equal strength:

    mean difference, SVD, CCS, two-step   read off the trait's subspace (`steer.undosed`)
    distilled                             fitted (`steer.distill`), minutes a trait and window: one
                                          window, two teachers and more doses
    gated mean difference, distilled      the same, acting on answers only (`steer.gate`)
    repeng, steering-vectors              see peers.py
    system prompt, few-shot               see prompting.py
    logit steering                        see prompting.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from answering import Edited, Setting

from steer.chat import render
from steer.contrast import PairSet, generate_pairs
from steer.distill import Distillation
from steer.dose import reference_meter
from steer.edits import Edit
from steer.errors import SteeringError
from steer.gate import Gate, fit_gate
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import Scope
from steer.likelihood import KLMeter
from steer.models import LanguageModel
from steer.prompts import load_prompts
from steer.recipe import Reading, Recipe
from steer.resources import atomic_path, content_key
from steer.stored import ByLayer, stored_by_layer
from steer.subspace import Subspace
from steer.trait_edit import fit
from steer.traits import Trait, load_traits
from steer.undosed import make_edit, undosed_edit

BUDGET = 12
# Shares of the model's depth; for 30 layers 8-13, 8-19 and 14-23.
WINDOWS = ((0.27, 0.47), (0.27, 0.67), (0.47, 0.8))
MIDDLE = (0.27, 0.67)
KLS = (0.1, 0.2, 0.4, 0.8)
METERED = 4  # prompts on whose answers a dose is read
SMALLEST, LARGEST = 2.0**-8, 2.0**8  # factors that are tried

GATED = "gated "
GATE_DECODING = Decoding(max_new_tokens=96)

READINGS: Mapping[str, Reading] = {
    "mean difference": "mean-difference",
    "SVD": "svd",
    "CCS": "ccs",
    "two-step": "two-step",
}
"""This engine's methods that are read off a subspace."""


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        windows: Of layers, as shares of the model's depth.
        kls: Doses in nats per token.
        teachers: Divergences of what is distilled.
        distilled_kls: Its doses.
        shots: Numbers of examples in a prompt.
        alphas: Of rectified logits.
        pairs: Contrast pairs that are read by what reads no subspace; None for all.
    """

    windows: tuple[tuple[float, float], ...] = WINDOWS
    kls: tuple[float, ...] = KLS
    teachers: tuple[float, ...] = (0.5, 1.0)
    distilled_kls: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
    shots: tuple[int, ...] = (1, 2, 4)
    alphas: tuple[float, ...] = (0.5, 1.0, 2.0)
    pairs: int | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What a trait's edits are made of."""

    trait: Trait
    pairs: PairSet
    subspace: Subspace


class Workshop:
    """Makes edits of a given divergence; what takes long is kept in a folder."""

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        build_dir: Path,
        work_dir: Path,
        effort: Effort,
        seed: int,
    ) -> None:
        """Nothing is made yet.

        Args:
            language_model: The model.
            build_dir: Work folder of a build, with contrast pairs and activations.
            work_dir: For distilled edits, peers' vectors and factors.
            effort: How much is tried.
            seed: Of everything that is drawn.
        """
        self.language_model = language_model
        self.work_dir = work_dir
        self.effort = effort
        self.seed = seed
        self._build_dir = build_dir
        self._meters: dict[Scope, KLMeter] = {}
        self._recipe = Recipe(seed=seed)

    def source(self, name: str) -> Source:
        """A built-in trait's pairs and subspace."""
        trait = load_traits()[name]
        pairs = generate_pairs(
            self.language_model,
            trait,
            load_prompts("extract")[: self._recipe.prompts],
            self._build_dir / "pairs" / f"{name}.jsonl",
            seed=self.seed,
            progress=True,
        )
        subspace = fit(self.language_model, pairs, self._recipe, self._build_dir)
        read = PairSet(name, pairs.pairs[: self.effort.pairs], pairs.dropped)
        return Source(trait, read, subspace)

    def layers(self, window: tuple[float, float]) -> tuple[int, ...]:
        """The layers of a window."""
        depth = len(self.language_model.layers)
        first, stop = (round(share * depth) for share in window)
        return tuple(range(first, stop))

    def gate(self) -> Gate:
        """Where answers are, fitted to the unsteered model's answers to extract prompts."""
        model, layers = self.language_model, sorted({i for w in self.windows() for i in w})
        prompts = [prompt.text for prompt in load_prompts("extract")[: self._recipe.prompts]]
        what = [prompts, layers, asdict(GATE_DECODING), model.fingerprint.to_dict()]

        def fitted() -> ByLayer:
            texts = [render(model.tokenizer, prompt) for prompt in prompts]
            answers = generate_batch(model, texts, GATE_DECODING)
            sequences = [
                (prompt_tokens(model, text), answer.tokens)
                for text, answer in zip(texts, answers, strict=True)
            ]
            return dict(fit_gate(model, sequences, layers).directions)

        path = self.work_dir / f"gate-{content_key(what)}.safetensors"
        return Gate(stored_by_layer(path, "a stored gate", fitted))

    def windows(self) -> list[tuple[int, ...]]:
        """Those that are tried."""
        return [self.layers(window) for window in self.effort.windows]

    def read_off(self, source: Source, method: str) -> Iterator[Setting]:
        """Settings of a method that is read off a subspace."""
        gated = method.startswith(GATED)
        for layers in self.windows():
            edit = make_edit(source.subspace, layers, READINGS[method.removeprefix(GATED)])
            edit = self.gate()(edit) if gated else edit
            yield from self.dosed(source, method, layers, edit, "response", self.effort.kls)

    def distilled(self, source: Source, method: str) -> Iterator[Setting]:
        """Settings of distillation."""
        for teacher in self.effort.teachers:
            edit = self.distilled_edit(source, teacher)
            layers = tuple(edit.layers)
            edit = self.gate()(edit) if method.startswith(GATED) else edit
            what = f"teacher of {teacher:g} nats, "
            kls = self.effort.distilled_kls
            yield from self.dosed(source, method, layers, edit, "response", kls, what)

    def distilled_edit(self, source: Source, teacher: float) -> Edit:
        """What is distilled at the middle layers: fitted once, then kept.

        Args:
            source: What it is made of.
            teacher: Divergence of what is distilled, nats per token.
        """
        return undosed_edit(
            self.language_model,
            source.pairs,
            source.subspace,
            self.layers(MIDDLE),
            "distilled",
            self.work_dir,
            distillation=Distillation(
                divergence=teacher, pictographs=source.trait.pictographs, seed=self.seed
            ),
            progress=True,
        )

    def dosed(
        self,
        source: Source,
        method: str,
        layers: Sequence[int],
        edit: Edit,
        scope: Scope,
        kls: Sequence[float],
        what: str = "",
    ) -> Iterator[Setting]:
        """An edit at each dose that it reaches."""
        for kl, factor in self.factors(edit, scope, kls).items():
            name = f"{what}layers {layers[0]}-{layers[-1]}, {kl:g} nats per token"
            yield Setting(source.trait.name, method, name, Edited(factor * edit, scope))

    def factors(
        self, edit: Edit, scope: Scope, kls: Sequence[float], rule: str = ""
    ) -> dict[float, float]:
        """By dose, what to multiply the edit by: found once, then kept.

        Args:
            edit: The edit.
            scope: Where it acts.
            kls: The doses.
            rule: Names what else becomes of its change meanwhile (rules.py).
        """
        fingerprint = self.language_model.fingerprint.to_dict()
        key = content_key([list(kls), scope, METERED, fingerprint, edit.digest + rule])
        path = self.work_dir / "factors" / f"{key}.json"
        if not path.exists():
            meter = self._meter(scope)
            found = dose_factors(lambda factor: meter.kl(factor * edit), kls)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {float(kl): factor for kl, factor in kept.items()}

    def _meter(self, scope: Scope) -> KLMeter:
        if scope not in self._meters:
            prompts = [prompt.text for prompt in load_prompts("develop")[-METERED:]]
            self._meters[scope] = reference_meter(self.language_model, prompts, scope=scope)
        return self._meters[scope]


def dose_factors(divergence: Callable[[float], float], kls: Sequence[float]) -> dict[float, float]:
    """The smallest factor at which an edit has each divergence, of those that it reaches.

    Divergences are read at powers of two, and between them a power law is assumed: a few per cent
    off, at a tenth of what `steer.dose.calibrate` costs, and hundreds of edits are dosed here.
    """
    factor = 1.0
    curve = {factor: divergence(factor)}
    while curve[factor] > min(kls) and factor > SMALLEST:
        factor /= 2
        curve[factor] = divergence(factor)
    factor = 1.0
    while curve[factor] < max(kls) and factor < LARGEST:
        factor *= 2
        curve[factor] = divergence(factor)
    points = sorted(curve.items())
    found = {}
    for kl in sorted(kls):
        for (a, low), (b, high) in zip(points, points[1:], strict=False):
            if 0 < low <= kl <= high and low < high:
                found[kl] = a * (b / a) ** (np.log(kl / low) / np.log(high / low))
                break
    return {kl: float(factor) for kl, factor in found.items()}


Maker = Callable[[Source], Iterator[Setting]]


def within_budget(makers: Mapping[str, Maker], source: Source) -> list[Setting]:
    """All settings of all methods for a trait.

    Raises:
        SteeringError: If a method has more than its budget.
    """
    result = []
    for method, make in makers.items():
        settings = list(make(source))
        if len(settings) > BUDGET:
            raise SteeringError(f"{method}: {len(settings)} settings, the budget is {BUDGET}")
        result += settings
    return result
