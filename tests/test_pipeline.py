"""The steps of a build that keep what they found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steer import pipeline, trait_edit
from steer.activations import read_activations
from steer.bundle import Bundle
from steer.contrast import Answer, Pair, PairSet
from steer.dose import DoseSearch, DoseTrial
from steer.edits import Edit, compose
from steer.errors import CalibrationError, DataError, InputError
from steer.generation import Decoding
from steer.likelihood import log_ratio
from steer.pipeline import build
from steer.precompute import PortfolioRecipe
from steer.prompts import Prompt
from steer.recipe import Recipe
from steer.rewards import readability_reward
from steer.search import Effort
from steer.trait_edit import _mean_log_ratio, _read
from steer.traits import Trait
from tests.models import tiny

QUICK = Recipe(
    prompts=10, develop_prompts=8, confirm_prompts=0, decoding=Decoding(max_new_tokens=6)
)
SEQUENCES = [([5, 6, 7], [8, 9]), ([5, 6], [10, 11, 12]), ([9], [20])]


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("read again")


def test_activations_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = tiny("llama")
    expected = read_activations(language_model, SEQUENCES, [1, 3])
    first = _read(language_model, "calm", SEQUENCES, [1, 3], Recipe(), tmp_path)
    monkeypatch.setattr(trait_edit, "read_activations", refuse)
    second = _read(language_model, "calm", SEQUENCES, [1, 3], Recipe(), tmp_path)
    for found in (first, second):
        assert sorted(found) == [1, 3]
        for layer, values in found.items():
            assert np.array_equal(values, expected[layer])
    assert [path.suffix for path in (tmp_path / "activations").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("changed", ["sequences", "layers", "pooling", "model"])
def test_other_activations_are_not_taken_for_them(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model = tiny("llama")
    _read(language_model, "calm", SEQUENCES, [1, 3], Recipe(), tmp_path)
    monkeypatch.setattr(trait_edit, "read_activations", refuse)
    with pytest.raises(AssertionError, match="read again"):
        _read(
            tiny("qwen2") if changed == "model" else language_model,
            "calm",
            SEQUENCES[:2] if changed == "sequences" else SEQUENCES,
            [1, 2] if changed == "layers" else [1, 3],
            Recipe(pooling="last") if changed == "pooling" else Recipe(),
            tmp_path,
        )


def test_damaged_activations_are_named(tmp_path: Path) -> None:
    language_model = tiny("llama")
    _read(language_model, "calm", SEQUENCES, [1], Recipe(), tmp_path)
    (path,) = (tmp_path / "activations").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="delete it"):
        _read(language_model, "calm", SEQUENCES, [1], Recipe(), tmp_path)


def test_opinions_are_formed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = tiny("llama")
    calm, loud = (Trait(name, ["Be calm."], ["Be loud."]) for name in ("calm", "loud"))
    prompts, answers = ["Why?", "How?"], ["So.", "Thus it is."]
    expected = log_ratio(language_model, calm, prompts, answers).mean()
    assert _mean_log_ratio(language_model, calm, prompts, answers, tmp_path) == expected
    monkeypatch.setattr(trait_edit, "log_ratio", refuse)
    assert _mean_log_ratio(language_model, calm, prompts, answers, tmp_path) == expected
    for trait, asked, said in (
        (loud, prompts, answers),
        (calm, prompts[::-1], answers),
        (calm, prompts, answers[::-1]),
    ):
        with pytest.raises(AssertionError, match="read again"):
            _mean_log_ratio(language_model, trait, asked, said, tmp_path)
    (path,) = (tmp_path / "log-ratios").iterdir()
    path.write_text("[")
    with pytest.raises(DataError, match="delete it"):
        _mean_log_ratio(language_model, calm, prompts, answers, tmp_path)


def made_pairs(trait: str, prompts: list[Prompt]) -> PairSet:
    """Pairs of random characters; the poles use other ones."""
    rng = np.random.default_rng(len(trait))

    def answer(prompt: Prompt, pole: str, low: int) -> Answer:
        tokens = tuple(rng.integers(low, low + 20, 6).tolist())
        return Answer(prompt.id, pole, f"{prompt.text[:20]} {pole}", "some text", tokens)

    pairs = [Pair(answer(p, "positive", 5), answer(p, "negative", 40)) for p in prompts]
    return PairSet(trait, tuple(pairs), {})


def test_a_build_makes_a_portfolio_of_its_own_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pairs(model: Any, trait: Trait, prompts: list[Prompt], *args: Any, **options: Any) -> Any:
        return made_pairs(trait.name, prompts)

    trial = DoseTrial(0.7, 0.05, 1.0, 0.0, 1.0, 8)
    monkeypatch.setattr(pipeline, "generate_pairs", pairs)
    monkeypatch.setattr(trait_edit, "_dose", lambda *args: DoseSearch(trial, trial, (trial,)))
    recipe = replace(QUICK, method="mean-difference", layers="ccs-jump")
    wanted = PortfolioRecipe(
        ("simplicity", "brevity"),
        size=2,
        prompts=4,
        decoding=QUICK.decoding,
        effort=Effort(first=4, batch=2, rounds=1, pool=16),
    )

    def made() -> Bundle:
        return build(
            tiny("llama"),
            ["brevity", "simplicity", "warmth"],
            recipe=recipe,
            portfolio=wanted,
            work_dir=tmp_path,
        )

    bundle = made()
    spanned = trait_edit.spanned_layers(tiny("llama"))
    assert bundle.gate is not None and list(bundle.gate.directions) == list(spanned)
    portfolio = bundle.portfolio
    assert portfolio is not None and portfolio.traits == ("simplicity", "brevity")
    readable, words = portfolio.rewards
    assert readable == readability_reward().name and words.startswith("words, ")
    assert {one.family for one in portfolio.candidates} == {"own layers", "middle layers"}
    for number, edit in zip(portfolio.kept, portfolio.edits, strict=True):
        candidate = portfolio.candidates[number]
        if candidate.family == "own layers":
            own = [bundle.traits[name].edit for name in portfolio.traits]
            expected = compose(own, candidate.coefficients)
            for layer, one in expected.layers.items():
                np.testing.assert_allclose(edit.layers[layer].e, one.e, atol=1e-6)
    assert bundle.settings["portfolio"]["size"] == 2
    assert bundle.settings["precision"] == "float32"
    assert (tmp_path / "float32" / "portfolios").is_dir()
    assert bundle.interference is not None
    assert bundle.interference.traits == ("brevity", "simplicity", "warmth")
    # The poles of the made pairs say the same, so warmth's reward cannot tell them apart.
    assert not bundle.interference.gains[:, 2].any()
    bundle.save(tmp_path / "b")
    assert Bundle.load(tmp_path / "b").portfolio is not None
    monkeypatch.setattr("steer.evaluation.Evaluator._measure", refuse)
    again = made().portfolio
    assert again is not None and again.kept == portfolio.kept
    recipe = replace(recipe, interference_prompts=0)
    assert made().interference is None
    wanted = replace(wanted, size=1)  # costs no new measurements
    smaller = made().portfolio
    assert smaller is not None and smaller.candidates == portfolio.candidates


@pytest.mark.parametrize(
    ("changes", "template"),
    [({"gated": False}, True), ({"method": "two-step"}, True), ({}, False)],
)
def test_what_acts_behind_no_gate(tmp_path: Path, changes: dict[str, Any], template: bool) -> None:
    """What is not asked for, what is not additive, and where there is no chat."""
    model = tiny("llama")
    if not template:
        model.tokenizer.chat_template = None
    recipe = replace(QUICK, **changes)
    assert trait_edit.prepare(model, recipe, tmp_path).gate is None


def test_the_method_and_the_layers_with_the_largest_gain_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pairs(model: Any, trait: Trait, prompts: list[Prompt], *args: Any, **options: Any) -> Any:
        return made_pairs(trait.name, prompts)

    tried: list[Edit] = []
    refused = {1}

    def dose(model: Any, trait: Trait, edit: Edit, *args: Any) -> DoseSearch:
        tried.append(edit)
        if len(tried) in refused:
            raise CalibrationError("no dose")
        gain = 3.0 if len(tried) == 3 else 1.0
        trial = DoseTrial(0.5, 0.05, gain, 0.0, 1.0, 8)
        return DoseSearch(trial, trial, (trial,))

    monkeypatch.setattr(pipeline, "generate_pairs", pairs)
    monkeypatch.setattr(trait_edit, "_dose", dose)
    recipe = replace(QUICK, method="gain", layers="gain")
    bundle = build(tiny("llama"), ["warmth"], recipe=recipe, work_dir=tmp_path)
    # Both sets of layers by the mean difference, then both distilled.
    assert len(tried) == 4
    entry = bundle.traits["warmth"]
    assert entry.method == "distilled" and entry.statistics["layer rule"] == "ccs-jump"
    assert tried[2].rank == 1 and entry.edit.rank == 0  # the dose is of what acts behind the gate
    for layer, one in tried[2].layers.items():
        acting = bundle.behind_gate(entry.edit).layers[layer]
        np.testing.assert_allclose(acting.u * acting.c, 0.5 * one.u * one.c, rtol=1e-6)
    tried.clear()
    refused = {1, 2, 3, 4}
    with pytest.raises(CalibrationError, match="no dose"):
        build(tiny("llama"), ["warmth"], recipe=recipe, work_dir=tmp_path)


def test_a_portfolio_is_of_traits_that_are_built() -> None:
    wanted = PortfolioRecipe(("simplicity", "warmth"), size=2)
    with pytest.raises(InputError, match="warmth"):
        build(tiny("llama"), ["brevity", "simplicity"], portfolio=wanted)
