"""The HTTP surface: OpenAI's objects, limits, keys, and people who are stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

if transformers.__version__.startswith("4."):
    pytest.skip("serving needs transformers 5", allow_module_level=True)

import uvicorn
from fastapi.testclient import TestClient

from steer.baselines.rewarding import rewards_of
from steer.edits import Edit, LayerEdit
from steer.errors import InputError, SteeringError
from steer.generation import Decoding
from steer.posterior import Posterior
from steer.preference import Preference
from steer.profile import Profile
from steer.profile_file import to_bytes
from steer.questions import Answered
from steer.rewards import score
from steer.serve.answer_text import AnswerText
from steer.serve.app import Access, create_app
from steer.serve.continuous import ContinuousEngine, Room
from steer.serve.service import Limits, Service
from steer.serve.store import Person, Store
from steer.serve.tenants import Tenants
from steer.steerer import Steerer
from tests.models import CHAT_TEMPLATE, WIDTH, tiny, tiny_tokenizer
from tests.test_generation import an_edit
from tests.test_steerer import a_steerer

ROOM = Room(rows=4, step_tokens=64, cache_tokens=4096, page=16)
LIMITS = Limits(in_flight=8, answer_tokens=200, default_tokens=12, body_bytes=20_000, seconds=60)
ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}
HALF = "hi \ud83d"
BYTES = [f"<0x{i:02X}>" for i in range(256)]
KEYS = {"0123456789abcdef": "acme", "fedcba9876543210": "other"}


def an_app(limits: Limits = LIMITS, access: Access | None = None, steerer: Steerer | None = None):
    steerer = a_steerer() if steerer is None else steerer
    # So that no answer ends before its limit.
    steerer.language_model.model.generation_config.eos_token_id = [-1]
    engine = ContinuousEngine(steerer.language_model, ROOM)
    service = Service(steerer, engine, Store("sqlite://"), limits)
    return create_app(service, Access() if access is None else access)


def a_client(app) -> TestClient:
    return TestClient(app, base_url="http://localhost")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with a_client(an_app()) as made:
        yield made


@contextlib.contextmanager
def a_server(app, shutdown_seconds: int | None = None) -> Iterator[str]:
    """A real server in a thread; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        app, port=port, log_config=None, timeout_graceful_shutdown=shutdown_seconds
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def service_of(client: TestClient) -> Service:
    return client.app.state.service


def said_by(steerer: Steerer, weights=None, **more) -> str:
    return steerer.generate("Hi", weights, max_new_tokens=12, **more)


# --- Completions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ({}, "unsteered"),
        ({"weights": {"brevity": 3, "warmth": 1}}, "entry 1"),
        ({"weights": {"brevity": 3, "warmth": 1, "zest": 0}}, "entry 1"),
        ({"weights": {"zest": 1}}, "composed"),
        ({"weights": {"brevity": 1, "zest": 1}, "strength": 0.5}, "composed"),
        ({"weights": {"brevity": 1, "warmth": 1}, "compose": True}, "composed"),
        ({"weights": {"brevity": 1}, "strength": 0}, "unsteered"),
    ],
)
def test_an_answer_is_what_generate_gives(client, asked, served):
    found = client.post("/v1/chat/completions", json={**ASK, **asked}).json()
    steerer = service_of(client).steerer
    more = {name: asked[name] for name in ("strength", "compose") if name in asked}
    (choice,) = found["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": said_by(steerer, asked.get("weights"), **more),
        "refusal": None,
    }
    assert choice["finish_reason"] == "length" and found["steer"] == {"served": served}
    assert found["object"] == "chat.completion" and found["model"] == "llama"
    usage = found["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    # <s>[user] Hi [assistant] , a token a character but for the first
    assert usage["prompt_tokens"] == len("[user] Hi [assistant] ") + 1


def test_a_stream_adds_up_to_the_answer(client):
    body = {**ASK, "weights": {"warmth": 1}, "stream": True, "n": 2}
    with client.stream(
        "POST", "/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 24
    for number in (0, 1):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == number]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(one["delta"].get("content", "") for one in mine)
        assert text == said_by(service_of(client).steerer, {"warmth": 1})
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == ["length"]
        assert len(mine) > 6  # it came in pieces


def test_a_text_is_continued_without_a_chat_around_it(client):
    body = {"prompt": ["Rain is", "Sun"], "max_tokens": 8, "weights": {"brevity": 1}}
    found = client.post("/v1/completions", json=body).json()
    steerer = service_of(client).steerer
    tokenizer = steerer.language_model.tokenizer
    for choice, prompt in zip(found["choices"], body["prompt"], strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        with steerer.steer({"brevity": 1}):
            output = steerer.language_model.model.generate(
                **ids,
                pad_token_id=0,
                **Decoding(max_new_tokens=8).options(ids["input_ids"].shape[1]),
            )
        answer = output[0, ids["input_ids"].shape[1] :]
        assert choice["text"] == tokenizer.decode(answer, skip_special_tokens=True)
    assert found["object"] == "text_completion" and found["usage"]["completion_tokens"] == 16
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    pieces = [json.loads(line[6:])["choices"] for line in lines[:-1]]
    for number, choice in enumerate(found["choices"]):
        streamed = "".join(c["text"] for (c,) in pieces if c["index"] == number)
        assert streamed == choice["text"]


def test_an_answer_stops_at_a_string(client):
    whole = said_by(service_of(client).steerer)
    stop = whole[5:7]
    expected = whole[: whole.index(stop)].rstrip()
    for stops in (stop, ["never there", stop]):
        found = client.post("/v1/chat/completions", json={**ASK, "stop": stops}).json()
        (choice,) = found["choices"]
        assert choice["message"]["content"] == expected and choice["finish_reason"] == "stop"


def test_sampling_is_repeatable_and_greedy_is_the_default(client):
    def ask(**more):
        found = client.post("/v1/chat/completions", json={**ASK, "max_tokens": 30, **more}).json()
        return [choice["message"]["content"] for choice in found["choices"]]

    assert ask() == ask(temperature=0)
    sampled = ask(temperature=1.5, seed=5, n=3)
    assert sampled == ask(temperature=1.5, seed=5, n=3) and len(set(sampled)) == 3
    assert sampled != ask(temperature=1.5, seed=6, n=3)
    assert ask(top_p=0.9, seed=1) == ask(top_p=0.9, seed=1, temperature=1)
    assert len({ask(temperature=1.5)[0] for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"wieghts": {"warmth": 1}}, 400, "wieghts: unknown field"),
        ({"weights": {"nosuch": 1}}, 400, "unknown trait 'nosuch'"),
        ({"weights": {"warmth": -1}}, 400, "warmth"),
        ({"weights": {"warmth": 0}}, 400, "weight"),
        ({"weights": {"warmth": "much"}}, 400, "weights.warmth"),
        ({"weights": {"warmth": 1}, "user": "ann"}, 400, "weights, a profile or a user"),
        ({"strength": -1}, 400, "strength"),
        ({"strength": 1e30}, 400, "strength: Input should be less than or equal to 10"),
        ({"profile": "nobody"}, 400, "no profile 'nobody'"),
        ({"user": "nobody"}, 404, "no stored user 'nobody'"),
        ({"model": "gpt-9"}, 404, "no model 'gpt-9'"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"min_tokens": 13}, 400, "min_tokens: expected at most max_tokens, 12"),
        ({"max_tokens": 201}, 400, "at most 200"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, 400, "prompt has"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, 400, "at most 2560, which"),
        ({"temperature": 0, "top_p": 0.5}, 400, "no effect at temperature 0"),
        ({"temperature": 3}, 400, "temperature"),
        ({"presence_penalty": 1}, 400, "presence_penalty"),
        ({"n": 9}, 400, "n:"),
        ({"n": 5, "stream": False, "stream_options": {}}, 400, "stream_options"),
        ({"stop": [""]}, 400, "not empty"),
        ({"stop": ["x", "x" * 1001]}, 400, "at most 1000 characters"),
        ({"tools": []}, 400, "tools: unknown field"),
        ({"logprobs": True}, 400, "logprobs"),
    ],
)
def test_what_cannot_be_served_is_told(client, change, status, message):
    response = client.post("/v1/chat/completions", json={**ASK, **change})
    error = response.json()["error"]
    assert (response.status_code, message in error["message"]) == (status, True), error
    assert set(error) == {"message", "type", "param", "code"}
    assert service_of(client).in_flight == 0


def test_a_chat_that_the_models_template_refuses_is_told(client, monkeypatch):
    tokenizer = service_of(client).steerer.language_model.tokenizer
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('No system, please') }}"
    monkeypatch.setattr(tokenizer, "chat_template", refuses + "{% endif %}" + CHAT_TEMPLATE)
    messages = [{"role": "system", "content": "Be brief."}, *ASK["messages"]]
    response = client.post("/v1/chat/completions", json={**ASK, "messages": messages})
    assert response.status_code == 400 and "No system, please" in response.text
    assert client.post("/v1/chat/completions", json=ASK).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": HALF}]}),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
        ),
        ("completions", {"prompt": HALF}),
        ("completions", {"prompt": ["a", HALF]}),
        ("users/ann/feedback", {"prompt": "Hi", "better": HALF, "worse": "No."}),
    ],
)
def test_half_a_character_is_refused(client, path, body):
    headers = {"content-type": "application/json"}
    response = client.post(f"/v1/{path}", content=json.dumps(body), headers=headers)
    assert response.status_code == 400 and "nicode" in response.json()["error"]["message"]


def test_bodies_that_are_no_json_or_too_large_are_refused(client):
    def chunks():
        yield from [b"x" * 9000] * 3

    headers = {"content-type": "application/json"}
    for content, status in ((b"{", 400), (b"x" * 20_001, 413), (chunks(), 413), (b"\xff", 400)):
        response = client.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == status and "message" in response.json()["error"]


def test_a_full_queue_is_told_to_come_back():
    limits = replace(LIMITS, in_flight=2)
    with a_client(an_app(limits)) as client:
        assert client.post("/v1/chat/completions", json={**ASK, "n": 2}).status_code == 200
        service_of(client).in_flight += 1
        response = client.post("/v1/chat/completions", json={**ASK, "n": 2})
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        service_of(client).in_flight -= 1
        # There will never be room for more than there is.
        response = client.post("/v1/chat/completions", json={**ASK, "n": 3})
        assert response.status_code == 400 and "at most 2 answers" in response.text


def test_what_is_null_is_left_open(client):
    body = {**ASK, "n": None, "stream": None, "stop": None}
    found = client.post("/v1/chat/completions", json=body).json()
    assert len(found["choices"]) == 1 and found["object"] == "chat.completion"


def test_a_token_that_the_model_does_not_know_is_refused():
    steerer = a_steerer()
    more = {"additional_special_tokens": ["[EXTRA]"]}
    steerer.language_model.tokenizer.add_special_tokens(more)
    with a_client(an_app(steerer=steerer)) as client:
        asked = {**ASK, "messages": [{"role": "user", "content": "[EXTRA]"}]}
        for stream in (False, True):
            response = client.post("/v1/chat/completions", json={**asked, "stream": stream})
            assert response.status_code == 400 and "token ids below 97" in response.text
        assert service_of(client).in_flight == 0
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200


def test_an_engine_that_does_not_start_ends_the_server():
    steerer = a_steerer()
    engine = ContinuousEngine(steerer.language_model, Room(cache_tokens=10**13))
    app = create_app(Service(steerer, engine, Store("sqlite://"), LIMITS))
    with pytest.raises(SteeringError, match="did not start"), a_client(app):
        pytest.fail("started")


def test_an_answer_that_takes_too_long_is_given_up():
    with a_client(an_app(replace(LIMITS, seconds=0.05))) as client:
        body = {**ASK, "max_tokens": 200}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 504 and "0.05 s" in response.json()["error"]["message"]
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert "longer than" in json.loads(lines[-2][6:])["error"]["message"]
        assert service_of(client).in_flight == 0
        assert service_of(client).engine.edits_in_use == 0


def test_an_engine_that_failed_is_told():
    with a_client(an_app()) as client:
        assert client.get("/health").json() == {"status": "ok"}

        def breaks(*_: object) -> None:
            raise RuntimeError("no memory")

        layer = service_of(client).steerer.language_model.layers[0]
        handle = layer.register_forward_pre_hook(breaks)
        response = client.post("/v1/chat/completions", json=ASK)
        handle.remove()
        assert response.status_code == 503 and "gave the answer up" in response.text
        time.sleep(0.3)
        assert client.get("/health").status_code == 503
        assert client.post("/v1/chat/completions", json=ASK).status_code == 503


# --- A real server -------------------------------------------------------------------------------


def test_clients_at_once_are_not_mixed_up():
    names = ("brevity", "warmth", "zest")
    asked = [
        {
            "weights": {names[i % 3]: 1.0, names[(i + 1) % 3]: 0.2 * (i // 3)},
            "strength": 0.3 + 0.2 * (i % 5),
            "compose": True,
            "temperature": 1.2,
            "seed": i,
            "stream": i % 2 == 1,
        }
        for i in range(24)
    ]

    async def ask(client: httpx.AsyncClient, one: dict[str, object]) -> str:
        response = await client.post("/v1/chat/completions", json={**ASK, **one}, timeout=60)
        assert response.status_code == 200
        if not one["stream"]:
            return response.json()["choices"][0]["message"]["content"]
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        return "".join(delta.get("content", "") for delta in deltas)

    async def both_ways(url: str) -> tuple[list[str], list[str]]:
        async with httpx.AsyncClient(base_url=url) as client:
            alone = [await ask(client, one) for one in asked]
            return alone, await asyncio.gather(*(ask(client, one) for one in asked))

    with a_server(an_app(replace(LIMITS, in_flight=64))) as url:
        alone, together = asyncio.run(both_ways(url))
    assert together == alone and len(set(alone)) > 12


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(stream):
    app = an_app()
    service: Service = app.state.service
    body = {**ASK, "max_tokens": 200, "stream": stream, "weights": {"warmth": 1}}

    async def leave(url: str) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            with contextlib.suppress(httpx.ReadTimeout):
                async with client.stream(
                    "POST", "/v1/chat/completions", json=body, timeout=0.3
                ) as r:
                    async for _ in r.aiter_lines():
                        break

    # Slow enough that it is not over before the client has gone.
    handle = service.steerer.language_model.layers[0].register_forward_pre_hook(
        lambda *_: time.sleep(0.02)
    )
    with a_server(app) as url:
        asyncio.run(leave(url))
        began = time.monotonic()
        while service.in_flight and time.monotonic() - began < 10:
            time.sleep(0.02)
        assert service.in_flight == 0 and service.engine.edits_in_use == 0
    handle.remove()


@pytest.mark.parametrize("last", [True, False])
def test_a_client_that_does_not_read_is_given_up(monkeypatch, last):
    monkeypatch.setattr("steer.serve.routes._UNREAD", 0.1)
    app = an_app()
    service: Service = app.state.service
    body = json.dumps({**ASK, "max_tokens": 4 if last else 200, "stream": True}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }
    held = []

    async def ask() -> None:
        told = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            return told.pop() if told else await asyncio.Future()

        async def send(message: dict) -> None:
            if message["type"] == "http.response.body" and message["more_body"] != last:
                held.append(service.in_flight)
                await asyncio.Future()

        async with app.router.lifespan_context(app):
            await asyncio.wait_for(app(scope, receive, send), 10)
            assert service.in_flight == 0 and service.engine.edits_in_use == 0

    asyncio.run(ask())
    assert held == [1]


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("chat/completions", ASK, "steer.serve.service.prompt_tokens"),
        ("completions", {"prompt": "Hi"}, "transformers.PreTrainedTokenizerFast.__call__"),
    ],
)
def test_a_prompt_that_is_long_to_read_holds_nobody_up(monkeypatch, path, body, what):
    release, reading = threading.Event(), threading.Event()

    def slow(*given, **more):
        reading.set()
        assert release.wait(30)
        raise InputError("read")

    async def ask(url: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=url, timeout=5) as client:
            sent = asyncio.ensure_future(client.post(f"/v1/{path}", json=body, timeout=30))
            try:
                while not reading.is_set():
                    await asyncio.sleep(0.01)
                for other in ("/health", "/v1/users/nobody"):
                    assert (await client.get(other)).status_code in (200, 404)
            finally:
                release.set()
            return await sent

    app = an_app()
    monkeypatch.setattr(what, slow)
    with a_server(app) as url:
        assert asyncio.run(asyncio.wait_for(ask(url), 30)).status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_in_flight_is_answered_before_the_end(stream):
    app = an_app()
    body = {**ASK, "max_tokens": 60, "stream": stream}
    answers: list[httpx.Response] = []
    with a_server(app) as url:
        thread = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            )
        )
        thread.start()
        while not app.state.service.in_flight:
            time.sleep(0.005)
    thread.join()
    assert answers[0].status_code == 200
    if stream:
        assert "[DONE]" in answers[0].text and '"finish_reason": "length"' in answers[0].text
    else:
        assert answers[0].json()["usage"]["completion_tokens"] == 60


def test_the_openai_client(tmp_path):
    app = an_app(access=Access(Tenants(KEYS)))
    with a_server(app) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="0123456789abcdef", max_retries=0)
        messages = [{"role": "user", "content": "Hi"}]
        weights = {"brevity": 3, "warmth": 1}
        whole = client.chat.completions.create(
            model="llama", messages=messages, max_tokens=12, extra_body={"weights": weights}
        )
        expected = said_by(app.state.service.steerer, weights)
        assert whole.choices[0].message.content == expected
        answer = whole.choices[0].message
        again = client.chat.completions.create(
            model="llama",
            messages=[*messages, answer, {"role": "user", "content": "Why?"}],
            max_tokens=4,
        )
        turns = f"[user] Hi [assistant] {answer.content} [user] Why? [assistant] "
        assert again.usage.prompt_tokens == len(turns) + 1
        stream = client.chat.completions.create(
            model="llama",
            messages=messages,
            max_completion_tokens=12,
            stream=True,
            extra_body={"weights": weights},
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
        assert [one.id for one in client.models.list()] == ["llama"]
        assert client.completions.create(model="llama", prompt="Hi", max_tokens=3).choices[0].text
        with pytest.raises(openai.BadRequestError, match="unknown trait"):
            client.chat.completions.create(
                model="llama", messages=messages, extra_body={"weights": {"x": 1}}
            )
        with pytest.raises(openai.AuthenticationError):
            replaced = client.with_options(api_key="wrong")
            replaced.models.list()


# --- People --------------------------------------------------------------------------------------


def a_profile(model, edit=an_edit(9)) -> bytes:  # noqa: B008  (frozen)
    return to_bytes(
        Profile(
            fingerprint=model.fingerprint,
            edit=edit,
            dose=0.3,
            gated=False,
            contrast="style",
            method="imitation",
        )
    )


def test_people_are_stored_served_changed_and_erased(client):
    steerer = service_of(client).steerer
    told = client.put("/v1/users/ann", json={"weights": {"warmth": 1}}).json()
    assert told["id"] == "ann" and told["signals"] == 0 and told["weights"]["warmth"] > 0.8
    assert client.get("/v1/users/ann").json() == told
    found = client.post("/v1/chat/completions", json={**ASK, "user": "ann"}).json()
    assert found["choices"][0]["message"]["content"] == said_by(steerer, {"warmth": 1})
    pair = {"prompt": "Hi", "better": "No.", "worse": "I would rather say that it rains. " * 5}
    for number in range(1, 4):
        after = client.post("/v1/users/ann/feedback", json=pair).json()
        assert after["signals"] == number
    assert after["weights"]["brevity"] > told["weights"]["brevity"]
    thumbed = client.post(
        "/v1/users/ann/feedback", json={"prompt": "Hi", "answer": "No.", "thumb": "up"}
    )
    assert thumbed.status_code == 400 and "portfolio's answers" in thumbed.text
    corrected = client.post("/v1/users/ann/feedback", json={**pair, "corrected": True}).json()
    assert corrected["signals"] == 4
    assert client.delete("/v1/users/ann").json()["deleted"] is True
    assert client.delete("/v1/users/ann").status_code == 404
    assert client.get("/v1/users/ann").status_code == 404
    assert client.post("/v1/users/new/feedback", json=pair).json()["signals"] == 1
    client.delete("/v1/users/new")


@pytest.mark.parametrize(("few", "many"), [(19.2, 96), (20, 400)])
def test_feedback_counts_words_as_the_portfolio_does(few, many):
    """Its questions, on that scale, are answered by the same person."""
    steerer = a_steerer()
    portfolio = steerer.bundle.portfolio
    at = portfolio.traits.index("brevity")
    named = [*portfolio.rewards]
    named[at] = f"words, {many:g} to {few:g}"
    steerer.bundle = replace(steerer.bundle, portfolio=replace(portfolio, rewards=tuple(named)))
    with a_client(an_app(steerer=steerer)) as client:
        nonsense = ["".join(letters) for letters in product("aeiounrst", repeat=3)]
        texts = {"better": " ".join(nonsense[:40]), "worse": " ".join(nonsense[:150])}
        said = client.post("/v1/users/ann/feedback", json={"prompt": "Hi", **texts}).json()
    rewards = rewards_of(dict.fromkeys(portfolio.traits, 1.0), {})
    values = score(rewards, ["Hi"] * 2, list(texts.values()))[0]
    earned = [math.log(many / n) / math.log(many / few) for n in (40, 150)]
    values[:, at] = np.clip(earned, 0, 1)
    expected = Preference.of(steerer.bundle).choose(*values)
    assert said["weights"] == pytest.approx(expected.weights, abs=1e-4)


def test_much_feedback_at_once_holds_nobody_else_up(monkeypatch):
    release = threading.Event()

    def slow(*given):
        assert release.wait(30)
        return score(*given)

    monkeypatch.setattr("steer.serve.service.score", slow)
    pair = {"prompt": "Hi", "better": "No.", "worse": "I would rather say that it rains."}

    async def ask(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            # More than the threads of the pool that reads people.
            sent = [
                asyncio.ensure_future(client.post(f"/v1/users/u{i}/feedback", json=pair))
                for i in range(60)
            ]
            try:
                while sum(one.done() for one in sent) < 10:
                    await asyncio.sleep(0.01)
                others = [client.get(path, timeout=5) for path in ("/health", "/v1/users/nobody")]
                others.append(client.post("/v1/chat/completions", json=ASK, timeout=5))
                found = [one.status_code for one in await asyncio.gather(*others)]
                assert found == [200, 404, 200]
            finally:
                release.set()
            return await asyncio.gather(*sent)

    with a_server(an_app(replace(LIMITS, in_flight=50))) as url:
        answers = asyncio.run(asyncio.wait_for(ask(url), 60))
    refused = [one for one in answers if one.status_code == 429]
    assert len(refused) == 10 and all(int(one.headers["retry-after"]) >= 1 for one in refused)
    assert [one.json()["signals"] for one in answers if one.status_code == 200] == [1] * 50


def test_somebody_who_wants_what_is_not_routed(client):
    steerer = service_of(client).steerer
    said = {"zest": 1.0, "warmth": 3.0}
    assert client.put("/v1/users/eve", json={"weights": said}).json() == {
        "id": "eve",
        "object": "user",
        "weights": said,
    }
    found = client.post("/v1/chat/completions", json={**ASK, "user": "eve"}).json()
    assert found["choices"][0]["message"]["content"] == said_by(steerer, said)
    pair = {"prompt": "Hi", "better": "No.", "worse": "Yes."}
    response = client.post("/v1/users/eve/feedback", json=pair)
    assert response.status_code == 400 and "not routed" in response.text
    assert client.put("/v1/users/eve", json={"weights": {"nosuch": 1}}).status_code == 400
    assert client.get("/v1/users/eve").json()["weights"] == said
    client.delete("/v1/users/eve")


def test_somebody_with_a_profile(client):
    steerer = service_of(client).steerer
    data = a_profile(steerer.language_model)
    told = client.put("/v1/users/bob/profile", content=data).json()
    assert told["profile"]["method"] == "imitation" and "weights" not in told
    found = client.post("/v1/chat/completions", json={**ASK, "user": "bob", "strength": 0.5}).json()
    with steerer._hooks.steer(0.5 * an_edit(9)):
        from steer.chat import render
        from steer.generation import generate_batch

        text = render(steerer.language_model.tokenizer, "Hi")
        (expected,) = generate_batch(steerer.language_model, [text], Decoding(max_new_tokens=12))
    assert found["choices"][0]["message"]["content"] == expected.text
    pair = {"prompt": "Hi", "better": "No.", "worse": "Yes."}
    response = client.post("/v1/users/bob/feedback", json=pair)
    assert response.status_code == 400 and "served by a profile" in response.text
    other = a_profile(tiny("llama", seed=5))
    wild = a_profile(steerer.language_model, 1e30 * an_edit(9))
    for bad in (b"", b"x", data[:-1], other, wild):
        assert client.put("/v1/users/bob/profile", content=bad).status_code == 400
    assert client.get("/v1/users/bob").json()["profile"] == told["profile"]
    client.delete("/v1/users/bob")


def test_keys_part_tenants():
    with a_client(an_app(access=Access(Tenants(KEYS)))) as client:
        acme, other = ({"Authorization": f"Bearer {key}"} for key in KEYS)
        for path in ("/v1/models", "/v1/traits", "/v1/users/ann"):
            response = client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/chat/completions", json=ASK).status_code == 401
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200
        client.put("/v1/users/ann", json={"weights": {"warmth": 1}}, headers=acme)
        assert client.get("/v1/users/ann", headers=acme).status_code == 200
        assert client.get("/v1/users/ann", headers=other).status_code == 404
        asked = {**ASK, "user": "ann"}
        assert client.post("/v1/chat/completions", json=asked, headers=other).status_code == 404
        assert client.delete("/v1/users/ann", headers=other).status_code == 404
        assert client.post("/v1/chat/completions", json=asked, headers=acme).status_code == 200


def test_pages_of_other_origins_may_not_ask_unless_named():
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with a_client(an_app()) as client:
        assert (
            "access-control-allow-origin" not in client.options("/v1/models", headers=ask).headers
        )
    for wrong in ("a.example", "https://a.example/", "https://a.example/page", "https://A.example"):
        with pytest.raises(InputError, match="scheme://host"):
            Access(origins=(wrong,))
    named = Access(origins=("https://a.example",))
    with a_client(an_app(access=named)) as client:
        found = client.options("/v1/models", headers=ask).headers
        assert found["access-control-allow-origin"] == "https://a.example"
        # What OpenAI's JavaScript client sends, and what it reads.
        sends = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
        found = client.options(
            "/v1/models", headers={**ask, "Access-Control-Request-Headers": sends}
        )
        assert found.status_code == 200
        assert found.headers["access-control-allow-headers"] == sends
        found = client.get("/v1/models", headers=ask).headers
        assert found["access-control-expose-headers"] == "Retry-After"
        found = client.options("/v1/models", headers={**ask, "Origin": "https://b.example"}).headers
        assert "access-control-allow-origin" not in found


def test_names_that_lead_here_are_refused_without_keys():
    own = ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "10.0.0.7")
    others = ("evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "")

    def found(access: Access, host: str) -> httpx.Response:
        # What is asked runs no engine.
        return TestClient(an_app(access=access)).get("/v1/models", headers={"Host": host})

    for host in own:
        assert found(Access(), host).status_code == 200
    for host in others:
        refused = found(Access(), host)
        assert refused.status_code == 400 and "localhost as Host" in refused.text
        assert found(Access(any_host=True), host).status_code == 200
        assert found(Access(Tenants(KEYS)), host).status_code == 401


# --- What is told of it --------------------------------------------------------------------------


def test_metrics_and_logs_count_and_hold_no_text(client, caplog):
    caplog.set_level(logging.INFO, "steer.serve")
    secret = {**ASK, "messages": [{"role": "user", "content": "SECRET"}]}
    client.post("/v1/chat/completions", json=secret)
    client.put("/v1/users/SECRET", json={})
    client.delete("/v1/users/SECRET")
    client.get("/nosuch/SECRET")
    text = client.get("/metrics").text
    logged = json.dumps([vars(record) for record in caplog.records], default=str)
    assert "SECRET" not in text and "SECRET" not in logged
    (record,) = [r for r in caplog.records if getattr(r, "path", "") == "/v1/chat/completions"]
    assert (record.status, record.answers, record.tenant) == (200, 1, "local")
    assert 'steer_requests_total{path="/v1/users/{user}",status="200"}' in text
    assert "steer_in_flight 0.0" in text and "steer_answer_tokens_total" in text
    assert 'steer_requests_total{path="other",status="404"}' in text


def test_what_can_be_asked_for(client):
    found = client.get("/v1/traits").json()
    assert set(found["traits"]) == {"brevity", "warmth", "zest"}
    assert found["routed"] == ["brevity", "warmth"] and found["profiles"] == []
    assert client.get("/v1/models/llama").json()["id"] == "llama"
    assert client.get("/v1/models/other").status_code == 404


def test_nothing_that_can_be_sent_breaks_the_server():
    app = an_app(replace(LIMITS, answer_tokens=2, default_tokens=2))
    with a_server(app) as url:
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{url}/openapi.json",
            "--checks=not_a_server_error",
            "--max-examples=20",
            "--seed=1",
            "--no-color",
        ]
        found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-1000:]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/users/{user}"):
        assert path in openapi_paths(app)
    assert app.state.service.in_flight == 0


def openapi_paths(app) -> set[str]:
    return set(app.openapi()["paths"])


# --- Text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("text", ["  Hello there, you.  ", "a", "   ", "aab aabc", "x stop y"])
@pytest.mark.parametrize("stops", [(), ("stop",), ("aabc", "bc"), ("llo", "zzz")])
def test_pieces_are_the_text_up_to_the_first_stop(text, stops, strip):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    reader = AnswerText(tokenizer, stops, strip=strip)
    pieces, tokens = [], []
    for token in ids:
        tokens.append(token)
        pieces.append(reader.feed(tokens))
        if reader.stopped:
            break
    pieces.append(reader.end())
    places = [text.index(stop) for stop in stops if stop in text]
    expected = text
    if places:
        # The first stop that is complete, as the text comes in.
        found = [(text.index(s) + len(s), text.index(s)) for s in stops if s in text]
        expected = text[: min(found)[1]]
    assert "".join(pieces) == (expected.strip() if strip else expected)
    assert reader.stopped == bool(places)


def test_a_token_is_held_against_the_beginnings_of_a_stop_that_fit():
    class Counted(str):
        cuts = 0

        def __getitem__(self, key):
            Counted.cuts += 1
            return super().__getitem__(key)

    tokenizer = tiny_tokenizer()
    ids = tokenizer("Hello there, you.", add_special_tokens=False)["input_ids"]
    reader = AnswerText(tokenizer, [Counted("x" * 1000)])
    pieces = [reader.feed(ids[: i + 1]) for i in range(len(ids))]
    assert "".join(pieces) == "Hello there, you." and Counted.cuts <= 3 * len(ids)


def a_byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["▁", "a", "b", *BYTES])}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", clean_up_tokenization_spaces=False
    )


@given(st.lists(st.sampled_from(["▁", "a", "b", "<0x0A>", "<0xF0>"]), max_size=12))
def test_bytes_that_are_no_character_do_not_end_an_answer(tokens):
    tokenizer = a_byte_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(tokens)
    reader = AnswerText(tokenizer, strip=False)
    found = "".join(reader.feed(ids[: i + 1]) for i in range(len(ids))) + reader.end()
    expected = tokenizer.decode(ids)
    # A line feed before such bytes is one of them, unless it had been given out.
    shown = [e if (f, e) == ("\n", "\ufffd") else f for f, e in zip(found, expected, strict=False)]
    assert "".join(shown) == expected[: len(found)]
    # As generate does where the limit falls inside a character.
    assert not expected[len(found) :].strip("\ufffd") and not found.endswith("\ufffd")


@given(st.lists(st.sampled_from(["▁", "a", "<0xF0>"]), max_size=8), st.booleans())
def test_what_a_model_leaves_of_a_character_is_in_its_answer(tokens, strip):
    tokenizer = a_byte_tokenizer()
    ids = [*tokenizer.convert_tokens_to_ids(tokens), tokenizer.eos_token_id]
    reader = AnswerText(tokenizer, strip=strip)
    found = "".join(reader.feed(ids[: i + 1]) for i in range(len(ids))) + reader.end(ended=True)
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert found == (expected.strip() if strip else expected)


def with_kept_answers() -> Steerer:
    """Whose portfolio keeps answers, so that thumbs have something to be held against."""
    steerer = a_steerer()
    kept = tuple(
        Answered(f"prompt {i}", ("It rains. " * (3 * i + 1), "No.", "Well, " * 20), np.ones((3, 2)))
        for i in range(3)
    )
    portfolio = replace(steerer.bundle.portfolio, answered=kept)
    return Steerer(steerer.language_model, replace(steerer.bundle, portfolio=portfolio))


def rewards_for(prompts, answers):
    return score(rewards_of({"brevity": 1.0, "warmth": 1.0}, {}), prompts, answers)[0]


@pytest.mark.parametrize("thumb", ["up", "down"])
def test_a_thumb_is_held_against_what_answers_usually_earn(thumb):
    steerer = with_kept_answers()
    long = "I would rather say that it rains. " * 30
    with a_client(an_app(steerer=steerer)) as client:
        body = {"prompt": "Hi", "answer": long, "thumb": thumb}
        told = client.post("/v1/users/ann/feedback", json=body).json()
        unknown = client.put("/v1/users/bob", json={}).json()
    pairs = [(a.prompt, text) for a in steerer.bundle.portfolio.answered for text in a.answers]
    usual = np.mean([rewards_for([prompt], [text])[0] for prompt, text in pairs], axis=0)
    expected = Preference.of(steerer.bundle).thumb(
        rewards_for(["Hi"], [long])[0], usual, up=thumb == "up"
    )
    assert told["weights"] == pytest.approx(expected.weights, abs=1e-4)
    # Who likes a long answer wants brevity less than was thought, and the other way round.
    more = told["weights"]["brevity"] - unknown["weights"]["brevity"]
    assert more < -0.01 if thumb == "up" else more > 0.01


def test_a_correction_counts_for_what_was_made_of_the_answer(client):
    long = "I would rather say that it rains. " * 5
    weights = {}
    for name, better, worse in (("short", "No.", long), ("long", long, "No.")):
        body = {"prompt": "Hi", "better": better, "worse": worse, "corrected": True}
        weights[name] = client.post(f"/v1/users/{name}/feedback", json=body).json()["weights"]
        client.delete(f"/v1/users/{name}")
        after, before = rewards_for(["Hi"] * 2, [better, worse])
        expected = Preference.of(service_of(client).steerer.bundle).corrected(before, after)
        assert weights[name] == pytest.approx(expected.weights, abs=1e-4)
    assert weights["short"]["brevity"] > weights["long"]["brevity"] + 0.01


def test_feedback_of_somebody_stored_with_other_traits_is_refused(client):
    service = service_of(client)
    other = Preference({"warmth": "warm", "brevity": "brief"}, Posterior.prior([1.0, 1.0]))
    service.store.put("local", "old", Person(preference=other))
    pair = {"prompt": "Hi", "better": "No.", "worse": "I would rather say that it rains. " * 5}
    response = client.post("/v1/users/old/feedback", json=pair)
    assert response.status_code == 400 and "another bundle" in response.text
    assert client.get("/v1/users/old").json()["signals"] == 0
    client.delete("/v1/users/old")


def test_an_answer_of_which_no_length_is_said(client):
    asked = {"messages": ASK["messages"]}
    found = client.post("/v1/chat/completions", json=asked).json()
    assert found["usage"]["completion_tokens"] == LIMITS.default_tokens == 12
    for more in ({"max_completion_tokens": 5}, {"max_completion_tokens": 5, "max_tokens": 9}):
        found = client.post("/v1/chat/completions", json={**asked, **more}).json()
        assert found["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"repetition_penalty": 3.0}, {"repetition_penalty": 3.0}),
        ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
        ({"no_repeat_ngram_size": 0, "repetition_penalty": 1}, {"no_repeat_ngram_size": 0}),
    ],
)
def test_options_of_a_request_are_those_of_generate(client, body, options):
    steerer = service_of(client).steerer
    whole = {"repetition_penalty": 1.0, "max_new_tokens": 60} | options
    if "repetition_penalty" not in body:
        whole |= {"repetition_penalty": 1.1}
    found = client.post("/v1/chat/completions", json={**ASK, "max_tokens": 60, **body}).json()
    assert found["choices"][0]["message"]["content"] == steerer.generate("Hi", **whole)
    assert steerer.generate("Hi", **whole) != steerer.generate("Hi", max_new_tokens=60)


def test_a_least_length_and_the_likeliest_tokens():
    app = an_app()
    steerer = app.state.service.steerer
    free = steerer.answer(["Hi"], None, decoding=Decoding(max_new_tokens=12))[0].tokens
    steerer.language_model.model.generation_config.eos_token_id = free[3]
    app = create_app(
        Service(
            steerer, ContinuousEngine(steerer.language_model, ROOM), Store("sqlite://"), LIMITS
        ),
        Access(),
    )
    with a_client(app) as client:
        for least, length in ((None, free.index(free[3]) + 1), (8, None)):
            found = client.post("/v1/chat/completions", json={**ASK, "min_tokens": least}).json()
            tokens = found["usage"]["completion_tokens"]
            assert tokens == length if length else tokens >= 8
        sampled = {**ASK, "min_tokens": 12, "temperature": 2, "seed": 3}
        one = client.post("/v1/chat/completions", json={**sampled, "top_k": 1}).json()
        greedy = client.post("/v1/chat/completions", json={**ASK, "min_tokens": 12}).json()
        assert one["choices"][0]["message"] == greedy["choices"][0]["message"]


def test_a_profile_that_scales_out_of_all_bounds_is_refused(client):
    model = service_of(client).steerer.language_model
    e, none = np.zeros(WIDTH, np.float32), np.zeros(1, bool)
    for size, status in ((1e5, 200), (1e7, 400)):
        v = np.full((WIDTH, 1), WIDTH**-0.5, np.float32)  # of length one
        edit = Edit({1: LayerEdit(e, v, v, np.float32([size]), none)})
        response = client.put("/v1/users/wild/profile", content=a_profile(model, edit))
        assert response.status_code == status, response.text
    client.delete("/v1/users/wild")


def test_a_developers_message_is_a_systems(client):
    asked = []
    for role in ("developer", "system", "user"):
        messages = [{"role": role, "content": "Be brief."}, *ASK["messages"]]
        found = client.post("/v1/chat/completions", json={**ASK, "messages": messages}).json()
        asked.append((found["usage"]["prompt_tokens"], found["choices"][0]["message"]["content"]))
    assert asked[0] == asked[1] != asked[2]


def test_a_text_is_continued_for_a_stored_person_and_by_the_right_model(client):
    client.put("/v1/users/ann", json={"weights": {"warmth": 1}})
    body = {"prompt": "Rain is", "max_tokens": 60}
    named, said, plain = (
        client.post("/v1/completions", json={**body, **more}).json()["choices"][0]["text"]
        for more in ({"user": "ann"}, {"weights": {"warmth": 1}}, {})
    )
    assert named == said != plain
    client.delete("/v1/users/ann")
    assert client.post("/v1/completions", json={**body, "model": "gpt-9"}).status_code == 404
    assert client.post("/v1/completions", json={**body, "user": "nobody"}).status_code == 404


def test_what_is_told_of_somebody_is_what_they_said(client):
    weights = {"warmth": 3.0, "brevity": 1.0}
    told = client.put("/v1/users/ann", json={"weights": weights}).json()
    # As sure as some thirty choices.
    expected = Preference.of(service_of(client).steerer.bundle, weights, worth=32.0)
    assert told["weights"] == pytest.approx(expected.weights, abs=1e-4)
    for trait, (low, high) in expected.interval().items():
        assert told["intervals"][trait] == pytest.approx([low, high], abs=1e-4)
        assert low < told["weights"][trait] < high
    assert told["summary"] == expected.summary
    client.delete("/v1/users/ann")


def test_each_token_is_counted_once():
    with a_client(an_app()) as client:
        for body in (ASK, {**ASK, "n": 2}, {**ASK, "stream": True}):
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        lines = client.get("/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(found["steer_answer_tokens_total"]) == 4 * 12
    prompt = len("[user] Hi [assistant] ") + 1
    assert float(found["steer_prompt_tokens_total"]) == 3 * prompt
    assert float(found["steer_first_token_seconds_count"]) == 3
