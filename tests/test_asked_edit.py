"""Edits as requests between processes name them, and the salts of caches."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from steer import edit_file
from steer.edits import ZERO, two_step
from steer.errors import InputError, ModelError
from steer.models import load_model
from steer.serve.asked_edit import AskedEdit
from steer.serve.engine import Job, Progress
from steer.serve.salt import cache_salt, check_salt
from steer.serve.slots import Reserved
from steer.serve.vllm_plugin import Asked, Setting, check_request
from steer.skeleton import load_skeleton
from steer.steerer import Steerer
from tests.models import LAYERS, WIDTH, tiny
from tests.test_generation import an_edit
from tests.test_profile import a_profile
from tests.test_steerer import a_steerer

STEERER = a_steerer()
WEIGHTS = st.dictionaries(
    st.sampled_from(["brevity", "warmth", "zest"]), st.floats(0.01, 100), min_size=1
)


@given(WEIGHTS, st.floats(0, 3), st.booleans())
def test_another_process_makes_the_same_edit(weights, strength, compose):
    asked = AskedEdit.weighted(weights, strength, compose=compose)
    # As they are sent: JSON, or what has gone through it.
    again = AskedEdit.read(json.loads(json.dumps({**asked.to_fields(), "others": 1})))
    assert again == asked
    edit = STEERER.resolve(weights, strength, compose=compose)
    assert again.resolve(STEERER.bundle).digest == edit.digest
    Reserved.of(STEERER.bundle, 9).check(edit)


def test_profiles_and_whole_edits():
    ann = a_profile(fingerprint=STEERER.language_model.fingerprint, edit=an_edit(9))
    bundle = STEERER.bundle.with_profiles({"ann": ann})
    asked = AskedEdit.read({"profile": "ann", "strength": 0.5})
    steerer = Steerer(STEERER.language_model, bundle)
    expected = steerer.resolve(None, 0.5, profile="ann")
    assert asked.resolve(bundle).digest == expected.digest
    vectors = {1: np.ones(WIDTH, np.float32)}
    for edit in (an_edit(1), ZERO, two_step(vectors, vectors, sign_safe=True) + an_edit(2)):
        sent = AskedEdit.read(AskedEdit.whole(edit).to_fields())
        assert sent.resolve(bundle).digest == edit.digest
    assert Reserved.of(bundle, 2).layers == tuple(sorted({*expected.layers, 1, 2, 3}))


def test_who_says_nothing_is_not_steered():
    assert AskedEdit.read({}) is None
    assert AskedEdit.read({"top_k": 3}) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "brief"}, "JSON object"),
        ({"weights": {"brevity": "1"}}, "expected such as"),
        ({"weights": [1]}, "expected such as"),
        ({"weights": {"brevity": 1}, "profile": "ann"}, "weights, a profile or an edit"),
        ({"strength": 1}, "weights, a profile or an edit"),
        ({"weights": {"brevity": 1}, "strength": -1}, "strength"),
        ({"weights": {"brevity": 1}, "strength": 10.5}, "strength: expected at most 10, got 10.5"),
        ({"profile": "ann", "strength": 1e30}, "strength"),
        ({"weights": {"brevity": 1}, "compose": 2}, "true or false"),
        ({"profile": 3}, "expected text"),
        ({"profile": "ann", "compose": True}, "are for weights"),
        ({"edit": "x", "strength": 2}, "are for weights"),
    ],
)
def test_what_cannot_be_understood_is_told(fields, message):
    with pytest.raises(InputError, match=message):
        AskedEdit.read(fields)


def test_bytes_that_are_no_edit_are_refused():
    data = bytearray(edit_file.to_bytes(an_edit(1)))
    data[-1] ^= 1
    for damaged in (b"", b"{}", bytes(data), edit_file.to_bytes(an_edit(1))[:-4]):
        with pytest.raises(InputError):
            edit_file.from_bytes(damaged)
    with pytest.raises(InputError, match="base64"):
        AskedEdit(edit="***").resolve(STEERER.bundle)


# --- Salts ---------------------------------------------------------------------------------------


def test_a_salt_is_that_of_what_the_cache_hangs_on():
    model, other = tiny().fingerprint, tiny(seed=1).fingerprint
    edits = [an_edit(1), an_edit(2), 0.5 * an_edit(1)]
    salts = {
        cache_salt(edit, scope, of)
        for edit in edits
        for scope in ("response", "all")
        for of in (model, other)
    }
    assert len(salts) == 12
    assert cache_salt(an_edit(1), "all", model) == cache_salt(1.0 * an_edit(1), "all", model)
    assert cache_salt(ZERO, "all", model) is None


def test_a_request_must_have_the_salt_of_its_edit():
    expected = cache_salt(an_edit(1), "response", tiny().fingerprint)
    other = cache_salt(an_edit(2), "response", tiny().fingerprint)
    for salt in (expected, f"tenant 3 {expected}"):
        check_salt(salt, expected)
    for salt in (None, "tenant 3", other, f"{expected} {other}"):
        with pytest.raises(InputError, match="cache_salt"):
            check_salt(salt, expected)
    for salt in (None, "tenant 3"):
        check_salt(salt, None)
    with pytest.raises(InputError, match="the request has none"):
        check_salt(f"tenant 3 {expected}", None)


class FakeVllm:
    """Stands in for vLLM's engine: keeps what it is asked, and answers nothing."""

    def __init__(self) -> None:
        self.errored = False
        self.model_config = SimpleNamespace(max_model_len=1000)
        self.asked: list[tuple[dict, SimpleNamespace]] = []

    async def generate(self, prompt, params, name):
        self.asked.append((prompt, params))
        yield SimpleNamespace(
            finished=True, outputs=[SimpleNamespace(token_ids=[1], finish_reason="stop")]
        )


@pytest.fixture
def fake(monkeypatch):
    """What is asked of vLLM where it is not installed."""
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed; tests/test_vllm.py asks it itself")
    made = FakeVllm()
    arguments = type("AsyncEngineArgs", (SimpleNamespace,), {"__dataclass_fields__": {}})
    modules = {
        "vllm": {"AsyncEngineArgs": arguments, "SamplingParams": SimpleNamespace},
        "vllm.exceptions": {"VLLMError": RuntimeError},
        "vllm.inputs": {"tokens_input": lambda ids, cache_salt: {"cache_salt": cache_salt}},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(CUMULATIVE=0)},
        "vllm.v1.engine.async_llm": {
            "AsyncLLM": SimpleNamespace(from_engine_args=lambda told: made)
        },
        "vllm.v1.sample.logits_processor": {"AdapterLogitsProcessor": object},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    yield made
    for name in ("vllm_engine", "vllm_choices"):
        sys.modules.pop(f"steer.serve.{name}", None)
        vars(sys.modules["steer.serve"]).pop(name, None)


def test_a_bundle_of_another_model_is_salted_alike_by_force(fake, tmp_path):
    """By the process that takes requests, and by those in which vLLM runs."""
    from steer.serve.vllm_engine import VllmEngine

    path = tmp_path / "bundle.safetensors"
    STEERER.bundle.save(path)
    other = tiny("llama", seed=1)
    assert other.fingerprint != STEERER.bundle.fingerprint
    with pytest.warns(UserWarning, match="was built on"):
        steerer = Steerer(other, STEERER.bundle, force=True)
    engine = VllmEngine(steerer, tmp_path, path, {}, force=True)
    engine.start()
    edit = steerer.resolve({"zest": 1.0})

    async def ask() -> list[Progress]:
        told: list[Progress] = []
        job = Job((1, 2, 3), edit, scope="response", asked=AskedEdit.weighted({"zest": 1.0}, 1.0))
        engine.submit("one", job, told.append)
        while not told:
            await asyncio.sleep(0.01)
        return told

    assert asyncio.run(asyncio.wait_for(ask(), 10))[0].error is None
    ((prompt, params),) = fake.asked
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            hf_text_config=SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=WIDTH)
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
    )
    asked = Asked(Setting(path, force=True), config)
    check_request(asked, params.extra_args, prompt["cache_salt"])


# --- Skeletons -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_a_skeleton_is_known_by_its_files(tmp_path, shards):
    model = tiny("llama")
    size = sum(p.numel() for p in model.model.parameters()) * 4
    model.model.save_pretrained(tmp_path, max_shard_size=f"{size // shards // 1000 + 1}KB")
    model.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == (
        1 if shards == 1 else pytest.approx(3, abs=1)
    )
    skeleton, loaded = load_skeleton(tmp_path, "tiny"), load_model(tmp_path, device="cpu")
    assert skeleton.fingerprint == loaded.fingerprint
    assert all(p.device.type == "meta" for p in skeleton.model.parameters())
    assert skeleton.model.generation_config.pad_token_id == 0
    steerer = Steerer(skeleton, STEERER.bundle)
    edit = steerer.resolve({"brevity": 1, "zest": 2})
    assert edit.digest == STEERER.resolve({"brevity": 1, "zest": 2}).digest


def test_files_of_other_names_are_loaded_to_be_known(tmp_path):
    model = tiny("gpt2")
    # GPT-2's base model has its tensors without the prefix that the language model gives them.
    model.model.transformer.save_pretrained(tmp_path)
    model.model.config.architectures = ["GPT2LMHeadModel"]
    model.model.config.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert (
        load_skeleton(tmp_path, "tiny").fingerprint
        == load_model(tmp_path, device="cpu").fingerprint
    )


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="FP8 without a GPU needs transformers 5"
)
def test_quantised_files_are_loaded_to_be_known(tmp_path):
    model = tiny("llama", hidden_size=128, intermediate_size=128, num_hidden_layers=2)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    # FP8 keeps the names of the weights, beside which it has scales.
    file, held = tmp_path / "model.safetensors", {}
    for name, weight in load_file(file).items():
        if "_proj" in name:
            held[name] = (4 * weight).to(torch.float8_e4m3fn)
            held[f"{name}_scale_inv"] = torch.full((1, 1), 0.25)
        else:
            held[name] = weight
    save_file(held, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "dequantize": True,  # as is done anyway where there is no GPU
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path, device="cpu")
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        found, expected = loaded.model(ids).logits, model.model(ids).logits
    assert (found - expected).norm() < 0.2 * expected.norm()  # the scales were read
    assert load_skeleton(tmp_path, "tiny").fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
)
def test_a_skeleton_of_damaged_files(tmp_path, name):
    model = tiny("llama")
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="'tiny' could not be loaded"):
        load_skeleton(tmp_path, "tiny")
