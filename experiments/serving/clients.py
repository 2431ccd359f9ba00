"""The people of load.py, for locust: each asks again as soon as it is answered.

Locust runs this file; LOAD names a JSON file with `asked`, a list of request bodies, and
`expected`, what each is answered alone. An answer that is another counts as failed.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from locust import FastHttpUser, constant, task

LOAD = json.loads(Path(os.environ["LOAD"]).read_text(encoding="utf-8"))
numbers = itertools.count()


class Client(FastHttpUser):
    """Somebody with an edit of their own."""

    wait_time = constant(0)
    network_timeout = connection_timeout = 600.0

    def on_start(self) -> None:
        self.place = next(numbers) % len(LOAD["asked"])

    @task
    def ask(self) -> None:
        body = LOAD["asked"][self.place]
        with self.client.post(
            "/v1/chat/completions", json=body, name="answer", catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            found = response.json()["choices"][0]["message"]["content"]
            if found != LOAD["expected"][self.place]:
                response.failure("another answer than alone")
