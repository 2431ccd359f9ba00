"""A model without its weights: what a process needs that leaves computing to another.

Its tokenizer, its configuration, and the fingerprint that bundles are checked against, read off the
checkpoint's files a sample at a time.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from steer.errors import ModelError
from steer.models import LOAD_ERRORS, LanguageModel, fingerprint, load_model, wrap_model
from steer.packaged import packaged_model_dir

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def checkpoint_folder(model: str | Path | None) -> Path:
    """Where a model's files lie; downloads a hub id's.

    Args:
        model: Local folder or hub id; None for the packaged SmolLM2-135M-Instruct.

    Raises:
        ModelError: If there is no such model.
    """
    if model is None:
        return packaged_model_dir()
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {str(model)!r} could not be found: {error}. Expected a local folder, or the id "
            "of a model on the hub"
        ) from error


def load_skeleton(folder: Path, name: str) -> LanguageModel:
    """A language model whose parameters have shapes and no values.

    Args:
        folder: Where its files lie.
        name: What it is called.

    Raises:
        ModelError: If it cannot be loaded.
        UnsupportedModelError: If its decoder layers are not found.
    """
    try:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if (folder / "generation_config.json").exists():
            network.generation_config = GenerationConfig.from_pretrained(folder)
        weights = _weights(folder)
    except LOAD_ERRORS as error:
        raise ModelError(f"model {name!r} could not be loaded: {error}") from error
    skeleton = wrap_model(network, tokenizer, name=name)
    quantised = getattr(network.config, "quantization_config", None) is not None
    if not quantised and {name for name, _ in network.named_parameters()} <= weights.keys():
        found = fingerprint(network, len(skeleton.layers), weights)
    else:
        # The files have other names or values than the model, which renames or unpacks what it
        # loads.
        found = load_model(folder, device="cpu").fingerprint
    return replace(skeleton, fingerprint=found)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in safetensors, mapped into memory rather than read."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    found: dict[str, torch.Tensor] = {}
    for path in (folder / name for name in names):
        if path.exists():
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found
