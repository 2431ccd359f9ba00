"""The engine over vLLM: its scheduler, its paged cache, its graphs, on as many devices as it has.

The model runs in vLLM's own processes, whose edits `vllm_plugin.py` applies; this process holds a
skeleton of the model, resolves what requests ask for, and salts vLLM's prefix cache by it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMError
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from steer.errors import InputError, SteeringError
from steer.generation import end_tokens
from steer.models import LanguageModel
from steer.serve import vllm_choices
from steer.serve.asked_edit import AskedEdit
from steer.serve.engine import Deliver, Job, Progress, check_job
from steer.serve.salt import cache_salt
from steer.serve.vllm_plugin import SETTING
from steer.steerer import Steerer

_OWN = ("model", "tokenizer", "additional_config", "logits_processors")


class VllmEngine:
    """An `Engine` of one model under vLLM."""

    def __init__(
        self,
        steerer: Steerer,
        folder: Path,
        bundle: Path,
        options: Mapping[str, Any],
        *,
        force: bool = False,
    ) -> None:
        """Set up; `start` begins.

        Args:
            steerer: Of the model from `load_skeleton`, with the bundle.
            folder: Where the model's files lie.
            bundle: Path of that bundle; vLLM's processes read it too.
            options: Of vLLM's `AsyncEngineArgs`, such as `tensor_parallel_size`.
            force: Use a bundle that was built on another model.

        Raises:
            InputError: If vLLM does not know an option, or it is not for choice here.
        """
        known = AsyncEngineArgs.__dataclass_fields__
        for name in options:
            if name in _OWN or name not in known:
                raise InputError(f"vLLM: {name!r} is not an option that can be given here")
        self._language_model = steerer.language_model
        # The one that vLLM's processes know; by force it is not that of the model.
        self._fingerprint = steerer.bundle.fingerprint
        self._ends = sorted(end_tokens(steerer.language_model))
        self._arguments = AsyncEngineArgs(
            model=str(folder),
            served_model_name=steerer.language_model.name,
            additional_config={SETTING: {"bundle": str(bundle.resolve()), "force": force}},
            logits_processors=[vllm_choices.PATH],
            **{"disable_log_stats": True, **options},
        )
        self._vllm: AsyncLLM | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._in_use: Counter[str] = Counter()

    @property
    def language_model(self) -> LanguageModel:
        """The skeleton of the model."""
        return self._language_model

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer."""
        if self._vllm is None:
            return int(self._language_model.model.config.max_position_embeddings)
        return int(self._vllm.model_config.max_model_len)

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        return self._vllm is not None and not self._vllm.errored

    @property
    def edits_in_use(self) -> int:
        """How many different edits are being applied."""
        return len(self._in_use)

    def start(self) -> None:
        """Begin to answer: vLLM loads and compiles the model.

        Raises:
            SteeringError: If it has begun already.
        """
        if self._vllm is not None:
            raise SteeringError("the engine is running already")
        self._vllm = AsyncLLM.from_engine_args(self._arguments)

    def submit(self, name: str, job: Job, deliver: Deliver) -> None:
        """Take a request on; see `Engine.submit`."""
        check_job(name, job, self, self._tasks)
        assert self._vllm is not None, "healthy"
        self._tasks[name] = asyncio.ensure_future(self._answer(self._vllm, name, job, deliver))

    async def _answer(self, vllm: AsyncLLM, name: str, job: Job, deliver: Deliver) -> None:
        salt = cache_salt(job.edit, job.scope, self._fingerprint)
        steered: Mapping[str, Any] = {}
        if salt is not None:
            steered = (job.asked or AskedEdit.whole(job.edit)).to_fields()
        defaults = self._language_model.model.generation_config
        params = SamplingParams(
            max_tokens=job.decoding.max_new_tokens,
            # Tokens are chosen by `Choices`; of what it leaves vLLM takes the likeliest.
            temperature=0,
            stop_token_ids=self._ends,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE,
            extra_args={
                **steered,
                **vllm_choices.to_field(job.decoding, self._ends, defaults, job.seed),
            },
        )
        in_use = Counter() if salt is None else Counter([salt])
        self._in_use += in_use
        error = None
        try:
            prompt = tokens_input(list(job.prompt), cache_salt=salt)
            async for output in vllm.generate(prompt, params, name):
                answer = output.outputs[0]
                tokens = tuple(answer.token_ids)
                if output.finished:
                    self._tasks.pop(name, None)
                deliver(Progress(tokens, output.finished, answer.finish_reason == "stop"))
        except (VLLMError, ValueError) as raised:  # it has died, or refuses the request
            error = str(raised) or type(raised).__name__
        finally:
            self._tasks.pop(name, None)
            self._in_use -= in_use
        if error is not None:
            deliver(Progress((), True, error=error))

    def cancel(self, name: str) -> None:
        """Give a request up; nothing is delivered any more."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    def stop(self, timeout: float = 30.0) -> None:
        """Answer what is in flight, for so many seconds, and end."""
        if self._vllm is None:
            return
        until = time.monotonic() + timeout
        while self._tasks and self.healthy and time.monotonic() < until:
            time.sleep(0.05)
        self._vllm.shutdown()
        self._vllm = None
