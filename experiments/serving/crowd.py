"""People who ask a server, each again as soon as they are answered, every other one for a stream.

What each request came to is kept: the answer that the same request gets alone, another one, an
error that says what happened, or anything else.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from steer.serve.proxy import GONE

Outcome = Literal["right", "other", "told", "failed"]


@dataclass(frozen=True)
class Asked:
    """What one request came to.

    Attributes:
        began: When, in seconds of a clock that never goes back.
        ended: When.
        stream: Whether it was for a stream.
        outcome: "right" as alone, "other" than alone, "told" that its replica stopped, or "failed".
        detail: Of a failure.
    """

    began: float
    ended: float
    stream: bool
    outcome: Outcome
    detail: str = ""


async def crowd(
    url: str,
    bodies: Sequence[dict[str, Any]],
    expected: Sequence[str],
    clients: int,
    goes_on: Callable[[], bool],
    *,
    headers: Mapping[str, str] | None = None,
) -> list[Asked]:
    """Ask for as long as it goes on; whoever waits for an answer at the end gets it.

    Args:
        url: Of the server.
        bodies: Requests, which people take turns with.
        expected: What each of them is answered alone.
        clients: People.
        goes_on: Whether they ask again.
        headers: Of every request.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    turns = itertools.count()
    asked: list[Asked] = []

    async def person(client: httpx.AsyncClient) -> None:
        while goes_on():
            turn = next(turns)
            place, stream = turn % len(bodies), turn % 2 == 1
            began = time.monotonic()
            outcome, detail = await answered(client, bodies[place], expected[place], stream)
            asked.append(Asked(began, time.monotonic(), stream, outcome, detail))
            if outcome in ("told", "failed"):
                await asyncio.sleep(0.2)

    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=120, limits=limits
    ) as client:
        await asyncio.gather(*(person(client) for _ in range(clients)))
    return asked


async def answered(
    client: httpx.AsyncClient, body: dict[str, Any], expected: str, stream: bool
) -> tuple[Outcome, str]:
    """What one request comes to, and what is to be said of a failure."""
    path = "/v1/chat/completions"
    try:
        if not stream:
            response = await client.post(path, json=body)
            told = response.json()
            if response.status_code == 503 and told["error"]["message"] == GONE:
                return "told", ""
            if response.status_code != 200:
                return "failed", f"status {response.status_code}: {response.text[:200]}"
            return _compared(told["choices"][0]["message"]["content"], expected)
        text, events = "", []
        async with client.stream("POST", path, json={**body, "stream": True}) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    events.append(line.removeprefix("data: "))
                elif line.startswith("{"):
                    events.append(line)  # refused before the stream began
        for event in events[:-1] if events[-1:] == ["[DONE]"] else events:
            told = json.loads(event)
            if "error" in told:
                clear = told["error"]["message"] == GONE
                return ("told", "") if clear else ("failed", event[:200])
            text += told["choices"][0]["delta"].get("content") or ""
        if events[-1:] != ["[DONE]"]:
            return "failed", "a stream without an end"
        return _compared(text, expected)
    except (httpx.HTTPError, ValueError, LookupError) as error:
        return "failed", repr(error)[:200]


def _compared(text: str, expected: str) -> tuple[Outcome, str]:
    return ("right", "") if text == expected else ("other", f"{text[:80]!r}")
