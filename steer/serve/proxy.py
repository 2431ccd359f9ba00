"""What Ray Serve's proxy is given, so that a client can read what becomes of its request.

Where a replica dies, Ray's proxy ends the requests that it held: one whose answer has not begun
without any answer, which its server makes a bare 500 of, and a stream by hanging up. Nobody else
can tell their clients, so this stands in the proxy: it puts an error as OpenAI's clients read it in
the place of no answer, of the end that a stream lacks, and of Ray's own messages in plain text.

It imports no more than it needs, for the proxy's process holds no model.
"""

from __future__ import annotations

import json
import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steer.serve.cors import cors
from steer.serve.problem_body import problem

GONE = "the replica that held this request stopped before it had answered; ask again"
NOBODY = "no replica is ready to answer; ask again"
LATE = "the answer took too long; ask for a shorter one"
FAILED = "the server failed"

ORIGINS = "STEER_ORIGINS"
"""The variable that names pages which may ask, as a JSON list."""

_STREAM = b"text/event-stream"
_PLAIN = b"text/plain"


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its proxy, the innermost first; it calls this by name."""
    # Pages must be able to read the errors that no replica tells.
    return [Middleware(ClearErrors), *cors(json.loads(os.environ.get(ORIGINS, "[]")))]


class ClearErrors:
    """Tells clients of errors that come from no replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # Under /-/ are Ray's own pages.
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        await self._app(scope, _watched(receive, answer), answer.pass_on)
        await answer.finish()


def _watched(receive: Receive, answer: _Answer) -> Receive:
    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            answer.unwanted = True
        return message

    return watched


class _Answer:
    """How far an answer has come.

    Attributes:
        unwanted: Whether the client has gone.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self._ended = False
        self._stream = False
        self._refused: int | None = None
        self.unwanted = False

    async def pass_on(self, message: Message) -> None:
        """Send a message on; one of Ray's own is put in other words."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            if message["status"] >= 400 and kind.startswith(_PLAIN):
                self._refused = message["status"]
                return
            self._begun = True
            self._stream = kind.startswith(_STREAM)
        elif self._refused is not None:
            return
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        """Give the client an end, if there was none."""
        if self.unwanted or self._ended:
            return
        if self._refused == 408:
            await self._tell(504, LATE)
        elif self._refused == 500:
            await self._tell(500, FAILED)
        elif self._refused is not None:
            await self._tell(503, NOBODY)
        elif not self._begun:
            await self._tell(503, GONE)
        elif self._stream:
            told = f"data: {json.dumps(problem(503, GONE))}\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": told.encode()})
        # Half a body of another kind is best left broken: nobody takes it for a whole one.

    async def _tell(self, status: int, message: str) -> None:
        content = json.dumps(problem(status, message)).encode()
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})
