"""`steer serve --replicas` on a cluster of three simulated nodes, each with an engine.

`make test-ray` runs these: Ray takes a minute to start.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import transformers

if transformers.__version__.startswith("4."):
    pytest.skip("serving needs transformers 5", allow_module_level=True)
pytest.importorskip("ray", reason="needs Ray: make venv-cluster, and then make test-ray")

sys.path.append(str(Path(__file__).parents[1] / "experiments" / "serving"))
from crowd import Asked, crowd  # noqa: E402
from nodes import kill_node, replicas, simulated, wait_for_replicas  # noqa: E402

import steer  # noqa: E402
from tests.test_steerer import a_steerer  # noqa: E402

pytestmark = pytest.mark.ray

KEY = "0123456789abcdef"
ORIGIN = "https://app.example.org"
TOKENS = 40
LONG = 150
WEIGHTS: list[dict[str, Any]] = [
    {},
    {"weights": {"brevity": 3, "warmth": 1}},
    {"weights": {"warmth": 1}},
    {"weights": {"zest": 1}},
    {"weights": {"brevity": 1, "zest": 1}, "strength": 0.5},
    {"weights": {"brevity": 1, "warmth": 1}, "compose": True},
]


@dataclass
class Served:
    """A cluster that serves.

    Attributes:
        url: The one address.
        cluster: Of `ray.cluster_utils`.
        process: The command.
        steerer: What it serves, here.
    """

    url: str
    cluster: Any
    process: subprocess.Popen[str]
    steerer: steer.Steerer

    def expected(self, body: dict[str, Any], tokens: int) -> str:
        """What a request is answered alone, without a server."""
        more = {name: body[name] for name in ("strength", "compose") if name in body}
        return self.steerer.generate("Hi", body.get("weights"), max_new_tokens=tokens, **more)

    @property
    def client(self) -> httpx.Client:
        """Somebody who may ask."""
        return httpx.Client(base_url=self.url, headers=HEADERS, timeout=60)


HEADERS = {"Authorization": f"Bearer {KEY}"}


def bodies(tokens: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": tokens, **one}
        for one in WEIGHTS
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    made = a_steerer()
    # So that no answer ends before its limit.
    made.language_model.model.generation_config.eos_token_id = [-1]
    made.language_model.model.config.max_position_embeddings = 4096
    made.language_model.model.save_pretrained(folder / "model")
    made.language_model.tokenizer.save_pretrained(folder / "model")
    made.bundle.save(folder / "bundle.safetensors")
    (folder / "keys").write_text(f"acme: {KEY}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with simulated(3) as cluster:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "steer.cli", "serve", "--port", str(port)),
                *("--replicas", "3", "--ray-address", cluster.address),
                *("--model", "model", "--bundle", "bundle.safetensors", "--keys", "keys"),
                *("--queue", "60", "--timeout", "60", "--origin", ORIGIN),
            ],
            cwd=folder,
            env={**os.environ, "XDG_DATA_HOME": str(folder)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=(folder / "stderr").open("w"),
        )
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            assert told.startswith("3 replicas serve at"), (folder / "stderr").read_text()
            yield Served(
                f"http://127.0.0.1:{port}",
                cluster,
                process,
                steer.load(folder / "model", folder / "bundle.safetensors"),
            )
        finally:
            process.kill()
            process.wait()


def test_answers_are_what_one_server_gives(served):
    asked = bodies(TOKENS)
    alone = [served.expected(body, TOKENS) for body in asked]
    assert len(set(alone)) == len(alone)
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)

    def whole(body):
        extra = {name: body[name] for name in ("weights", "strength", "compose") if name in body}
        done = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=body["messages"],
            max_tokens=TOKENS,
            extra_body=extra,
        )
        return done.choices[0].message.content

    def streamed(body):
        extra = {name: body[name] for name in ("weights", "strength", "compose") if name in body}
        chunks = list(
            client.chat.completions.create(
                model=client.models.list().data[0].id,
                messages=body["messages"],
                max_tokens=TOKENS,
                extra_body=extra,
                stream=True,
            )
        )
        assert len(chunks) > 10, "it came in pieces"
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for way in (whole, streamed):
            assert list(pool.map(way, 4 * asked)) == 4 * alone


def test_every_replica_serves_and_tells_prometheus(served):
    with served.client as client:
        text = client.get("/metrics").text
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("steer_requests_total") and "chat/completions" in line
    ]
    assert len({line.split('replica="')[1].split('"')[0] for line in lines}) == 3
    # 48 answers of the test before.
    assert sum(float(line.split()[-1]) for line in lines) == 48
    assert text.count("# TYPE steer_requests_total counter") == 1


def test_pages_may_ask_where_they_are_named(served):
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    for response in (
        httpx.options(f"{served.url}/v1/chat/completions", headers=preflight),
        httpx.get(f"{served.url}/v1/models", headers={**HEADERS, "Origin": ORIGIN}),
    ):
        assert response.status_code == 200
        assert response.headers.get_list("access-control-allow-origin") == [ORIGIN]


def test_keys_are_asked_for(served):
    response = httpx.get(f"{served.url}/v1/traits")
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_people_are_known_to_all_and_no_feedback_is_lost(served):
    with served.client as client:
        client.put("/v1/users/ann-of-the-test", json={"weights": {"brevity": 1}})
        said = {"prompt": "Hi", "better": "a b", "worse": "a b c d e f g h"}

        def feedback(_):
            response = client.post("/v1/users/ann-of-the-test/feedback", json=said)
            return response.status_code

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert set(pool.map(feedback, range(24))) == {200}
        signals = [client.get("/v1/users/ann-of-the-test").json()["signals"] for _ in range(12)]
        assert signals == 12 * [24]


def test_a_client_that_leaves_frees_its_row(served):
    def in_flight() -> float:
        with served.client as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("steer_in_flight{"))

    body = {**bodies(2000)[0], "stream": True}
    with served.client as client, client.stream("POST", "/v1/chat/completions", json=body) as left:
        lines = left.iter_lines()
        next(lines)
        assert in_flight() == 1
    deadline = time.monotonic() + 5
    while in_flight() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert in_flight() == 0


def test_more_than_is_taken_on_is_told_when_to_ask_again(served):
    async def at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=served.url, headers=HEADERS, timeout=60, limits=limits
        ) as client:
            body = {**bodies(8)[0], "n": 8}
            return await asyncio.gather(
                *(client.post("/v1/chat/completions", json=body) for _ in range(60))
            )

    responses = asyncio.run(at_once())
    assert {response.status_code for response in responses} == {200, 429}
    busy = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["retry-after"]) >= 1 for response in busy)
    assert all(response.json()["error"]["type"] == "rate_limit_error" for response in busy)


def test_a_killed_replica_loses_only_what_it_held(served):
    victim = next(iter(replicas(served.cluster).values()))
    asked, killed = loaded(served, lambda: os.kill(victim, signal.SIGKILL))
    check_losses(asked, killed)
    wait_for_three(served)
    assert victim not in replicas(served.cluster).values()


def test_a_killed_node_loses_only_what_its_replica_held(served):
    node = list(served.cluster.worker_nodes)[-1]

    wait_for_three(served)

    asked, killed = loaded(served, lambda: kill_node(served.cluster, node))
    check_losses(asked, killed)
    assert len(replicas(served.cluster)) == 2
    served.cluster.add_node(num_cpus=1)
    wait_for_three(served)


def loaded(served: Served, kill) -> tuple[list[Asked], tuple[float, float]]:
    """What people met while a replica died, and when it did."""
    asked = bodies(LONG)
    alone = [served.expected(body, LONG) for body in asked]
    over = False

    async def run() -> tuple[list[Asked], tuple[float, float]]:
        nonlocal over
        people = asyncio.create_task(
            crowd(served.url, asked, alone, 12, lambda: not over, headers=HEADERS)
        )
        await asyncio.sleep(3)
        begun = time.monotonic()
        await asyncio.to_thread(kill)
        killed = (begun, time.monotonic())
        await asyncio.sleep(8)
        over = True
        return await people, killed

    return asyncio.run(run())


def check_losses(asked: list[Asked], killed: tuple[float, float]) -> None:
    begun, done = killed
    assert [one for one in asked if one.outcome in ("other", "failed")] == []
    told = [one for one in asked if one.outcome == "told"]
    in_flight = [one for one in asked if one.began < done and one.ended > begun]
    assert told and set(told) < set(in_flight)
    assert sum(one.began > done for one in asked) >= 12


def wait_for_three(served: Served) -> None:
    wait_for_replicas(served.url, served.cluster, 3, HEADERS)


def test_no_log_tells_who_asked(served):
    session = Path(served.cluster.head_node.get_session_dir_path())
    logs = b"".join(path.read_bytes() for path in session.rglob("*") if path.is_file())
    assert b"steer" in logs and b"ann-of-the-test" not in logs and KEY.encode() not in logs


def test_what_is_in_flight_at_the_end_is_answered(served):
    body = bodies(LONG)[1]
    with served.client as client, concurrent.futures.ThreadPoolExecutor(6) as pool:
        begun = [pool.submit(client.post, "/v1/chat/completions", json=body) for _ in range(6)]
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        alone = served.expected(body, LONG)
        for one in begun:
            assert one.result().json()["choices"][0]["message"]["content"] == alone
    assert served.process.wait(60) == 0
