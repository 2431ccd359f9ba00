"""`steer.kernel`: the formula, against plain Python loops over rows and tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer.edits import LayerEdit
from steer.hooks import pack
from steer.kernel import Tables, apply, edit_rows, gather


def formula(x, edit, gate):
    """x + g (e + U (phi(V^T x) * c)) for one activation x (d,), number by number."""
    if edit is None:
        return [float(value) for value in x]
    d, k = len(x), len(edit.c)
    delta = [float(edit.e[i]) for i in range(d)]
    for j in range(k):
        projection = sum(float(edit.v[i, j]) * float(x[i]) for i in range(d))
        if edit.relu[j]:
            projection = max(projection, 0.0)
        for i in range(d):
            delta[i] += float(edit.u[i, j]) * projection * float(edit.c[j])
    return [float(x[i]) + gate * delta[i] for i in range(d)]


def layer_edit(rng, d, k):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return LayerEdit(draw(d), draw(d, k), draw(d, k), draw(k), rng.random(k) < 0.5)


@st.composite
def cases(draw):
    """Edits by slot (slot 0 is None), a slot per row, and the sizes."""
    d = draw(st.integers(1, 7))
    ranks = draw(st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    edits = [None, *(None if k is None else layer_edit(rng, d, k) for k in ranks)]
    rows = draw(st.lists(st.integers(0, len(edits) - 1), min_size=1, max_size=5))
    tokens = draw(st.integers(1, 4))
    rank = max((k for k in ranks if k is not None), default=0) + draw(st.integers(0, 2))
    h = rng.standard_normal((len(rows), tokens, d)).astype(np.float32)
    return edits, rows, rank, h, rng


def expected(edits, rows, h, gate):
    return np.array(
        [
            [formula(h[b, t], edits[slot], float(gate[b, t, 0])) for t in range(h.shape[1])]
            for b, slot in enumerate(rows)
        ]
    )


@given(cases())
def test_apply_is_the_formula(case):
    edits, rows, rank, h, rng = case
    gate = rng.random((h.shape[0], h.shape[1], 1)).astype(np.float32)
    tables = pack(edits, h.shape[2], rank)
    given_h = torch.from_numpy(h.copy())
    result = apply(given_h, torch.tensor(rows), tables, torch.from_numpy(gate))
    np.testing.assert_allclose(result.numpy(), expected(edits, rows, h, gate), atol=1e-3, rtol=1e-4)
    assert result.shape == h.shape
    assert np.array_equal(given_h.numpy(), h), "the input was changed"


@given(cases())
def test_a_gate_a_column_or_one_for_all(case):
    edits, rows, rank, h, rng = case
    tables, index = pack(edits, h.shape[2], rank), torch.tensor(rows)
    for shape in [(h.shape[1], 1), (1, 1, 1), ()]:
        gate = rng.random(shape).astype(np.float32)
        result = apply(torch.from_numpy(h), index, tables, torch.tensor(gate))
        wanted = expected(edits, rows, h, np.broadcast_to(gate, (*h.shape[:2], 1)))
        np.testing.assert_allclose(result.numpy(), wanted, atol=1e-3, rtol=1e-4)


@given(cases())
def test_flattened_rows_and_tokens(case):
    edits, rows, rank, h, rng = case
    flat = h.reshape(-1, h.shape[2])
    slots = np.repeat(rows, h.shape[1])
    gate = rng.random((len(flat), 1)).astype(np.float32)
    tables = pack(edits, h.shape[2], rank)
    result = apply(
        torch.from_numpy(flat), torch.from_numpy(slots), tables, torch.from_numpy(gate)
    ).numpy()
    wanted = [
        formula(x, edits[slot], float(g))
        for x, slot, g in zip(flat, slots, gate[:, 0], strict=True)
    ]
    assert result.shape == flat.shape
    np.testing.assert_allclose(result, np.array(wanted), atol=1e-3, rtol=1e-4)


@given(cases())
def test_slot_zero_and_closed_gates_leave_activations_bit_identical(case):
    edits, rows, rank, h, _ = case
    tables = pack(edits, h.shape[2], rank)
    h = torch.from_numpy(h)
    open_gate, closed_gate = torch.ones(h.shape[1], 1), torch.zeros(h.shape[1], 1)
    result = apply(h, torch.tensor(rows), tables, open_gate)
    for row, slot in enumerate(rows):
        if edits[slot] is None:
            assert torch.equal(result[row], h[row])
    assert torch.equal(apply(h, torch.tensor(rows), tables, closed_gate), h)


@given(cases())
def test_gathered_rows_give_what_slots_give(case):
    edits, rows, rank, h, _ = case
    tables, index = pack(edits, h.shape[2], rank), torch.tensor(rows)
    picked = gather(tables, index)
    for part, whole in zip(picked, tables, strict=True):
        for row, slot in enumerate(rows):
            assert torch.equal(part[row], whole[slot])
    h, gate = torch.from_numpy(h), torch.ones(1, 1)
    assert torch.equal(edit_rows(h, picked, gate), apply(h, index, tables, gate))


@given(cases())
def test_padding_the_rank_changes_nothing(case):
    edits, rows, rank, h, _ = case
    h, index, gate = torch.from_numpy(h), torch.tensor(rows), torch.ones(1, 1)
    narrow = apply(h, index, pack(edits, h.shape[2], rank), gate)
    wide = apply(h, index, pack(edits, h.shape[2], rank + 3), gate)
    torch.testing.assert_close(wide, narrow, atol=1e-4, rtol=1e-5)


def test_layer_edits_own_formula_is_the_same():
    rng = np.random.default_rng(0)
    for k in (0, 1, 3):
        edit = layer_edit(rng, 6, k)
        x = rng.standard_normal((2, 5, 6)).astype(np.float32)
        wanted = [[formula(x[b, t], edit, 1.0) for t in range(5)] for b in range(2)]
        result = edit.apply(x)
        np.testing.assert_allclose(result, wanted, atol=1e-4)
        assert result.dtype == np.float32


def test_rank_zero_tables_run_no_projection():
    tables = pack([None, layer_edit(np.random.default_rng(0), 4, 0)], 4, 0)
    assert tables.rank == 0
    assert tables.v.shape == (2, 4, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_are_kept(dtype):
    rng = np.random.default_rng(0)
    edits = [None, layer_edit(rng, 5, 2)]
    tables = Tables(*(part.to(dtype) for part in pack(edits, 5, 2)))
    h = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = apply(h, torch.tensor([0, 1]), tables, torch.ones(3, 1, dtype=dtype))
    assert result.dtype == dtype
    assert torch.equal(result[0], h[0])
    wanted = expected(edits, [0, 1], h.double().numpy(), np.ones((2, 3, 1)))
    np.testing.assert_allclose(result.double().numpy(), wanted, atol=0.15, rtol=0.05)


def test_gradients_reach_the_input():
    rng = np.random.default_rng(0)
    tables = Tables(*(part.double() for part in pack([None, layer_edit(rng, 4, 2)], 4, 2)))
    h = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    gate = torch.ones(3, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: apply(x, torch.tensor([0, 1]), tables, gate), (h,))
