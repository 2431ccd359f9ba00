"""What can be asked of a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from anyio import fail_after, to_thread
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette.sse import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from steer.errors import SteerError
from steer.profile import summary
from steer.profile_file import from_bytes
from steer.serve.metrics import Metrics
from steer.serve.problem_body import problem
from steer.serve.problems import ERRORS, status_of
from steer.serve.service import Answering, Asked, NotFoundError, Service
from steer.serve.shapes import ChatShape, Shape, TextShape, usage
from steer.serve.store import LONGEST_NAME, Person
from steer.serve.wire import ChatCompletion, Completion, Feedback, PersonBody, Steered

router = APIRouter()

# The client has gone; nginx's number for it.
_GONE = 499
# Seconds that a stream waits for a client to read on. One that does not would hold its place for
# ever; a stalled line comes back sooner.
_UNREAD = 30.0


# Coroutines, though they wait for nothing: others would need one of the pool's threads.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _tenant(request: Request) -> str:
    found: str | None = request.app.state.access.tenants.of(request.headers.get("authorization"))
    if found is None:
        raise HTTPException(
            401,
            "expected `Authorization: Bearer KEY` with a known key",
            {"WWW-Authenticate": "Bearer"},
        )
    request.state.tenant = found
    return found


Serving = Annotated[Service, Depends(_service)]
Tenant = Annotated[str, Depends(_tenant)]
Name = Annotated[str, Path(min_length=1, max_length=LONGEST_NAME)]


async def _named(user: str | None, whose: str, service: Service) -> Person | None:
    if user is None:
        return None
    return await run_in_threadpool(service.person, whose, user)


def _check_model(asked_for: str | None, service: Service) -> None:
    if asked_for not in (None, service.model):
        raise NotFoundError(f"no model {asked_for!r}; this server has {service.model!r}")


def _model_card(request: Request, service: Service) -> dict[str, Any]:
    began = request.app.state.began
    return {"id": service.model, "object": "model", "created": began, "owned_by": "steer"}


@router.post("/v1/chat/completions", responses=ERRORS)
async def chat(body: ChatCompletion, request: Request, whose: Tenant, service: Serving) -> Response:
    """Answer a chat."""
    _check_model(body.model, service)
    person = await _named(body.user, whose, service)
    asked = await to_thread.run_sync(service.chat, body, person, limiter=service.preparing)
    return await _respond(service, asked, request, ChatShape(service.model), body)


@router.post("/v1/completions", responses=ERRORS)
async def completion(
    body: Completion, request: Request, whose: Tenant, service: Serving
) -> Response:
    """Continue a text."""
    _check_model(body.model, service)
    person = await _named(body.user, whose, service)
    asked = await to_thread.run_sync(service.completion, body, person, limiter=service.preparing)
    return await _respond(service, asked, request, TextShape(service.model), body)


@router.get("/v1/models", responses=ERRORS)
async def models(request: Request, whose: Tenant, service: Serving) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model_card(request, service)]}


@router.get("/v1/models/{model:path}", responses=ERRORS)
async def model(model: str, request: Request, whose: Tenant, service: Serving) -> dict[str, Any]:
    """The model, by its name."""
    _check_model(model, service)
    return _model_card(request, service)


@router.get("/v1/traits", responses=ERRORS)
async def traits(whose: Tenant, service: Serving) -> dict[str, Any]:
    """What can be weighted, and which profiles the bundle holds."""
    bundle = service.steerer.bundle
    return {
        "traits": {
            trait: {"positive": entry.positive, "negative": entry.negative}
            for trait, entry in bundle.traits.items()
        },
        "routed": [] if bundle.portfolio is None else list(bundle.portfolio.traits),
        "profiles": sorted(bundle.profiles),
    }


@router.put("/v1/users/{user}", responses=ERRORS)
async def put_user(user: Name, body: PersonBody, whose: Tenant, service: Serving) -> dict[str, Any]:
    """Store somebody by what they say they want; what was known of them is replaced."""
    person = service.starting(body.weights)
    await run_in_threadpool(service.store.put, whose, user, person)
    return _told(user, person)


@router.put("/v1/users/{user}/profile", responses=ERRORS)
async def put_profile(
    user: Name, request: Request, whose: Tenant, service: Serving
) -> dict[str, Any]:
    """Store somebody by a profile, as `steer.profile_file.to_bytes` gives it."""
    person = service.with_profile(from_bytes(await request.body()))
    await run_in_threadpool(service.store.put, whose, user, person)
    return _told(user, person)


@router.get("/v1/users/{user}", responses=ERRORS)
async def get_user(user: Name, whose: Tenant, service: Serving) -> dict[str, Any]:
    """What is known of somebody."""
    return _told(user, await run_in_threadpool(service.person, whose, user))


@router.delete("/v1/users/{user}", responses=ERRORS)
async def delete_user(user: Name, whose: Tenant, service: Serving) -> dict[str, Any]:
    """Erase somebody."""
    if not await run_in_threadpool(service.store.delete, whose, user):
        raise NotFoundError(f"no stored user {user!r}")
    return {"id": user, "object": "user", "deleted": True}


@router.post("/v1/users/{user}/feedback", responses=ERRORS)
async def feedback(user: Name, body: Feedback, whose: Tenant, service: Serving) -> dict[str, Any]:
    """Learn from what somebody said of answers."""
    return _told(user, await service.learn(whose, user, body))


@router.get("/health", responses={503: {"description": "The engine does not run."}})
async def health(service: Serving) -> Response:
    """Whether requests are answered."""
    healthy = service.engine.healthy
    return JSONResponse({"status": "ok" if healthy else "failed"}, 200 if healthy else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(await request.app.state.metrics(), media_type=Metrics.content_type)


def _told(user: str, person: Person) -> dict[str, Any]:
    told: dict[str, Any] = {"id": user, "object": "user"}
    if person.preference is not None:
        known = person.preference
        told["weights"] = {trait: round(weight, 4) for trait, weight in known.weights.items()}
        told["intervals"] = {
            trait: [round(low, 4), round(high, 4)]
            for trait, (low, high) in known.interval().items()
        }
        told["summary"] = known.summary
        told["signals"] = len(known.posterior.differences)
    elif person.said is not None:
        told["weights"] = dict(person.said)
    if person.profile is not None:
        told["profile"] = summary(person.profile)
    return told


# --- Answers -------------------------------------------------------------------------------------


class _Stream(EventSourceResponse):
    """Server-sent events of answers, which are given up when nobody reads them any more."""

    def __init__(
        self, answering: Answering, events: AsyncIterator[dict[str, str]], grace: float
    ) -> None:
        # A little less than the server waits for.
        super().__init__(events, sep="\n", shutdown_grace_period=0.9 * grace)
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # `send_timeout` of the class leaves out the first and the last message.
        async def send_in_time(message: Message) -> None:
            with fail_after(_UNREAD):
                await send(message)

        try:
            # Nobody reads an error; the server closes what is left unfinished.
            with suppress(TimeoutError):
                await super().__call__(scope, receive, send_in_time)
        finally:
            # Also where the client had gone before the first event.
            self._answering.close()


async def _respond(
    service: Service,
    asked: Asked,
    request: Request,
    shape: Shape,
    body: Steered,
) -> Response:
    request.state.asked = asked
    answering = service.begin(asked)
    if body.stream:
        told = body.stream_options is not None and body.stream_options.include_usage
        events = _events(answering, asked, shape, told)
        return _Stream(answering, events, service.limits.shutdown_seconds)
    whole = asyncio.ensure_future(_whole(answering, asked, shape))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({whole, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(whole.result()) if whole.done() else Response(status_code=_GONE)
    finally:
        answering.close()
        for task in (whole, leaving):
            task.cancel()
        await asyncio.gather(whole, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Wait until the client has gone."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


async def _whole(answering: Answering, asked: Asked, shape: Shape) -> dict[str, Any]:
    texts = [""] * len(asked.jobs)
    written = [0] * len(asked.jobs)
    reasons = [""] * len(asked.jobs)
    async for piece in answering.pieces():
        texts[piece.choice] += piece.text
        written[piece.choice] = piece.tokens
        reasons[piece.choice] = piece.reason or ""
    choices = [
        shape.whole(number, text, reason)
        for number, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return {
        **shape.head,
        "object": shape.whole_kind,
        "choices": choices,
        "usage": usage(asked, written),
        "steer": {"served": asked.served},
    }


async def _events(
    answering: Answering, asked: Asked, shape: Shape, include_usage: bool
) -> AsyncIterator[dict[str, str]]:
    head = {**shape.head, "object": shape.chunk_kind, "steer": {"served": asked.served}}

    def event(choices: list[dict[str, Any]], **more: Any) -> dict[str, str]:
        none = {"usage": None} if include_usage else {}
        return {"data": json.dumps({**head, "choices": choices, **none, **more})}

    written = [0] * len(asked.jobs)
    try:
        for number in range(len(asked.jobs)):
            if (first := shape.first(number)) is not None:
                yield event([first])
        async for piece in answering.pieces():
            written[piece.choice] = piece.tokens
            yield event([shape.chunk(piece)])
        if include_usage:
            yield event([], usage=usage(asked, written))
    except SteerError as error:
        # The status has been sent; clients raise what stands here.
        yield {"data": json.dumps(problem(status_of(error), str(error)))}
    yield {"data": "[DONE]"}
