"""`steer.continuations`: likelihoods after prompts that are read once, against plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from steer.activations import hooked
from steer.batches import pad, response_logits
from steer.continuations import Continuations
from steer.distill import adder, frozen
from steer.edits import Edit, additive, two_step
from steer.errors import InputError
from steer.hooks import attach
from steer.likelihood import mean_log_likelihood
from steer.models import LanguageModel, wrap_model
from tests import naive
from tests.models import FAMILIES, LAYERS, VOCABULARY, WIDTH, tiny, tiny_model, tiny_tokenizer

Pairs = list[tuple[list[int], list[int]]]

# Longer and shorter than the sliding windows, which are 16.
PROMPTS = (5, 20, 2, 11, 33)
RESPONSES = (3, 9, 1, 7, 21)


def different(seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(4, VOCABULARY, p).tolist(), rng.integers(4, VOCABULARY, r).tolist())
        for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]


def one_prompt(length: int = 19) -> Pairs:
    prompt = np.random.default_rng(1).integers(4, VOCABULARY, length).tolist()
    return [(list(prompt), response) for _, response in different(2)]


SETS = {
    "different": different(),
    "shared": one_prompt(),
    "shared, of two tokens": one_prompt(2),
    "shared and shortest": one_prompt(1),
    "two prompts, in turn": [one_prompt()[0], different()[0], *one_prompt()[1:3], different()[1]],
    "one of them a token": [*different()[:2], *one_prompt(1)[2:4]],
    "one": different()[1:2],
}
every_set = pytest.mark.parametrize("pairs", SETS.values(), ids=SETS)


def directions(seed: int, scale: float = 1.0) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        layer: (scale * rng.standard_normal(WIDTH) / np.sqrt(WIDTH)).astype(np.float32)
        for layer in range(1, LAYERS)
    }


EDITS = [
    additive(directions(1, 4.0)) + two_step(directions(2), directions(3), sign_safe=True),
    additive(directions(4, 4.0)),
    two_step(directions(5), directions(6), alpha=2.0),
    None,
    additive(directions(7, 2.0)),
]


def plain(model: LanguageModel, prompt: list[int], response: list[int], edit: Edit | None) -> float:
    """One full sequence without padding or cache, a token at a time."""
    logits = naive.logits_of(model, [*prompt, *response], edit, len(prompt) - 1).double()
    scores = logits.log_softmax(-1)
    return sum(float(scores[len(prompt) - 1 + i, token].item()) for i, token in enumerate(response))


def found(model: LanguageModel, pairs: Pairs) -> np.ndarray:
    with torch.no_grad():
        return Continuations(model, pairs).log_likelihood().double().numpy()


@every_set
@pytest.mark.parametrize("family", FAMILIES)
def test_the_likelihood_is_that_of_whole_sequences(family: str, pairs: Pairs) -> None:
    model = tiny(family)
    result = found(model, pairs)
    expected = [plain(model, *pair, None) for pair in pairs]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)
    means = mean_log_likelihood(model, pairs)
    np.testing.assert_allclose(result / [len(r) for _, r in pairs], means, rtol=1e-5, atol=1e-5)


@every_set
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_logits_are_those_before_each_token(family: str, pairs: Pairs) -> None:
    model = tiny(family)
    with torch.no_grad():
        one = Continuations(model, pairs)
        logits = one.logits()
    longest = max(len(response) for _, response in pairs)
    assert logits.shape == (len(pairs), longest, VOCABULARY) and logits.dtype == torch.float32
    for row, (prompt, response) in enumerate(pairs):
        alone = naive.logits_of(model, [*prompt, *response], None, 0)
        expected = alone[len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(response)], expected, atol=1e-4, rtol=0)
        assert one.ids[row, : 1 + len(response)].tolist() == [prompt[-1], *response]
        assert one.mask[row].tolist() == [1] * len(response) + [0] * (longest - len(response))


@every_set
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_act_as_on_the_full_batch(family: str, pairs: Pairs) -> None:
    model = tiny(family)
    hooks = attach(model)
    texts = Continuations(model, pairs)
    batch = pad(model, pairs, list(range(len(pairs))))
    for edits in (EDITS[0], EDITS[: len(pairs)]):
        with torch.no_grad():
            with hooks.steer(edits, prompt_length=batch.prompt_length):
                logits = response_logits(model, batch)
            with hooks.steer(edits, prompt_length=1):
                result = texts.log_likelihood()
        targets = batch.ids[:, batch.prompt_length :, None]
        chosen = logits.log_softmax(-1).gather(-1, targets)[..., 0] * batch.response_mask
        torch.testing.assert_close(result, chosen.sum(1), atol=1e-4, rtol=1e-5)
        rows = [edits] * len(pairs) if isinstance(edits, Edit) else edits
        expected = [plain(model, *pair, edit) for pair, edit in zip(pairs, rows, strict=True)]
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-4)
        without = [plain(model, *pair, None) for pair in pairs]
        assert np.abs(np.subtract(expected, without)).max() > 0.1, "the edits do nothing"


def test_many_edits_on_what_was_read_once() -> None:
    """The keys and values that are kept stay as they are, within a block and between blocks."""
    model = tiny("gemma2")
    hooks = attach(model)
    texts = Continuations(model, different())
    with torch.no_grad():
        first = texts.log_likelihood()
        under = []
        for edit in (EDITS[0], EDITS[1], EDITS[0]):
            assert edit is not None
            with hooks.steer(edit, prompt_length=1):
                under.append(texts.log_likelihood())
                assert torch.equal(texts.log_likelihood(), under[-1])
        assert torch.equal(texts.log_likelihood(), first)
    assert torch.equal(under[0], under[2]) and not torch.allclose(under[0], under[1], atol=0.1)


@pytest.mark.parametrize(
    ("pairs", "rows", "columns"),
    [
        (one_prompt(), 1, 18),
        (one_prompt() + one_prompt(12) + different()[:1], 3, 18),
        (different(), len(PROMPTS), max(PROMPTS) - 1),
    ],
)
def test_each_prompt_is_read_once(pairs: Pairs, rows: int, columns: int) -> None:
    model = tiny("llama")
    shapes: list[Sequence[int]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        texts = Continuations(model, pairs)
        texts.log_likelihood()
    finally:
        handle.remove()
    assert shapes == [(rows, columns), (len(pairs), 1 + max(RESPONSES))]


def exact(family: str) -> LanguageModel:
    """In fp64, but for Gemma 2, whose masks overflow there: padded rows give NaN."""
    model = tiny_model(family)
    return wrap_model(model if family == "gemma2" else model.double(), tiny_tokenizer())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_added_vectors(family: str, shared: bool) -> None:
    """Against central differences along random directions."""
    model = exact(family)
    texts = Continuations(model, one_prompt() if shared else different())
    rng = np.random.default_rng(8)
    layers = (0, 2)
    start = torch.from_numpy(0.1 * rng.standard_normal((2, WIDTH)))
    length, slopes = 5e-3, []

    def value(vectors: torch.Tensor) -> torch.Tensor:
        hooks = {layer: adder(vectors[i]) for i, layer in enumerate(layers)}
        with hooked(model, hooks):
            return texts.log_likelihood().double()

    for row in (0, 3):
        vectors = start.clone().requires_grad_(True)
        with frozen(model):
            value(vectors)[row].backward()
        gradient = vectors.grad
        assert gradient is not None and gradient.abs().sum(1).min() > 0
        for _ in range(3):
            step = torch.from_numpy(rng.standard_normal((2, WIDTH)) * [[1.0], [rng.normal()]])
            step *= length / step.norm()
            with torch.no_grad():
                ends = [float(value(start + sign * step)[row]) for sign in (1, -1)]
            by_ends = (ends[0] - ends[1]) / (2 * length)
            slopes.append((by_ends, float((gradient * step).sum()) / length))
    np.testing.assert_allclose(*np.transpose(slopes), rtol=0.01, atol=3e-3)
    assert np.abs(slopes).max() > 0.1, "the vectors do nothing"


def test_gradients_are_taken_again_and_again() -> None:
    model = tiny("llama")
    texts = Continuations(model, different())
    vector = torch.zeros(WIDTH, requires_grad=True)
    gradients = []
    for _ in range(2):
        vector.grad = None
        with frozen(model), hooked(model, {1: adder(vector)}):
            texts.log_likelihood().sum().backward()
        assert vector.grad is not None
        gradients.append(vector.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (([], [6]), "sequence 1: expected a prompt and a response"),
        (([5, 6], []), "sequence 1: expected a prompt and a response"),
    ],
)
def test_sequences_without_tokens_are_refused(
    broken: tuple[list[int], list[int]], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        Continuations(tiny("llama"), [different()[0], broken])


def test_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="got none"):
        Continuations(tiny("llama"), [])
