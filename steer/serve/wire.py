"""Bodies of requests, as the OpenAI API has them, with what steering adds.

A field that would have no effect is refused rather than passed over: whoever sends it counts on it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from steer.serve.asked_edit import MOST_STRENGTH

MOST_CHOICES = 8
MOST_STOPS = 4
LONGEST_STOP = 1000  # characters; each token of an answer is held against all of them

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=128)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TextPart(_Strict):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None  # clients send answers back as they got them

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(_Strict):
    """What a stream tells beside its tokens."""

    include_usage: bool = False


class ResponseFormat(_Strict):
    """Plain text is the only format."""

    type: Literal["text"]


class Steered(_Strict):
    """What both kinds of completion take.

    Attributes:
        model: The served model's name; None for it.
        weights: How much of each trait is wanted, >= 0.
        profile: The name of a profile of the bundle.
        user: The name of a stored person.
        strength: 0 is the unsteered model, 1 the default dose.
        compose: Mix the traits' edits, also where a portfolio would serve.
        temperature: 0 is greedy; None for greedy too, as everywhere in steer.
    """

    model: str | None = None
    weights: dict[str, Finite] | None = Field(None, max_length=64)
    profile: Name | None = None
    user: Name | None = None
    strength: Annotated[Finite, Field(ge=0, le=MOST_STRENGTH)] = 1.0
    compose: bool = False

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=1000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    # Known to clients, and of no effect at these values only.
    frequency_penalty: Annotated[Finite, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=0, le=0)] | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None

    @field_validator("n", "stream", mode="before")
    @classmethod
    def _nothing_said(cls, value: Any, info: ValidationInfo) -> Any:
        """OpenAI's clients may send null for what they leave open."""
        assert info.field_name is not None, "of a field"
        return cls.model_fields[info.field_name].default if value is None else value

    @model_validator(mode="after")
    def _one_way(self) -> Steered:
        ways = {"weights": self.weights, "profile": self.profile, "user": self.user}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"a request has weights, a profile or a user, got {given}")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streams; pass stream=true")
        if any(not stop for stop in self.stops):
            raise ValueError("stop: expected strings that are not empty")
        if any(len(stop) > LONGEST_STOP for stop in self.stops):
            raise ValueError(f"stop: expected strings of at most {LONGEST_STOP} characters")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings at which an answer stops."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatCompletion(Steered):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    response_format: ResponseFormat | None = None

    @property
    def limit(self) -> int | None:
        """Longest answer, in tokens; None if nothing was said."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class Completion(Steered):
    """Body of /v1/completions: the prompt is continued as it is, without a chat around it."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @property
    def limit(self) -> int | None:
        """Longest answer, in tokens; None if nothing was said."""
        return self.max_tokens

    @property
    def prompts(self) -> list[str]:
        """All of them."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class PersonBody(_Strict):
    """Body that stores somebody: what they want, as far as they have said it."""

    weights: dict[str, Finite] | None = Field(None, max_length=64)


class Feedback(_Strict):
    """What somebody said of answers: a choice between two, a thumb, or what they made of one.

    Attributes:
        prompt: What was answered.
        better: The answer that they prefer, or what they made of the other.
        worse: The other.
        answer: The answer that a thumb is for.
        thumb: Up or down.
        corrected: Whether `better` is their own correction of `worse`.
    """

    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    better: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    worse: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    corrected: bool = False
    answer: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    thumb: Literal["up", "down"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Feedback:
        pair = (self.better is None, self.worse is None)
        thumb = (self.answer is None, self.thumb is None)
        if (pair, thumb) not in (((False, False), (True, True)), ((True, True), (False, False))):
            raise ValueError("expected better and worse, or answer and thumb")
        if self.corrected and self.better is None:
            raise ValueError("corrected goes with better and worse")
        return self
