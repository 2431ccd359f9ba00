"""Control vectors in llama.cpp: its loader reads what was written, and its text is the hooks'.

llama-cpp-python is compiled where it is installed, so this has a target of its own:
`make test-llama`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import steer
from steer.chat import render
from steer.cli import main
from steer.edits import Edit
from steer.export.additive import offsets
from steer.generation import prompt_tokens
from steer.hooks import attach
from steer.packaged import packaged_gguf
from steer.steerer import Steerer

llama = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed; `make test-llama` compiles it"
)
pytestmark = pytest.mark.real

Floats = NDArray[np.float32]

ENTRIES = (1, 5, 8)  # of the default portfolio: a brief, a warm and a formal one
PROMPTS = ("How do I sleep better?", "What is a comet?")
TOKENS = 48


@llama.llama_log_callback
def _SILENT(level: int, text: bytes, data: object) -> None:
    pass


class LlamaCpp:
    """A model in llama.cpp, which computes in fp32 as far as its weights let it."""

    def __init__(self, path: Path) -> None:
        llama.llama_log_set(_SILENT, None)
        model = llama.llama_model_default_params()
        model.use_extra_bufts = False  # weights repacked for AMX crash on some machines
        self.model = llama.llama_model_load_from_file(str(path).encode(), model)
        assert self.model
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_threads, context.n_threads_batch = 256, 1, 1
        context.type_k = context.type_v = llama.GGML_TYPE_F32
        context.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama.llama_init_from_model(self.model, context)
        assert self.context
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def close(self) -> None:
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def steer(self, vectors: Floats | None) -> None:
        """Add rows (layers - 1, d) after the layers from the second on; None for nothing."""
        layers, width = llama.llama_model_n_layer(self.model), llama.llama_model_n_embd(self.model)
        if vectors is None:
            found = llama.llama_set_adapter_cvec(self.context, None, 0, width, 1, layers)
        else:
            data = vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            size = vectors.size
            found = llama.llama_set_adapter_cvec(self.context, data, size, width, 1, layers)
        assert found == 0

    def greedy(self, prompt: list[int], end: int, tokens: int = TOKENS) -> tuple[list[int], Floats]:
        """The likeliest tokens, and the logits that each was chosen by."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        chosen: list[int] = []
        logits = [self._logits(prompt)]
        while True:
            chosen.append(int(logits[-1].argmax()))
            if len(chosen) == tokens or chosen[-1] == end:
                return chosen, np.array(logits)
            logits.append(self._logits(chosen[-1:]))

    def _logits(self, tokens: list[int]) -> Floats:
        held = (llama.llama_token * len(tokens))(*tokens)  # a batch only points to it
        batch = llama.llama_batch_get_one(held, len(tokens))
        assert llama.llama_decode(self.context, batch) == 0
        found = llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, (self.vocabulary,)).copy()


def write_f32(source: Path, target: Path) -> None:
    """A GGUF file with the weights that hooks steer: dequantised, and rounded to bf16."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    left_out = {"general.architecture", "general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name not in left_out and not field.name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        weights = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, weights.bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def steerer() -> Steerer:
    return steer.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The control vector of every entry, as the command writes them, and llama.cpp's loader."""
    folder = tmp_path_factory.mktemp("llama")
    assert main(["export", "gguf", str(folder)]) == 0
    source = Path(__file__).with_name("llama_loader.cpp")
    link = [f"-L{_libraries()}", "-lllama-common", "-Wl,--unresolved-symbols=ignore-in-shared-libs"]
    command = ["c++", "-std=c++17", str(source), "-o", str(folder / "loader"), *link]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    path = tmp_path_factory.mktemp("llama-f32") / "model.gguf"
    write_f32(packaged_gguf(), path)
    model = LlamaCpp(path)
    yield model
    model.close()
    path.unlink()  # half a gigabyte


def _libraries() -> Path:
    """Where the wheel puts what llama.cpp's own programs are made of."""
    return Path(llama.__file__).parents[1] / "lib"


def loaded(folder: Path, entry: int) -> Floats:
    """What llama.cpp's loader reads from an entry's file: a row a layer, from the second on."""
    command = [folder / "loader", folder / f"entry-{entry:02d}.gguf"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(_libraries())}
    data = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    (width,) = np.frombuffer(data[:4], np.int32)
    return np.frombuffer(data[4:], np.float32).reshape(-1, width).copy()


def prompt_of(steerer: Steerer, prompt: str) -> list[int]:
    model = steerer.language_model
    return list(prompt_tokens(model, render(model.tokenizer, prompt)))


def hooked(
    steerer: Steerer, edit: Edit | None, prompt: list[int], tokens: int = TOKENS
) -> tuple[list[int], Floats]:
    """The likeliest tokens under hooks, at every position and without a gate; and the logits."""
    model = steerer.language_model
    steering = nullcontext() if edit is None else attach(model).steer(edit, scope="all")
    with steering, torch.no_grad():
        found = model.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return found.sequences[0, len(prompt) :].tolist(), torch.cat(found.logits).numpy()


def test_its_loader_reads_the_vectors(steerer: Steerer, folder: Path) -> None:
    portfolio = steerer.bundle.portfolio
    for entry in range(1, len(portfolio.edits) + 1):
        rows = loaded(folder, entry)
        expected = np.zeros_like(rows)
        for layer, vector in offsets(portfolio.edit(entry)).items():
            expected[layer - 1] = vector
        assert np.abs(expected).max() > 0.1
        np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_its_text_is_the_hooks(steerer: Steerer, folder: Path, f32: LlamaCpp, prompt: str) -> None:
    asked = prompt_of(steerer, prompt)
    tokenizer = steerer.language_model.tokenizer
    written = {}
    for entry in (None, *ENTRIES):
        edit = None if entry is None else steerer.bundle.portfolio.edit(entry)
        f32.steer(None if entry is None else loaded(folder, entry))
        found, logits = f32.greedy(asked, tokenizer.eos_token_id)
        expected, expected_logits = hooked(steerer, edit, asked)
        assert found == expected
        np.testing.assert_allclose(logits, expected_logits, atol=3e-4, rtol=0)
        written[entry] = tokenizer.decode(found)
    assert len(set(written.values())) == len(written)  # every edit shows


@pytest.mark.parametrize("prompt", PROMPTS)
def test_quantised_weights_are_steered_alike(steerer: Steerer, folder: Path, prompt: str) -> None:
    """llama.cpp rounds activations too where weights are quantised, and so writes other words."""
    model = LlamaCpp(packaged_gguf())
    asked = prompt_of(steerer, prompt)

    def shift(unsteered: Floats, steered: Floats) -> Floats:
        moved = steered[0] - unsteered[0]
        return moved - moved.mean()

    plain, expected_plain = model.greedy(asked, -1, 1)[1], hooked(steerer, None, asked, 1)[1]
    for entry in ENTRIES:
        model.steer(loaded(folder, entry))
        found = shift(plain, model.greedy(asked, -1, 1)[1])
        edit = steerer.bundle.portfolio.edit(entry)
        expected = shift(expected_plain, hooked(steerer, edit, asked, 1)[1])
        sizes = np.linalg.norm(found), np.linalg.norm(expected)
        assert found @ expected > 0.98 * sizes[0] * sizes[1]
        assert 0.9 < sizes[0] / sizes[1] < 1.1
    model.close()
