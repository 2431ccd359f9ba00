"""One conversation held twice: by the steered model and by the unsteered one, each as it answered.

Both answers to a prompt are two rows of one batch, so they come at the same pace.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from steer.serve.service import Service
from steer.serve.wire import ChatCompletion, Message
from steer.sliders import Sliders

_PAUSE = 0.05  # seconds between what is shown; nobody reads faster


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        tokens: Most of an answer.
        temperature: 0 is greedy.
        seed: Of what is sampled, the same for both.
    """

    tokens: int = 200
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Exchange:
    """A prompt and its two answers, as far as they are written.

    Attributes:
        prompt: What was said.
        steered: The steered model's answer.
        unsteered: The unsteered model's.
        served: What served the steered one.
    """

    prompt: str
    steered: str = ""
    unsteered: str = ""
    served: str = ""


@dataclass(frozen=True)
class Conversation:
    """What was said so far."""

    exchanges: tuple[Exchange, ...] = ()

    def messages(self, *, steered: bool) -> list[dict[str, str]]:
        """As one of the two has heard it; prompts that it has not answered are left out."""
        told = []
        for one in self.exchanges:
            answer = one.steered if steered else one.unsteered
            if answer:
                told.append({"role": "user", "content": one.prompt})
                told.append({"role": "assistant", "content": answer})
        return told

    def without_last(self) -> Conversation:
        """Before the last prompt."""
        return replace(self, exchanges=self.exchanges[:-1])

    def ending(self, exchange: Exchange) -> Conversation:
        """With an exchange more."""
        return replace(self, exchanges=(*self.exchanges, exchange))


async def answers(
    service: Service, before: Conversation, prompt: str, sliders: Sliders, decoding: Decoding
) -> AsyncGenerator[Conversation, None]:
    """The conversation, as both answers to a prompt are written.

    Whoever leaves the loop early closes it, which gives both up.

    Raises:
        SteerError: If it cannot be answered.
    """

    def body(*, steered: bool) -> ChatCompletion:
        said = [*before.messages(steered=steered), {"role": "user", "content": prompt}]
        return ChatCompletion(
            messages=[Message.model_validate(message) for message in said],
            weights=sliders.weights if steered else None,
            strength=sliders.strength if steered else 1.0,
            max_tokens=decoding.tokens,
            temperature=decoding.temperature,
            seed=decoding.seed,
        )

    steered, unsteered = (service.chat(body(steered=which)) for which in (True, False))
    texts = ["", ""]
    shown = Exchange(prompt, served=steered.served)
    yield before.ending(shown)
    answering = service.begin(replace(steered, jobs=(*steered.jobs, *unsteered.jobs)))
    try:
        async with aclosing(answering.pieces()) as pieces:
            last = time.monotonic()
            async for piece in pieces:
                texts[piece.choice] += piece.text
                if time.monotonic() - last >= _PAUSE:
                    last = time.monotonic()
                    yield before.ending(replace(shown, steered=texts[0], unsteered=texts[1]))
    finally:
        answering.close()
    yield before.ending(replace(shown, steered=texts[0], unsteered=texts[1]))
