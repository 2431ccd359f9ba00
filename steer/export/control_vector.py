"""GGUF control vectors, as llama.cpp and repeng read them.

A tensor `direction.N` (d,) is added to what layer N gives, counted from 0. llama.cpp has no place
for layer 0 (its `llama_control_vector_apply` begins at 1), and neither has such a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from steer.edits import Array
from steer.errors import DataError, InputError
from steer.models import Fingerprint
from steer.resources import atomic_path

_ARCHITECTURE = "controlvector"


def write_control_vector(path: str | Path, vectors: Mapping[int, Array], model_type: str) -> None:
    """Write a file.

    Args:
        path: Of the file.
        vectors: What is added after each layer (d,), by 0-based layer.
        model_type: Of the model, as transformers names it; a hint for people and repeng.

    Raises:
        InputError: If there is no vector, or one at layer 0.
    """
    if not vectors:
        raise InputError("expected at least one vector")
    if 0 in vectors:
        raise InputError("a control vector cannot act at layer 0; build without that layer")
    path = Path(path)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def model_type(fingerprint: Fingerprint) -> str:
    """How transformers names the type of a model that a fingerprint is of."""
    by_class = {name: kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    return str(by_class.get(fingerprint.architecture, fingerprint.architecture))


def read_control_vector(path: str | Path) -> tuple[dict[int, Array], str]:
    """The vectors of a file by layer, and the type of its model.

    Raises:
        DataError: If it cannot be read, or is no control vector.
    """
    try:
        reader = gguf.GGUFReader(path)
        hint = reader.get_field(f"{_ARCHITECTURE}.model_hint")
        found = {
            int(tensor.name.removeprefix("direction.")): np.array(tensor.data, np.float32)
            for tensor in reader.tensors
            if tensor.name.startswith("direction.")
        }
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: not a readable GGUF file: {error}") from error
    if hint is None or not found:
        raise DataError(f"{path}: a GGUF file, but no control vector")
    return found, bytes(hint.parts[-1]).decode("utf-8", "replace")
