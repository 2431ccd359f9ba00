"""Steering in vLLM: a general plugin, which vLLM loads in each of its processes.

A request says what it wants in `SamplingParams(extra_args={"weights": ...})`, over vLLM's own HTTP
surface in `vllm_xargs` (see `asked_edit.py`), and carries the salt of its edit (`salt.py`), without
which it is refused. Workers hold the bundle, give the decoder layers tables and a slot for each
token before anything is compiled (`steered_layers.py`), and fill the slots before each step
(`step_rows.py`).

    vllm serve MODEL --additional-config '{"steer": {"bundle": "mine.safetensors"}}'

Without that setting nothing is changed, but that requests which ask for steering are refused.

What vLLM 0.32 calls is wrapped, since it has no interface for this: `InputProcessor` in the process
that takes requests, the hash of a block of keys and values in the one that schedules, and the
model runner in the workers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steer.bundle import Bundle
from steer.edits import ZERO, Edit
from steer.errors import EditNeverFiredError, FingerprintError, InputError, SteerError
from steer.serve.asked_edit import AskedEdit
from steer.serve.salt import cache_salt, check_salt, is_steered
from steer.serve.slots import Reserved, Slots
from steer.serve.steered_layers import decoder_layers, steer_layers
from steer.serve.step_rows import Begun, StepRows

SETTING = "steer"
"""Where in vLLM's `additional_config` this is set up."""

_KEPT_EDITS = 256
_DONE = "_steer_registered"
_STEERING = "_steering"


@dataclass(frozen=True)
class Setting:
    """What `additional_config["steer"]` holds.

    Attributes:
        bundle: Path of the bundle.
        force: Use a bundle that was built on another model.
    """

    bundle: Path
    force: bool = False

    @classmethod
    def of(cls, vllm_config: Any) -> Setting | None:
        """The setting of an engine; None if it does not steer.

        Raises:
            InputError: If it cannot be understood.
        """
        additional = vllm_config.additional_config
        if not isinstance(additional, Mapping) or SETTING not in additional:
            return None
        said = additional[SETTING]
        if not isinstance(said, Mapping) or not isinstance(said.get("bundle"), str):
            raise InputError(
                f'additional_config: expected {{"{SETTING}": {{"bundle": PATH}}}}, got '
                f"{said!r:.200}"
            )
        return cls(Path(said["bundle"]), bool(said.get("force", False)))


class Asked:
    """The edits of requests by what they say, with the bundle they come from."""

    def __init__(self, setting: Setting, vllm_config: Any) -> None:
        """Load the bundle.

        Raises:
            BundleError: If it cannot be loaded.
            FingerprintError: If its model has another shape than the one that is served.
        """
        self.bundle = Bundle.load(setting.bundle)
        self._check_shape(setting, vllm_config.model_config.hf_text_config)
        # As many as there are requests in a step, and "no edit".
        self.reserved = Reserved.of(self.bundle, vllm_config.scheduler_config.max_num_seqs + 1)
        self._resolve = functools.lru_cache(_KEPT_EDITS)(self._resolved)

    def edit(self, fields: Mapping[str, Any] | None) -> Edit:
        """The edit of a request's extra arguments.

        Raises:
            SteerError: If there is none such.
        """
        asked = AskedEdit.read(fields or {})
        return ZERO if asked is None else self._resolve(asked)

    def salt(self, edit: Edit) -> str | None:
        """What the request must be salted with."""
        return cache_salt(edit, self.bundle.scope, self.bundle.fingerprint)

    def _resolved(self, asked: AskedEdit) -> Edit:
        edit = asked.resolve(self.bundle)
        self.reserved.check(edit)
        return edit

    def _check_shape(self, setting: Setting, config: Any) -> None:
        """Workers see a model whose weights are fused and cut up; its shape is what can be held."""
        built_on = self.bundle.fingerprint
        shape = (built_on.layers, built_on.width)
        served = (config.num_hidden_layers, config.hidden_size)
        if shape != served and not setting.force:
            raise FingerprintError(
                f"{setting.bundle} was built on a model of {shape[0]} layers and width {shape[1]}; "
                f"the one that is served has {served[0]} and {served[1]}"
            )


def register() -> None:
    """Put the wrappers in place; what `vllm.general_plugins` calls, more than once perhaps."""
    from vllm.v1.core import block_pool, kv_cache_utils
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if getattr(InputProcessor, _DONE, False):
        return
    setattr(InputProcessor, _DONE, True)
    InputProcessor.process_inputs = _checked(InputProcessor.process_inputs)
    for module in (kv_cache_utils, block_pool):
        module.generate_block_hash_extra_keys = _told_apart(module.generate_block_hash_extra_keys)
    # The runner itself is not imported yet, and not to be: vLLM wants to be first.
    WorkerWrapperBase.init_device = _prepared(WorkerWrapperBase.init_device)


# --- Where requests come in ----------------------------------------------------------------------


def _checked(process: Callable[..., Any]) -> Callable[..., Any]:
    """`InputProcessor.process_inputs`, refusing what would be steered wrongly, or not at all."""
    from vllm.exceptions import VLLMValidationError

    @functools.wraps(process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        if _STEERING not in vars(self):
            setting = Setting.of(self.vllm_config)
            asked = None if setting is None else Asked(setting, self.vllm_config)
            setattr(self, _STEERING, asked)
        fields = _fields(request.sampling_params)
        try:
            check_request(getattr(self, _STEERING), fields, request.cache_salt)
        except SteerError as error:
            # What vLLM's server answers with 400.
            raise VLLMValidationError(str(error)) from error
        return request

    return process_inputs


def check_request(asked: Asked | None, fields: Mapping[str, Any], salt: str | None) -> None:
    """Refuse a request that would be steered wrongly, or not at all.

    Args:
        asked: What the engine steers with; None if it does not.
        fields: The request's extra arguments.
        salt: Its cache salt.

    Raises:
        SteerError: If it asks for what there is not, or its salt is not that of its edit.
    """
    if asked is not None:
        check_salt(salt, asked.salt(asked.edit(fields)))
    elif AskedEdit.read(fields) is not None:
        raise InputError(
            "this engine does not steer: start it with "
            f'--additional-config {{"{SETTING}": {{"bundle": PATH}}}}'
        )


# --- What is scheduled ---------------------------------------------------------------------------


def _told_apart(keys: Callable[..., Any]) -> Callable[..., Any]:
    """`generate_block_hash_extra_keys`, telling blocks apart by where their edit begins.

    A prompt that goes on from an earlier answer reads that answer unedited, as everywhere in
    steer; what was computed while it was written, edited, must not be taken for that. So blocks
    that reach into an answer are shared only with requests whose answer begins at the same place.
    """

    @functools.wraps(keys)
    def extra_keys(request: Any, start: int, end: int, mm_index: int) -> Any:
        found, following = keys(request, start, end, mm_index)
        if is_steered(request.cache_salt) and end >= request.num_prompt_tokens:
            found = (*(found or ()), (SETTING, request.num_prompt_tokens))
        return found, following

    return extra_keys


# --- Workers -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Steering:
    """What a worker keeps."""

    asked: Asked
    slots: Slots
    buffer: torch.Tensor
    rows: StepRows

    @classmethod
    def on(cls, model: Any, vllm_config: Any, device: torch.device) -> _Steering:
        """Give a model's layers their edits."""
        setting = Setting.of(vllm_config)
        assert setting is not None, "the engine steers"
        # A stored graph knows the layers and ranks of the bundle that it was made with. This is
        # among what graphs are stored by.
        digest = hashlib.sha256(setting.bundle.read_bytes()).hexdigest()
        vllm_config.additional_config[SETTING]["digest"] = digest
        asked = Asked(setting, vllm_config)
        config = vllm_config.model_config.hf_text_config
        layers = decoder_layers(model, config.num_hidden_layers)
        with torch.inference_mode(False):
            slots = Slots(
                config.hidden_size,
                dict.fromkeys(layers, device),
                vllm_config.model_config.dtype,
                asked.reserved,
            )
            most = vllm_config.scheduler_config.max_num_batched_tokens
            buffer = torch.zeros(most, dtype=torch.int64, device=device)
            steer_layers(layers, slots.tables, buffer)
        rows = StepRows(slots, asked.edit, asked.bundle.scope, buffer)
        return cls(asked, slots, buffer, rows)


def _prepared(init: Callable[..., Any]) -> Callable[..., Any]:
    """`init_device`, after which the runner is there, and its model is not."""

    @functools.wraps(init)
    def init_device(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = init(self, *args, **kwargs)
        if Setting.of(self.vllm_config) is not None:
            worker = self.worker
            worker.model_runner.load_model = _attached(worker, worker.model_runner.load_model)
        return done

    return init_device


def _attached(worker: Any, load: Callable[..., Any]) -> Callable[..., Any]:
    """`load_model`, and then the edits in the layers, and what fills their slots."""

    @functools.wraps(load)
    def load_model(*args: Any, **kwargs: Any) -> Any:
        done = load(*args, **kwargs)
        runner = worker.model_runner
        steering = _Steering.on(runner.get_model(), worker.vllm_config, runner.device)
        state = getattr(runner, "model_state", None)
        if state is not None:  # vLLM's second runner
            _tell_state(state, steering)
        else:
            runner._prepare_inputs = _filled(runner, steering, runner._prepare_inputs)
            worker.compile_or_warm_up_model = _proved(
                runner, steering, worker.compile_or_warm_up_model
            )
        return done

    return load_model


def _filled(runner: Any, steering: _Steering, prepare: Callable[..., Any]) -> Callable[..., Any]:
    """`_prepare_inputs`, and then each token's slot."""

    def begun(name: str) -> Begun:
        state = runner.requests[name]
        return Begun(state.num_prompt_tokens, _fields(state.sampling_params))

    @functools.wraps(prepare)
    def prepare_inputs(scheduled: Any, counts: Any) -> Any:
        prepared = prepare(scheduled, counts)
        batch, n = runner.input_batch, scheduled.total_num_scheduled_tokens
        request = runner.req_indices.np[:n]
        position = batch.num_computed_tokens_cpu[request] + runner.query_pos.np[:n]
        steering.rows.fill(batch.req_ids, begun, request, position)
        return prepared

    return prepare_inputs


def _fields(params: Any) -> Mapping[str, Any]:
    return {} if params is None else params.extra_args or {}


def _proved(
    runner: Any, steering: _Steering, compile_model: Callable[..., Any]
) -> Callable[..., Any]:
    """`compile_or_warm_up_model`, and then a look at whether each layer's edit acts.

    A graph that was traced, stored or captured without it would serve everybody unsteered.
    """

    @functools.wraps(compile_model)
    def compile_or_warm_up_model(*args: Any, **kwargs: Any) -> Any:
        done = compile_model(*args, **kwargs)
        _check_acts(runner, steering)
        return done

    return compile_or_warm_up_model


def _check_acts(runner: Any, steering: _Steering) -> None:
    def hidden() -> torch.Tensor:
        # As an idle rank runs among others: through graphs where there are any.
        tokens = getattr(runner, "uniform_decode_query_len", 1)
        # With attention: without it its output is memory as it lies there, beside which the numbers
        # below may be too small to see.
        output = runner._dummy_run(tokens, uniform_decode=True, force_attention=True)[0]
        found: torch.Tensor = output if torch.is_tensor(output) else output["hidden_states"]
        return found.clone()

    silent = []
    with torch.inference_mode():
        before = hidden()
        steering.buffer.fill_(1)
        for index, tables in steering.slots.tables.items():
            tables.e[1, :, ::2] = 100.0
            if torch.equal(hidden(), before):
                silent.append(index)
            tables.e[1] = 0.0
        steering.buffer.zero_()
    if silent:
        raise EditNeverFiredError(
            f"edits do not act at layers {silent} of the model as vLLM compiled it; start it with "
            "--enforce-eager"
        )


def _tell_state(state: Any, steering: _Steering) -> None:
    """Have the state of vLLM's second runner pass on requests and steps.

    Not run yet: that runner needs a GPU.
    """
    known: dict[str, Begun] = {}
    nobody = Begun(0, {})  # of a graph that is being captured
    add, remove, prepare = state.add_request, state.remove_request, state.prepare_inputs

    def add_request(index: int, new: Any) -> None:
        known[new.req_id] = Begun(len(new.prompt_token_ids or ()), _fields(new.sampling_params))
        add(index, new)

    def remove_request(name: str) -> None:
        known.pop(name, None)
        remove(name)

    def prepare_inputs(batch: Any, states: Any) -> Any:
        counts = batch.num_scheduled_tokens[: batch.num_reqs]
        request = np.repeat(np.arange(batch.num_reqs), counts)
        position = np.arange(len(request)) - (np.cumsum(counts) - counts)[request]
        position += batch.num_computed_tokens_np[request]
        names = batch.req_ids[: batch.num_reqs]
        steering.rows.fill(names, lambda name: known.get(name, nobody), request, position)
        return prepare(batch, states)

    state.add_request, state.remove_request = add_request, remove_request
    state.prepare_inputs = prepare_inputs
