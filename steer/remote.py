"""A model behind an OpenAI-compatible API: a preference's summary can drive it, weights cannot.

    me = steer.Preference.load("me.json")
    remote = RemoteModel("http://localhost:8000/v1", "some-model")
    remote.answer(me.messages("How do I sleep better?"))

Only this module and the download of a model ever use the network, and only when they are asked to.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from steer.chat import Chat, check_chat
from steer.errors import InputError, ModelError


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an error: followed, it would take the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """No other request."""


@dataclass(frozen=True)
class RemoteModel:
    """A chat model that is reached by an address.

    Attributes:
        base_url: Where its API begins, such as "http://localhost:8000/v1".
        model: Its name there.
        api_key: Sent along; None for the variable OPENAI_API_KEY, if there is one.
        timeout: Seconds to wait for an answer.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"base_url: expected http:// or https://, got {self.base_url!r}")

    def answer(
        self,
        messages: str | Chat,
        *,
        max_tokens: int = 384,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> str:
        """What it answers.

        Args:
            messages: A text or a chat, such as `Preference.messages` gives.
            max_tokens: Longest answer.
            temperature: Of sampling; 0 is greedy.
            seed: Makes sampling repeatable, where the model heeds it.

        Raises:
            InputError: If the chat is malformed, or the key cannot be sent.
            ModelError: If there is no answer.
        """
        chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        check_chat(chat)
        asked = {
            "model": self.model,
            "messages": [dict(message) for message in chat],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            asked["seed"] = seed
        headers = self._headers()
        try:
            text = json.loads(self._post(asked, headers))["choices"][0]["message"]["content"]
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise ModelError(f"{self._where}: no answer: {error!r}") from error
        if not isinstance(text, str):
            raise ModelError(f"{self._where}: expected an answer with text, got {text!r:.80}")
        return text

    @property
    def _where(self) -> str:
        return f"{self.base_url}, model {self.model!r}"

    def _headers(self) -> dict[str, str]:
        key = (self.api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        # Checked here, since the error of a header that cannot be sent would tell it.
        if not (key.isascii() and key.isprintable()):
            raise InputError("api_key: expected printable ASCII characters")
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        return {"Content-Type": "application/json"} | authorization

    def _post(self, asked: dict[str, object], headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/chat/completions",
            data=json.dumps(asked).encode(),
            headers=headers,
        )
        try:
            opener = urllib.request.build_opener(_NoRedirects)
            with opener.open(request, timeout=self.timeout) as reply:
                found: bytes = reply.read()
                return found
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace")
            raise ModelError(f"{self._where}: {error.code} {error.reason}: {said}") from error
