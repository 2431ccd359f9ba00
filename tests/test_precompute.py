"""`steer.precompute`: from edits and rewards to a portfolio, killed and gone on with."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import steer.prune
from steer import precompute as precompute_module
from steer.certificate import worst_delta
from steer.edits import compose
from steer.errors import InputError
from steer.evaluation import Evaluation, read_evaluations
from steer.generation import Decoding
from steer.measures import is_coherent
from steer.portfolio import Candidate, Portfolio
from steer.precompute import PortfolioRecipe, precompute
from steer.prune import prune_to_size
from steer.rewards import Range, TextReward
from steer.search import Effort
from tests.models import tiny
from tests.test_generation import an_edit

CONFIRM = ("What now?", "Tell me more.")
PROMPTS = ("Hi", "How are you?", "Tell me about rain.", "Why?")
FAMILIES = {"deep": [an_edit(1), an_edit(3)], "early": [an_edit(2), an_edit(4)]}
RECIPE = PortfolioRecipe(
    ("brevity", "zest"),
    size=2,
    prompts=4,
    decoding=Decoding(max_new_tokens=8, no_repeat_ngram_size=0),
    confirm_prompts=0,
    effort=Effort(first=6, batch=3, rounds=1, pool=32),
)


def letters(of: str) -> TextReward:
    return TextReward(
        f"letters of {of!r}",
        lambda text: sum(letter in of for letter in text) / max(1, len(text)),
        Range(0, 1),
    )


REWARDS = (letters("abcdefghijklmABCDEFGHIJKLM"), letters("nopqrstuvwxyzNOPQRSTUVWXYZ"))


def a_portfolio(
    path: Path,
    recipe: PortfolioRecipe = RECIPE,
    seed: int = 0,
    prompts: tuple[str, ...] = PROMPTS,
) -> Portfolio:
    return precompute(tiny("llama"), FAMILIES, REWARDS, prompts, recipe, path=path, seed=seed)


def test_a_portfolio_of_a_size(tmp_path: Path) -> None:
    portfolio = a_portfolio(tmp_path / "edits.jsonl")
    assert 1 <= len(portfolio.edits) <= 2
    assert portfolio.certificate.candidates == len(portfolio.candidates) > 10
    worst = worst_delta(portfolio.measured, portfolio.kept, 0.0)
    assert portfolio.certificate.delta.loss == pytest.approx(worst.loss)
    for i, edit in zip(portfolio.kept, portfolio.edits, strict=True):
        candidate = portfolio.candidates[i]
        expected = compose(FAMILIES[candidate.family], candidate.coefficients)
        for layer in expected.layers:
            np.testing.assert_allclose(edit.layers[layer].e, expected.layers[layer].e, atol=1e-6)


@pytest.mark.parametrize("confirm", [0, 2])
def test_answers_are_kept_to_ask_about(tmp_path: Path, confirm: int) -> None:
    """Of the prompts that decided, with the rewards that the answers earn."""
    recipe = replace(RECIPE, questions=2, confirm_prompts=confirm)
    prompts = PROMPTS + CONFIRM
    portfolio = a_portfolio(tmp_path / "edits.jsonl", recipe, prompts=prompts)
    decided = CONFIRM if confirm else PROMPTS
    assert len(portfolio.answered) == 2
    for one in portfolio.answered:
        assert one.prompt in decided and len(one.answers) == 1 + len(portfolio.kept)
        for answer, rewards in zip(one.answers, one.rewards, strict=True):
            whole = is_coherent(answer)
            earned = [float(reward([one.prompt], [answer])[0]) * whole for reward in REWARDS]
            np.testing.assert_allclose(rewards, earned, atol=1e-4)
    unasked = replace(recipe, questions=0)
    assert a_portfolio(tmp_path / "edits.jsonl", unasked, prompts=prompts).answered == ()


def test_a_slow_machine_makes_the_same_portfolio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every look at the clock finds half a minute gone."""
    expected = a_portfolio(tmp_path / "edits.jsonl")
    hurried = itertools.count(0.0, 31.0)
    monkeypatch.setattr(steer.prune.time, "monotonic", lambda: next(hurried))
    found = a_portfolio(tmp_path / "edits.jsonl")
    assert (found.kept, found.candidates) == (expected.kept, expected.candidates)
    guaranteed = replace(RECIPE, size=None, epsilon=0.0, delta=0.03)
    assert a_portfolio(tmp_path / "edits.jsonl", guaranteed).certificate.delta.loss <= 0.03 + 1e-6


def test_a_portfolio_with_a_guarantee(tmp_path: Path) -> None:
    recipe = replace(RECIPE, size=None, epsilon=0.0, delta=0.03)
    portfolio = a_portfolio(tmp_path / "edits.jsonl", recipe)
    assert portfolio.certificate.delta.loss <= 0.03 + 1e-6


def test_killed_and_resumed_it_is_the_same(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    expected = a_portfolio(whole)
    data = whole.read_bytes()
    for length in (len(data) // 3, len(data) - 5):
        cut.write_bytes(data[:length])
        resumed = a_portfolio(cut)
        assert (resumed.kept, resumed.candidates) == (expected.kept, expected.candidates)
        np.testing.assert_allclose(resumed.mean_rewards, expected.mean_rewards)
        np.testing.assert_allclose(resumed.kl, expected.kl, atol=1e-6)


def test_further_prompts_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shortlist, only edits that hold there are candidates, and only by what they do there."""
    before = a_portfolio(tmp_path / "before.jsonl")
    fails = before.candidates[before.kept[0]]

    class Judge:
        """Calls answers whole unless they are of an edit that is to fail."""

        def __init__(self, answers: tuple[str, ...]) -> None:
            self.answers = answers

        @classmethod
        def of(cls, prompts: tuple[str, ...], answers: tuple[str, ...]) -> Judge:
            assert prompts == CONFIRM
            return cls(answers)

        def holds_against(self, unsteered: Judge, more_incoherent: float) -> bool:
            assert more_incoherent == 1 / len(CONFIRM)
            known = confirmations()
            assert unsteered.answers == known[before.candidates[0]].texts
            return self.answers != known[fails].texts

    def confirmations() -> dict[Candidate, Evaluation]:
        (path,) = tmp_path.glob("after-confirm-*.jsonl")
        return {one.candidate: one for one in read_evaluations(path)}

    monkeypatch.setattr(precompute_module, "Soundness", Judge)
    decoding = Decoding(max_new_tokens=20)
    recipe = replace(RECIPE, shortlist=3, confirm_prompts=2, confirm_decoding=decoding)
    after = a_portfolio(tmp_path / "after.jsonl", recipe, prompts=PROMPTS + CONFIRM)
    known = confirmations()
    alone = {Candidate(name, one) for name in FAMILIES for one in ((1.0, 0.0), (0.0, 1.0))}
    best = prune_to_size(before.measured, 3)
    assert set(known) == {before.candidates[i] for i in (0, *best)} | alone
    failed = {one for one in known if known[one].texts == known[fails].texts}
    assert set(after.candidates) == set(known) - failed
    for i, one in enumerate(after.candidates):
        np.testing.assert_allclose(after.mean_rewards[i], known[one].rewards.mean(0))
        assert after.kl[i] == pytest.approx(known[one].kl.mean())
    worst = worst_delta(after.measured, (0, *after.kept), 0.0)
    assert after.certificate.delta.loss == pytest.approx(worst.loss)
    assert not before.searched
    assert [trial.candidate for trial in after.searched] == list(before.candidates)
    np.testing.assert_allclose([trial.rewards for trial in after.searched], before.mean_rewards)
    np.testing.assert_allclose([trial.kl for trial in after.searched], before.kl)
    with pytest.raises(InputError, match="at least 6 prompts, got 4"):
        a_portfolio(tmp_path / "few.jsonl", recipe)


@pytest.mark.parametrize("confirm", [0, 2])
def test_compositions_stand_beside_what_is_found(tmp_path: Path, confirm: int) -> None:
    """They are measured as the rest is, each once, also where they were found."""
    recipe = replace(RECIPE, confirm_prompts=confirm)
    prompts = PROMPTS + CONFIRM
    before = a_portfolio(tmp_path / "found.jsonl", recipe, prompts=prompts)
    found, searched = before.candidates, [trial.candidate for trial in before.searched]
    strange = Candidate("deep", (0.123, 0.456))
    assert strange not in found
    both = precompute(
        tiny("llama"),
        FAMILIES,
        REWARDS,
        prompts,
        recipe,
        path=tmp_path / "both.jsonl",
        compositions=[found[-1], strange],
    )
    assert both.candidates == (*found, strange)
    assert [trial.candidate for trial in both.searched] == (list(searched) if confirm else [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traits": ("a",)}, "traits"),
        ({"traits": ("a", "a")}, "traits"),
        ({"size": None}, "size"),
        ({"delta": 0.1}, "size"),
        ({"size": 0}, "size"),
        ({"shortlist": 0}, "shortlist"),
        ({"size": None, "delta": -0.1}, "delta"),
        ({"size": None, "epsilon": float("nan")}, "epsilon"),
        ({"size": None, "epsilon": 1.5}, "0 to 1"),
        ({"prompts": 1}, "prompts"),
        ({"prompts": 90, "confirm_prompts": 11}, "confirm_prompts: expected 0 to 10"),
    ],
)
def test_bad_recipes(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(RECIPE, **changes)


def test_rewards_and_edits_fit_the_traits(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    with pytest.raises(InputError, match="2 rewards"):
        precompute(tiny("llama"), FAMILIES, REWARDS[:1], PROMPTS, RECIPE, path=path)
    with pytest.raises(InputError, match="2 edits"):
        families = {"deep": [an_edit(1)]}
        precompute(tiny("llama"), families, REWARDS, PROMPTS, RECIPE, path=path)
