"""Tiny randomly initialised models of every supported family, and a character tokenizer.

Nothing is downloaded. `tiny("llama")` is a `LanguageModel` with 4 layers of width 32 over the 97
tokens of `tiny_tokenizer()`: every printable ASCII character except the backquote and the tilde.
"""

from __future__ import annotations

import json

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steer.models import LanguageModel, wrap_model

WIDTH = 32
LAYERS = 4
PAD, BOS, EOS, UNK = range(4)
CHARACTERS = [chr(code) for code in range(32, 127) if chr(code) not in "`~"]
VOCABULARY = 4 + len(CHARACTERS)

CHAT_TEMPLATE = (
    "<s>{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

_TOKENS = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
}
_GROUPED = {"num_key_value_heads": 2}
_GEMMA = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8, **_GROUPED}

_CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", {**_SIZES, **_GROUPED}),
    "mistral": ("MistralConfig", {**_SIZES, **_GROUPED, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {**_SIZES, **_GROUPED}),
    "qwen3": ("Qwen3Config", {**_SIZES, **_GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**_SIZES, **_GEMMA}),
    "gemma3_text": ("Gemma3TextConfig", {**_SIZES, **_GEMMA}),
    "phi3": ("Phi3Config", {**_SIZES, **_GROUPED}),
    "olmo2": ("Olmo2Config", {**_SIZES, **_GROUPED}),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 512,
            "initializer_range": 0.25,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", _SIZES),
    # Not in the table of families: found by their shape.
    "stablelm": ("StableLmConfig", {**_SIZES, **_GROUPED}),
    "cohere": ("CohereConfig", {**_SIZES, **_GROUPED}),
}

FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt2",
    "gpt_neox",
]
"""The families marked as tested in `steer.models.FAMILIES`."""


def tiny_model(family: str = "llama", *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A causal language model of a family, fp32, with random weights from a seed.

    It has no end-of-sequence token, so that generation always reaches its token limit.
    """
    name, sizes = _CONFIGS[family]
    config = getattr(transformers, name)(**{**_TOKENS, **sizes, **changes})
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32
        )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a character; decoding gives the text back."""
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *CHARACTERS])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny(family: str = "llama", *, seed: int = 0, **changes: object) -> LanguageModel:
    """A tiny model with its tokenizer, ready to be steered; a new one on every call."""
    return wrap_model(tiny_model(family, seed=seed, **changes), tiny_tokenizer(), name=family)


def with_pictographs() -> tuple[LanguageModel, list[int]]:
    """A model of which every capital is a pictograph, and half the digits part of a character."""
    model = tiny()
    written = json.loads(model.tokenizer.backend_tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    capitals, digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "02468"
    quiet = [vocabulary.pop(character) for character in capitals + digits]
    shown = [chr(0x1F600 + i) for i in range(len(capitals))] + ["\ufffd" + d for d in digits]
    vocabulary.update(zip(shown, quiet, strict=True))
    model.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(written))
    return model, quiet
