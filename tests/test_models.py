"""`steer.models`: decoder layers of every family, fingerprints, loading from a folder."""

import copy
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import accelerate
import pytest
import torch
import transformers
from transformers.utils import logging

import steer.models
from steer import packaged
from steer.errors import (
    InputError,
    ModelError,
    SlowPrecisionWarning,
    UnsupportedModelError,
    UntestedModelWarning,
)
from steer.generation import Decoding, generate_batch
from steer.models import find_layers, fingerprint, load_model, wrap_model
from steer.quiet import no_progress_bars
from tests.models import (
    FAMILIES,
    LAYERS,
    PAD,
    UNK,
    VOCABULARY,
    WIDTH,
    tiny,
    tiny_model,
    tiny_tokenizer,
)


def print_of(model):
    return fingerprint(model, LAYERS)


# --- Decoder layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_that_run_in_order(family):
    model = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntestedModelWarning)
        layers = find_layers(model)
    assert len(layers) == LAYERS
    ran, widths = [], []
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda _, args, i=index: ran.append(i))
        layer.register_forward_hook(
            lambda _, args, out: widths.append(
                (out if isinstance(out, torch.Tensor) else out[0]).shape
            )
        )
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert ran == list(range(LAYERS))
    assert widths == [(1, 3, WIDTH)] * LAYERS


def test_every_family_marked_as_tested_is_tested():
    tested = {name for name, family in steer.models.FAMILIES.items() if family.tested}
    assert tested == set(FAMILIES)
    assert {tiny_model(family).config.model_type for family in FAMILIES} == tested


@pytest.mark.parametrize("family", ["stablelm", "cohere"])
def test_other_families_are_found_by_shape_with_a_warning(family):
    model = tiny_model(family)
    with pytest.warns(UntestedModelWarning, match=family):
        layers = find_layers(model)
    assert layers == tuple(model.model.layers)


def test_two_candidates_are_not_guessed_between():
    config = transformers.T5Config(
        d_model=16, d_ff=16, d_kv=4, num_heads=2, num_layers=2, vocab_size=VOCABULARY
    )
    with pytest.raises(UnsupportedModelError, match="T5"):
        find_layers(transformers.T5ForConditionalGeneration(config))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_without_its_language_head(family):
    whole = tiny_model(family)
    with pytest.raises(UnsupportedModelError, match=type(whole.base_model).__name__):
        wrap_model(whole.base_model, tiny_tokenizer())


def test_a_model_without_layers():
    model = tiny_model("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="FAMILIES"):
        find_layers(model)


# --- Fingerprints --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_a_bf16_checkpoint_agree(family):
    checkpoint = tiny_model(family).to(torch.bfloat16)
    prints = [
        print_of(copy.deepcopy(checkpoint).to(dtype))
        for dtype in (torch.bfloat16, torch.float32, torch.float16)
    ]
    assert prints[0] == prints[1] == prints[2]
    assert prints[0] == print_of(copy.deepcopy(checkpoint))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_weight_row_counts(family):
    model = tiny_model(family)
    before = print_of(model)
    for name, weight in model.named_parameters():
        row = weight.data[-1].clone()
        weight.data[-1] += 0.05
        assert print_of(model) != before, name
        weight.data[-1] = row
    assert print_of(model) == before


def test_a_row_of_a_weight_too_large_to_be_read_whole():
    model = tiny_model("llama", hidden_size=256, intermediate_size=256)
    before = print_of(model)
    weight = model.model.layers[2].mlp.down_proj.weight
    assert weight.numel() > steer.models._SAMPLED_ELEMENTS
    for row in (0, 77, 255):
        kept = weight.data[row].clone()
        weight.data[row] *= 1.1
        assert print_of(model) != before
        weight.data[row] = kept
    assert print_of(model) == before


def test_noise_below_bf16_of_small_numbers_does_not_count():
    model = tiny_model("llama").to(torch.bfloat16).float()
    before = print_of(model)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = 0.0
    zeroed = print_of(model)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = 1e-6  # zero in fp16, nearly
    assert print_of(model) == zeroed != before


def test_sizes_and_architecture_count():
    prints = [
        tiny("llama").fingerprint,
        tiny("llama", seed=1).fingerprint,
        tiny("llama", num_hidden_layers=3).fingerprint,
        tiny("llama", hidden_size=16).fingerprint,
        tiny("llama", vocab_size=VOCABULARY + 1).fingerprint,
        tiny("mistral").fingerprint,  # the same weights under another name
    ]
    assert len(set(prints)) == len(prints)
    assert len({str(p) for p in prints}) == len(prints)
    assert prints[0].layers == LAYERS
    assert prints[0].width == WIDTH
    assert prints[0].vocabulary == VOCABULARY
    assert prints[0] == tiny("llama").fingerprint
    assert type(prints[0])(**prints[0].to_dict()) == prints[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])  # GPT-2's head is tied, Gemma's too
def test_where_accelerate_keeps_the_weights_does_not_count(family, tmp_path):
    cpu = torch.device("cpu")
    before = print_of(tiny_model(family))
    offloaded = accelerate.cpu_offload(tiny_model(family), execution_device=cpu)
    assert all(p.device.type == "meta" for p in offloaded.parameters())
    assert print_of(offloaded) == before
    with torch.no_grad():
        offloaded(torch.tensor([[5, 6, 7]]))
    assert print_of(offloaded) == before
    on_disk = accelerate.disk_offload(tiny_model(family), tmp_path, execution_device=cpu)
    assert print_of(on_disk) == before
    layers = [type(find_layers(on_disk)[0]).__name__]
    whole = accelerate.cpu_offload(
        tiny_model(family), execution_device=cpu, preload_module_classes=layers
    )
    assert print_of(whole) == before
    other = accelerate.cpu_offload(tiny_model(family, seed=1), execution_device=cpu)
    assert print_of(other) == print_of(tiny_model(family, seed=1)) != before


# --- Wrapping and loading ------------------------------------------------------------------------


def test_wrapping_prepares_for_generation():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    language_model = wrap_model(tiny_model("llama").train(), tokenizer, name="mine")
    assert language_model.name == "mine"
    assert not language_model.model.training
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert language_model.device == torch.device("cpu")
    kept = wrap_model(tiny_model("llama"), tiny_tokenizer()).tokenizer
    assert kept.pad_token_id == PAD


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_a_tokenizer_without_an_end_pads_with_another_token(unknown):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.eos_token = None
    texts, decoding = ["Hi", "How are you?"], Decoding(max_new_tokens=6)
    expected = generate_batch(wrap_model(model, tokenizer), texts, decoding)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.unk_token = unknown
    language_model = wrap_model(model, tokenizer)
    assert tokenizer.pad_token_id == (UNK if unknown else 0)
    answers = generate_batch(language_model, texts, decoding)
    assert [one.tokens for one in answers] == [one.tokens for one in expected]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model("llama").to(torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("as_text", [True, False])
def test_load_from_a_folder(saved, as_text):
    folder, model = saved
    loaded = load_model(str(folder) if as_text else folder, device="cpu")
    assert loaded.name == str(folder)
    assert loaded.model.dtype == torch.float32  # bf16 is slow on the CPU
    assert loaded.fingerprint == print_of(model)
    assert loaded.tokenizer("hi").input_ids == tiny_tokenizer()("hi").input_ids
    ids = torch.tensor([[5, 6, 7]])
    expected = tiny_model("llama", seed=1)
    expected.load_state_dict(model.state_dict())  # the same weights, in fp32
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_load_as_another_type(saved, dtype):
    folder, model = saved
    loaded = load_model(folder, device="cpu", dtype=dtype)
    assert loaded.model.dtype == dtype
    assert loaded.fingerprint == print_of(model)


@pytest.mark.parametrize(
    ("dtype", "question"),
    [
        (torch.bfloat16, "_is_mkldnn_bf16_supported"),
        (torch.float16, "_is_mkldnn_fp16_supported"),
    ],
)
def test_a_type_without_units_is_told_of(saved, dtype, question, monkeypatch):
    """A batch of 64 in bfloat16 took seven times as long as in fp32 on a processor without."""
    folder, _ = saved
    monkeypatch.setattr(torch.ops.mkldnn, question, lambda: False, raising=False)
    with pytest.warns(SlowPrecisionWarning, match=str(dtype).removeprefix("torch.")):
        load_model(folder, device="cpu", dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPrecisionWarning)
        load_model(folder, device="cpu")  # fp32
        monkeypatch.setattr(torch.ops.mkldnn, question, lambda: True)
        load_model(folder, device="cpu", dtype=dtype)


def test_load_with_a_device_map(saved):
    folder, model = saved
    loaded = load_model(folder, device_map={"": "cpu"})
    assert loaded.model.dtype == torch.bfloat16  # the checkpoint's own
    assert loaded.fingerprint == print_of(model)
    with pytest.raises(InputError, match="device_map"):
        load_model(folder, device="cpu", device_map={"": "cpu"})


def test_what_cannot_be_loaded(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(ModelError, match="missing"):
        load_model(missing, device="cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(tmp_path, device="cpu")


def test_the_packaged_model_is_converted_by_two_threads_at_once(tmp_path, monkeypatch):
    both = threading.Barrier(2)

    def convert(source, target):
        target.mkdir()
        both.wait(10)  # both are at it
        (target / "config.json").write_text("{}")
        both.wait(10)

    monkeypatch.setenv("STEER_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "packaged_gguf", lambda: tmp_path / "a.gguf")
    monkeypatch.setattr(packaged, "_check_sha256", lambda path: None)
    monkeypatch.setattr(packaged, "_convert", convert)
    with ThreadPoolExecutor(2) as pool:
        first, second = (
            one.result() for one in [pool.submit(packaged.packaged_model_dir) for _ in range(2)]
        )
    assert first == second and list(first.parent.iterdir()) == [first]
    assert [path.name for path in first.iterdir()] == ["config.json"]
    assert first.stat().st_mode == first.parent.stat().st_mode


@pytest.mark.parametrize("length", [0, 5, 100, -100])
def test_a_truncated_checkpoint(saved, tmp_path, length):
    folder, _ = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("damage", ["pickle", "archive", "sizes", "tokenizer", "index"])
def test_damaged_checkpoints_of_other_kinds(saved, tmp_path, damage):
    folder, model = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if damage == "sizes":
        model.config.__class__(**{**model.config.to_dict(), "vocab_size": 50}).save_pretrained(
            tmp_path
        )
    elif damage == "tokenizer":
        (tmp_path / "tokenizer.json").write_text("{}")
    else:
        (tmp_path / "model.safetensors").unlink()
        if damage == "index":
            (tmp_path / "model.safetensors.index.json").write_text("{}")
        else:
            file = tmp_path / "pytorch_model.bin"
            torch.save(model.state_dict(), file)
            file.write_bytes(file.read_bytes()[:3000] if damage == "archive" else b"no pickle")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", "hpu", ["cpu"]])
def test_a_device_that_cannot_be_used(saved, device):
    with pytest.raises(InputError, match="device"):
        load_model(saved[0], device=device)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, ValueError])
def test_a_model_that_cannot_be_put_on_the_device(saved, monkeypatch, error):
    def refuse(self, device):
        raise error("no place for it")

    monkeypatch.setattr(transformers.PreTrainedModel, "to", refuse)
    with pytest.raises(ModelError, match="put on cpu: no place for it"):
        load_model(saved[0], device="cpu")


def test_progress_bars_are_off_inside_the_block_alone(capfd: pytest.CaptureFixture[str]) -> None:
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    bar = reader.tqdm
    with no_progress_bars():
        assert list(reader.tqdm([1, 2], desc="quantising")) == [1, 2]
        assert list(logging.tqdm([1, 2], desc="loading")) == [1, 2]
    assert reader.tqdm is bar
    assert capfd.readouterr().err == ""
