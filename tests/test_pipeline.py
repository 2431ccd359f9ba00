"""The steps of a build that keep what they found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steer import evaluation, pipeline, trait_edit
from steer.activations import read_activations
from steer.bundle import Bundle
from steer.contrast import SAMPLING, Answer, Pair, PairSet
from steer.distill import Distillation, distill
from steer.dose import DoseSearch, DoseTrial
from steer.edits import Edit, compose
from steer.errors import CalibrationError, DataError, FingerprintError, InputError
from steer.generation import Decoding
from steer.likelihood import log_ratio
from steer.models import LanguageModel
from steer.pipeline import _pairs, build, build_interference, build_portfolio
from steer.precompute import PortfolioRecipe
from steer.prompts import Prompt, load_prompts
from steer.recipe import Recipe
from steer.rewards import readability_reward
from steer.search import Effort
from steer.trait_edit import Context, _dose, _mean_log_ratio, _read
from steer.traits import Pole, Trait, load_traits
from steer.undosed import plain_prompts, undosed_edit
from steer.versions import versions
from steer.workers import Alone
from tests.models import tiny, with_pictographs
from tests.test_generation import an_edit

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
    same = replace(calm, pictographs=False)
    assert _mean_log_ratio(language_model, same, prompts, answers, tmp_path) == expected
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


def all_made_pairs(traits: list[Trait], recipe: Recipe) -> dict[str, PairSet]:
    prompts = list(load_prompts("extract")[: recipe.prompts])
    return {trait.name: made_pairs(trait.name, prompts) for trait in traits}


TWO_FAMILIES = replace(QUICK, method="mean-difference", layers="ccs-jump")
WANTED = PortfolioRecipe(
    ("simplicity", "brevity"),
    size=2,
    prompts=4,
    decoding=QUICK.decoding,
    confirm_prompts=4,
    confirm_decoding=QUICK.decoding,
    questions=2,
    effort=Effort(first=4, batch=2, rounds=1, pool=16),
)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Made pairs and doses in place of generated ones; how the pairs were to be sampled."""
    asked: list[Any] = []

    def pairs(
        model: Any, traits: list[Trait], recipe: Recipe, *args: Any, **options: Any
    ) -> dict[str, PairSet]:
        asked.extend((trait, recipe.seed, options.get("sampling", SAMPLING)) for trait in traits)
        return all_made_pairs(traits, recipe)

    trial = DoseTrial(0.7, 0.05, 1.0, 0.0, 1.0, 8)
    monkeypatch.setattr(pipeline, "_pairs", pairs)
    monkeypatch.setattr(trait_edit, "_dose", lambda *args: DoseSearch(trial, trial, (trial,)))
    return asked


def test_a_build_makes_a_portfolio_of_its_own_edits(
    sampled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, wanted = TWO_FAMILIES, WANTED

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
    monkeypatch.setattr("steer.evaluation._answered", refuse)
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
    def pairs(model: Any, traits: list[Trait], recipe: Recipe, *args: Any, **options: Any) -> Any:
        return all_made_pairs(traits, recipe)

    tried: list[Edit] = []
    refused = {1}

    def dose(model: Any, trait: Trait, edit: Edit, *args: Any) -> DoseSearch:
        tried.append(edit)
        if len(tried) in refused:
            raise CalibrationError("no dose")
        gain = 3.0 if len(tried) == 3 else 1.0
        trial = DoseTrial(0.5, 0.05, gain, 0.0, 1.0, 8)
        return DoseSearch(trial, trial, (trial,))

    monkeypatch.setattr(pipeline, "_pairs", pairs)
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


def test_a_trait_is_distilled_with_pictographs_or_without(
    sampled: list[Any], tmp_path: Path
) -> None:
    """At the layers of its own, and at those that a portfolio is searched with."""
    model, _ = with_pictographs()
    recipe = replace(QUICK, layers="ccs-jump")
    traits = [replace(load_traits()["brevity"], pictographs=wanted) for wanted in (True, False)]
    bundles = [build(model, [trait], recipe=recipe, work_dir=tmp_path) for trait in traits]
    found = [
        pipeline.search_space(one, ["brevity"], model, [trait], work_dir=tmp_path).families
        for one, trait in zip(bundles, traits, strict=True)
    ]
    pair_set = made_pairs("brevity", load_prompts("extract")[: recipe.prompts])
    for family in ("own layers", "middle layers"):
        edits = [families[family][0] for families in found]
        layers = sorted(edits[0].layers)
        expected = [
            distill(
                model,
                pair_set,
                plain_prompts(pair_set),
                layers,
                Distillation(pictographs=trait.pictographs),
            )
            for trait in traits
        ]
        for edit, one in zip(edits, expected, strict=True):
            for layer in layers:
                got, wanted = edit.layers[layer].e, one.layers[layer].e
                scale = np.linalg.norm(got) / np.linalg.norm(wanted)
                np.testing.assert_allclose(got, scale * wanted, rtol=1e-4, atol=1e-6)
        assert not np.allclose(expected[0].layers[layers[0]].e, expected[1].layers[layers[0]].e)


def test_doses_tried_on_other_prompts_are_not_taken_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[dict[float, DoseTrial]] = []

    def search(*args: Any, tried: Any, on_trial: Any, **options: Any) -> DoseSearch:
        known.append(dict(tried))
        tried[0.1] = trial = DoseTrial(0.7, 0.1, 1.0, 0.0, 1.0, 8)
        on_trial()
        return DoseSearch(trial, trial, (trial,))

    monkeypatch.setattr(trait_edit, "search_dose", search)
    edit = an_edit(0)
    context = Context(("Why?",), ("How?",), ("So.", "Thus."), None)
    for confirm in (2, 2, 1):
        recipe = replace(QUICK, confirm_prompts=confirm)
        _dose(tiny("llama"), load_traits()["brevity"], edit, recipe, tmp_path, context, None)
    assert [list(one) for one in known] == [[], [0.1], []]


def test_what_was_asked_in_another_chat_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = tiny("llama"), tiny("llama")
    other.tokenizer.chat_template = other.tokenizer.chat_template.replace("[assistant]", "[bot]")
    trait = load_traits()["brevity"]
    pair_set = made_pairs("brevity", list(load_prompts("extract")[:10]))
    subspace = trait_edit.fit(model, pair_set, QUICK, tmp_path)

    def search(*args: Any, tried: Any, on_trial: Any, **options: Any) -> DoseSearch:
        tried[0.1] = trial = DoseTrial(0.7, 0.1, 1.0, 0.0, 1.0, 8)
        on_trial()
        return DoseSearch(trial, trial, (trial,))

    monkeypatch.setattr(trait_edit, "search_dose", search)
    context = Context(("Why?",), ("How?",), ("So.", "Thus."), None)

    def work(asked: LanguageModel) -> None:
        trait_edit.prepare(asked, replace(QUICK, gated=False), tmp_path)
        _dose(asked, trait, an_edit(0), QUICK, tmp_path, context, None)
        _mean_log_ratio(asked, trait, ["Why?"], ["So it is."], tmp_path)
        undosed_edit(asked, pair_set, subspace, [1], "distilled", tmp_path)

    def kept() -> list[int]:
        patterns = ("unsteered-*", "doses/*", "log-ratios/*", "distilled/*")
        return [len(list(tmp_path.glob(pattern))) for pattern in patterns]

    for asked, number in ((model, 1), (tiny("llama"), 1), (other, 2)):
        work(asked)
        assert kept() == [number] * 4
    folders = {pipeline._work_dir(one, QUICK, None) for one in (model, tiny("llama"), other)}
    assert len(folders) == 2


def test_a_portfolio_is_of_traits_that_are_built() -> None:
    wanted = PortfolioRecipe(("simplicity", "warmth"), size=2)
    with pytest.raises(InputError, match="warmth"):
        build(tiny("llama"), ["brevity", "simplicity"], portfolio=wanted)


def a_bundle(folder: Path, portfolio: PortfolioRecipe | None, **changes: Any) -> Bundle:
    """Built on the tiny model, and read back as a user would have it."""
    recipe = replace(TWO_FAMILIES, seed=5, interference_prompts=4, **changes)
    bundle = build(
        tiny("llama"),
        ["brevity", "simplicity"],
        recipe=recipe,
        portfolio=portfolio,
        work_dir=folder,
    )
    bundle.save(folder / "b")
    return Bundle.load(folder / "b")


def test_a_folder_is_named_in_full(
    sampled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    recipe = replace(TWO_FAMILIES, gated=False, interference_prompts=0)
    for name, expected in (("my/model", str(tmp_path / "my" / "model")), ("hub/model",) * 2):
        model = replace(tiny("llama"), name=name)
        assert build(model, ["brevity"], recipe=recipe, work_dir=tmp_path).model == expected


def as_bytes(bundle: Bundle, folder: Path) -> bytes:
    bundle.save(folder / "bytes")
    return (folder / "bytes").read_bytes()


@pytest.mark.parametrize("changes", [{}, {"layers": "middle", "gated": False}])
def test_a_portfolio_on_its_own_is_that_of_a_build(
    changes: dict[str, Any], sampled: list[Any], tmp_path: Path
) -> None:
    """Byte for byte, and so is all else; only the settings tell the two apart."""
    expected = a_bundle(tmp_path / "whole", WANTED, **changes)
    before = a_bundle(tmp_path / "before", None, **changes)
    assert before.portfolio is None and before.interference is not None
    composed = before.interference.doses(dict.fromkeys(WANTED.traits, 0.5))
    near = [np.array(one.coefficients) for one in expected.portfolio.candidates]
    assert any(np.allclose(one, list(composed.values()), atol=1e-3) for one in near)
    other = replace(WANTED, size=1)
    for had in (before, a_bundle(tmp_path / "other", other, **changes)):
        sampled.clear()
        after = build_portfolio(had, WANTED, tiny("llama"), work_dir=tmp_path / "again")
        assert sampled == [(load_traits()[name], 5, SAMPLING) for name in WANTED.traits]
        told = dict(after.settings)
        assert told.pop("portfolio_made_with") == {
            "precision": "float32",
            "versions": versions(),
            "searched anew": True,
        }
        assert told == dict(expected.settings)
        same = replace(after, settings=expected.settings)
        assert as_bytes(same, tmp_path) == as_bytes(expected, tmp_path)
    assert Bundle.load(tmp_path / "bytes").portfolio is not None


def test_interference_on_its_own_is_that_of_a_build(sampled: list[Any], tmp_path: Path) -> None:
    """Byte for byte, and so is all else; only the settings tell the two apart."""
    expected = a_bundle(tmp_path / "whole", None)
    before = replace(expected, interference=None)
    sampled.clear()
    folder = tmp_path / "again"
    after = build_interference(before, 4, tiny("llama"), work_dir=folder)
    assert sampled == [(load_traits()[name], 5, SAMPLING) for name in expected.traits]
    told = {"precision": "float32", "versions": versions(), "prompts": 4}
    assert after.settings == {**expected.settings, "interference_made_with": told}
    same = replace(after, settings=expected.settings)
    assert as_bytes(same, tmp_path) == as_bytes(expected, tmp_path)
    measured = folder / "float32" / "interference"
    assert len(list(measured.glob("*.jsonl"))) == 1
    build_interference(expected, 8, tiny("llama"), work_dir=folder)
    assert len(list(measured.glob("*.jsonl"))) == 2  # at other prompts
    one = replace(before, traits={"brevity": before.traits["brevity"]})
    for bundle, prompts, message in (
        (one, 4, "got 1 and 4"),
        (before, 0, "got 2 and 0"),
        (before, 3, "expected 0 or 4 to 100, got 3"),
        (replace(before, settings={}), 4, "recipe"),
    ):
        with pytest.raises(InputError, match=message):
            build_interference(bundle, prompts, tiny("llama"), work_dir=folder)


def test_a_search_is_confirmed_anew(
    sampled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing has changed since, it gives the same portfolio, and searches for nothing."""
    bundle = a_bundle(tmp_path / "whole", WANTED)
    assert bundle.portfolio is not None and len(bundle.portfolio.searched) > 3
    monkeypatch.setattr("steer.precompute.search", None)
    again = tmp_path / "again"
    after = build_portfolio(bundle, WANTED, tiny("llama"), search=False, work_dir=again)
    assert after.settings["portfolio_made_with"]["searched anew"] is False
    same = replace(after, settings=bundle.settings)
    assert as_bytes(same, tmp_path) == as_bytes(bundle, tmp_path)
    for had, wanted, message in (
        (replace(bundle, portfolio=None), WANTED, "holds no search"),
        (bundle, replace(WANTED, traits=WANTED.traits[::-1]), "search anew"),
        (bundle, replace(WANTED, confirm_prompts=0), "confirm_prompts=0"),
    ):
        with pytest.raises(InputError, match=message):
            build_portfolio(had, wanted, tiny("llama"), search=False, work_dir=again)


def test_settings_of_a_portfolio_on_its_own_are_its_own(sampled: list[Any], tmp_path: Path) -> None:
    """Those of the edits stay; pairs are sampled as they say."""
    bundle = a_bundle(tmp_path, None)
    warm = replace(SAMPLING, temperature=0.9)
    changes = {"sampling": asdict(warm), "precision": "float16", "note": "kept"}
    told = {**bundle.settings, **changes}
    bundle = replace(bundle, settings=told, versions={"steer": "0.0.1"})
    sampled.clear()
    after = build_portfolio(bundle, WANTED, tiny("llama"), work_dir=tmp_path / "again")
    assert {sampling for _, _, sampling in sampled} == {warm}
    assert {key: after.settings[key] for key in changes} == changes
    assert after.versions == {"steer": "0.0.1"}
    assert after.settings["recipe"] == bundle.settings["recipe"]
    assert after.settings["portfolio"]["size"] == 2
    assert after.settings["portfolio_made_with"]["precision"] == "float32"


def test_a_portfolio_on_its_own_goes_on_where_it_was_killed(
    sampled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = a_bundle(tmp_path, None)
    answered = evaluation._answered
    calls: list[int] = []

    def made(folder: str, most: int) -> bytes:
        def counted(model: Any, edits: list[Edit], **given: Any) -> Any:
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(len(edits))
            return answered(model, edits, **given)

        monkeypatch.setattr(evaluation, "_answered", counted)
        calls.clear()
        after = build_portfolio(bundle, WANTED, tiny("llama"), work_dir=tmp_path / folder)
        return as_bytes(after, tmp_path)

    expected = made("whole", 1000)
    needed = len(calls)
    for most in (0, 2):
        with pytest.raises(KeyboardInterrupt):
            made("cut", most)
    assert made("cut", needed - 2) == expected
    assert made("cut", 0) == expected


def test_a_portfolio_on_its_own_refuses(sampled: list[Any], tmp_path: Path) -> None:
    """Before anything is generated."""
    bundle = a_bundle(tmp_path, None)
    sampled.clear()
    recipe = bundle.settings["recipe"]
    calm = replace(bundle.traits["brevity"], name="calm")
    chatless = tiny("llama")
    chatless.tokenizer.chat_template = None
    mine = replace(bundle, traits={**bundle.traits, "calm": calm})
    wanted_calm = replace(WANTED, traits=("simplicity", "calm"))
    for changed, wanted, model, error, parts in (
        (bundle, replace(WANTED, traits=("simplicity", "warmth")), None, InputError, "'warmth'"),
        (mine, wanted_calm, None, InputError, "'calm' is not a built-in trait"),
        (bundle, WANTED, tiny("qwen2"), FingerprintError, "built on 'llama'.*Qwen2"),
        (bundle, WANTED, chatless, InputError, "chat template"),
        (replace(bundle, settings={}), WANTED, None, InputError, "settings, 'recipe'.*None"),
        (
            replace(bundle, settings={**bundle.settings, "recipe": {**recipe, "zest": 1}}),
            WANTED,
            None,
            InputError,
            "'zest' is unknown",
        ),
        (
            replace(bundle, settings={"recipe": recipe}),
            WANTED,
            None,
            InputError,
            "settings, 'sampling'.*None",
        ),
    ):
        with pytest.raises(error, match=parts):
            build_portfolio(changed, wanted, model or tiny("llama"), work_dir=tmp_path / "again")
    assert not sampled and not (tmp_path / "again").exists()


def test_a_portfolio_of_traits_of_ones_own(sampled: list[Any], tmp_path: Path) -> None:
    mine = Trait("brevity", Pole("curt", ("Be curt.",)), Pole("wordy", ("Be wordy.",)))
    bundle = build(
        tiny("llama"),
        [mine, "simplicity"],
        recipe=replace(QUICK, method="mean-difference", interference_prompts=0),
        work_dir=tmp_path,
    )
    with pytest.raises(InputError, match="'curt', 'wordy'.* got .'brief', 'long'"):
        build_portfolio(bundle, WANTED, tiny("llama"), work_dir=tmp_path)
    sampled.clear()
    after = build_portfolio(bundle, WANTED, tiny("llama"), [mine], work_dir=tmp_path)
    assert sampled[1][0] is mine and after.portfolio is not None


def test_an_earlier_bundle_of_a_trait_without_names_for_its_poles(
    sampled: list[Any], tmp_path: Path
) -> None:
    mine = Trait("brevity", "Be brief.", "Be long.")
    recipe = replace(QUICK, method="mean-difference", interference_prompts=0)
    bundle = build(tiny("llama"), [mine, "simplicity"], recipe=recipe, work_dir=tmp_path)
    entry = bundle.traits["brevity"]
    assert (entry.positive, entry.negative) == ("brevity", "not brevity")
    unnamed = replace(entry, positive="positive", negative="negative")
    earlier = replace(bundle, traits={**bundle.traits, "brevity": unnamed})
    earlier.save(tmp_path / "earlier.safetensors")
    earlier = Bundle.load(tmp_path / "earlier.safetensors")
    after = build_portfolio(earlier, WANTED, tiny("llama"), [mine], work_dir=tmp_path)
    assert after.portfolio is not None


def test_pairs_of_a_changed_trait_are_others(tmp_path: Path) -> None:
    recipe, model = replace(QUICK, prompts=8), tiny("llama")
    sampling = Decoding(max_new_tokens=2)

    def made(*traits: Trait) -> set[str]:
        workers = Alone(model)
        _pairs(model, traits, recipe, tmp_path, workers, sampling=sampling, progress=False)
        return {path.name for path in (tmp_path / "pairs").glob("*.jsonl")}

    brevity = load_traits()["brevity"]
    first = made(brevity, Trait("calm", "Be calm.", "Be loud."))
    assert "brevity.jsonl" in first and len(first) == 2
    again = made(replace(brevity, pictographs=False), Trait("calm", "Be calm.", "Be loud."))
    assert again == first
    changed = made(
        replace(brevity, positive=Pole("brief", ("Be curt.",))),
        Trait("calm", "Be very calm.", "Be loud."),
    )
    assert changed > first and len(changed) == 4


def test_too_few_pairs_for_a_portfolio(
    sampled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = a_bundle(tmp_path, None)
    none = PairSet("brevity", (), {"looping": 10})
    monkeypatch.setattr(
        pipeline,
        "_pairs",
        lambda model, traits, *args, **options: {trait.name: none for trait in traits},
    )
    with pytest.raises(DataError, match="only 0 usable pairs"):
        build_portfolio(bundle, WANTED, tiny("llama"), work_dir=tmp_path / "again")


def test_a_recipe_from_a_bundle() -> None:
    recipe = Recipe(
        method="svd",
        prompts=12,
        kls=(0.1, 0.25),
        decoding=Decoding(do_sample=True, temperature=0.5),
        seed=9,
    )
    kept = json.loads(json.dumps(asdict(recipe)))
    assert Recipe.from_json(kept, "here") == recipe
    for changes, message in (
        ({"prompts": 2}, "prompts: expected 8 to 300"),
        ({"kls": ["0.1"]}, "here, 'kls'"),
        ({"kls": 1}, "here, 'kls'"),
        ({"decoding": {**kept["decoding"], "zest": 1}}, "here, 'decoding': 'zest' is unknown"),
        ({"decoding": None}, "here, 'decoding'"),
    ):
        with pytest.raises(InputError, match=message):
            Recipe.from_json({**kept, **changes}, "here")
    with pytest.raises(InputError, match="here: 'seed' is missing"):
        Recipe.from_json({key: kept[key] for key in kept if key != "seed"}, "here")
