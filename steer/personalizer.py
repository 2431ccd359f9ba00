"""From what a person has written or liked to an edit: no labels, and the model stays as it is.

    history -> selection -> texts -> edit                                   "imitation"
    history -> selection -> insights -> pairs -> directions -> edit         all other methods

The second is CHAMELEON (arXiv 2503.01048), with other contrasts and other edits beside its own.
The first fits the edit to the person's own texts (`steer.imitate`), and can begin with the edit of
a group, so that a few texts need only tell what sets the person apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from steer.activations import read_activations
from steer.arrays import check_choice, check_count
from steer.chat import render
from steer.contrast import PairSet
from steer.distill import Distillation, distill
from steer.dose import reference_meter
from steer.edits import Edit, additive
from steer.errors import CalibrationError, DataError, InputError
from steer.fields import check_seed
from steer.gate import Gate, behind
from steer.generation import prompt_tokens, turn_end
from steer.history import History, HistoryItem, Selection, read_history, select
from steer.hooks import Scope
from steer.imitate import Imitation, imitate
from steer.insights import Author, Insights, measured_insights, prompt_of, write_insights
from steer.likelihood import KLMeter, response_tokens
from steer.models import LanguageModel
from steer.personal_pairs import NAME, Contrast, personal_pairs
from steer.profile import Profile
from steer.prompts import load_prompts
from steer.recipe import Method
from steer.subspace import fit_subspace
from steer.trait_edit import spanned_layers
from steer.undosed import candidate_layers, make_edit, middle_layers

Way: TypeAlias = Literal["imitation"] | Method

# Prompts whose answers tell a dose; each pass takes a second or so.
_METERED = 8
# Tokens of what an item answers that an imitation reads.
_READ = 512
_TOLERANCE = 0.05  # relative, of a dose
_TRIES = 12


@dataclass(frozen=True)
class Personalization:
    """How a profile is made.

    Attributes:
        method: How the edit is found: "imitation", or as a trait's.
        contrast: What a person's texts are held against (`steer.personal_pairs`). "imitation" has
            "style" built in, and makes what was disliked less likely; "distilled" needs a contrast
            of requests.
        insights: Who writes those of the contrast "insights": the model, where what it writes is of
            use, or measures of the history (`steer.insights`).
        selection: Which items of a history are used (`steer.history`).
        items: How many.
        prompts: Number of prompts that are answered for pairs.
        layers: 0-based layers that are edited; or "middle", a trait's window; or "ccs-jump", by
            CCS loss.
        kl: Dose: divergence from the unedited model, nats per token. An imitation is fitted at its
            own dose, so there it is the most that is allowed.
        imitation: How that is fitted.
        query: What "similar" and "bm25" items are about.
        seed: Seeds selection, sampling and fitting.
    """

    method: Way = "imitation"
    contrast: Contrast = "style"
    insights: Author = "model"
    selection: Selection = "pca"
    items: int = 16
    prompts: int = 24
    layers: tuple[int, ...] | Literal["middle", "ccs-jump"] = "middle"
    kl: float = 0.25
    imitation: Imitation = Imitation()
    query: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        check_choice("method", self.method, ("imitation", *get_args(Method)))
        check_choice("contrast", self.contrast, get_args(Contrast))
        check_choice("insights", self.insights, get_args(Author))
        check_choice("selection", self.selection, get_args(Selection))
        for name in ("items", "prompts"):
            check_count(name, getattr(self, name))
        object.__setattr__(self, "seed", check_seed(self.seed))
        self._check_layers()
        if not 0 < self.kl < np.inf:
            raise InputError(f"kl: expected a positive number of nats per token, got {self.kl}")
        if self.method == "distilled" and self.contrast == "style":
            raise InputError(
                "contrast 'style' gives no requests that could be distilled; expected 'insights' "
                "or 'history'"
            )
        if self.layers == "ccs-jump" and self.method in ("imitation", "distilled"):
            raise InputError(f"method {self.method!r} reads no pairs, so CCS can choose no layers")
        if self.method == "imitation" and self.contrast != "style":
            raise InputError(
                f"method 'imitation' is of the person's own texts: expected the contrast 'style', "
                f"got {self.contrast!r}"
            )

    def _check_layers(self) -> None:
        if self.layers in ("middle", "ccs-jump"):
            return
        layers = self.layers
        if (
            not isinstance(layers, tuple)
            or not layers
            or any(type(layer) is not int or layer < 0 for layer in layers)
            or sorted(set(layers)) != list(layers)
        ):
            raise InputError(
                "layers: expected 'middle', 'ccs-jump' or a tuple of ascending layers, got "
                f"{layers!r}"
            )


def personal_meter(language_model: LanguageModel, scope: Scope = "response") -> KLMeter:
    """What the doses of profiles are measured with.

    Args:
        language_model: The model, which must not be steered meanwhile.
        scope: Where edits act.
    """
    prompts = [prompt.text for prompt in load_prompts("develop")[:_METERED]]
    return reference_meter(language_model, prompts, scope=scope)


class Personalizer:
    """Makes profiles with one model; what all of them share is made once."""

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        gate: Gate | None = None,
        meter: KLMeter | None = None,
        settings: Personalization = Personalization(),  # noqa: B008  (frozen)
    ) -> None:
        """Write the unedited model's answers that doses are measured on, if need be.

        Args:
            language_model: The model, which must not be steered meanwhile.
            gate: Behind which edits act; of a bundle. Two-step edits act without one.
            meter: From `personal_meter`, to share it between settings; None to make one.
            settings: How profiles are made.
        """
        self.language_model = language_model
        self.settings = settings
        self._gate = None if settings.method.startswith("two-step") else gate
        self._meter = personal_meter(language_model) if meter is None else meter

    def profile(
        self, history: History, *, start: Profile | None = None, keep_evidence: bool = False
    ) -> Profile:
        """The profile of one person, or of all whose history this is.

        Args:
            history: What they wrote or liked, in the order of time.
            start: Of a group, to begin an imitation with.
            keep_evidence: Keep the items that were used and the insights in the profile; otherwise
                it holds no text.

        Raises:
            InputError: If the history or the start is not usable.
            DataError: If it gives no usable pairs.
            CalibrationError: If no dose of the edit has the divergence that is asked for.
        """
        begin = time.perf_counter()
        settings = self.settings
        if start is not None:
            self._check_start(start)
        everything = read_history(history)
        items = select(
            everything, settings.items, settings.selection, query=settings.query, seed=settings.seed
        )
        insights = None
        if settings.contrast == "insights":
            insights = (
                write_insights(self.language_model, items)
                if settings.insights == "model"
                else measured_insights(items)
            )
        found: dict[str, float | int | str] = {"items": len(everything), "items used": len(items)}
        if settings.method == "imitation":
            edit, dose = self._imitation(items, start)
        else:
            pairs, plain = self._pairs(items, insights)
            found["pairs"] = len(pairs.pairs)
            edit, dose = self._dosed(self._read(pairs, plain))
        if insights is not None:
            found["insight by"] = insights.personal_by
        found["seconds"] = time.perf_counter() - begin
        return Profile(
            fingerprint=self.language_model.fingerprint,
            edit=edit,
            dose=dose,
            gated=self._gate is not None,
            contrast=settings.contrast,
            method=settings.method,
            statistics=found,
            insights=insights if keep_evidence else None,
            evidence=items if keep_evidence else (),
        )

    def _check_start(self, start: object) -> None:
        """Refuse what no profile of this kind can begin with."""
        if self.settings.method != "imitation":
            raise InputError(f"method {self.settings.method!r} begins with no profile's edit")
        if not isinstance(start, Profile):
            raise InputError(f"start: expected a Profile, got {start!r:.80}")
        if start.fingerprint != self.language_model.fingerprint:
            raise InputError(
                f"start: was made with another model, {start.fingerprint}, than this one, "
                f"{self.language_model.fingerprint}; make it anew with this one"
            )
        if start.gated != (self._gate is not None):
            raise InputError("start: one of the two profiles acts behind a gate, and one does not")

    def _imitation(self, items: Sequence[HistoryItem], start: Profile | None) -> tuple[Edit, float]:
        """The edit fitted to texts, made weaker if its dose is too large, and its dose."""
        model = self.language_model
        end = turn_end(model)

        def sequence(item: HistoryItem, text: str) -> tuple[list[int], list[int]]:
            # Its end is next to the answer; all of a long one is more than is worth the memory.
            asked = prompt_tokens(model, render(model.tokenizer, prompt_of(item)))[-_READ:]
            tokens = response_tokens(model, text)
            return asked, [*tokens, end] if end is not None else [*tokens]

        edit = imitate(
            model,
            [sequence(item, item.text) for item in items],
            self._layers(),
            self.settings.imitation,
            disliked=[sequence(item, item.disliked) for item in items if item.disliked is not None],
            start=None if start is None else start.edit,
            seed=self.settings.seed,
        )
        return self._dosed(edit, at_most=True)

    def _pairs(
        self, items: Sequence[HistoryItem], insights: Insights | None
    ) -> tuple[PairSet, list[str]]:
        settings = self.settings
        pairs, plain = personal_pairs(
            self.language_model,
            items,
            settings.contrast,
            insights,
            prompts=settings.prompts,
            seed=settings.seed,
        )
        if not pairs.pairs:
            raise DataError(
                f"a history of {len(items)} items gives no usable pairs (dropped: "
                f"{dict(pairs.dropped)}); give more, or longer ones"
            )
        return pairs, plain

    def _layers(self) -> tuple[int, ...]:
        """The layers that are edited, where no pairs are needed to know."""
        if isinstance(self.settings.layers, tuple):
            return self.settings.layers
        spanned = spanned_layers(self.language_model)
        return middle_layers(spanned[0], spanned[-1])

    def _read(self, pairs: PairSet, plain: Sequence[str]) -> Edit:
        """The edit that pairs give, before its dose is set."""
        model, settings = self.language_model, self.settings
        if settings.method == "distilled":
            return distill(model, pairs, plain, self._layers(), Distillation(seed=settings.seed))
        assert settings.method != "imitation"
        by_loss = settings.layers == "ccs-jump"
        layers = tuple(spanned_layers(model)) if by_loss else self._layers()
        answers = [pair.positive for pair in pairs.pairs] + [pair.negative for pair in pairs.pairs]
        sequences = [
            (prompt_tokens(model, render(model.tokenizer, answer.request)), answer.tokens)
            for answer in answers
        ]
        read = read_activations(model, sequences, layers)
        half = len(pairs.pairs)
        positive = {layer: values[:half] for layer, values in read.items()}
        negative = {layer: values[half:] for layer, values in read.items()}
        if settings.method == "mean-difference" and not by_loss:
            # One pair is enough for it, and nothing else need be fitted.
            return additive(
                {
                    layer: np.asarray(positive[layer] - negative[layer]).mean(0) / len(layers)
                    for layer in layers
                }
            )
        subspace = fit_subspace(
            NAME, positive, negative, normalisation="common", seed=settings.seed
        )
        if by_loss:
            layers = candidate_layers(subspace, "ccs-jump")["ccs-jump"]
        return make_edit(subspace, layers, settings.method)

    def _dosed(self, edit: Edit, *, at_most: bool = False) -> tuple[Edit, float]:
        """The edit at the dose that is asked for, and its dose; as it is if less will do.

        A person waits for a profile, so it is not searched on a grid as a trait's is
        (`steer.dose.calibrate`): divergence grows nearly as a power of the factor, so a few secant
        steps on the logarithms of both do.
        """
        most, factor, slope = self.settings.kl, 1.0, 2.0
        # What may not be exceeded is aimed at from below.
        kl = most * (1 - _TOLERANCE / 2) if at_most else most
        off = kl * _TOLERANCE / 2 if at_most else kl * _TOLERANCE
        known: tuple[float, float] | None = None
        for _ in range(_TRIES):
            dose = self._meter.kl(behind(self._gate, factor * edit))
            if abs(dose - kl) <= off or (at_most and known is None and dose <= most):
                return factor * edit, dose
            point = float(np.log(factor)), float(np.log(max(dose, 1e-9)))
            if known is not None and point[0] != known[0]:
                slope = (point[1] - known[1]) / (point[0] - known[0])
            # Not so flat or steep that a step leads nowhere or far away.
            step = (np.log(kl) - point[1]) / float(np.clip(slope, 0.5, 4.0))
            known = point
            factor *= float(np.exp(np.clip(step, -2.0, 2.0)))
        raise CalibrationError(
            f"no factor of the edit was found to have {most:g} nats per token (last: {dose:.3g}); "
            "ask for another kl"
        )
