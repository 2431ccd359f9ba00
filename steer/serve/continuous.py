"""The engine over transformers' own continuous batching: requests join and leave at every token.

Its manager schedules, holds paged keys and values, and runs the model on the tokens of all requests
side by side; hooks edit each token as its request asks (`packed.py`), and choose each request's
next token (`choosing.py`). Blocks of keys and values are not shared between requests: what was
computed under one edit must not be read under another.

On a CPU every token attends over the keys of all requests before a mask, so that more than some
16 rows take longer than they bring (experiments/results/serving).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig

from steer.arrays import check_count
from steer.errors import SteeringError
from steer.generation import end_tokens
from steer.models import LanguageModel
from steer.serve.choosing import Choice
from steer.serve.engine import Deliver, Job, Progress, check_job
from steer.serve.packed import PackedHooks, Step
from steer.serve.slots import Slots


@dataclass(frozen=True)
class Room:
    """What the engine may use.

    Attributes:
        rows: Most requests that are answered at once; None for 16 on a CPU, 256 elsewhere.
        step_tokens: Most tokens in one forward pass; longer prompts are read in parts.
        cache_tokens: Tokens whose keys and values are held; None for 32768 on a CPU, and as many
            as there is memory for elsewhere.
        page: Tokens of one page of them.
    """

    rows: int | None = None
    step_tokens: int = 256
    cache_tokens: int | None = None
    page: int = 32

    def __post_init__(self) -> None:
        for name in ("rows", "step_tokens", "cache_tokens", "page"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)


def continuous_config(language_model: LanguageModel, room: Room) -> ContinuousBatchingConfig:
    """Transformers' settings for a model and the room that there is."""
    on_cpu = language_model.device.type == "cpu"
    tokens = room.cache_tokens or (32768 if on_cpu else None)
    rows = room.rows or (16 if on_cpu else 256)
    return ContinuousBatchingConfig(
        page_size=room.page,
        num_blocks=None if tokens is None else -(-tokens // room.page),
        max_batch_tokens=max(room.step_tokens, rows),
        max_requests_per_batch=rows,
        allow_block_sharing=False,
        # Hooks run Python between forward passes.
        use_async_batching=False,
        use_cuda_graph=False,
        # It might fetch a kernel from the hub; load the model with flash attention instead.
        auto_switch_to_flash=False,
    )


def _let_in_after_cancelling(scheduler: Any) -> None:
    """Have the manager's scheduler take requests on again when others were cancelled.

    Where the cache is full it takes none on until one has finished. Those that are cancelled never
    do: if all were, whoever waits would wait for ever.
    """
    if not hasattr(scheduler, "block_new_requests"):  # of a version that takes them on always
        return
    clear = scheduler.clear_cancelled_requests

    # Here, not in `cancel`: the manager's thread sets the flag.
    def cleared() -> Any:
        before = len(scheduler.active_requests)
        found = clear()
        if len(scheduler.active_requests) < before:
            scheduler.block_new_requests = False
        return found

    scheduler.clear_cancelled_requests = cleared


@dataclass(frozen=True, eq=False)
class _Serving:
    """A request in flight."""

    job: Job
    slot: int
    choice: Choice

    @property
    def begins(self) -> int:
        """First position that is edited: the last of the prompt gives the answer's first token."""
        return len(self.job.prompt) - 1 if self.job.scope == "response" else 0


class ContinuousEngine:
    """An `Engine` of one model on one device."""

    def __init__(self, language_model: LanguageModel, room: Room = Room()) -> None:  # noqa: B008
        """Set up; `start` begins.

        Args:
            language_model: The model, which nothing else may use until `stop`.
            room: What the engine may use.
        """
        self._language_model = language_model
        self._ends = sorted(end_tokens(language_model))
        self._serving: dict[str, _Serving] = {}
        self._slots = Slots.of(language_model)
        self._hooks: PackedHooks | None = None
        self._handles: list[Any] = []
        self._config = continuous_config(language_model, room)
        self._manager: Any = None

    @property
    def language_model(self) -> LanguageModel:
        """The model."""
        return self._language_model

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer."""
        positions = getattr(self._language_model.model.config, "max_position_embeddings", None)
        # The manager's copy knows, once it has begun, how many blocks there was memory for.
        begun = self._manager is not None
        config = self._manager.continuous_batching_config if begun else self._config
        held = None if config.num_blocks is None else config.num_blocks * config.page_size
        sizes = [size for size in (positions, held) if size is not None]
        return min(sizes) if sizes else 2**31

    @property
    def rows(self) -> int:
        """Most requests that are answered at once."""
        return int(self._config.max_requests_per_batch)

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        return self._manager is not None and bool(self._manager.is_running())

    @property
    def edits_in_use(self) -> int:
        """How many different edits are being applied."""
        return self._slots.in_use

    def start(self) -> None:
        """Begin to answer.

        Raises:
            SteeringError: If it has begun already, or cannot.
        """
        if self._manager is not None:
            raise SteeringError("the engine is running already")
        model = self._language_model.model
        self._hooks = PackedHooks(self._language_model)
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]
        # Tokens are chosen by `Choice`; of what it leaves the manager takes the likeliest.
        config = GenerationConfig(
            do_sample=False,
            eos_token_id=self._ends or -1,
            pad_token_id=self._language_model.tokenizer.pad_token_id,
        )
        self._manager = model.init_continuous_batching(
            generation_config=config, continuous_batching_config=self._config
        )
        self._manager.start()
        # Its thread allocates the cache first. Until then the hooks would find no batch.
        while self._manager.batch_processor is None and self._manager.is_running():
            time.sleep(0.01)
        if not self.healthy:
            status = getattr(self._manager, "background_thread_status", None)
            cause = getattr(status, "fatal_error", None)
            self.stop()
            raise SteeringError(f"the engine did not start: {cause!r}") from cause
        _let_in_after_cancelling(self._manager.batch_processor.scheduler)

    def submit(self, name: str, job: Job, deliver: Deliver) -> None:
        """Take a request on; see `Engine.submit`."""
        check_job(name, job, self, self._serving)
        model = self._language_model.model
        choice = Choice(job.decoding, job.prompt, self._ends, model.generation_config, job.seed)
        self._serving[name] = _Serving(job, self._slots.take(job.edit), choice)

        def told(output: Any) -> None:
            done = bool(output.is_finished())
            if done:
                self._end(name)
            tokens = tuple(output.generated_tokens)
            ended = bool(tokens) and tokens[-1] in self._ends
            deliver(Progress(tokens, done, ended, output.error))

        # What was told of requests that were cancelled meanwhile lies there unread.
        with suppress(queue.Empty):
            while True:
                self._manager.output_router.output_queue.get_nowait()
        self._manager.register_result_handler(name, told)
        self._manager.add_request(
            list(job.prompt),
            request_id=name,
            max_new_tokens=job.decoding.max_new_tokens,
            streaming=True,
        )

    def cancel(self, name: str) -> None:
        """Give a request up; nothing is delivered any more."""
        if name in self._serving:
            self._manager.cancel_request(name)
            self._manager.output_router.result_handlers.pop(name, None)
            self._end(name)

    def stop(self, timeout: float = 30.0) -> None:
        """Answer what is in flight, for so many seconds, and end; the model is as it was."""
        if self._manager is None:
            return
        self._manager.stop(block=True, timeout=timeout)
        if self._manager.is_running():
            self._manager.stop(block=True, hard_stop=True)
        self._manager = None
        for name in list(self._serving):
            self._end(name)
        for handle in self._handles:
            handle.remove()
        if self._hooks is not None:
            self._hooks.remove()

    def _end(self, name: str) -> None:
        serving = self._serving.pop(name, None)
        if serving is not None:
            self._slots.give_back(serving.slot)

    def _requests(self) -> list[Any]:
        """What the manager put into the coming forward pass, in the order of its tokens."""
        requests: list[Any] = self._manager.batch_processor.inputs_and_outputs.requests_in_batch
        return requests

    # The two hooks run in the manager's thread.
    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        assert self._hooks is not None, "hooks are on the model"
        slots: list[int] = []  # of each token
        for request in self._requests():
            serving = self._serving.get(request.state.request_id)  # None: cancelled meanwhile
            length = request.query_length
            if serving is None:
                slots += [0] * length
                continue
            # The manager has counted these tokens already.
            first = request.state.position_offset - length
            before = min(max(serving.begins - first, 0), length)
            slots += [0] * before + [serving.slot] * (length - before)
        # After the slots: what was written for each of them is in it.
        content = self._slots.content
        step = Step(tuple(slots), content.tables, content.version)
        self._hooks.begin(step if any(slots) else None)

    def _after_forward(
        self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        assert self._hooks is not None, "hooks are on the model"
        self._hooks.check()
        waiting = [request for request in self._requests() if request.has_new_token]
        choices = []
        for request in waiting:
            serving = self._serving.get(request.state.request_id)
            choices.append(None if serving is None or serving.choice.plain else serving)
        if not any(choices):
            return None
        # (1, rows, vocabulary), or of all tokens where the model cannot leave out the others.
        logits = output.logits.float()
        if "logits_to_keep" in kwargs:
            places = list(range(len(waiting)))
        else:
            places = kwargs["logits_indices"][: len(waiting)].tolist()
        for request, serving, place in zip(waiting, choices, places, strict=True):
            if serving is not None:
                state = request.state
                # Where the manager began a request anew, a part of the answer is in its prompt.
                written = [*state.initial_tokens, *state.generated_tokens]
                answer = written[len(serving.job.prompt) :]
                logits[0, place] = serving.choice(answer, logits[0, place])
        output.logits = logits
        return output
