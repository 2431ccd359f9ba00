"""Edits before their dose: distilled ones are fitted once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steer import undosed
from steer.contrast import Answer, Pair, PairSet
from steer.distill import Distillation, distill
from steer.errors import DataError
from steer.models import LanguageModel
from steer.prompts import load_prompts
from steer.recipe import Method
from steer.subspace import fit_subspace
from steer.undosed import plain_prompts, undosed_edit
from tests.models import WIDTH, tiny

PAIRS = PairSet(
    "calm",
    tuple(
        Pair(
            *(
                Answer(prompt.id, pole, f"{prompt.text[:20]} {pole}", "text", (5, 9, 30 + number))
                for pole in ("positive", "negative")
            )
        )
        for number, prompt in enumerate(load_prompts("extract")[:6])
    ),
    {},
)
SUBSPACE = fit_subspace(
    "calm",
    *({2: np.random.default_rng(seed).normal(size=(10, WIDTH)) + seed} for seed in (1, 0)),
)


def made(
    model: LanguageModel, folder: Path, method: Method = "distilled", seed: int = 0
) -> np.ndarray:
    edit = undosed_edit(
        model, PAIRS, SUBSPACE, [2], method, folder, distillation=Distillation(seed=seed)
    )
    assert list(edit.layers) == [2]
    return edit.layers[2].e


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("fitted again")


def test_it_is_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = distill(model, PAIRS, plain_prompts(PAIRS), [2], Distillation())
    first = made(model, tmp_path)
    monkeypatch.setattr(undosed, "distill", refuse)
    assert np.array_equal(first, expected.layers[2].e)
    assert np.array_equal(made(model, tmp_path), first)
    # Of another model, or with another seed, it is another edit.
    for other, seed in ((tiny(seed=1), 0), (model, 1)):
        with pytest.raises(AssertionError, match="fitted again"):
            made(other, tmp_path, seed=seed)
    (path,) = (tmp_path / "distilled").iterdir()
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="not a stored edit"):
        made(model, tmp_path)


def test_other_methods_fit_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undosed, "distill", refuse)
    read = made(tiny(), tmp_path, "mean-difference")
    np.testing.assert_allclose(read, SUBSPACE.layers[2].mean_difference, rtol=1e-5)
    assert not list(tmp_path.iterdir())
