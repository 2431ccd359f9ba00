"""What every engine does: answer requests whose edits differ, and tell how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from steer.edits import ZERO, Edit
from steer.errors import InputError, SteeringError
from steer.generation import Decoding
from steer.hooks import Scope
from steer.models import LanguageModel
from steer.serve.asked_edit import AskedEdit


@dataclass(frozen=True, eq=False)
class Job:
    """One request to an engine.

    Attributes:
        prompt: Its token ids.
        edit: Of its answer.
        decoding: How its tokens are chosen.
        seed: Makes sampling repeatable; None for a new one.
        scope: Where the edit acts.
        asked: How another process that holds the bundle makes the edit itself; None where none
            does, and its numbers are sent.
    """

    prompt: tuple[int, ...]
    edit: Edit = ZERO
    decoding: Decoding = field(default_factory=Decoding)
    seed: int | None = None
    scope: Scope = "response"
    asked: AskedEdit | None = None


@dataclass(frozen=True)
class Progress:
    """How far an answer has come.

    Attributes:
        tokens: All its token ids so far, the one that ends it included.
        done: Whether it is over.
        ended: Whether the model ended it, rather than the limit.
        error: Why it failed; None if it did not.
    """

    tokens: tuple[int, ...]
    done: bool = False
    ended: bool = False
    error: str | None = None


Deliver = Callable[[Progress], None]
"""Called in the event loop in which the request was submitted."""


class Engine(Protocol):
    """Answers many requests at once."""

    @property
    def language_model(self) -> LanguageModel:
        """Whose tokenizer prompts and answers are of."""
        ...

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer."""
        ...

    @property
    def edits_in_use(self) -> int:
        """How many different edits are being applied."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        ...

    def start(self) -> None:
        """Begin to answer."""
        ...

    def submit(self, name: str, job: Job, deliver: Deliver) -> None:
        """Take a request on; called in an event loop.

        Args:
            name: By which it can be cancelled; of no other request in flight.
            job: The request.
            deliver: Told of every token, and of the end.

        Raises:
            InputError: If the request does not fit the model.
        """
        ...

    def cancel(self, name: str) -> None:
        """Give a request up; nothing is delivered any more. No error if it is over."""
        ...

    def stop(self, timeout: float) -> None:
        """Answer what is in flight, for so many seconds, and end."""
        ...


def check_job(name: str, job: Job, engine: Engine, in_flight: Collection[str]) -> None:
    """Refuse a request that an engine cannot take on.

    Args:
        name: By which it can be cancelled.
        job: The request.
        engine: The engine.
        in_flight: Names of its requests.

    Raises:
        SteeringError: If the engine does not run.
        InputError: If the request does not fit it.
    """
    if not engine.healthy:
        raise SteeringError("the engine does not run")
    if name in in_flight:
        raise InputError(f"request {name!r} is being answered already")
    answer = job.decoding.max_new_tokens
    if not job.prompt or len(job.prompt) + answer > engine.longest:
        raise InputError(
            f"expected a prompt that with its answer has at most {engine.longest} tokens, got "
            f"{len(job.prompt)} and {answer}"
        )
    known = len(engine.language_model.model.get_input_embeddings().weight)
    if max(job.prompt) >= known:
        raise InputError(
            f"expected token ids below {known}, of which the model has embeddings, got "
            f"{max(job.prompt)}; its tokenizer has tokens that the model does not know"
        )
    if job.decoding.num_beams > 1:
        raise InputError("beams are not searched in continuous batches; expected num_beams=1")
