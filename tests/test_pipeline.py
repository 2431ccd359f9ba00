"""The steps of a build that keep what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steer import pipeline
from steer.activations import read_activations
from steer.errors import DataError
from steer.pipeline import Recipe, _read
from tests.models import tiny

SEQUENCES = [([5, 6, 7], [8, 9]), ([5, 6], [10, 11, 12]), ([9], [20])]


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("read again")


def test_activations_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = tiny("llama")
    expected = read_activations(language_model, SEQUENCES, [1, 3])
    first = _read(language_model, "calm", SEQUENCES, [1, 3], Recipe(), tmp_path)
    monkeypatch.setattr(pipeline, "read_activations", refuse)
    second = _read(language_model, "calm", SEQUENCES, [1, 3], Recipe(), tmp_path)
    for found in (first, second):
        assert sorted(found) == [1, 3]
        for layer, values in found.items():
            assert np.array_equal(values, expected[layer])
    assert [path.suffix for path in (tmp_path / "activations").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("changed", ["sequences", "layers", "pooling", "model"])
def test_other_activations_are_not_taken_for_them(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model = tiny("llama")
    _read(language_model, "calm", SEQUENCES, [1, 3], Recipe(), tmp_path)
    monkeypatch.setattr(pipeline, "read_activations", refuse)
    with pytest.raises(AssertionError, match="read again"):
        _read(
            tiny("qwen2") if changed == "model" else language_model,
            "calm",
            SEQUENCES[:2] if changed == "sequences" else SEQUENCES,
            [1, 2] if changed == "layers" else [1, 3],
            Recipe(pooling="last") if changed == "pooling" else Recipe(),
            tmp_path,
        )


def test_damaged_activations_are_named(tmp_path: Path) -> None:
    language_model = tiny("llama")
    _read(language_model, "calm", SEQUENCES, [1], Recipe(), tmp_path)
    (path,) = (tmp_path / "activations").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="delete it"):
        _read(language_model, "calm", SEQUENCES, [1], Recipe(), tmp_path)
