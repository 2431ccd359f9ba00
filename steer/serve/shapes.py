"""How answers look: OpenAI's objects for chats and for completions, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from steer.serve.service import Asked, Piece


class ChatShape:
    """How a chat's answers look."""

    def __init__(self, model: str) -> None:
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self.whole_kind, self.chunk_kind = "chat.completion", "chat.completion.chunk"

    def whole(self, number: int, text: str, reason: str) -> dict[str, Any]:
        """A finished answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": None, "finish_reason": reason}

    def first(self, number: int) -> dict[str, Any] | None:
        """What is sent before an answer's first piece; None if nothing is."""
        delta = {"role": "assistant", "content": ""}
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece of an answer."""
        delta = {"content": piece.text} if piece.text else {}
        return {
            "index": piece.choice,
            "delta": delta,
            "logprobs": None,
            "finish_reason": piece.reason,
        }


class TextShape:
    """How a completion's answers look."""

    def __init__(self, model: str) -> None:
        self.head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.whole_kind = self.chunk_kind = "text_completion"

    def whole(self, number: int, text: str, reason: str) -> dict[str, Any]:
        """A finished answer."""
        return {"index": number, "text": text, "logprobs": None, "finish_reason": reason}

    def first(self, number: int) -> dict[str, Any] | None:
        """What is sent before an answer's first piece; None if nothing is."""
        return None

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece of an answer."""
        return {
            "index": piece.choice,
            "text": piece.text,
            "logprobs": None,
            "finish_reason": piece.reason,
        }


Shape = ChatShape | TextShape


def usage(asked: Asked, written: Sequence[int]) -> dict[str, int]:
    """Tokens that were read and written."""
    read, wrote = asked.prompt_tokens, sum(written)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
