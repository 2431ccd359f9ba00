"""Turn prompts and chats into the text a model was trained to continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from steer.errors import InputError
from steer.fields import check_text

Message: TypeAlias = Mapping[str, str]
Chat: TypeAlias = Sequence[Message]

_ROLES = ("system", "user", "assistant")


def render(tokenizer: PreTrainedTokenizerBase, prompt: str | Chat) -> str:
    """The text after which the model's answer begins.

    A string is one user message. A tokenizer without a chat template belongs to a model that
    only continues text, so a string is then taken as it is.

    Raises:
        InputError: If the prompt is empty or malformed, or a chat is given to a model that has
            no chat template, or one that refuses it.
    """
    if isinstance(prompt, str):
        if not check_text(prompt, "prompt").strip():
            raise InputError("the prompt is empty; expected text")
        if tokenizer.chat_template is None:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    check_chat(prompt)
    if tokenizer.chat_template is None:
        raise InputError("this model has no chat template; pass the prompt as one string")
    messages = [dict(message) for message in prompt]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise InputError(f"the model's chat template refuses this chat: {error}") from error
    return text


def is_chat(value: object) -> bool:
    """Whether a value is one chat (a list of messages) rather than a list of prompts."""
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping)


def check_chat(chat: Chat) -> None:
    """Refuse what is not a chat.

    Raises:
        InputError: If it is empty or malformed.
    """
    if not isinstance(chat, Sequence) or not chat:
        raise InputError(f"expected a prompt or a non-empty list of messages, got {chat!r}")
    for message in chat:
        _check_message(message)


def _check_message(message: Message) -> None:
    fields = {"role", "content"}
    if not isinstance(message, Mapping) or set(message) != fields:
        raise InputError(f"expected a message with 'role' and 'content', got {message!r}")
    if message["role"] not in _ROLES or not isinstance(message["content"], str):
        raise InputError(f"expected a role of {', '.join(_ROLES)} and text, got {message!r}")
    check_text(message["content"], "message")
