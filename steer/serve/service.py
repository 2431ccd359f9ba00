"""From a request to its answer: which edit serves it, and the pieces of text as they come."""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from numpy.typing import NDArray

from steer.baselines.rewarding import rewards_of
from steer.chat import render
from steer.edits import ZERO, Edit, LayerEdit
from steer.errors import InputError, SteeringError
from steer.fields import check_text
from steer.generation import Decoding, prompt_tokens
from steer.preference import Preference
from steer.profile import Profile
from steer.rewards import Reward, length_reward_named, score
from steer.serve.answer_text import AnswerText
from steer.serve.asked_edit import AskedEdit
from steer.serve.engine import Deliver, Engine, Job, Progress
from steer.serve.metrics import Metrics
from steer.serve.store import Person, Store
from steer.serve.wire import ChatCompletion, Completion, Feedback, Steered
from steer.steerer import Steerer
from steer.weights import normalise_weights

Float64 = NDArray[np.float64]
Reason = Literal["stop", "length"]

_KEPT_EDITS = 128

# An edit's sizes above it are of no model: the largest activations have some hundred thousand.
_LARGEST = 1e6

SAID = 32.0
"""How sure weights are that somebody asked for themselves: some thirty choices would move them."""


class NotFoundError(SteeringError):
    """What a request names is not there."""


class BusyError(SteeringError):
    """More requests are in flight than are taken on.

    Attributes:
        retry_after: Seconds after which there may be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


class LateError(SteeringError):
    """An answer took longer than answers may."""


class FailedError(SteeringError):
    """The engine gave an answer up."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        in_flight: Answers that are being written or wait for it; and as much feedback.
        answer_tokens: Of one answer.
        default_tokens: Of an answer where nothing is said.
        body_bytes: Of a request.
        seconds: That an answer may take.
        shutdown_seconds: That answers in flight have when the server ends.
    """

    in_flight: int = 256
    answer_tokens: int = 2048
    default_tokens: int = 384
    body_bytes: int = 1_000_000
    seconds: float = 300.0
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise InputError(f"{name}: expected a number above 0, got {value}")
        if self.default_tokens > self.answer_tokens:
            raise InputError(
                f"default_tokens: expected at most answer_tokens {self.answer_tokens}, got "
                f"{self.default_tokens}"
            )


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        choice: Which answer of the request it belongs to.
        text: What was added.
        tokens: Of the answer so far.
        reason: Why it is over; None if it is not.
    """

    choice: int
    text: str
    tokens: int
    reason: Reason | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """A request as the engine takes it.

    Attributes:
        jobs: One for each answer.
        stops: Strings at which they stop.
        served: What serves it, for people.
        strip: Leave out white space around an answer; a text that is continued needs it.
    """

    jobs: tuple[Job, ...]
    stops: tuple[str, ...]
    served: str
    strip: bool

    @property
    def prompt_tokens(self) -> int:
        """Of all different prompts."""
        return sum(map(len, {job.prompt for job in self.jobs}))


class Service:
    """A steerer, an engine and stored people."""

    def __init__(self, steerer: Steerer, engine: Engine, store: Store, limits: Limits) -> None:
        """Put them together."""
        self.steerer = steerer
        self.engine = engine
        self.store = store
        self.limits = limits
        self.metrics = Metrics(lambda: self.in_flight, lambda: engine.edits_in_use)
        self.in_flight = 0
        # Composing takes long: the edits of the last requests are kept.
        self._edit_of = functools.lru_cache(_KEPT_EDITS)(self._weighted)
        self._usual: Float64 | None = None
        self._learning = CapacityLimiter(1)  # tokenizers are not to be used by two threads
        self.preparing = CapacityLimiter(1)  # whoever waits takes no thread from others
        # Of prompts; the model's own writes answers, in another thread.
        tokenizer = copy.deepcopy(steerer.language_model.tokenizer)
        self._reader = replace(steerer.language_model, tokenizer=tokenizer)
        self._reading = threading.Lock()
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._feedback = 0  # that is being learnt from, or waits for it
        self.usual_seconds = 1.0  # of the last answers

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        return self.steerer.language_model.name

    # --- What is asked ----------------------------------------------------------------------------

    def chat(self, body: ChatCompletion, person: Person | None = None) -> Asked:
        """What a chat asks for; a long one takes seconds to read.

        Args:
            body: The request.
            person: The stored one that it names.

        Raises:
            SteerError: If it cannot be answered.
        """
        tokenizer = self.steerer.language_model.tokenizer
        text = render(tokenizer, [message.plain() for message in body.messages])
        self._check_characters(text)
        with self._reading:
            prompt = tuple(prompt_tokens(self._reader, text))
        return self._asked(body, [prompt], body.limit, person)

    def completion(self, body: Completion, person: Person | None = None) -> Asked:
        """What a completion asks for; a long one takes seconds to read.

        Args:
            body: The request.
            person: The stored one that it names.

        Raises:
            SteerError: If it cannot be answered.
        """
        if any(not check_text(text, "prompt") for text in body.prompts):
            raise InputError("the prompt is empty; expected text")
        for text in body.prompts:
            self._check_characters(text)
        with self._reading:
            prompts = [tuple(self._reader.tokenizer(text)["input_ids"]) for text in body.prompts]
        return self._asked(body, prompts, body.limit, person)

    def _check_characters(self, text: str) -> None:
        """Refuse at once what has too many tokens, however long they are."""
        most = self.engine.longest * self._longest_token
        if len(text) > most:
            raise InputError(
                f"the prompt has {len(text)} characters; expected at most {most}, which is what "
                f"{self.engine.longest} tokens can hold"
            )

    def _asked(
        self,
        body: Steered,
        prompts: Sequence[tuple[int, ...]],
        limit: int | None,
        person: Person | None,
    ) -> Asked:
        edit, asked, served = self._edit(body, person)
        decoding = self._decoding(body, limit, max(map(len, prompts)))
        jobs = []
        for prompt in prompts:
            for number in range(body.n):
                seed = None if body.seed is None else (body.seed + number) % 2**63
                jobs.append(Job(prompt, edit, decoding, seed, self.steerer.bundle.scope, asked))
        return Asked(tuple(jobs), body.stops, served, isinstance(body, ChatCompletion))

    def person(self, tenant: str, name: str) -> Person:
        """A stored person.

        Raises:
            NotFoundError: If there is none of that name.
        """
        person = self.store.get(tenant, name)
        if person is None:
            raise NotFoundError(f"no stored user {name!r}; store one with PUT /v1/users/{name}")
        return person

    def _edit(self, body: Steered, person: Person | None) -> tuple[Edit, AskedEdit | None, str]:
        """The edit, how a process that holds the bundle makes it, and what it is to people."""
        weights: Mapping[str, float] | None = body.weights
        if person is not None:
            if person.profile is not None:
                edit = self.steerer.resolve(None, body.strength, profile=person.profile)
                return edit, None, f"the profile of {body.user}"
            weights = person.weights
        if body.profile is not None:
            edit = self.steerer.resolve(None, body.strength, profile=body.profile)
            asked = AskedEdit(profile=body.profile, strength=body.strength)
            return edit, asked, f"profile {body.profile}"
        if weights is None:
            return ZERO, None, "unsteered"
        edit = self._edit_of(tuple(sorted(weights.items())), body.strength, body.compose)
        if edit.is_zero():
            return edit, None, "unsteered"
        asked = AskedEdit.weighted(weights, body.strength, compose=body.compose)
        portfolio = self.steerer.bundle.portfolio
        if portfolio is None or body.compose or not portfolio.serves(weights):
            return edit, asked, "composed"
        number = portfolio.entry(weights).number
        return edit, asked, "the trait's own edit" if number is None else f"entry {number}"

    def _weighted(
        self, weights: tuple[tuple[str, float], ...], strength: float, compose: bool
    ) -> Edit:
        return self.steerer.resolve(dict(weights), strength, compose=compose)

    def _decoding(self, body: Steered, limit: int | None, prompt: int) -> Decoding:
        most = min(self.limits.answer_tokens, self.engine.longest - prompt)
        if most < 1:
            raise InputError(
                f"the prompt has {prompt} tokens; with an answer there may be {self.engine.longest}"
            )
        if limit is None:
            limit = min(self.limits.default_tokens, most)
        elif limit > most:
            raise InputError(f"max_tokens: expected at most {most} for this prompt, got {limit}")
        if (body.min_tokens or 0) > limit:
            raise InputError(
                f"min_tokens: expected at most max_tokens, {limit}, got {body.min_tokens}"
            )
        sampled = body.temperature is None and (body.top_p is not None or body.top_k is not None)
        do_sample = bool(body.temperature) or sampled
        if not do_sample and (body.top_p is not None or body.top_k is not None):
            raise InputError("top_p and top_k have no effect at temperature 0")
        decoding = Decoding(
            max_new_tokens=limit,
            min_new_tokens=body.min_tokens,
            do_sample=do_sample,
            temperature=(body.temperature or 1.0) if do_sample else None,
            top_p=body.top_p,
            top_k=body.top_k,
        )
        if body.repetition_penalty is not None:
            decoding = replace(decoding, repetition_penalty=body.repetition_penalty)
        if body.no_repeat_ngram_size is not None:
            decoding = replace(decoding, no_repeat_ngram_size=body.no_repeat_ngram_size)
        return decoding

    # --- What is answered -------------------------------------------------------------------------

    def begin(self, asked: Asked) -> Answering:
        """Take a request on; whoever calls it closes what it gives.

        Raises:
            BusyError: If there is no room for it.
            FailedError: If the engine does not run.
            InputError: If there never will be.
        """
        if not self.engine.healthy:
            raise FailedError("the engine does not run")
        if len(asked.jobs) > self.limits.in_flight:
            raise InputError(
                f"expected at most {self.limits.in_flight} answers to a request, which is as many "
                f"as this server writes, got {len(asked.jobs)}; ask for fewer at a time"
            )
        if self.in_flight + len(asked.jobs) > self.limits.in_flight:
            raise self._busy()
        return Answering(self, asked)

    def _busy(self) -> BusyError:
        return BusyError(max(1, round(self.usual_seconds)))

    # --- Who is known -----------------------------------------------------------------------------

    def starting(self, weights: Mapping[str, float] | None) -> Person:
        """Somebody of whom no more is known than what they say they want.

        Raises:
            WeightsError: If the weights are not usable.
        """
        bundle = self.steerer.bundle
        if weights is not None and bundle.portfolio and not bundle.portfolio.serves(weights):
            normalise_weights(weights, bundle.traits)  # refuses what is not usable
            return Person(said=weights)
        return Person(preference=Preference.of(bundle, weights, worth=SAID), said=weights)

    def with_profile(self, profile: Profile) -> Person:
        """Somebody who is served by a profile.

        Raises:
            InputError: If it is of another model, or what its edit does is out of all bounds.
        """
        self.steerer.resolve(None, profile=profile)  # refuses another model's
        largest = max(map(_largest, profile.edit.layers.values()), default=0.0)
        if largest > _LARGEST:
            raise InputError(
                f"profile: expected an edit of sizes up to {_LARGEST:g}, got {largest:.3g}; no "
                "activations are that large"
            )
        return Person(profile=profile)

    async def learn(self, tenant: str, name: str, said: Feedback) -> Person:
        """Somebody after they said something of answers; begun if they are not known.

        Raises:
            BusyError: If as much feedback waits as may.
            InputError: If their answers cannot be rewarded, or they are served by a profile.
        """
        if self._feedback >= self.limits.in_flight:
            raise self._busy()
        self._feedback += 1
        try:
            # Not in the pool that reads people: feedback that waits would fill it.
            return await to_thread.run_sync(
                self._learnt, tenant, name, said, limiter=self._learning
            )
        finally:
            self._feedback -= 1

    def _learnt(self, tenant: str, name: str, said: Feedback) -> Person:
        start = Preference.of(self.steerer.bundle)
        rewards = rewards_of(dict.fromkeys(start.traits, 1.0), self._scaled())
        texts = [text for text in (said.better, said.worse, said.answer) if text is not None]
        values = score(rewards, [said.prompt] * len(texts), texts)[0]
        usual = self._usual_rewards(rewards) if said.thumb is not None else None

        def change(person: Person | None) -> Person:
            if person is not None and person.preference is None:
                what = "a profile" if person.said is None else "traits that are not routed"
                raise InputError(f"{name!r} is served by {what}, which feedback does not change")
            known = start if person is None or person.preference is None else person.preference
            if known.traits != start.traits:
                raise InputError(f"{name!r} was stored with another bundle; store them anew")
            if usual is not None:
                known = known.thumb(values[0], usual, up=said.thumb == "up")
            elif said.corrected:
                known = known.corrected(values[1], values[0])
            else:
                known = known.choose(values[0], values[1])
            return Person(preference=known, said=None if person is None else person.said)

        return self.store.change(tenant, name, change)

    def _scaled(self) -> dict[str, Reward]:
        """Brevity as the portfolio counts it: one preference learns from its questions as well.

        Its scale is set by how long answers could get when the portfolio was made.
        """
        portfolio = self.steerer.bundle.portfolio
        if portfolio is None or "brevity" not in portfolio.traits:
            return {}
        reward = length_reward_named(portfolio.rewards[portfolio.traits.index("brevity")])
        return {} if reward is None else {"brevity": reward}

    def _usual_rewards(self, rewards: Sequence[Reward]) -> Float64:
        """What the portfolio's kept answers earn in the mean, against which thumbs are held."""
        portfolio = self.steerer.bundle.portfolio
        if portfolio is None or not portfolio.answered:
            raise InputError(
                "thumbs need a bundle with a portfolio's answers; send better and worse"
            )
        if self._usual is None:
            pairs = [(one.prompt, text) for one in portfolio.answered for text in one.answers]
            prompts, answers = zip(*pairs, strict=True)
            self._usual = score(rewards, prompts, answers)[0].mean(0)
        return self._usual


def _largest(layer: LayerEdit) -> float:
    """The length of what it adds, or the largest factor by which it scales, if that is more."""
    e, v, u, c = (part.astype(np.float64) for part in (layer.e, layer.v, layer.u, layer.c))
    factors = np.linalg.norm(v, axis=0) * np.linalg.norm(u * c, axis=0)
    return float(max(np.linalg.norm(e), factors.max(initial=0.0)))


class Answering:
    """The answers to one request, while they are written."""

    def __init__(self, service: Service, asked: Asked) -> None:
        """Give them to the engine."""
        self._service = service
        self._asked = asked
        self._began = time.monotonic()
        self._events: asyncio.Queue[tuple[int, Progress]] = asyncio.Queue()
        self._names = [uuid.uuid4().hex for _ in asked.jobs]
        self._open = True
        service.in_flight += len(asked.jobs)
        service.metrics.prompt_tokens.inc(asked.prompt_tokens)
        try:
            for number, (name, job) in enumerate(zip(self._names, asked.jobs, strict=True)):
                service.engine.submit(name, job, self._listener(number))
        except BaseException:
            self.close()
            raise

    def _listener(self, number: int) -> Deliver:
        def tell(progress: Progress) -> None:
            self._events.put_nowait((number, progress))

        return tell

    def close(self) -> None:
        """Give up what is unfinished. A second call does nothing."""
        if self._open:
            self._open = False
            for name in self._names:
                self._service.engine.cancel(name)
            self._service.in_flight -= len(self._names)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers, as they come.

        Raises:
            LateError: If it takes too long.
            FailedError: If the engine gives an answer up.
        """
        service = self._service
        tokenizer = service.steerer.language_model.tokenizer
        texts = [
            AnswerText(tokenizer, self._asked.stops, strip=self._asked.strip) for _ in self._names
        ]
        written = [0] * len(self._names)
        going = set(range(len(self._names)))
        while going:
            number, told = await self._next()
            if number not in going:
                continue  # it was stopped at a string, and had gone on meanwhile
            if told.error is not None:
                raise FailedError(f"the engine gave the answer up: {told.error}")
            if not any(written):
                service.metrics.first_token.observe(time.monotonic() - self._began)
            service.metrics.answer_tokens.inc(len(told.tokens) - written[number])
            written[number] = len(told.tokens)
            text = texts[number].feed(told.tokens)
            reason: Reason | None = None
            if texts[number].stopped:
                reason = "stop"
                service.engine.cancel(self._names[number])
            elif told.done:
                text += texts[number].end(ended=told.ended)
                reason = "stop" if told.ended else "length"
            if reason is not None:
                going.discard(number)
            if text or reason:
                yield Piece(number, text, written[number], reason)
        took = time.monotonic() - self._began
        service.usual_seconds += 0.2 * (took - service.usual_seconds)

    async def _next(self) -> tuple[int, Progress]:
        most = self._service.limits.seconds
        try:
            return await asyncio.wait_for(
                self._events.get(), most - (time.monotonic() - self._began)
            )
        except asyncio.TimeoutError:
            raise LateError(
                f"the answer took longer than {most:g} s; ask for a shorter one"
            ) from None
