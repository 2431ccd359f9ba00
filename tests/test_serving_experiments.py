"""The scripts of experiments/serving, on a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

if transformers.__version__.startswith("4."):
    pytest.skip("serving needs transformers 5", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
sys.path.append(str(Path(__file__).parents[1] / "experiments" / "serving"))
import throughput
from speeds import Case, Row
from timing import twin

from steer.serve.continuous import Room
from tests.test_steerer import a_steerer


def test_every_arm_answers_everybody():
    steerer = a_steerer()
    plain = twin(steerer.language_model.model)
    room = Room(rows=2, step_tokens=64, cache_tokens=4096, page=16)
    rows = throughput.measured(steerer, plain, Case(3, 4, 2), room, np.random.default_rng(0), 0)
    assert [row.arm for row in rows] == ["plain", "unsteered", "steered", "dynamic"]
    assert rows[0] == Row(3, "4", "plain", rows[0].speed, 1.0, 1.0, 1.0)
    assert all(row.speed > 0 and row.low <= row.ratio <= row.high for row in rows)
    edits = throughput.edits_of(steerer, 5, 0)
    assert len({edit.digest for edit in edits}) == 5
    assert [edit.digest for edit in throughput.edits_of(steerer, 5, 0)] == [
        edit.digest for edit in edits
    ]


def test_answers_of_a_case_differ_in_length_where_it_says_so():
    assert Case(3, 4, 2).lengths(0) == [4, 4, 4]
    mixed = Case(50, 9, 1, shortest=2)
    assert set(mixed.lengths(0)) == set(range(2, 10)) and mixed.lengths(0) == mixed.lengths(0)
    assert mixed.lengths(0) != mixed.lengths(1) and mixed.answers == "2 to 9"
