"""Dose: how strong an edit is, measured by what it does rather than by its norm.

`calibrate` finds the factor at which an edit has a given KL divergence from the unedited model;
`search_dose` tries several doses on develop prompts and keeps the one with the largest trait gain
before answers loop, break, or leave the subject. The effect of a factor is not monotone, so
nothing here assumes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from steer.chat import render
from steer.edits import Edit
from steer.errors import CalibrationError, InputError
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import Scope, attach
from steer.likelihood import KLMeter
from steer.models import LanguageModel
from steer.soundness import Soundness

Gain = Callable[[Sequence[str], Sequence[str]], float]
"""From prompts and answers to how much of the trait they show; higher is more."""

# Geometric, from "barely there" to far beyond what any edit bears.
_FACTORS = tuple(2.0**k for k in range(-6, 8))
_KL_TOLERANCE = 0.02  # relative
# With this share more of answers that loop or break, larger doses are not tried.
FALLS_APART = 0.05
_REFERENCE = Decoding(max_new_tokens=48)
SEARCH_KLS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45)


@dataclass(frozen=True)
class Calibration:
    """A factor and the divergence it has.

    Attributes:
        factor: What to multiply the edit by.
        kl: KL(edited || unedited) at that factor, in nats per token.
        scan: (factor, kl) of every factor that was tried, ascending.
    """

    factor: float
    kl: float
    scan: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class DoseTrial:
    """What one dose does on develop prompts.

    Attributes:
        factor: What the edit was multiplied by.
        kl: Its divergence, in nats per token.
        gain: Trait measure; in a finished search, minus the unsteered model's.
        incoherent: Share of answers that loop or are broken.
        relevant: Share of answers about their prompt.
        prompts: Number of prompts that were answered.
    """

    factor: float
    kl: float
    gain: float
    incoherent: float
    relevant: float
    prompts: int

    @property
    def soundness(self) -> Soundness:
        """How whole the answers are."""
        return Soundness(self.incoherent, self.relevant)


@dataclass(frozen=True)
class DoseSearch:
    """The chosen dose, the unsteered model on the same prompts, and every dose that was tried."""

    chosen: DoseTrial
    unsteered: DoseTrial
    trials: tuple[DoseTrial, ...]


def reference_meter(
    language_model: LanguageModel,
    prompts: Sequence[str],
    *,
    scope: Scope = "response",
) -> KLMeter:
    """A meter on the unedited model's own greedy answers to the prompts.

    Raises:
        InputError: If the prompts are no list, or it is empty.
    """
    if not isinstance(prompts, Sequence) or isinstance(prompts, str) or not prompts:
        raise InputError(f"expected a non-empty list of prompts, got {prompts!r:.80}")
    texts = [render(language_model.tokenizer, prompt) for prompt in prompts]
    answers = generate_batch(language_model, texts, _REFERENCE)
    sequences = [
        (prompt_tokens(language_model, text), answer.tokens)
        for text, answer in zip(texts, answers, strict=True)
    ]
    return KLMeter(language_model, sequences, scope=scope)


def calibrate(
    language_model: LanguageModel,
    edit: Edit,
    prompts: Sequence[str],
    *,
    kl: float = 0.5,
    scope: Scope = "response",
    meter: KLMeter | None = None,
) -> Calibration:
    """Find the factor at which an edit has a given divergence from the unedited model.

    Scans a geometric grid from small to large, takes the first bracket that holds the target,
    and bisects in it.

    Args:
        language_model: The model.
        edit: The edit, at any scale.
        prompts: Develop prompts; the divergence is read on the unedited model's greedy answers.
        kl: Target KL(edited || unedited), nats per token.
        scope: Where the edit acts.
        meter: A meter made before by `reference_meter`, to share it between edits.

    Raises:
        InputError: If the target is not positive, the edit is zero, or there are no prompts.
        CalibrationError: If no factor of the grid reaches the target.
    """
    if not kl > 0 or not np.isfinite(kl):
        raise InputError(f"kl: expected a positive number of nats per token, got {kl}")
    if edit.is_zero():
        raise InputError("the edit is zero; no factor gives it an effect")
    meter = meter or reference_meter(language_model, prompts, scope=scope)
    return _solve(meter, edit, kl, {})


def _solve(meter: KLMeter, edit: Edit, kl: float, scan: dict[float, float]) -> Calibration:
    """Calibrate; `scan` holds the divergences by factor that are known, and gets the new ones."""

    def measure(factor: float) -> float:
        if factor not in scan:
            scan[factor] = meter.kl(factor * edit)
        return scan[factor]

    low = 0.0
    for high in _FACTORS:
        if measure(high) >= kl:
            break
        low = high
    else:
        raise CalibrationError(
            f"no factor up to {_FACTORS[-1]} reaches {kl} nats per token (largest: "
            f"{max(scan.values()):.3g}); ask for less, or scale the edit up"
        )
    best = high
    for _ in range(20):
        if abs(measure(best) - kl) <= _KL_TOLERANCE * kl:
            break
        middle = (low + high) / 2
        best = min(best, middle, key=lambda factor: abs(measure(factor) - kl))
        if measure(middle) >= kl:
            high = middle
        else:
            low = middle
    return Calibration(best, measure(best), tuple(sorted(scan.items())))


def search_dose(
    language_model: LanguageModel,
    edit: Edit,
    prompts: Sequence[str],
    gain: Gain,
    *,
    meter: KLMeter,
    kls: Sequence[float] = SEARCH_KLS,
    decoding: Decoding = Decoding(),  # noqa: B008  (frozen)
    scope: Scope = "response",
    confirm: Sequence[str] = (),
    unsteered: Sequence[str] | None = None,
    tried: dict[float, DoseTrial] | None = None,
    on_trial: Callable[[], None] | None = None,
) -> DoseSearch:
    """Try doses on develop prompts; keep the largest gain before answers suffer.

    A dose is out if more answers loop or break than of the unsteered model (none more of a hundred
    still leaves room for three in truth), or if clearly fewer are about their prompt
    (`steer.soundness`). Doses are tried by ascending divergence until answers fall apart
    (`FALLS_APART`). Answers should be as long as those that will be served: loops come late.

    The best of several doses owes something to luck, and a few prompts do not show what happens to
    one answer of thirty. So the dose that leads answers the `confirm` prompts as well, and is
    judged on all; if it is out then, or another leads, the search goes on with that one.

    Args:
        language_model: The model.
        edit: The edit, at any scale.
        prompts: Develop prompts on which every dose is tried.
        gain: The trait's measure.
        meter: From `reference_meter`.
        kls: Doses to try, in nats per token.
        decoding: How answers are generated.
        scope: Where the edit acts.
        confirm: Further develop prompts on which the leading dose is confirmed.
        unsteered: The unedited model's answers to both under the same decoding, to share them
            between edits; generated if not given.
        tried: Trials by divergence asked for that an earlier search of the same edit made, to go
            on from; gets the new ones.
        on_trial: Called after each new one.

    Raises:
        InputError: If there is no dose to try, or one is not positive.
        CalibrationError: If no dose leaves the answers whole.
    """
    check_kls(kls)
    everything = [*prompts, *confirm]
    texts = [render(language_model.tokenizer, prompt) for prompt in everything]
    if unsteered is None:
        unsteered = [answer.text for answer in generate_batch(language_model, texts, decoding)]
    first = slice(0, len(prompts))
    rest = slice(len(prompts), len(everything))
    before = _trial(0.0, 0.0, prompts, unsteered[first], gain)
    base = {len(prompts): before}  # the unsteered model, by number of prompts
    if confirm:
        base[len(everything)] = _pool(before, _trial(0.0, 0.0, confirm, unsteered[rest], gain))
    scan: dict[float, float] = {}  # shared: the doses are on one curve
    tried = {} if tried is None else tried

    def answer(factor: float, divergence: float, part: slice) -> DoseTrial:
        with attach(language_model).steer(factor * edit, scope=scope):
            answers = generate_batch(language_model, texts[part], decoding)
        written = [one.text for one in answers]
        return _trial(factor, divergence, everything[part], written, gain)

    def note(kl: float, trial: DoseTrial) -> None:
        tried[kl] = trial
        if on_trial is not None:
            on_trial()

    doses: list[float] = []
    for kl in sorted(kls):
        if kl not in tried:
            point = _solve(meter, edit, kl, scan)
            note(kl, answer(point.factor, point.kl, first))
        doses.append(kl)
        # An earlier search may have confirmed it, on more prompts.
        if _falls_apart(tried[kl], base[tried[kl].prompts]):
            break
    while True:
        leading = choose_dose(base, [tried[kl] for kl in doses])
        if leading.prompts == len(everything):
            break
        kl = next(kl for kl in doses if tried[kl] is leading)
        note(kl, _pool(leading, answer(leading.factor, leading.kl, rest)))
    return DoseSearch(
        _against(leading, base),
        _against(base[leading.prompts], base),
        tuple(_against(tried[kl], base) for kl in doses),
    )


def check_kls(kls: Sequence[float]) -> None:
    """Check that there are doses to try.

    Raises:
        InputError: If there is none, or one is not positive and finite.
    """
    if not kls or not all(0 < kl < np.inf for kl in kls):
        raise InputError(f"kls: expected one or more positive nats per token, got {tuple(kls)}")


def choose_dose(base: Mapping[int, DoseTrial], trials: Sequence[DoseTrial]) -> DoseTrial:
    """The dose with the largest gain among those that leave the answers whole.

    Args:
        base: The unsteered model's answers, by number of prompts.
        trials: By ascending divergence. Beyond the first dose at which answers fall apart none is
            taken, since one that passes there passes by luck.

    Raises:
        CalibrationError: If no dose leaves the answers whole.
    """
    tried = takewhile(lambda trial: not _falls_apart(trial, base[trial.prompts]), trials)
    sound = [
        trial for trial in tried if trial.soundness.holds_against(base[trial.prompts].soundness)
    ]
    if not sound:
        raise CalibrationError(
            f"every dose from {trials[0].kl:.2f} nats per token on makes answers loop, break or "
            "leave the subject; try smaller doses, other layers or more contrast pairs"
        )
    return max(sound, key=lambda trial: _against(trial, base).gain)


def _against(trial: DoseTrial, base: Mapping[int, DoseTrial]) -> DoseTrial:
    """The trial with its gain over the unsteered model on the same prompts."""
    return replace(trial, gain=trial.gain - base[trial.prompts].gain)


def _pool(one: DoseTrial, other: DoseTrial) -> DoseTrial:
    """Two trials of one dose on different prompts as one."""
    total = one.prompts + other.prompts

    def mean(a: float, b: float) -> float:
        return (one.prompts * a + other.prompts * b) / total

    return DoseTrial(
        one.factor,
        one.kl,
        mean(one.gain, other.gain),
        mean(one.incoherent, other.incoherent),
        mean(one.relevant, other.relevant),
        total,
    )


def _falls_apart(trial: DoseTrial, unsteered: DoseTrial) -> bool:
    """Whether so many answers loop or break that larger doses need not be tried."""
    return trial.incoherent > unsteered.incoherent + FALLS_APART + 1e-9


def _trial(
    factor: float, kl: float, prompts: Sequence[str], answers: Sequence[str], gain: Gain
) -> DoseTrial:
    found = Soundness.of(prompts, answers)
    return DoseTrial(
        factor,
        kl,
        gain(prompts, answers),
        found.incoherent,
        found.relevant,
        len(prompts),
    )
