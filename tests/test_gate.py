"""Gates: against plain least squares, the formula, and what a tiny model does with and without."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from steer.chat import render
from steer.edits import ZERO, additive, two_step
from steer.errors import InputError
from steer.gate import _RIDGE, Gate, _solved, behind, fit_gate
from steer.generation import prompt_tokens
from steer.models import LanguageModel
from tests.models import WIDTH, tiny

RNG = np.random.default_rng(4)
X = RNG.standard_normal((9, WIDTH)).astype(np.float32)
GATE = Gate({1: X[0], 3: X[1]})
EDIT = additive({1: X[2], 3: X[3]})


def test_a_gated_edit_is_the_formula() -> None:
    gated = GATE(EDIT)
    for layer, v, e in ((1, X[0], X[2]), (3, X[1], X[3])):
        plain = [x + max(float(np.dot(v, x)), 0.0) * e for x in X]
        np.testing.assert_allclose(gated.layers[layer].apply(X), plain, atol=1e-4)
        assert gated.layers[layer].rank == 1
    assert behind(GATE, EDIT).digest == gated.digest
    assert behind(None, EDIT) is EDIT


def test_mixing_and_scaling_may_come_before_or_after() -> None:
    other = additive({3: X[4]})
    before, after = GATE(0.5 * EDIT + 2.0 * other), 0.5 * GATE(EDIT) + 2.0 * GATE(other)
    for layer in (1, 3):
        np.testing.assert_allclose(
            before.layers[layer].apply(X), after.layers[layer].apply(X), atol=1e-4
        )
    assert GATE(0.0 * EDIT).is_zero() and GATE(ZERO).is_zero()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="only additive edits"):
        GATE(two_step({1: X[0]}, {1: X[1]}))
    with pytest.raises(InputError, match=r"knows layers \[1, 3\], the edit is of \[2\]"):
        GATE(additive({1: X[0], 2: X[1]}))
    for bad in ({1: 0 * X[0]}, {1: X}, {-1: X[0]}, {1: X[0] * np.nan}):
        with pytest.raises(InputError, match="finite direction"):
            Gate(bad)


def test_its_digest_tells_it_from_others() -> None:
    others = [GATE, Gate({1: X[1], 3: X[0]}), Gate({1: X[0]}), Gate({1: X[0], 2: X[1]})]
    assert len({gate.digest for gate in others}) == 4
    assert Gate(dict(GATE.directions)).digest == GATE.digest


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_read_only_too(copied: Callable[[Gate], Gate]) -> None:
    given = X[0].copy()
    gate = Gate({1: given})
    other = copied(gate)
    given[...] = 0  # the caller's own is the caller's own
    assert other.digest == gate.digest == Gate({1: X[0]}).digest
    for one in (gate, other):
        with pytest.raises(ValueError, match="read-only"):
            one.directions[1][...] = 0
    assert repr(other) == "Gate(layers=[1])"


def answers(model: LanguageModel) -> list[tuple[list[int], tuple[int, ...]]]:
    prompts = ["Hi.", "What is a comet, and why?", "Tea?"]
    rng = np.random.default_rng(0)
    return [
        (
            prompt_tokens(model, render(model.tokenizer, prompt)),
            tuple(rng.integers(5, 60, length).tolist()),
        )
        for prompt, length in zip(prompts, (12, 5, 30), strict=True)
    ]


def hidden(model: LanguageModel, tokens: list[int], layer: int) -> np.ndarray:
    """(T, d) after a layer, one row, no padding."""
    with torch.no_grad():
        states = model.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return states[layer + 1][0].double().numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_ridge_regression_on_every_token(family: str) -> None:
    model = tiny(family)
    layer, start = 1, model.tokenizer.bos_token_id
    rows, targets = [], []
    for chat, answer in answers(model):
        inside = hidden(model, [*chat, *answer], layer)[len(chat) - 1 :]
        before = [start] if start is not None else []
        outside = hidden(model, [*before, *answer], layer)[len(before) + 1 :]
        rows += [*inside, *outside]
        targets += [1.0] * len(inside) + [-1.0] * len(outside)
    x, y = np.array(rows), np.array(targets)
    spread = np.sqrt((x**2).sum(0))
    # Ridge as further rows of plain least squares, in units of each dimension's spread.
    stacked = np.vstack([x / spread, np.sqrt(_RIDGE) * np.eye(WIDTH)])
    expected = np.linalg.lstsq(stacked, np.r_[y, np.zeros(WIDTH)], rcond=None)[0] / spread
    found = fit_gate(model, answers(model), [layer, 3]).directions
    assert list(found) == [1, 3]
    np.testing.assert_allclose(found[layer], expected, rtol=0.02, atol=0.01 * abs(expected).max())
    projected = x @ found[layer]
    assert projected[y > 0].mean() > 0.3 and projected[y < 0].mean() < -0.3


def test_an_answer_of_one_token_tells_nothing() -> None:
    model = tiny()
    with pytest.raises(InputError, match="at least two tokens"):
        fit_gate(model, [([5, 6], (7,))], [1])
    with pytest.raises(InputError, match="after a chat"):
        fit_gate(model, [([], (7, 8))], [1])
    with pytest.raises(InputError, match="layers in"):
        fit_gate(model, answers(model), [99])


def test_a_dimension_that_is_always_zero_gets_no_weight() -> None:
    x = np.random.default_rng(0).standard_normal((40, 6))
    x[:, 2] = 0
    y = np.sign(x[:, 0])
    found = _solved(x.T @ x, x.T @ y)
    assert np.isfinite(found).all() and found[2] == 0
    others = [0, 1, 3, 4, 5]
    alone = _solved(x[:, others].T @ x[:, others], x[:, others].T @ y)
    np.testing.assert_allclose(found[others], alone, atol=1e-6)
