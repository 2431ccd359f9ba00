"""An additive edit baked into a checkpoint, as biases: it runs in any engine, without hooks.

What a decoder layer adds to the stream ends with its down-projection, so a bias of that projection
is added to the layer's output: x <- x + e. Llama-like models have no such biases but know a setting
for them (`mlp_bias`); with it the gate and up projections get zeros.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from steer.edits import Array
from steer.errors import InputError
from steer.models import LanguageModel
from steer.quiet import no_progress_bars

# By `config.model_type`: where the last projection of a layer is that ends in the stream, with
# nothing behind it.
_DOWN = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h"}
# Other projections that the setting `mlp_bias` gives a bias.
_BESIDE = {"llama": ("mlp.gate_proj", "mlp.up_proj")}


def bake(
    language_model: LanguageModel, vectors: Mapping[int, Array], folder: str | Path, told: str
) -> None:
    """Write a checkpoint with its tokenizer. The model itself is as it was afterwards.

    Args:
        language_model: The model.
        vectors: What is added after each layer (d,), by 0-based layer.
        folder: Is made, and must not exist.
        told: What the checkpoint is, for its README.

    Raises:
        InputError: If the model is of a kind that has no place for it or is quantised, the vectors
            do not fit, or the folder exists.
    """
    model, folder = language_model.model, Path(folder)
    kind = str(model.config.model_type)
    if kind not in _DOWN:
        raise InputError(
            f"models of type {kind!r} have no bias that ends in the stream; known: "
            f"{', '.join(_DOWN)}. A control vector may do (`steer export gguf`)"
        )
    layers, width = language_model.layers, language_model.width
    if _is_quantised(model, layers, kind):
        raise InputError(
            "the model's weights are quantised, and its biases would be too; load it without "
            "quantisation, and quantise the checkpoint that is written"
        )
    if bad := [i for i, e in vectors.items() if i >= len(layers) or e.shape != (width,)]:
        raise InputError(
            f"the vectors at layers {bad} do not fit a model of {len(layers)} layers "
            f"and width {width}"
        )
    check_new(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _biased(model, layers, kind, vectors), no_progress_bars():
            model.save_pretrained(temporary)
        language_model.tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(told + "\n", encoding="utf-8")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Refuse a folder for a checkpoint that is there already.

    Raises:
        InputError: If it is.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; name a new folder")


def _is_quantised(model: PreTrainedModel, layers: tuple[nn.Module, ...], kind: str) -> bool:
    if getattr(model.config, "quantization_config", None) is not None:
        return True
    weights: list[Any] = [layer.get_submodule(_DOWN[kind]).weight for layer in layers]
    # That of one of PyTorch's quantised modules is a method.
    return not all(isinstance(w, torch.Tensor) and w.is_floating_point() for w in weights)


@contextmanager
def _biased(
    model: PreTrainedModel, layers: tuple[nn.Module, ...], kind: str, vectors: Mapping[int, Array]
) -> Iterator[None]:
    """The model with the vectors in its biases, inside the block."""
    before: list[tuple[Any, nn.Parameter | None]] = []
    setting = getattr(model.config, "mlp_bias", None)
    try:
        for index, layer in enumerate(layers):
            down: Any = layer.get_submodule(_DOWN[kind])
            before.append((down, down.bias))
            _set_bias(down, vectors.get(index))
            for name in _BESIDE.get(kind, ()):
                beside: Any = layer.get_submodule(name)
                before.append((beside, beside.bias))
                _set_bias(beside, None)
        if setting is not None:
            model.config.mlp_bias = True
        yield
    finally:
        for module, bias in before:
            module.bias = bias
        if setting is not None:
            model.config.mlp_bias = setting


def _set_bias(module: Any, added: Array | None) -> None:
    """Its bias, or zeros, with something added; a new tensor."""
    weight = module.weight
    # GPT-2 keeps its weights the other way round.
    size = weight.shape[1] if type(module).__name__ == "Conv1D" else weight.shape[0]
    bias = torch.zeros(size, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        if module.bias is not None:
            bias += module.bias
        if added is not None:
            bias += torch.from_numpy(added).to(bias)
    module.bias = nn.Parameter(bias, requires_grad=False)
