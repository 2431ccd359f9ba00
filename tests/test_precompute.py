"""`steer.precompute`: from edits and rewards to a portfolio, killed and gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steer.certificate import worst_delta
from steer.edits import compose
from steer.errors import InputError
from steer.generation import Decoding
from steer.portfolio import Portfolio
from steer.precompute import PortfolioRecipe, precompute
from steer.rewards import Range, TextReward
from steer.search import Effort
from tests.models import tiny
from tests.test_generation import an_edit

PROMPTS = ("Hi", "How are you?", "Tell me about rain.", "Why?")
FAMILIES = {"deep": [an_edit(1), an_edit(3)], "early": [an_edit(2), an_edit(4)]}
RECIPE = PortfolioRecipe(
    ("brevity", "zest"),
    size=2,
    prompts=4,
    decoding=Decoding(max_new_tokens=8, no_repeat_ngram_size=0),
    effort=Effort(first=6, batch=3, rounds=1, pool=32),
)


def letters(of: str) -> TextReward:
    return TextReward(
        f"letters of {of!r}",
        lambda text: sum(letter in of for letter in text) / max(1, len(text)),
        Range(0, 1),
    )


REWARDS = (letters("abcdefghijklmABCDEFGHIJKLM"), letters("nopqrstuvwxyzNOPQRSTUVWXYZ"))


def a_portfolio(path: Path, recipe: PortfolioRecipe = RECIPE, seed: int = 0) -> Portfolio:
    return precompute(tiny("llama"), FAMILIES, REWARDS, PROMPTS, recipe, path=path, seed=seed)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traits": ("a",)}, "traits"),
        ({"traits": ("a", "a")}, "traits"),
        ({"size": None}, "size"),
        ({"delta": 0.1}, "size"),
        ({"size": 0}, "size"),
        ({"size": None, "delta": -0.1}, "delta"),
        ({"size": None, "epsilon": float("nan")}, "epsilon"),
        ({"prompts": 1}, "prompts"),
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
