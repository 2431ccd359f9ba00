"""Layers that edit by their own buffers, and which slot each token of a step has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from steer.edits import ZERO, Edit, two_step
from steer.errors import InputError, SteeringError, UnsupportedModelError
from steer.hooks import attach
from steer.serve.slots import Reserved, Slots
from steer.serve.steered_layers import decoder_layers, steer_layers
from steer.serve.step_rows import Begun, StepRows
from tests.models import LAYERS, WIDTH, tiny
from tests.test_generation import an_edit

CPU = torch.device("cpu")
ROOM = Reserved(layers=(1, 2, 3), rank=2, slots=5)


def projecting(seed: int) -> Edit:
    rng = np.random.default_rng(seed)
    p, n = ({2: rng.normal(size=WIDTH).astype(np.float32)} for _ in range(2))
    return two_step(p, n, sign_safe=True)


EDITS = [ZERO, an_edit(1), an_edit(2), projecting(3), 0.5 * an_edit(1)]


def reserved(dtype: torch.dtype = torch.float32) -> Slots:
    return Slots(WIDTH, dict.fromkeys(range(LAYERS), CPU), dtype, ROOM)


class Split(nn.Module):
    """A layer as vLLM has them: the stream is the sum of what it gives."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden, residual):
        residual = hidden if residual is None else hidden + residual
        return torch.tanh(self.linear(residual)), residual


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Split(seed) for seed in range(LAYERS))

    def forward(self, x):
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return x + residual


def by_hand(stack: Stack, x: torch.Tensor, edits: list[Edit]) -> np.ndarray:
    """Token by token, in NumPy."""
    rows = []
    for token, edit in zip(x.double().numpy(), edits, strict=True):
        for index, layer in enumerate(stack.layers):
            weight = layer.linear.weight.detach().double().numpy()
            token = token + np.tanh(weight @ token + layer.linear.bias.detach().double().numpy())
            part = edit.layers.get(index)
            if part is not None:
                read = token @ part.v
                read = np.where(part.relu, np.maximum(read, 0), read)
                token = token + part.e + part.u @ (read * part.c)
        rows.append(token)
    return np.stack(rows)


def test_a_stream_in_two_parts_is_edited_as_their_sum():
    stack, slots, buffer = Stack(), reserved(), torch.zeros(8, dtype=torch.int64)
    x = torch.randn(6, WIDTH)
    plain = stack(x)
    steer_layers(dict(enumerate(stack.layers)), slots.tables, buffer)
    assert torch.allclose(stack(x), plain, atol=1e-6)
    asked = [EDITS[i] for i in (1, 0, 3, 2, 4, 1)]
    buffer[:6] = torch.tensor([slots.take(edit) for edit in asked])
    np.testing.assert_allclose(stack(x).detach().numpy(), by_hand(stack, x, asked), atol=1e-5)


def test_a_graph_is_made_once_for_all_edits():
    stack, slots, buffer = Stack(), reserved(), torch.zeros(8, dtype=torch.int64)
    steer_layers(dict(enumerate(stack.layers)), slots.tables, buffer)
    counter = CompileCounter()
    compiled = torch.compile(stack, backend=counter, fullgraph=True)
    x = torch.randn(6, WIDTH)
    for number in range(4):
        asked = [EDITS[(i + number) % len(EDITS)] for i in range(6)]
        taken = [slots.take(edit) for edit in asked]
        buffer[:6] = torch.tensor(taken)
        found = compiled(x).detach().numpy()
        np.testing.assert_allclose(found, by_hand(stack, x, asked), atol=1e-5)
        for slot in taken:
            slots.give_back(slot)
    assert counter.frame_count == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_give_the_stream_are_edited_as_by_hooks(family):
    model = tiny(family)
    slots, buffer = reserved(), torch.zeros(16, dtype=torch.int64)
    ids = torch.tensor([[5, 9, 30, 41, 7]])
    with torch.no_grad():
        with attach(model).steer(EDITS[1], scope="all"):
            expected = model.model(ids).logits
        layers = decoder_layers(model.model, LAYERS)
        assert list(layers.values()) == list(model.layers)
        steer_layers(layers, slots.tables, buffer)
        buffer[:5] = slots.take(EDITS[1])
        assert torch.allclose(model.model(ids).logits, expected, atol=1e-5)


def test_layers_of_other_processes_are_left_out():
    stack = Stack()
    stack.layers[0] = stack.layers[3] = nn.Identity()
    assert list(decoder_layers(stack, LAYERS)) == [1, 2]
    with pytest.raises(UnsupportedModelError, match="one list of 5 decoder layers"):
        decoder_layers(stack, 5)
    # The last that is here must give a residual to send on.
    steer_layers(decoder_layers(stack, LAYERS), reserved().tables, torch.zeros(4, dtype=torch.long))
    hidden, residual = stack.layers[2](torch.randn(2, WIDTH), None)
    assert not residual.any()
    assert stack.layers[1](hidden, residual)[1] is None


def test_reserved_room_is_all_there_is():
    slots = reserved()
    for edit in EDITS:
        slots.take(edit)
    addresses = {index: tables.e.data_ptr() for index, tables in slots.tables.items()}
    with pytest.raises(SteeringError, match="all 5 slots"):
        slots.take(3.0 * an_edit(1))
    slots.give_back(slots.take(EDITS[1]))
    slots.give_back(1)
    slots.take(3.0 * an_edit(1))
    assert {index: tables.e.data_ptr() for index, tables in slots.tables.items()} == addresses
    with pytest.raises(InputError, match="rank 4 at layer 2 has no room"):
        slots.take(projecting(1) + projecting(2))
    with pytest.raises(InputError, match="layer 0 has no room"):
        slots.take(Edit({0: an_edit(1).layers[2]}))


# --- Steps ---------------------------------------------------------------------------------------

REQUESTS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=8)


@given(REQUESTS, st.sampled_from(["response", "all"]), st.randoms(use_true_random=False))
def test_each_token_has_the_slot_of_its_request_and_place(requests, scope, random):
    """Requests are read in parts, written on, put off and taken up again, at random."""
    slots, buffer = reserved(), torch.full((64,), 3, dtype=torch.int64)
    buffer.zero_()
    rows = StepRows(slots, lambda fields: EDITS[fields["edit"]], scope, buffer)
    done = dict.fromkeys(range(len(requests)), 0)
    known = {str(i): Begun(prompt, {"edit": edit}) for i, (edit, prompt) in enumerate(requests)}
    for _ in range(8):
        batch = random.sample(sorted(done), random.randint(1, min(4, len(done))))
        counts = [random.randint(1, 3) for _ in batch]
        request = np.repeat(np.arange(len(batch)), counts)
        position = np.concatenate(
            [np.arange(done[i], done[i] + n) for i, n in zip(batch, counts, strict=True)]
        )
        rows.fill([str(i) for i in batch], known.__getitem__, request, position)
        x = torch.zeros(len(request), WIDTH)
        for token, (place, at) in enumerate(zip(request, position, strict=True)):
            edit, prompt = requests[batch[place]]
            acts = edit and (scope == "all" or at >= prompt - 1)
            expected = EDITS[edit].layers[2].e if acts else x[token].numpy()
            np.testing.assert_array_equal(slots.tables[2].e[buffer[token], 0].numpy(), expected)
        assert not buffer[len(request) :].any()
        for i, n in zip(batch, counts, strict=True):
            done[i] += n
        assert slots.in_use == len({requests[i][0] for i in batch} - {0})
