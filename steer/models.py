"""Load a model, find its decoder layers, fingerprint it."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from steer.errors import (
    InputError,
    ModelError,
    SlowPrecisionWarning,
    UnsupportedModelError,
    UntestedModelWarning,
)
from steer.fields import check_fields, check_text, check_whole
from steer.packaged import NAME as PACKAGED_NAME
from steer.packaged import packaged_model_dir
from steer.quiet import no_progress_bars


@dataclass(frozen=True)
class Family:
    """Where the decoder layers of a model family lie.

    Attributes:
        path: Attribute path from the causal language model to its list of layers.
        tested: Whether the test suite steers a model of this family.
    """

    path: str
    tested: bool = True


_MODEL_LAYERS = Family("model.layers")

# By `config.model_type`.
FAMILIES: Mapping[str, Family] = {
    "llama": _MODEL_LAYERS,
    "mistral": _MODEL_LAYERS,
    "qwen2": _MODEL_LAYERS,
    "qwen3": _MODEL_LAYERS,
    "gemma2": _MODEL_LAYERS,
    "gemma3_text": _MODEL_LAYERS,
    "phi3": _MODEL_LAYERS,
    "olmo2": _MODEL_LAYERS,
    "gpt2": Family("transformer.h"),
    "gpt_neox": Family("gpt_neox.layers"),
    "gemma": Family("model.layers", tested=False),
    "gemma3": Family("model.language_model.layers", tested=False),
    "mixtral": Family("model.layers", tested=False),
    "phi": Family("model.layers", tested=False),
    "qwen2_moe": Family("model.layers", tested=False),
    "qwen3_moe": Family("model.layers", tested=False),
    "smollm3": Family("model.layers", tested=False),
    "gptj": Family("transformer.h", tested=False),
    "falcon": Family("transformer.h", tested=False),
    "opt": Family("model.decoder.layers", tested=False),
}

LOAD_ERRORS = (
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    ValueError,
    pickle.UnpicklingError,
)
"""What `transformers` raises of a model that is missing, damaged or does not fit its settings."""

# Elements of one weight that enter the fingerprint: evenly spaced, so that a model of any size
# is read in about a second and any fine-tuned copy still differs.
_SAMPLED_ELEMENTS = 16_384


@dataclass(frozen=True)
class Fingerprint:
    """What a model is: a bundle built on one model is refused on another.

    Attributes:
        architecture: Class name of the model.
        layers: Number of decoder layers.
        width: Width d of the residual stream.
        vocabulary: Number of token embeddings.
        weights: SHA-256 (hex) over a sample of all weights, the same for fp32, fp16 and bf16
            copies of a bf16 checkpoint.
    """

    architecture: str
    layers: int
    width: int
    vocabulary: int
    weights: str

    def __str__(self) -> str:
        return (
            f"{self.architecture}/{self.layers}x{self.width}/v{self.vocabulary}/{self.weights[:12]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, where: str) -> Fingerprint:
        """The fingerprint that `to_dict` made a JSON object of.

        Args:
            value: The object.
            where: It stands, for the error.

        Raises:
            InputError: If it has other fields, or one is not what it should be.
        """
        found = cls(**check_fields(value, cls, where))
        check_fingerprint(found, where)
        return found


def check_fingerprint(value: object, where: str) -> None:
    """Check that a value tells which model something was made with.

    Args:
        value: The value.
        where: Where it stands, for the error.

    Raises:
        InputError: If it does not.
    """
    if not isinstance(value, Fingerprint):
        raise InputError(f"{where}: expected a Fingerprint, got {value!r:.80}")
    for key in ("architecture", "weights"):
        check_text(getattr(value, key), f"{where}, {key!r}")
    for key in ("layers", "width", "vocabulary"):
        if check_whole(getattr(value, key), f"{where}, {key!r}") == 0:
            raise InputError(f"{where}, {key!r}: expected 1 or more, got 0")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen causal language model with its tokenizer and its decoder layers.

    Attributes:
        name: What it was loaded as.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, padding on the left.
        layers: The decoder layers, first to last.
        fingerprint: What a bundle is checked against.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: tuple[nn.Module, ...]
    fingerprint: Fingerprint

    @property
    def width(self) -> int:
        """Width d of the residual stream."""
        return self.fingerprint.width

    @property
    def device(self) -> torch.device:
        """Device on which token ids are expected."""
        return execution_device(self.model.get_input_embeddings())

    @property
    def precision(self) -> str:
        """Type of the activations, such as "float32"."""
        return str(self.model.dtype).removeprefix("torch.")


def load_model(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    quantization_config: Any = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        model: Local folder or hub id; None for the packaged SmolLM2-135M-Instruct.
        device: "cpu", "cuda", "mps", ...; None picks CUDA, then MPS, then CPU. Not with
            `device_map`.
        dtype: Weights' type; None picks fp32 on the CPU (where bf16 is slower without special
            units) and the checkpoint's own type elsewhere.
        device_map: Spreads the layers over several devices (needs `accelerate`).
        quantization_config: Passed to `from_pretrained`, for quantised weights.

    Raises:
        InputError: If there is no such device, or both `device` and `device_map` are given.
        ModelError: If it cannot be loaded, or put on the device.
        UnsupportedModelError: If its decoder layers are not found.

    Warns:
        SlowPrecisionWarning: If its weights' type is one that this CPU has no units for.
        UntestedModelWarning: If the family is not one that the test suite covers.
    """
    source = packaged_model_dir() if model is None else model
    name = PACKAGED_NAME if model is None else str(model)
    if device is not None and device_map is not None:
        raise InputError("pass either device or device_map, not both")
    target = _usable_device(device or _default_device())
    if dtype is None and device_map is None and target.type == "cpu":
        dtype = torch.float32
    options: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}
    if device_map is not None:
        options["device_map"] = device_map
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    try:
        with no_progress_bars():
            loaded = AutoModelForCausalLM.from_pretrained(source, **options)
            tokenizer = AutoTokenizer.from_pretrained(source)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"model {name!r} could not be loaded: {error}. Expected a local folder with a "
            "checkpoint and tokenizer, or the id of a causal language model on the hub"
        ) from error
    if device_map is None and quantization_config is None:
        try:
            loaded = loaded.to(target)
        # Out of memory, say, or quantised in a way that is bound to where it was loaded.
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"model {name!r} could not be put on {target}: {error}") from error
    usable = wrap_model(loaded, tokenizer, name=name)
    if usable.device.type == "cpu" and not _has_units(loaded.dtype):
        warnings.warn(
            f"this processor has no units for {usable.precision}: batches may take several times "
            "as long as in float32",
            SlowPrecisionWarning,
            stacklevel=2,
        )
    return usable


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "local model"
) -> LanguageModel:
    """Make a `LanguageModel` of a model and tokenizer that are already loaded.

    The tokenizer is set to pad on the left, as generation needs; the model to evaluation mode.

    Raises:
        UnsupportedModelError: If its decoder layers are not found.
    """
    model.eval()
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        # Any token does: padding is masked.
        other = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.pad_token = other or tokenizer.convert_ids_to_tokens(0)
    layers = find_layers(model)
    return LanguageModel(name, model, tokenizer, layers, fingerprint(model, len(layers)))


def check_positions(language_model: LanguageModel, prompt: int, answer: int) -> None:
    """Refuse a text that is longer than the table of positions that a model has learnt, as GPT-2's.

    A model that computes its positions goes on, better or worse, beyond the length it was made for.

    Args:
        language_model: The model.
        prompt: Tokens of the longest prompt.
        answer: Tokens that may follow it.

    Raises:
        InputError: If it has no positions for them.
    """
    model = language_model.model
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is None or prompt + answer <= most:
        return
    tokens = model.get_input_embeddings()
    # Some tables begin with a row or two for padding.
    if any(
        isinstance(module, nn.Embedding)
        and module is not tokens
        and most <= module.num_embeddings <= most + 2
        for module in model.modules()
    ):
        raise InputError(
            f"the model knows {most} positions: expected no more tokens than that, got {prompt} of "
            f"a prompt and up to {answer} of its answer; shorten the prompt, or ask for fewer "
            "tokens (max_new_tokens)"
        )


def execution_device(module: nn.Module) -> torch.device:
    """Device on which a module computes, also where accelerate keeps its weights elsewhere."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def find_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Decoder layers of a model, from the table of families, else by their shape.

    Raises:
        UnsupportedModelError: If there is no list of `num_hidden_layers` layers.

    Warns:
        UntestedModelWarning: If the family is not one that the test suite covers.
    """
    model_type = model.config.model_type
    family = FAMILIES.get(model_type)
    if family is not None:
        try:
            layers = model.get_submodule(family.path)
        except AttributeError:  # a model without its language head, say
            layers = None
        tested = family.tested
    else:
        layers = _search_layers(model)
        tested = False
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise UnsupportedModelError(
            f"no decoder layers found in {type(model).__name__} (model_type {model_type!r}); "
            f"known families: {', '.join(sorted(FAMILIES))}. Add the family's path to "
            "steer.models.FAMILIES"
        )
    if not tested:
        warnings.warn(
            f"decoder layers of model_type {model_type!r} were found, but this family is not "
            "covered by the tests: check a steered answer before relying on it",
            UntestedModelWarning,
            stacklevel=2,
        )
    return tuple(layers)


def _search_layers(model: PreTrainedModel) -> nn.Module | None:
    expected = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == expected
        and len({type(layer) for layer in module}) == 1
    ]
    # Two candidates (an encoder beside a decoder, say) would be a guess.
    return found[0] if len(found) == 1 else None


def fingerprint(
    model: PreTrainedModel, layers: int, weights: Mapping[str, torch.Tensor] | None = None
) -> Fingerprint:
    """Fingerprint of a model: architecture, sizes, and a hash over a sample of its weights.

    Args:
        model: The model.
        layers: How many decoder layers it has.
        weights: By the names of its parameters, where it does not hold them itself.
    """
    hasher = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if _is_tied_copy(model, parameter):
            continue
        weight = _value(model, name, parameter) if weights is None else weights[name]
        hasher.update(f"{name}{tuple(weight.shape)}".encode())
        if weight.device.type != "meta":
            hasher.update(_sample(weight.detach()))
    embeddings = model.get_input_embeddings().weight
    return Fingerprint(
        architecture=type(model).__name__,
        layers=layers,
        width=model.config.get_text_config().hidden_size,
        vocabulary=embeddings.shape[0],
        weights=hasher.hexdigest(),
    )


def _is_tied_copy(model: PreTrainedModel, parameter: nn.Parameter) -> bool:
    """Whether it is the head of a model that has it tied, and accelerate's offload took it apart.

    Tied weights are one parameter, and count once, until each is put on `meta` by itself.
    """
    head = model.get_output_embeddings()
    return (
        parameter.device.type == "meta"
        and head is not None
        and parameter is head.weight
        and parameter is not model.get_input_embeddings().weight
        and model.config.tie_word_embeddings
    )


def _value(model: PreTrainedModel, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """A parameter with its values, also where accelerate keeps them on the CPU or the disk.

    It is given back as it is if nothing has its values.
    """
    if parameter.device.type != "meta":
        return parameter
    path = name.split(".")
    # A module may hold those of the modules within it, too.
    for depth in reversed(range(len(path))):
        hook = getattr(model.get_submodule(".".join(path[:depth])), "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):  # several are joined in a SequentialHook
            held: Mapping[str, torch.Tensor] = getattr(part, "weights_map", None) or {}
            value = held.get(".".join(path[depth:]))
            if value is not None:
                return value
    return parameter


def _sample(weight: torch.Tensor) -> bytes:
    flat = weight.reshape(-1)
    flat = flat[:: max(1, flat.numel() // _SAMPLED_ELEMENTS)].cpu()
    if flat.is_floating_point():
        # fp16 keeps every bf16 value above its smallest normal number; smaller ones are dropped
        # so that copies of one checkpoint in different types agree.
        flat = flat.float()
        flat = torch.where(flat.abs() < 2.0**-14, 0.0, flat).bfloat16().view(torch.int16)
    return flat.contiguous().view(torch.uint8).numpy().tobytes()


def _usable_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
        # Known is not yet there: PyTorch may have been built without it (an AssertionError, or an
        # ImportError), or the machine lacks it.
        torch.empty(0, device=found)
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        raise InputError(
            f"device: expected one that can be used here, such as {_default_device()!r}, got "
            f"{device!r}: {error}"
        ) from error
    return found


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _has_units(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of a type itself, as far as PyTorch tells."""
    # The question that torch's own compiler asks; a build without oneDNN cannot be asked.
    asked = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    try:
        return dtype not in asked or bool(getattr(torch.ops.mkldnn, asked[dtype])())
    except AttributeError:
        return True
