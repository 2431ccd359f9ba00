"""vLLM with the plugin against transformers with hooks, on the packaged model in fp32.

Run by `make test-vllm`, in an environment with vLLM for CPUs.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest

# One thread for each worker: these machines are small and shared.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

vllm = pytest.importorskip("vllm", reason="vLLM is not installed; see `make test-vllm`")

import steer  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.edits import additive  # noqa: E402
from steer.generation import Decoding, end_tokens, generate_batch, prompt_tokens  # noqa: E402
from steer.hooks import attach  # noqa: E402
from steer.packaged import packaged_model_dir  # noqa: E402
from steer.profile_file import to_bytes  # noqa: E402
from steer.resources import default_bundle_path  # noqa: E402
from steer.serve import vllm_choices, vllm_plugin  # noqa: E402
from steer.serve.asked_edit import AskedEdit  # noqa: E402
from steer.serve.salt import cache_salt  # noqa: E402
from tests.models import tiny_model, tiny_tokenizer  # noqa: E402
from tests.test_steerer import a_trait  # noqa: E402

BUNDLE = str(default_bundle_path())
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 1024,
    "block_size": 32,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 1024,
}
ENGINES = {
    "eager": {"enforce_eager": True},
    "compiled": {},
    # The packaged model has nine heads: two devices cannot share them (see below).
    "three devices": {"enforce_eager": True, "tensor_parallel_size": 3},
    "two stages": {"enforce_eager": True, "pipeline_parallel_size": 2},
}
PROMPTS = [
    "How do I sleep better?",
    "What is a comet?",
    "Why is the sky blue?",
    "I failed my driving test. What now?",
    "Should I get a cat?",
    "Tell me about rain.",
]
WEIGHTS: list[dict[str, float] | None] = [
    {"brevity": 1.0},
    {"warmth": 1.0},
    None,
    {"formality": 0.6, "positivity": 0.4},
    {"brevity": 1.0},
    {"simplicity": 0.5, "humor": 0.5},
]
PLAIN = Decoding(max_new_tokens=40, repetition_penalty=1.0, no_repeat_ngram_size=None)
USUAL = Decoding(max_new_tokens=40)


@pytest.fixture(scope="module")
def steerer() -> steer.Steerer:
    return steer.load()


def prompt_of(steerer: steer.Steerer, text: str) -> list[int]:
    return prompt_tokens(steerer.language_model, render(steerer.language_model.tokenizer, text))


def by_hooks(
    steerer: steer.Steerer, text: str, weights: Mapping[str, float] | None, decoding: Decoding
) -> tuple[int, ...]:
    """The answer to a rendered prompt, alone."""
    edit = steerer.resolve(weights)
    with attach(steerer.language_model).steer(edit, scope=steerer.bundle.scope):
        return generate_batch(steerer.language_model, [text], decoding)[0].tokens


@contextmanager
def engine(model: Path | None = None, bundle: str = BUNDLE, **options: Any) -> Iterator[Any]:
    llm = vllm.LLM(
        str(model or packaged_model_dir()),
        additional_config={"steer": {"bundle": bundle}},
        logits_processors=[vllm_choices.PATH],
        **{**OPTIONS, **options},
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module", params=ENGINES)
def llm(request) -> Iterator[Any]:
    with engine(**ENGINES[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def eager() -> Iterator[Any]:
    # Few tokens in a step, so that prompts are read in parts.
    with engine(enforce_eager=True, max_num_batched_tokens=64, max_num_seqs=8) as made:
        yield made


Request = tuple[dict[str, Any], Any]


def request_for(
    steerer: steer.Steerer,
    prompt: Sequence[int],
    weights: Mapping[str, float] | None,
    decoding: Decoding = PLAIN,
    *,
    strength: float = 1.0,
    salted: bool = True,
) -> Request:
    asked = None if weights is None else AskedEdit.weighted(weights, strength)
    salt = None
    if asked is not None and salted:
        edit = asked.resolve(steerer.bundle)
        salt = cache_salt(edit, steerer.bundle.scope, steerer.bundle.fingerprint)
    model = steerer.language_model
    ends = sorted(end_tokens(model))
    fields = {
        **({} if asked is None else asked.to_fields()),
        **vllm_choices.to_field(decoding, ends, model.model.generation_config, 7),
    }
    params = vllm.SamplingParams(
        temperature=0, max_tokens=decoding.max_new_tokens, stop_token_ids=ends, extra_args=fields
    )
    return {"prompt_token_ids": list(prompt), **({"cache_salt": salt} if salt else {})}, params


def ask(llm: Any, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    prompts, params = zip(*requests, strict=True)
    outputs = llm.generate(list(prompts), list(params), use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("decoding", [PLAIN, USUAL], ids=["plain", "usual"])
def test_a_mixed_batch_is_what_hooks_give(llm, steerer, decoding):
    tokenizer = steerer.language_model.tokenizer
    expected = [
        by_hooks(steerer, render(tokenizer, prompt), weights, decoding)
        for prompt, weights in zip(PROMPTS, WEIGHTS, strict=True)
    ]
    assert len(set(expected)) == len(expected)
    requests = [
        request_for(steerer, prompt_of(steerer, prompt), weights, decoding)
        for prompt, weights in zip(PROMPTS, WEIGHTS, strict=True)
    ]
    # The second time what can be is read from the cache.
    for _ in range(2):
        assert ask(llm, requests) == expected


def test_two_devices(tmp_path):
    """On a model with random weights, whose heads can be shared by two."""
    steerer, bundle = random_model(tmp_path)
    prompts = ["Hi", "How are you today?", "Why?"]
    weights = [{"zest": 1.0}, None, {"zest": 0.5, "calm": 0.5}]
    decoding = Decoding(max_new_tokens=24, repetition_penalty=1.0, no_repeat_ngram_size=None)
    tokenizer = steerer.language_model.tokenizer
    expected = [
        by_hooks(steerer, render(tokenizer, prompt), asked, decoding)
        for prompt, asked in zip(prompts, weights, strict=True)
    ]
    unsteered = by_hooks(steerer, render(tokenizer, prompts[0]), None, decoding)
    assert expected[0] != unsteered
    options = {"enforce_eager": True, "tensor_parallel_size": 2, "max_model_len": 256}
    with engine(tmp_path, bundle, **options) as llm:
        requests = [
            request_for(steerer, prompt_of(steerer, prompt), asked, decoding)
            for prompt, asked in zip(prompts, weights, strict=True)
        ]
        for _ in range(2):
            assert ask(llm, requests) == expected


def random_model(folder: Path) -> tuple[steer.Steerer, str]:
    """A steerer of a model of eight heads, and the path of its bundle."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
    model = tiny_model("llama", **sizes, num_key_value_heads=4)
    tokenizer = tiny_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    known = steer.load_model(folder, device="cpu")
    rng = np.random.default_rng(0)
    traits = {
        name: a_trait(
            name, additive({i: 20 * rng.normal(size=256).astype(np.float32) for i in (1, 2)})
        )
        for name in ("zest", "calm")
    }
    bundle = steer.Bundle("random", known.fingerprint, "response", traits, {}, {})
    # Not beside the weights: vLLM takes any such file for a part of them.
    path = folder / "edits" / "bundle.safetensors"
    path.parent.mkdir()
    bundle.save(path)
    return steer.Steerer(known, bundle), str(path)


def test_sampling_is_as_in_transformers_batches(eager, steerer):
    prompt = prompt_of(steerer, PROMPTS[0])
    decoding = Decoding(max_new_tokens=24, do_sample=True, temperature=0.9, top_p=0.95)
    request = request_for(steerer, prompt, {"warmth": 1.0}, decoding)
    alone = ask(eager, [request])
    beside = [request_for(steerer, prompt_of(steerer, text), None) for text in PROMPTS]
    assert ask(eager, [*beside, request])[-1:] == alone


# --- The cache -----------------------------------------------------------------------------------

STRONG = 2.0  # so that a leak shows within a few tokens


def leak(llm: Any, steerer: steer.Steerer, salted: bool) -> tuple[bool, bool]:
    """Whether a text written under an edit is read edited, by others and in the next turn."""
    tokenizer = steerer.language_model.tokenizer
    model = steerer.language_model
    weights = {"formality": 1.0}
    start = prompt_of(steerer, PROMPTS[3])
    (written,) = ask(llm, [request_for(steerer, start, weights, strength=STRONG, salted=salted)])
    followed = [*start, *written]
    text = tokenizer.decode(followed)
    assert prompt_tokens(model, text) == followed and len(written) == PLAIN.max_new_tokens
    found = []
    for strength in (0.0, STRONG):
        request = request_for(steerer, followed, weights, strength=strength, salted=salted)
        (answer,) = ask(llm, [request])
        edit = steerer.resolve(weights, strength)
        with attach(model).steer(edit, scope=steerer.bundle.scope):
            expected = generate_batch(model, [text], PLAIN)[0].tokens
        found.append(answer != expected)
    return found[0], found[1]


def test_no_edit_leaks_through_the_cache(eager, steerer):
    assert leak(eager, steerer, salted=True) == (False, False)


def test_without_the_salt_it_would(eager, steerer, monkeypatch):
    monkeypatch.setattr(vllm_plugin, "check_salt", lambda given, expected: None)
    eager.reset_prefix_cache()
    assert leak(eager, steerer, salted=False)[0]
    eager.reset_prefix_cache()


def test_requests_with_one_edit_share_the_cache(eager, steerer):
    eager.reset_prefix_cache()
    prompt = prompt_of(steerer, " ".join(PROMPTS))
    hits = {}
    for weights in ({"brevity": 1.0}, {"warmth": 1.0}):
        for _ in range(2):
            request = request_for(steerer, prompt, weights)
            output = eager.generate([request[0]], [request[1]], use_tqdm=False)[0]
            hits.setdefault(str(weights), []).append(output.num_cached_tokens)
    for first, second in hits.values():
        assert (first, second >= 32) == (0, True)


@pytest.mark.parametrize(
    ("fields", "salt", "message"),
    [
        ({"weights": '{"brevity": 1}'}, None, "cache_salt"),
        ({"weights": '{"brevity": 1}'}, "steer:0", "cache_salt"),
        ({"weights": '{"zest": 1}'}, None, "unknown trait"),
        ({"weights": "brief"}, None, "JSON"),
        ({"profile": "ann"}, None, "no profile"),
        ({}, "steer:0", "the request has none"),
    ],
)
def test_what_would_be_steered_wrongly_is_refused(eager, fields, salt, message):
    prompt = {"prompt_token_ids": [1, 2, 3], **({"cache_salt": salt} if salt else {})}
    params = vllm.SamplingParams(max_tokens=2, extra_args=fields)
    with pytest.raises(vllm.exceptions.VLLMValidationError, match=message):
        eager.generate([prompt], [params], use_tqdm=False)


def test_a_long_prompt_is_read_in_parts(eager, steerer):
    text = " ".join(PROMPTS * 5)
    prompt = prompt_of(steerer, text)
    assert len(prompt) > 3 * 64
    rendered = render(steerer.language_model.tokenizer, text)
    (found,) = ask(eager, [request_for(steerer, prompt, {"warmth": 1.0})])
    assert found == by_hooks(steerer, rendered, {"warmth": 1.0}, PLAIN)


# --- HTTP ----------------------------------------------------------------------------------------


@contextmanager
def a_server(*command: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL of a server, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert process.poll() is None, "the server has ended"
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


Server = tuple[str, subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    options = json.dumps({**OPTIONS, "enforce_eager": True})
    store = f"sqlite:///{tmp_path_factory.mktemp('store') / 'people.sqlite'}"
    command = ("steer.cli", "serve", "--engine", "vllm", "--engine-options", options)
    with a_server(*command, "--store", store) as made:
        yield made


def test_over_http(steerer, server):
    url, _ = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def streamed(number: int) -> str:
        weights = WEIGHTS[number]
        stream = client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=[{"role": "user", "content": PROMPTS[number]}],
            extra_body={} if weights is None else {"weights": weights},
            max_tokens=40,
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(streamed, range(6)))
    assert found == steerer.generate(PROMPTS, WEIGHTS, max_new_tokens=40)

    # A stored person's profile is in no bundle: its numbers are sent.
    ann = steerer.personalize(["omg so good lol", "just chilling w/ my dog haha"])
    data = to_bytes(ann)
    assert httpx.put(f"{url}/v1/users/ann/profile", content=data).status_code == 200
    body = {"messages": [{"role": "user", "content": "Hi"}], "user": "ann", "max_tokens": 12}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    expected = steerer.generate("Hi", profile=ann, max_new_tokens=12)
    assert answer["choices"][0]["message"]["content"] == expected


def test_who_waits_for_an_engine_that_dies_is_told(server):
    url, process = server
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 800}
    ask = functools.partial(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=60)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waits = pool.submit(ask)
        time.sleep(2)
        (core,) = [
            one for one in psutil.Process(process.pid).children() if "EngineCore" in one.name()
        ]
        core.kill()
        for answer in (waits.result(), ask()):
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "server_error"
    assert httpx.get(f"{url}/health").status_code == 503
    # There is nothing left to wait for.
    process.terminate()
    assert process.wait(15) == -signal.SIGTERM


def test_vllms_own_server(steerer):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    setting = json.dumps({"steer": {"bundle": BUNDLE}})
    command = ("vllm.entrypoints.openai.api_server", "--model", str(packaged_model_dir()))
    command += ("--enforce-eager", "--additional-config", setting)
    with a_server(*command, *options) as (url, _):
        weights = {"brevity": 1.0}
        edit = steerer.resolve(weights)
        body = {
            "model": str(packaged_model_dir()),
            "messages": [{"role": "user", "content": PROMPTS[0]}],
            "max_tokens": 40,
            "temperature": 0,
            "vllm_xargs": {"weights": json.dumps(weights)},
        }
        refused = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert refused.status_code == 400 and "cache_salt" in refused.text
        body["cache_salt"] = cache_salt(edit, steerer.bundle.scope, steerer.bundle.fingerprint)
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        expected = steerer.generate(
            PROMPTS[0], weights, max_new_tokens=40, repetition_penalty=1.0, no_repeat_ngram_size=0
        )
        assert answer["choices"][0]["message"]["content"].strip() == expected
