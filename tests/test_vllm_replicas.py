"""`steer serve --replicas` with vLLM in the replicas, on the packaged model in fp32.

Run by `make test-vllm`, in an environment with vLLM for CPUs and Ray.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; see `make test-vllm`")
pytest.importorskip("ray", reason="Ray is not installed; see `make test-vllm`")

sys.path.append(str(Path(__file__).parents[1] / "experiments" / "serving"))
from crowd import crowd  # noqa: E402
from nodes import telling  # noqa: E402

import steer  # noqa: E402
from tests.test_vllm import OPTIONS, PROMPTS, WEIGHTS, Server, a_server  # noqa: E402

TOKENS = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    options = json.dumps({**OPTIONS, "enforce_eager": True})
    store = f"sqlite:///{tmp_path_factory.mktemp('store') / 'people.sqlite'}"
    command = ("steer.cli", "serve", "--replicas", "2", "--store", store)
    with a_server(*command, "--engine", "vllm", "--engine-options", options) as made:
        yield made


def bodies() -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            **({} if weights is None else {"weights": weights}),
        }
        for prompt, weights in zip(PROMPTS, WEIGHTS, strict=True)
    ]


def replicas(server: Server) -> list[psutil.Process]:
    below = psutil.Process(server[1].pid).children(recursive=True)
    return [one for one in below if "ServeReplica" in one.name()]


def test_a_killed_replica_takes_vllm_with_it_and_comes_back(server):
    url, _ = server
    alone = steer.load().generate(PROMPTS, WEIGHTS, max_new_tokens=TOKENS)
    assert len(replicas(server)) == telling(url) == 2
    victim = replicas(server)[0]
    below = victim.children(recursive=True)
    assert any("EngineCore" in one.name() for one in below)
    over = False

    async def run() -> Any:
        nonlocal over
        people = asyncio.create_task(crowd(url, bodies(), alone, 8, lambda: not over))
        await asyncio.sleep(6)
        killed = time.monotonic()
        victim.kill()
        await asyncio.sleep(8)
        over = True
        return await people, killed

    asked, killed = asyncio.run(run())
    assert [one for one in asked if one.outcome in ("other", "failed")] == []
    told = [one for one in asked if one.outcome == "told"]
    assert told and all(one.began < killed < one.ended for one in told)
    assert sum(one.outcome == "right" and one.began > killed for one in asked) >= 8
    # A device that vLLM's own processes went on to hold would be too full for the next replica.
    assert psutil.wait_procs(below, timeout=30)[1] == []
    deadline = time.monotonic() + 180
    while telling(url) < 2 and time.monotonic() < deadline:
        time.sleep(1)
    assert len(replicas(server)) == telling(url) == 2
    again = asyncio.run(some(url, alone))
    assert {one.outcome for one in again} == {"right"}


async def some(url: str, alone: list[str]) -> Any:
    until = time.monotonic() + 8
    return await crowd(url, bodies(), alone, 8, lambda: time.monotonic() < until)
