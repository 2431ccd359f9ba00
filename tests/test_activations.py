"""`steer.activations`, against `output_hidden_states` of each sequence alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from steer.activations import read_activations
from steer.edits import additive
from steer.errors import InputError
from steer.hooks import attach
from tests.models import FAMILIES, LAYERS, VOCABULARY, WIDTH, tiny

INNER = list(range(LAYERS - 1))  # the last hidden state of transformers is after the final norm


def make_sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        tuple(rng.integers(4, VOCABULARY, length).tolist() for length in pair) for pair in lengths
    ]


SEQUENCES = make_sequences([(5, 3), (1, 9), (20, 1), (7, 7), (2, 2), (0, 4), (3, 18)])


def oracle(language_model, prompt, response, layer, pooling):
    with torch.no_grad():
        hidden = language_model.model(
            torch.tensor([[*prompt, *response]]), output_hidden_states=True
        ).hidden_states[layer + 1][0]
    chosen = hidden[len(prompt) :]
    return (chosen.mean(0) if pooling == "mean" else chosen[-1]).numpy()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reads_what_each_sequence_alone_shows(family, pooling):
    language_model = tiny(family)
    read = read_activations(language_model, SEQUENCES, INNER, pooling=pooling, batch_tokens=50)
    assert set(read) == set(INNER)
    for layer in INNER:
        assert read[layer].shape == (len(SEQUENCES), WIDTH)
        assert read[layer].dtype == np.float32
        for row, (prompt, response) in enumerate(SEQUENCES):
            expected = oracle(language_model, prompt, response, layer, pooling)
            np.testing.assert_allclose(read[layer][row], expected, atol=1e-3, rtol=1e-4)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def test_last_layer_is_read_before_the_final_norm(llama):
    read = read_activations(llama, SEQUENCES, [LAYERS - 1], pooling="last")[LAYERS - 1]
    for row, (prompt, response) in enumerate(SEQUENCES):
        expected = oracle(llama, prompt, response, LAYERS - 1, "last")
        with torch.no_grad():
            normed = llama.model.model.norm(torch.from_numpy(read[row])).numpy()
        np.testing.assert_allclose(normed, expected, atol=1e-4)
        assert not np.allclose(read[row], expected, atol=0.1)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_batching_does_not_change_values_or_order(llama, batch_tokens):
    sizes = []
    handle = llama.layers[0].register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].shape[:2])
    )
    read = read_activations(llama, SEQUENCES, [1, 2], batch_tokens=batch_tokens)
    handle.remove()
    alone = [read_activations(llama, [sequence], [1, 2]) for sequence in SEQUENCES]
    for layer in (1, 2):
        rows = np.concatenate([values[layer] for values in alone])
        np.testing.assert_allclose(read[layer], rows, atol=1e-4)
    assert sum(rows for rows, _ in sizes) == len(SEQUENCES)
    assert all(rows == 1 or rows * columns <= batch_tokens for rows, columns in sizes)


def test_layers_in_any_order(llama):
    read = read_activations(llama, SEQUENCES, [2, 0])
    for layer in (0, 2):
        assert np.array_equal(read[layer], read_activations(llama, SEQUENCES, [0, 2])[layer])


@pytest.mark.parametrize("last", [0, 2, 3])
def test_nothing_runs_above_the_last_layer_that_is_read(llama, last):
    ran = Counter()
    parts = {**dict(enumerate(llama.layers)), "head": llama.model.lm_head}
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: ran.update([name]))
        for name, part in parts.items()
    ]
    read_activations(llama, SEQUENCES[:1], [0, last])
    for handle in handles:
        handle.remove()
    assert ran == {layer: 1 for layer in range(last + 1)}


def hook_counts(language_model):
    return [len(layer._forward_hooks) for layer in language_model.layers]


def test_hooks_are_removed_also_after_an_error(llama):
    before = hook_counts(llama)
    read_activations(llama, SEQUENCES, INNER)
    assert hook_counts(llama) == before

    def boom(*_):
        raise ZeroDivisionError

    handle = llama.layers[1].register_forward_pre_hook(boom)
    try:
        with pytest.raises(ZeroDivisionError):
            read_activations(llama, SEQUENCES, INNER)
    finally:
        handle.remove()
    assert hook_counts(llama) == before
    with torch.no_grad():
        assert llama.model(torch.tensor([[5, 6]])).logits.shape == (1, 2, VOCABULARY)


def test_reads_with_steering_hooks_attached():
    language_model = tiny("llama")
    before = read_activations(language_model, SEQUENCES, INNER)
    e = np.ones(WIDTH, np.float32)
    hooks = attach(language_model)
    after = read_activations(language_model, SEQUENCES, INNER)
    assert all(np.array_equal(before[layer], after[layer]) for layer in INNER)
    # Inside a block the edited stream is read.
    with hooks.steer(additive({1: e}), scope="all"):
        inside = read_activations(language_model, SEQUENCES, [1])
    np.testing.assert_allclose(inside[1], before[1] + e, atol=1e-4)


def test_half_precision_is_pooled_in_full():
    language_model = tiny("llama")
    full = read_activations(language_model, SEQUENCES, INNER)
    language_model.model.to(torch.bfloat16)
    half = read_activations(language_model, SEQUENCES, INNER)
    for layer in INNER:
        assert half[layer].dtype == np.float32
        assert np.linalg.norm(half[layer] - full[layer]) < 0.1 * np.linalg.norm(full[layer])


def test_no_sequences(llama):
    assert read_activations(llama, [], [1])[1].shape == (0, WIDTH)


@pytest.mark.parametrize("layers", [[], [-1], [0, LAYERS]])
def test_layers_that_do_not_exist(llama, layers):
    with pytest.raises(InputError, match=f"0..{LAYERS - 1}"):
        read_activations(llama, SEQUENCES, layers)


def test_other_errors(llama):
    with pytest.raises(InputError, match="median"):
        read_activations(llama, SEQUENCES, [0], pooling="median")
    with pytest.raises(InputError, match="response 1"):
        read_activations(llama, [SEQUENCES[0], ([5, 6], [])], [0])
