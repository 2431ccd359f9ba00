"""Edits fitted to a contrast: against the teacher computed in a plain loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from steer.chat import render
from steer.contrast import Answer, Pair, PairSet, instructed
from steer.distill import Distillation, distill, pictograph_tokens
from steer.edits import ZERO, Edit, additive
from steer.errors import CalibrationError, InputError
from steer.generation import prompt_tokens
from steer.hooks import attach
from steer.models import LanguageModel
from tests.models import VOCABULARY, WIDTH, tiny, with_pictographs

PROMPTS = ["Why?", "How do I sew?", "Is it far?", "Tell me of the sea."]
# One batch, in which every token counts the same.
SETTINGS = Distillation(divergence=0.5, epochs=150, rows=4, learning_rate=0.1)


def pairs(model: LanguageModel) -> PairSet:
    found = []
    for i, prompt in enumerate(PROMPTS):
        sides = []
        for pole, text in (("positive", f"yes {i} please"), ("negative", "no")):
            tokens = tuple(model.tokenizer(text, add_special_tokens=False).input_ids)
            request = instructed(prompt, f"Be {pole}.")
            sides.append(Answer(f"p{i}", pole, request, text, tokens))  # type: ignore[arg-type]
        found.append(Pair(*sides))
    return PairSet("polite", tuple(found), {})


def log_probs(
    model: LanguageModel, request: str, answer: tuple[int, ...], edit: Edit
) -> np.ndarray:
    """Log-probabilities before each token of one answer alone, unpadded."""
    prompt = prompt_tokens(model, render(model.tokenizer, request))
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad(), attach(model).steer(edit, prompt_length=len(prompt)):
        logits = model.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).numpy()


@dataclass(frozen=True)
class Taught:
    """A model, what is asked of its teacher, and what that says of each positive answer."""

    model: LanguageModel
    settings: Distillation
    teachers: list[np.ndarray]  # (R, vocabulary) each


@pytest.fixture(scope="module", params=[True, False], ids=["all tokens", "no pictographs"])
def taught(request: pytest.FixtureRequest) -> Taught:
    """The exaggeration is searched on a fine grid, over the whole vocabulary, token by token."""
    model, quiet = (tiny(), []) if request.param else with_pictographs()
    ceiling = np.full(VOCABULARY, np.inf)
    ceiling[quiet] = 0
    said = [
        [
            log_probs(model, request, pair.positive.tokens, ZERO)
            for request in (prompt, pair.positive.request, pair.negative.request)
        ]
        for prompt, pair in zip(PROMPTS, pairs(model).pairs, strict=True)
    ]
    for alpha in np.arange(0.05, 20, 0.02):
        teachers = []
        for base, more, less in said:
            q = np.exp(base + alpha * np.minimum(more - less, ceiling))
            teachers.append(q / q.sum(1, keepdims=True))
        each = [
            q[t] @ (np.log(q[t]) - base[t])
            for q, (base, _, _) in zip(teachers, said, strict=True)
            for t in range(len(q))
        ]
        if np.mean(each) >= SETTINGS.divergence:
            return Taught(model, replace(SETTINGS, pictographs=request.param), teachers)
    raise AssertionError("the instructions make no difference")


def mean_kl(model: LanguageModel, teachers: list[np.ndarray], edit: Edit) -> float:
    """KL(q || p_e), token by token."""
    each = []
    for prompt, pair, q in zip(PROMPTS, pairs(model).pairs, teachers, strict=True):
        edited = log_probs(model, prompt, pair.positive.tokens, edit)
        each += [q[t] @ (np.log(q[t]) - edited[t]) for t in range(len(q))]
    return float(np.mean(each))


def test_it_is_where_the_divergence_from_the_teacher_is_least(taught: Taught) -> None:
    model, teachers = taught.model, taught.teachers
    edit = distill(model, pairs(model), PROMPTS, [1, 2], taught.settings)
    assert sorted(edit.layers) == [1, 2] and edit.rank == 0
    rng = np.random.default_rng(0)
    steps = [additive({k: 0.05 * rng.normal(size=WIDTH) for k in (1, 2)}) for _ in range(6)]

    def slopes(at: Edit) -> np.ndarray:
        """How the divergence changes along each step."""
        ends = [[mean_kl(model, teachers, at + sign * step) for sign in (1, -1)] for step in steps]
        return np.abs(np.subtract(*np.transpose(ends)))

    plain = mean_kl(model, teachers, ZERO)
    assert plain == pytest.approx(SETTINGS.divergence, rel=0.03)
    assert mean_kl(model, teachers, edit) < 0.95 * plain
    assert slopes(edit).mean() < 0.1 * slopes(ZERO).mean()


def test_pictographs_are_found_and_what_parts_of_characters_are() -> None:
    model, quiet = with_pictographs()
    assert pictograph_tokens(model) == sorted(quiet)
    assert pictograph_tokens(tiny()) == []


def test_the_same_seed_gives_the_same_edit_and_the_model_stays_as_it_was() -> None:
    model = tiny()
    weights = [p.detach().clone() for p in model.model.parameters()]
    settings = Distillation(epochs=2, rows=1)
    first, second = (distill(model, pairs(model), PROMPTS, [1], settings) for _ in range(2))
    other = distill(model, pairs(model), PROMPTS, [1], Distillation(epochs=2, rows=1, seed=1))
    assert np.array_equal(first.layers[1].e, second.layers[1].e)
    assert not np.array_equal(first.layers[1].e, other.layers[1].e)
    after = list(model.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert all(p.requires_grad and p.grad is None for p in after)
    assert not any(layer._forward_hooks for layer in model.layers)


def test_having_been_steered_before_makes_no_difference() -> None:
    model = tiny()
    edit = distill(model, pairs(model), PROMPTS, [1], Distillation(epochs=1))
    log_probs(model, "Why?", (5, 6, 7), edit)
    again = distill(model, pairs(model), PROMPTS, [1], Distillation(epochs=1))
    assert np.array_equal(edit.layers[1].e, again.layers[1].e)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_the_likelihood_of_what_the_teacher_wants_rises(family: str) -> None:
    model = tiny(family)
    found = pairs(model)
    settings = Distillation(epochs=10, learning_rate=0.1)
    edit = distill(model, found, PROMPTS, [2], settings)

    def contrast(at: Edit) -> float:
        """How much the edit leans to what the positive instruction favours, token by token."""
        total = 0.0
        for prompt, pair in zip(PROMPTS, found.pairs, strict=True):
            answer = pair.positive.tokens
            base, more, less = (
                log_probs(model, request, answer, ZERO)
                for request in (prompt, pair.positive.request, pair.negative.request)
            )
            moved = np.exp(log_probs(model, prompt, answer, at)) - np.exp(base)
            total += float((moved * (more - less)).sum())
        return total

    assert contrast(edit) > 0 > contrast(-edit)


def test_instructions_without_effect_are_refused() -> None:
    model = tiny()
    same = tuple(Pair(pair.positive, pair.positive) for pair in pairs(model).pairs)
    with pytest.raises(CalibrationError, match="too little difference"):
        distill(model, PairSet("polite", same, {}), PROMPTS, [1])


def test_what_does_not_fit_is_refused() -> None:
    model = tiny()
    with pytest.raises(InputError, match="3 prompts for 4 pairs"):
        distill(model, pairs(model), PROMPTS[:3], [1])
    with pytest.raises(InputError, match="layers in 0..3"):
        distill(model, pairs(model), PROMPTS, [4])
    with pytest.raises(InputError, match="divergence: expected a positive"):
        Distillation(divergence=0)


def test_answers_are_read_up_to_a_length() -> None:
    model = tiny()
    whole = pairs(model)
    cut = tuple(
        replace(pair, positive=replace(pair.positive, tokens=pair.positive.tokens[:4]))
        for pair in whole.pairs
    )
    settings = Distillation(epochs=2)
    short = distill(model, whole, PROMPTS, [1], replace(settings, tokens=4))
    expected = distill(model, PairSet("polite", cut, {}), PROMPTS, [1], settings)
    assert np.array_equal(short.layers[1].e, expected.layers[1].e)
    every = distill(model, whole, PROMPTS, [1], settings)
    assert not np.allclose(short.layers[1].e, every.layers[1].e, atol=1e-3)


def test_the_rate_falls_evenly_to_zero() -> None:
    """In steps so small that the slope stays, each step of Adam is the rate in every number."""
    model, rate = tiny(), 1e-5
    settings = Distillation(epochs=4, rows=4, learning_rate=rate)
    steps = np.abs(distill(model, pairs(model), PROMPTS, [1], settings).layers[1].e)
    assert np.median(steps) == pytest.approx(rate * (1 + 3 / 4 + 2 / 4 + 1 / 4), rel=0.02)
