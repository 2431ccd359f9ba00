"""Calibration against the divergence it promises, and the choice among doses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer import dose, soundness
from steer.chat import render
from steer.dose import (
    FALLS_APART,
    DoseSearch,
    DoseTrial,
    _solve,
    calibrate,
    choose_dose,
    reference_meter,
    search_dose,
)
from steer.edits import ZERO, Edit, additive
from steer.errors import CalibrationError, InputError
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import attach
from steer.models import LanguageModel
from steer.recipe import Recipe
from steer.soundness import LESS_RELEVANT
from tests.models import LAYERS, WIDTH, tiny
from tests.test_likelihood import plain_kl

PROMPTS = ["How are you?", "Tell me about rain.", "Why?"]


def some_edit(seed: int = 0) -> Edit:
    rng = np.random.default_rng(seed)
    return additive(
        {layer: rng.normal(size=WIDTH).astype(np.float32) for layer in range(1, LAYERS)}
    )


@pytest.mark.parametrize("kl", [0.05, 0.3])
def test_calibrated_edit_has_the_divergence(kl: float) -> None:
    model = tiny("llama")
    edit = some_edit()
    found = calibrate(model, edit, PROMPTS, kl=kl)
    assert reference_meter(model, PROMPTS).kl(found.factor * edit) == pytest.approx(kl, rel=0.03)
    assert found.kl == pytest.approx(kl, rel=0.03)
    assert (found.factor, found.kl) in found.scan


def test_calibration_does_not_depend_on_the_edits_scale() -> None:
    model = tiny("llama")
    meter = reference_meter(model, PROMPTS)
    one = calibrate(model, some_edit(), PROMPTS, kl=0.2, meter=meter)
    two = calibrate(model, 3.0 * some_edit(), PROMPTS, kl=0.2, meter=meter)
    assert 3.0 * two.factor == pytest.approx(one.factor, rel=0.1)


@pytest.mark.parametrize("kl", [0.0, -1.0, float("nan"), float("inf")])
def test_targets_that_mean_nothing_are_refused(kl: float) -> None:
    with pytest.raises(InputError, match="kl"):
        calibrate(tiny("llama"), some_edit(), PROMPTS, kl=kl)


@pytest.mark.parametrize("prompts", ["hello", []])
def test_prompts_are_a_list(prompts: Any) -> None:
    with pytest.raises(InputError, match="non-empty list of prompts"):
        calibrate(tiny("llama"), some_edit(), prompts, kl=0.1)


def test_zero_edit_and_unreachable_target_are_refused() -> None:
    with pytest.raises(InputError, match="zero"):
        calibrate(tiny("llama"), ZERO, PROMPTS)
    with pytest.raises(CalibrationError, match="largest"):
        calibrate(tiny("llama"), some_edit(), PROMPTS, kl=1e4)


class Curve:
    """A meter whose divergence is a function of the edit's length."""

    def __init__(self, function: object) -> None:
        self.function = function
        self.calls = 0

    def kl(self, edit: Edit) -> float:
        self.calls += 1
        return float(self.function(float(edit.layers[0].e[0])))  # type: ignore[operator]


UNIT = additive({0: np.ones(1, np.float32)})


def test_first_bracket_of_a_curve_that_goes_up_and_down() -> None:
    # Crosses 0.5 near 0.26, again on its way down, and once more far out.
    curve = Curve(lambda x: np.sin(2 * x) if x < 1.7 else x)
    found = _solve(curve, UNIT, 0.5, {})  # type: ignore[arg-type]
    assert found.factor == pytest.approx(np.arcsin(0.5) / 2, rel=0.05)


def test_shared_scan_measures_nothing_twice() -> None:
    curve = Curve(lambda x: x)
    scan: dict[float, float] = {}
    for kl in (0.1, 0.2, 0.4):
        assert _solve(curve, UNIT, kl, scan).kl == pytest.approx(kl, rel=0.03)  # type: ignore[arg-type]
    assert curve.calls == len(scan)


def trial(kl: float, gain: float, incoherent: float, relevant: float) -> DoseTrial:
    return DoseTrial(kl, kl, gain, incoherent, relevant, 40)


shares = st.floats(0, 1)


@given(
    st.lists(st.tuples(st.floats(-5, 5), shares, shares), min_size=1, max_size=6), shares, shares
)
def test_choice_against_a_plain_loop(
    numbers: list[tuple[float, float, float]], incoherent: float, relevant: float
) -> None:
    unsteered = trial(0.0, 0.0, incoherent, relevant)
    trials = [trial(0.1 * (i + 1), *n) for i, n in enumerate(numbers)]
    best = None
    for one in trials:
        suffers = (
            one.incoherent - unsteered.incoherent > 1e-9
            or unsteered.relevant - one.relevant > LESS_RELEVANT + 1e-9
        )
        if one.incoherent - unsteered.incoherent > FALLS_APART + 1e-9:
            break
        if suffers:
            continue
        if best is None or one.gain > best.gain:
            best = one
    if best is None:
        with pytest.raises(CalibrationError):
            choose_dose({40: unsteered}, trials)
    else:
        assert choose_dose({40: unsteered}, trials) == best


def short(prompts: Sequence[str], answers: Sequence[str]) -> float:
    return -float(np.mean([len(answer) for answer in answers]))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Answers are about their prompt, and fall apart beyond 0.2 nats; gives the doses tried."""
    tried: list[float] = []
    trial = dose._trial

    def judge(factor: float, kl: float, *rest: Any) -> DoseTrial:
        tried.append(kl)
        return replace(trial(factor, kl, *rest), incoherent=0.0 if kl < 0.25 else 1.0)

    monkeypatch.setattr(soundness, "relevance", lambda prompts, answers: np.ones(len(prompts)))
    monkeypatch.setattr(dose, "_trial", judge)
    return tried


def test_doses_are_tried_until_answers_fall_apart(judged: list[float]) -> None:
    model, decoding = tiny("llama"), Decoding(max_new_tokens=6)
    meter = reference_meter(model, PROMPTS)
    kls = (0.4, 0.1, 0.3, 0.2)
    found = search_dose(model, some_edit(), PROMPTS, short, meter=meter, kls=kls, decoding=decoding)
    assert judged == pytest.approx([0.0, 0.1, 0.2, 0.3], rel=0.03)
    assert [trial.kl for trial in found.trials] == judged[1:]
    assert found.chosen in found.trials[:2]
    assert found.chosen.gain == max(trial.gain for trial in found.trials[:2])
    # The gain is against the unsteered answers, and the answers are those of the edit.
    texts = [render(model.tokenizer, prompt) for prompt in PROMPTS]
    before = short(PROMPTS, [a.text for a in generate_batch(model, texts, decoding)])
    with attach(model).steer(found.trials[0].factor * some_edit()):
        after = short(PROMPTS, [a.text for a in generate_batch(model, texts, decoding)])
    assert found.trials[0].gain == pytest.approx(after - before)


def test_a_search_goes_on_from_the_doses_that_were_tried(judged: list[float]) -> None:
    model, decoding = tiny("llama"), Decoding(max_new_tokens=6)
    meter = reference_meter(model, PROMPTS)
    kept: dict[float, DoseTrial] = {}
    stored: list[list[float]] = []

    def search(kls: tuple[float, ...], tried: dict[float, DoseTrial] | None) -> DoseSearch:
        return search_dose(
            model,
            some_edit(),
            PROMPTS,
            short,
            meter=meter,
            kls=kls,
            decoding=decoding,
            tried=tried,
            on_trial=lambda: stored.append(sorted(kept)),
        )

    search((0.1,), kept)
    whole = search((0.1, 0.2), kept)
    assert stored == [[0.1], [0.1, 0.2]]
    judged.clear()
    assert search((0.1, 0.2), dict(kept)) == whole
    assert judged == [0.0]
    assert search((0.1, 0.2), None) == whole


MORE = ["One more?", "And this?"]


def confirmed_search(model: LanguageModel, tried: dict[float, DoseTrial]) -> DoseSearch:
    """A search at two doses, of which the leading one answers the further prompts too."""
    return search_dose(
        model,
        some_edit(),
        PROMPTS,
        short,
        meter=reference_meter(model, PROMPTS),
        kls=(0.1, 0.2),
        decoding=Decoding(max_new_tokens=6),
        confirm=MORE,
        tried=tried,
    )


def confirmed(
    monkeypatch: pytest.MonkeyPatch,
    gains: dict[float, float],
    loops: dict[float, float],
    tried: dict[float, DoseTrial],
) -> DoseSearch:
    """A search at two doses of given gains, and of so many loops on the further prompts."""
    model = tiny("llama")
    trial = dose._trial

    def judge(factor: float, kl: float, prompts: Sequence[str], *rest: Any) -> DoseTrial:
        known = min(gains, key=lambda k: abs(k - kl))
        looping = loops[known] if list(prompts) == MORE else 0.0
        made = trial(factor, kl, prompts, *rest)
        return replace(made, gain=gains[known] + len(prompts), incoherent=looping)

    with monkeypatch.context() as patch:
        patch.setattr(dose, "_trial", judge)
        return confirmed_search(model, tried)


def test_the_leading_dose_is_confirmed_on_further_prompts(
    judged: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dose that leads on the first prompts loops on the others; the next one is taken."""
    kept: dict[float, DoseTrial] = {}
    gains, loops = {0.0: 0.0, 0.1: 1.0, 0.2: 2.0}, {0.0: 0.0, 0.1: 0.0, 0.2: 0.5}
    found = confirmed(monkeypatch, gains, loops, kept)
    assert found.chosen.kl == pytest.approx(0.1, rel=0.03)
    assert found.chosen.prompts == found.unsteered.prompts == 5
    assert found.chosen.gain == pytest.approx(1.0) and found.unsteered.gain == 0.0
    # Pooled over all five prompts: two of them at a half.
    assert kept[0.2].prompts == 5 and kept[0.2].incoherent == pytest.approx(0.2)
    assert judged == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.2, 0.1], rel=0.03)


@pytest.mark.parametrize("kls", [(), (0.1, 0.0), (float("nan"),), (float("inf"),)])
def test_doses_to_try_are_positive(kls: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="kls: expected one or more positive"):
        Recipe(kls=kls)
    model = tiny("llama")
    meter = reference_meter(model, PROMPTS[:1])
    with pytest.raises(InputError, match="kls: expected one or more positive"):
        search_dose(model, some_edit(), PROMPTS, short, meter=meter, kls=kls)


def test_a_finished_search_finds_the_same_again(
    judged: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first dose leads and loops on the further prompts, but on some the model loops too."""
    kept: dict[float, DoseTrial] = {}
    gains, loops = {0.0: 0.0, 0.1: 2.0, 0.2: 1.0}, {0.0: 0.5, 0.1: 0.6, 0.2: 0.5}
    found = confirmed(monkeypatch, gains, loops, kept)
    assert found.chosen.kl == pytest.approx(0.2, rel=0.03)
    assert confirmed(monkeypatch, gains, loops, kept) == found


def test_a_dose_of_all_positions_is_measured_at_all_positions() -> None:
    model, edit = tiny("llama"), some_edit()
    texts = [render(model.tokenizer, prompt) for prompt in PROMPTS]
    written = generate_batch(model, texts, Decoding(max_new_tokens=48))
    sequences = [
        (prompt_tokens(model, text), one.tokens) for text, one in zip(texts, written, strict=True)
    ]
    found = calibrate(model, edit, PROMPTS, kl=0.2, scope="all")
    # By naive hooks, one unpadded row at a time.
    expected = plain_kl(model, sequences, found.factor * edit, "all")
    assert found.kl == pytest.approx(expected, rel=1e-3)
    assert found.kl != pytest.approx(plain_kl(model, sequences, found.factor * edit), rel=0.05)


def test_doses_of_all_positions_are_tried_at_all_positions(judged: list[float]) -> None:
    model, decoding = tiny("llama"), Decoding(max_new_tokens=12)
    found = search_dose(
        model,
        some_edit(),
        PROMPTS,
        lambda prompts, answers: float(sum(map(ord, "".join(answers)))),
        meter=reference_meter(model, PROMPTS, scope="all"),
        kls=(0.1, 0.2),
        decoding=decoding,
        scope="all",
    )
    texts = [render(model.tokenizer, prompt) for prompt in PROMPTS]
    said = []
    for trial in found.trials:
        sums = []
        for factor in (trial.factor, 0.0):
            with attach(model).steer(factor * some_edit(), scope="all"):
                answers = generate_batch(model, texts, decoding)
            sums.append(float(sum(map(ord, "".join(one.text for one in answers)))))
        said.append(sums[0] - sums[1])
    assert [trial.gain for trial in found.trials] == pytest.approx(said)


def test_a_leading_dose_that_leaves_the_subject_on_further_prompts_is_out(
    judged: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[float, DoseTrial] = {}
    trial = dose._trial

    def judge(factor: float, kl: float, prompts: Sequence[str], *rest: Any) -> DoseTrial:
        strays = kl > 0.15 and list(prompts) == MORE
        return replace(trial(factor, kl, prompts, *rest), gain=kl, relevant=0.0 if strays else 1.0)

    monkeypatch.setattr(dose, "_trial", judge)
    found = confirmed_search(tiny("llama"), kept)
    # Two of the five answers are of something else.
    assert kept[0.2].relevant == pytest.approx(3 / 5)
    assert found.chosen.kl == pytest.approx(0.1, rel=0.03) and found.chosen.relevant == 1


def test_the_gain_of_a_confirmed_dose_is_over_all_prompts(judged: list[float]) -> None:
    model, decoding = tiny("llama"), Decoding(max_new_tokens=12)

    def letters(prompts: Sequence[str], answers: Sequence[str]) -> float:
        return float(np.mean([sum(map(ord, text)) for text in answers]))

    texts = [render(model.tokenizer, prompt) for prompt in (*PROMPTS, *MORE)]
    before = [one.text for one in generate_batch(model, texts, decoding)]
    for unsteered in (None, before):
        found = search_dose(
            model,
            some_edit(),
            PROMPTS,
            letters,
            meter=reference_meter(model, PROMPTS),
            kls=(0.1,),
            decoding=decoding,
            confirm=MORE,
            unsteered=unsteered,
        ).chosen
        with attach(model).steer(found.factor * some_edit()):
            after = [one.text for one in generate_batch(model, texts, decoding)]
        assert found.prompts == 5
        assert found.gain == pytest.approx(letters(texts, after) - letters(texts, before))
