"""Edits fitted to texts: against a plain loop over whole sequences, with an Adam by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steer.edits import ZERO, Edit, additive, two_step
from steer.errors import InputError
from steer.hooks import attach
from steer.imitate import Imitation, imitate
from steer.models import LanguageModel
from tests import naive
from tests.models import WIDTH, tiny

Pairs = list[tuple[list[int], list[int]]]

TEXTS = [
    ("Why?", "because it is so"),
    ("How do I sew?", "with a thread"),
    ("Is it far?", "no"),
    ("Tell me of the sea.", "it is wet and wide and deep"),
    ("And then?", "that was all of it"),
]
LAYERS = [1, 2]
# One batch of all texts, whole.
SETTINGS = Imitation(steps=6, rows=8, learning_rate=0.05)


def pairs(model: LanguageModel) -> Pairs:
    def ids(text: str) -> list[int]:
        found: list[int] = model.tokenizer(text, add_special_tokens=False).input_ids
        return found

    return [(ids(prompt), ids(text)) for prompt, text in TEXTS]


def mean_loss(model: LanguageModel, texts: Pairs, edit: Edit) -> float:
    """Mean -log p over the tokens of the texts, one unpadded sequence at a time."""
    each = []
    for prompt, text in texts:
        logits = naive.logits_of(model, [*prompt, *text], edit, len(prompt) - 1)
        scores = logits.double().log_softmax(-1)
        each += [-float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(text)]
    return float(np.mean(each))


def gradient(model: LanguageModel, texts: Pairs, at: np.ndarray) -> np.ndarray:
    """Of `mean_loss` in vectors (layers, d), by autograd through whole sequences."""
    vectors = torch.tensor(at, dtype=torch.float32, requires_grad=True)
    total = torch.zeros(())
    for prompt, text in texts:
        first = len(prompt) - 1

        def hook_of(vector: Tensor, first: int = first) -> object:
            def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
                h = output if isinstance(output, Tensor) else output[0]
                changed = torch.cat([h[:, :first], h[:, first:] + vector], 1)
                return changed if isinstance(output, Tensor) else (changed, *output[1:])

            return hook

        handles = [
            model.layers[layer].register_forward_hook(hook_of(vectors[i]))  # type: ignore[arg-type]
            for i, layer in enumerate(LAYERS)
        ]
        ids = torch.tensor([[*prompt, *text]])
        scores = model.model(ids, use_cache=False).logits[0, first:-1].log_softmax(-1)
        total = total - scores[torch.arange(len(text)), ids[0, len(prompt) :]].sum()
        for handle in handles:
            handle.remove()
    (total / sum(len(text) for _, text in texts)).backward()
    model.model.zero_grad()
    assert vectors.grad is not None
    return vectors.grad.double().numpy()


def by_hand(
    model: LanguageModel, parts: list[Pairs], settings: Imitation, start: np.ndarray
) -> np.ndarray:
    """Adam with a rate that falls evenly to zero."""
    at, m, v = start.astype(np.float64), np.zeros_like(start), np.zeros_like(start)
    for k in range(settings.steps):
        g = gradient(model, parts[k % len(parts)], at)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        rate = settings.learning_rate * (1 - k / settings.steps)
        at -= rate * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.95 ** (k + 1))) + 1e-8)
    return at


def vectors_of(edit: Edit) -> np.ndarray:
    assert edit.rank == 0
    return np.stack([layer.e for layer in edit.layers.values()])


def a_start(seed: int = 0) -> Edit:
    rng = np.random.default_rng(seed)
    return additive({k: 0.1 * rng.standard_normal(WIDTH).astype(np.float32) for k in LAYERS})


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
def test_the_texts_become_likelier(family: str) -> None:
    model = tiny(family)
    texts = pairs(model)
    before = mean_loss(model, texts, ZERO)
    losses = [
        mean_loss(model, texts, imitate(model, texts, LAYERS, replace(SETTINGS, steps=steps)))
        for steps in (1, 6, 30)
    ]
    assert before > losses[0] > losses[1] > losses[2]
    assert losses[2] < before - 0.2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_first_step_goes_down_the_gradient(family: str) -> None:
    """Adam's first step is the learning rate in every number, against the gradient's sign."""
    model = tiny(family)
    texts = pairs(model)
    one = imitate(model, texts, LAYERS, replace(SETTINGS, steps=1))
    slope = gradient(model, texts, np.zeros((2, WIDTH)))
    clear = np.abs(slope) > 1e-5
    assert clear.mean() > 0.95
    expected = -SETTINGS.learning_rate * np.sign(slope)
    np.testing.assert_allclose(vectors_of(one)[clear], expected[clear], rtol=2e-3)
    assert sorted(one.layers) == LAYERS


def close(found: Edit, expected: np.ndarray) -> None:
    # Where a slope is nearly zero its rounding decides a whole step.
    differs = np.abs(vectors_of(found) - expected) > 2e-4
    assert differs.mean() < 0.05
    assert np.abs(expected).max() > 0.05


def test_many_steps_are_those_of_adam() -> None:
    model = tiny("llama")
    texts = pairs(model)
    close(
        imitate(model, texts, LAYERS, SETTINGS),
        by_hand(model, [texts], SETTINGS, np.zeros((2, WIDTH))),
    )


def test_batches_take_turns() -> None:
    model = tiny("llama")
    texts = pairs(model)
    settings = Imitation(steps=5, rows=2)
    order = np.random.default_rng(3).permutation(5)
    parts = [[texts[i] for i in order[k : k + 2]] for k in (0, 2, 4)]
    close(
        imitate(model, texts, LAYERS, settings, seed=3),
        by_hand(model, parts, settings, np.zeros((2, WIDTH))),
    )


def test_no_batch_is_left_out() -> None:
    model = tiny("llama")
    texts = pairs(model)
    order = np.random.default_rng(0).permutation(5)
    parts = [[texts[i] for i in order[k : k + 2]] for k in (0, 2, 4)]
    close(
        imitate(model, texts, LAYERS, Imitation(steps=1, rows=2)),
        by_hand(model, parts, Imitation(steps=3, rows=2), np.zeros((2, WIDTH))),
    )


def test_a_start_is_begun_with_and_left_alone() -> None:
    model = tiny("llama")
    texts, start = pairs(model), a_start()
    before = vectors_of(start).copy()
    close(
        imitate(model, texts, LAYERS, SETTINGS, start=start),
        by_hand(model, [texts], SETTINGS, before),
    )
    assert np.array_equal(vectors_of(start), before)
    slow = imitate(model, texts, LAYERS, replace(SETTINGS, learning_rate=1e-6), start=start)
    np.testing.assert_allclose(vectors_of(slow), before, atol=1e-5)


def test_texts_are_read_up_to_a_length() -> None:
    model = tiny("llama")
    texts = pairs(model)
    cut = [(prompt, text[:4]) for prompt, text in texts]
    short = imitate(model, texts, LAYERS, replace(SETTINGS, tokens=4))
    assert np.array_equal(
        vectors_of(short), vectors_of(imitate(model, cut, LAYERS, replace(SETTINGS, tokens=99)))
    )
    whole = imitate(model, texts, LAYERS, SETTINGS)
    assert not np.allclose(vectors_of(short), vectors_of(whole), atol=1e-2)


def test_the_same_seed_gives_the_same_edit() -> None:
    model = tiny("llama")
    first, again, other = (
        imitate(model, pairs(model), LAYERS, Imitation(steps=3, rows=2), seed=seed)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(vectors_of(first), vectors_of(again))
    assert not np.allclose(vectors_of(first), vectors_of(other), atol=1e-3)


def test_the_model_stays_as_it_was() -> None:
    model = tiny("llama")
    parameters = list(model.model.parameters())
    for parameter in parameters[::3]:
        parameter.requires_grad_(False)
    wanted = [p.requires_grad for p in parameters]
    weights = [p.detach().clone() for p in parameters]
    edit = imitate(model, pairs(model), LAYERS, SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(weights, parameters, strict=True))
    assert [p.requires_grad for p in parameters] == wanted and len(set(wanted)) == 2
    assert all(p.grad is None for p in parameters)
    assert not any(layer._forward_hooks for layer in model.layers)
    # Neither does it matter what the model did before.
    with torch.inference_mode(), attach(model).steer(edit):
        model.model(torch.tensor([[5, 6, 7]]))
    with torch.no_grad():
        again = imitate(model, pairs(model), LAYERS, SETTINGS)
    assert np.array_equal(vectors_of(again), vectors_of(edit))


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")

    def fail(self: object, loss: object = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", fail)
    with pytest.raises(KeyboardInterrupt):
        imitate(model, pairs(model), LAYERS, SETTINGS)
    assert all(p.requires_grad for p in model.model.parameters())
    assert not any(layer._forward_hooks for layer in model.layers)


@pytest.mark.parametrize(
    "start",
    [
        additive({1: np.zeros(WIDTH, np.float32)}),
        additive({k: np.zeros(WIDTH, np.float32) for k in (0, 2)}),
        additive({k: np.zeros(WIDTH, np.float32) for k in (1, 2, 3)}),
        ZERO,
        two_step(*({k: np.ones(WIDTH, np.float32) for k in LAYERS} for _ in range(2))),
    ],
    ids=["fewer layers", "others", "more", "none", "not additive"],
)
def test_a_start_that_does_not_fit_is_refused(start: Edit) -> None:
    model = tiny("llama")
    with pytest.raises(
        InputError, match=r"start: expected an additive edit of width 32 of layers \[1, 2\]"
    ):
        imitate(model, pairs(model), LAYERS, SETTINGS, start=start)


def test_what_cannot_be_imitated_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(InputError, match="texts to imitate, got none"):
        imitate(model, [], LAYERS)
    with pytest.raises(InputError, match="layers in 0..3"):
        imitate(model, pairs(model), [4])
    with pytest.raises(InputError, match="sequence 0: expected a prompt and a response"):
        imitate(model, [([5, 6], [])], LAYERS)


@pytest.mark.parametrize("name", ["steps", "rows", "tokens", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_settings_that_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name}.*(a positive|a whole) number.*got {value}"):
        Imitation(**{name: value})


def test_a_start_of_another_width_is_refused() -> None:
    model = tiny("llama")
    start = additive({layer: np.ones(WIDTH - 1, np.float32) for layer in LAYERS})
    with pytest.raises(InputError, match=f"of width {WIDTH}"):
        imitate(model, pairs(model), LAYERS, start=start)


def test_the_loss_with_disliked_texts_is_the_formula() -> None:
    """One step of Adam goes against the sign of the gradient, of texts and disliked ones."""
    model = tiny("llama")
    liked, disliked = pairs(model)[:3], pairs(model)[3:]
    at = np.zeros((len(LAYERS), WIDTH), np.float32)

    def mean_each(vectors: np.ndarray) -> np.ndarray:
        edit = additive(dict(zip(LAYERS, vectors.astype(np.float32), strict=True)))
        return np.array([-mean_loss(model, [one], edit) for one in disliked])

    # sigma(0) = 1/2 where nothing has changed yet: half the gradient of their mean likelihood.
    expected = gradient(model, liked, at)
    for one in disliked:
        expected = expected - 0.5 * gradient(model, [one], at) / len(disliked)
    step = imitate(model, liked, LAYERS, replace(SETTINGS, steps=1), disliked=disliked)
    moved = np.stack([step.layers[layer].e for layer in LAYERS])
    clear = np.abs(expected) > 1e-4
    np.testing.assert_array_equal(np.sign(moved[clear]), -np.sign(expected[clear]))

    settings = replace(SETTINGS, steps=12)
    with_them = imitate(model, liked, LAYERS, settings, disliked=disliked)
    without = imitate(model, liked, LAYERS, settings)
    each = [
        mean_each(np.stack([edit.layers[layer].e for layer in LAYERS])).mean()
        for edit in (with_them, without)
    ]
    assert each[0] < min(each[1], mean_each(at).mean())
    assert mean_loss(model, liked, with_them) < mean_loss(model, liked, ZERO)


def test_no_disliked_batch_is_left_out() -> None:
    """With fewer steps than batches asked for, each of the disliked texts still counts."""
    model = tiny("llama")
    liked, disliked = pairs(model)[:1], pairs(model)[1:4]
    settings = Imitation(steps=1, rows=1)
    whole = vectors_of(imitate(model, liked, LAYERS, settings, disliked=disliked))
    for i, (prompt, text) in enumerate(disliked):
        changed = [*disliked[:i], (prompt, text[::-1] + [9]), *disliked[i + 1 :]]
        other = vectors_of(imitate(model, liked, LAYERS, settings, disliked=changed))
        assert not np.allclose(other, whole, atol=1e-3), f"text {i} counts for nothing"
