"""`steer serve` as a user starts it, on the packaged model."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
import transformers

import steer

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(transformers.__version__.startswith("4."), reason="needs transformers 5"),
]

PROMPTS = [
    "What is a comet?",
    "How do I sleep better?",
    "Tell me about Rome.",
    "Why is the sky blue?",
    "Name a good book.",
    "What is rain?",
]
WEIGHTS = [
    {"brevity": 1},
    {"warmth": 1},
    None,
    {"simplicity": 1, "warmth": 1},
    {"formality": 2, "positivity": 1},
    {"humor": 1, "brevity": 1},
]
TOKENS = 24


@contextlib.contextmanager
def serving(
    *arguments: str, folder: object, how: str = "serve"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own, and where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XDG_DATA_HOME": str(folder)}
    command = [sys.executable, "-m", "steer.cli", how, "--port", str(port), *arguments]
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        yield url, process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_clients_of_a_server_get_what_hooks_give(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("acme: 0123456789abcdef\n")
    expected = steer.load().generate(PROMPTS, WEIGHTS, max_new_tokens=TOKENS)
    assert len(set(expected)) == 6
    with serving("--keys", str(keys), folder=tmp_path) as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="0123456789abcdef")
        model = client.models.list().data[0].id

        def ask(place: int) -> str:
            weights = WEIGHTS[place]
            stream = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": PROMPTS[place]}],
                max_tokens=TOKENS,
                stream=True,
                extra_body={} if weights is None else {"weights": weights},
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, range(6))) == expected

        # Who is stored is there after a restart; what is in flight at its end is answered.
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        told = {"weights": {"brevity": 1}}
        assert httpx.put(f"{url}/v1/users/ann", json=told, headers=headers).status_code == 200
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            last = pool.submit(ask, 1)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert last.result() == expected[1]
        out, log = process.communicate(timeout=60)
        assert "serving SmolLM2-135M-Instruct" in out
        # uvicorn ends by the signal that it was sent, once all is done.
        assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    asked = [line for line in lines if line["event"] == "request" and line["answers"]]
    assert len(asked) == 7 and all(line["tenant"] == "acme" for line in asked)
    assert not any(word in log for word in ("comet", "Rome", "0123456789abcdef", "ann"))
    with serving("--keys", str(keys), folder=tmp_path) as (url, _):
        assert httpx.get(f"{url}/v1/users/ann", headers=headers).json()["weights"]["brevity"] > 0.8
        body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": TOKENS}
        answer = httpx.post(
            f"{url}/v1/chat/completions", json={**body, "user": "ann"}, headers=headers, timeout=60
        )
        assert answer.json()["choices"][0]["message"]["content"] == expected[0]
