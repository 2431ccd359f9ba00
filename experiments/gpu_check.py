"""Check steering on a CUDA GPU: that it is right, and that it is free.

One command, `python experiments/gpu_check.py --output gpu.json`. It needs torch, transformers,
safetensors, numpy, einops and scikit-learn, and nothing installed of this project. Without a GPU
it says so and exits with status 2; it exits with 0 if every check passes and with 1 otherwise.
The JSON file is rewritten after every check, so that a run that is cut short leaves its results.

Checks, by name (`--only` takes parts of names):

  formula/...     hooks against the plain formula in fp64, and whole passes against an fp64 model
  rows/...        a mixed batch of 32 edits against each row alone; strength 0 is bit-identical
  compile/...     nothing is traced again when edits change; results equal those without a compiler
  sync            a decode step never waits for the device
  speed/...       decode throughput of an 8B-parameter Llama (random weights, bf16), steered against
                  the same model without hooks: eager, compiled, compiled with CUDA graphs
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import itertools
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from timing import (
    FORMS,
    interleave,
    interval,
    provenance,
    ratios,
    small_edit,
    table,
    twin,
    write_json,
)
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from steer.edits import Edit, LayerEdit
from steer.hooks import Hooks, attach
from steer.models import LanguageModel, find_layers, fingerprint

Check: TypeAlias = Callable[[], dict[str, Any]]

TARGETS = {"eager": 0.97, "compile": 0.99, "graphs": 0.99}
BATCHES = ((1, 1), (32, 1), (256, 1), (256, 256))  # (rows, different edits)
ROWS_TOLERANCE = 1e-4
PASS_TOLERANCE = {torch.float32: 1e-4}
# Of the largest value; the formula is a handful of roundings, in bf16 of 2^-8 each.
FORMULA_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


@dataclass(frozen=True)
class Setup:
    """Where and how large."""

    device: torch.device
    tiny: bool
    rounds: int
    steps: int
    seed: int

    def generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])


# --- models, edits, loops -----------------------------------------------------------------------


def small_model(setup: Setup, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A Llama small enough for an fp64 copy, with weights large enough to matter."""
    torch.manual_seed(setup.seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        max_position_embeddings=256,
    )
    return wrap(LlamaForCausalLM(config).to(setup.device, dtype))


def large_model(setup: Setup) -> LanguageModel:
    """The shapes of Llama-3.1-8B; random weights, made on the device."""
    torch.manual_seed(setup.seed)
    shapes = dict(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    if setup.tiny:
        shapes = dict(shapes, vocab_size=512, hidden_size=256, intermediate_size=512)
        shapes.update(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
    config = LlamaConfig(**shapes, max_position_embeddings=2048)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with setup.device:
            return wrap(LlamaForCausalLM(config))
    finally:
        torch.set_default_dtype(default)


def wrap(model: Any) -> LanguageModel:
    model.eval().requires_grad_(False)
    layers = find_layers(model)
    # No text is read or written here, so there is no tokenizer.
    tokenizer: Any = None
    return LanguageModel("random Llama", model, tokenizer, layers, fingerprint(model, len(layers)))


def edited_layers(language_model: LanguageModel) -> range:
    """The middle: 12 of 32 layers, 2 of 4."""
    depth = len(language_model.layers)
    return range(8, 20) if depth == 32 else range(1, depth - 1)


def strong_edit(language_model: LanguageModel, form: str, rng: np.random.Generator) -> Edit:
    """An edit that plainly changes what comes out."""
    d = language_model.width
    rank = 0 if form == "additive" else 2
    layers = {}
    for layer in edited_layers(language_model):
        e = rng.standard_normal(d).astype(np.float32)
        v, u = (rng.standard_normal((d, rank)).astype(np.float32) / np.sqrt(d) for _ in range(2))
        c = rng.uniform(1, 3, rank).astype(np.float32)
        layers[layer] = LayerEdit(
            e if rank == 0 else 0.2 * e, v, u, c, np.full(rank, "relu" in form)
        )
    return Edit(layers)


def tokens(setup: Setup, rows: int, columns: int, vocabulary: int, *key: int) -> Tensor:
    ids = setup.generator(*key).integers(vocabulary, size=(rows, columns))
    return torch.from_numpy(ids).to(setup.device)


def greedy(model: Any, ids: Tensor, steps: int, cache: Any = None) -> tuple[Tensor, Tensor]:
    """Logits (B, steps, vocabulary) and tokens (B, steps) of a loop of one's own."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    logits = []
    chosen = []
    token = ids
    for _ in range(steps):
        last = model(input_ids=token, past_key_values=cache).logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        logits.append(last)
        chosen.append(token)
    return torch.stack(logits, 1), torch.cat(chosen, 1)


def rewind(cache: Any, columns: int) -> None:
    """Take back the last columns of a cache, in place, so that its addresses stay."""
    if not isinstance(cache, StaticCache):
        cache.crop(-columns)
        return
    for layer in cache.layers:
        length = layer.cumulative_length
        if isinstance(length, Tensor):
            length.sub_(columns)
        else:
            layer.cumulative_length = length - columns


def synchronize(setup: Setup) -> None:
    if setup.device.type == "cuda":
        torch.cuda.synchronize()


def relative(value: Tensor, reference: Tensor) -> float:
    """Largest difference, in shares of the reference's largest value."""
    reference = reference.double()
    return float((value.double() - reference).abs().max() / reference.abs().max())


# --- formula ------------------------------------------------------------------------------------


def plain_formula(h: Tensor, edit: LayerEdit, start: int) -> Tensor:
    """x + e + U (phi(V^T x) * c) from column `start` on, for h (T, d), in fp64."""
    x = h.double()
    e, v, u, c = (
        torch.from_numpy(part).double().to(h.device) for part in (edit.e, edit.v, edit.u, edit.c)
    )
    relu = torch.from_numpy(edit.relu).to(h.device)
    projection = x @ v
    projection = torch.where(relu, projection.clamp(min=0), projection)
    return torch.cat([x[:start], (x + e + (projection * c) @ u.T)[start:]])


@contextmanager
def forward_hooks(language_model: LanguageModel, make: Callable[[int], Any]) -> Iterator[None]:
    handles = [
        layer.register_forward_hook(make(index))
        for index, layer in enumerate(language_model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_formula(setup: Setup, form: str, dtype: torch.dtype) -> dict[str, Any]:
    """Every hook's output from its input, and whole passes, against fp64; left padding, cache."""
    language_model = small_model(setup, dtype)
    model = language_model.model
    exact = wrap(copy.deepcopy(model).double())
    rng = setup.generator(1)
    edits = [strong_edit(language_model, form, rng) for _ in range(3)]
    pads = (0, 5, 2)
    prompt, steps = 12, 4
    ids = tokens(setup, 3, prompt + steps - 1, model.config.vocab_size, 2)
    mask = torch.ones_like(ids)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    before: list[tuple[int, Tensor]] = []
    after: list[tuple[int, Tensor]] = []

    def keep(store: list[tuple[int, Tensor]]) -> Callable[[int], Any]:
        def make(index: int) -> Any:
            def hook(module: Any, args: Any, output: Any) -> None:
                h = output if isinstance(output, Tensor) else output[0]
                store.append((index, h.clone()))

            return hook

        return make

    def forced() -> Tensor:
        """Logits of the response positions, the tokens being given."""
        cache = DynamicCache(config=model.config)
        logits = []
        for begin, end in itertools.pairwise((0, *range(prompt, prompt + steps))):
            logits.append(
                model(
                    input_ids=ids[:, begin:end],
                    attention_mask=mask[:, :end],
                    position_ids=positions[:, begin:end],
                    past_key_values=cache,
                ).logits[:, -1]
            )
        return torch.stack(logits, 1)

    def reference(steered: bool) -> Tensor:
        def make(index: int) -> Any:
            def hook(module: Any, args: Any, output: Any) -> Any:
                h = output if isinstance(output, Tensor) else output[0]
                edited = torch.stack(
                    [
                        plain_formula(h[row], edit.layers[index], prompt - 1)
                        if index in edit.layers
                        else h[row]
                        for row, edit in enumerate(edits)
                    ]
                )
                return edited if isinstance(output, Tensor) else (edited, *output[1:])

            return hook

        arguments = dict(input_ids=ids, attention_mask=mask, position_ids=positions)
        if not steered:
            logits = exact.model(**arguments, use_cache=False).logits
        else:
            with forward_hooks(exact, make):
                logits = exact.model(**arguments, use_cache=False).logits
        return logits[:, prompt - 1 :]

    # Hooks run in the order of their registration: one sees what the edit reads, one what it wrote.
    with forward_hooks(language_model, keep(before)):
        hooks = attach(language_model)
        unsteered = forced()
        before.clear()
        with forward_hooks(language_model, keep(after)), hooks.steer(edits):
            steered = forced()
        hooks.remove()
    formula = 0.0
    for (index, read), (_, written) in zip(before, after, strict=True):
        start = prompt - 1 if read.shape[1] == prompt else 0
        for row, edit in enumerate(edits):
            if index in edit.layers:
                wanted = plain_formula(read[row], edit.layers[index], start)
                formula = max(formula, relative(written[row], wanted))
            elif not torch.equal(read[row], written[row]):
                raise AssertionError(f"layer {index} is not edited but changed")
    passes = relative(steered, reference(True))
    unsteered_passes = relative(unsteered, reference(False))
    effect = relative(steered, unsteered)
    # In bf16 a whole pass is as exact as the model itself is.
    allowed = PASS_TOLERANCE.get(dtype, 3 * unsteered_passes)
    return {
        "passed": formula <= FORMULA_TOLERANCE[dtype] and passes <= allowed and effect > 0.05,
        "formula_difference": formula,
        "formula_allowed": FORMULA_TOLERANCE[dtype],
        "pass_difference": passes,
        "pass_allowed": allowed,
        "unsteered_pass_difference": unsteered_passes,
        "effect_of_edit": effect,
    }


# --- rows ---------------------------------------------------------------------------------------


def check_rows(setup: Setup) -> dict[str, Any]:
    """32 rows with 32 edits of three forms: each as if it were alone."""
    language_model = small_model(setup)
    hooks = attach(language_model)
    model = language_model.model
    rng = setup.generator(3)
    forms = ("additive", "rank-2", "relu")
    edits = [strong_edit(language_model, forms[row % 3], rng) for row in range(32)]
    ids = tokens(setup, 32, 16, model.config.vocab_size, 4)
    steps = 16
    unsteered, _ = greedy(model, ids, steps)
    with hooks.steer(edits):
        logits, chosen = greedy(model, ids, steps)
    difference, same = 0.0, True
    for row, edit in enumerate(edits):
        with hooks.steer(edit):
            alone, alone_chosen = greedy(model, ids[row : row + 1], steps)
        difference = max(difference, float((alone[0] - logits[row]).abs().max()))
        same &= torch.equal(alone_chosen[0], chosen[row])
    effect = float((logits[:, 0] - unsteered[:, 0]).abs().amax(-1).min())
    return {
        "passed": difference <= ROWS_TOLERANCE and same and effect > 0.1,
        "largest_difference": difference,
        "allowed": ROWS_TOLERANCE,
        "same_tokens": same,
        "smallest_effect_of_an_edit": effect,
        "largest_logit": float(logits.abs().max()),
    }


def check_strength_zero(setup: Setup) -> dict[str, Any]:
    """No hooks, idle hooks, strength 0, and unsteered rows among steered ones: the same bits."""
    results: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        language_model = small_model(setup, dtype)
        model = language_model.model
        edit = strong_edit(language_model, "rank-2", setup.generator(5))
        ids = tokens(setup, 32, 16, model.config.vocab_size, 6)
        bare, _ = greedy(model, ids, 8)
        hooks = attach(language_model)
        idle, _ = greedy(model, ids, 8)
        with hooks.steer(0.0 * edit):
            zero, _ = greedy(model, ids, 8)
        rows: list[Edit | None] = [edit if row % 2 else None for row in range(32)]
        with hooks.steer(rows):
            mixed, _ = greedy(model, ids, 8)
        again, _ = greedy(model, ids, 8)
        name = str(dtype).removeprefix("torch.")
        results[name] = {
            "idle": torch.equal(bare, idle),
            "strength_zero": torch.equal(bare, zero),
            "unsteered_rows_of_mixed_batch": torch.equal(bare[::2], mixed[::2]),
            "after_the_block": torch.equal(bare, again),
            "steered_rows_differ": not torch.equal(bare[1::2], mixed[1::2]),
        }
    return {"passed": all(all(part.values()) for part in results.values()), **results}


# --- compile ------------------------------------------------------------------------------------


def compiled(model: Any, mode: str) -> Any:
    if mode == "eager":
        return model
    graphs = {"mode": "reduce-overhead"} if mode == "graphs" else {}
    return torch.compile(model, dynamic=False, **graphs)


def decode_step(call: Any, token: Tensor, cache: Any, mode: str) -> tuple[Tensor, Tensor]:
    if mode == "graphs":
        torch.compiler.cudagraph_mark_step_begin()
    logits = call(input_ids=token, past_key_values=cache).logits[:, -1]
    # Copies: a graph writes its next output where this one is.
    return logits.clone(), logits.argmax(-1, keepdim=True)


def check_compile(setup: Setup, mode: str, form: str) -> dict[str, Any]:
    """Edits that change, and none at all: one graph, the results of the model as it is."""
    torch._dynamo.reset()
    language_model = small_model(setup)
    hooks = attach(language_model)
    model = language_model.model
    call = compiled(model, mode)
    rng = setup.generator(7)
    first, second = (strong_edit(language_model, form, rng) for _ in range(2))
    rows, prompt, steps = 4, 8, 6
    ids = tokens(setup, rows, prompt, model.config.vocab_size, 8)
    static = StaticCache(config=model.config, max_cache_len=prompt + steps + 1)
    blocks: dict[str, Sequence[Edit | None]] = {
        "first": [first] * rows,
        "other edit": [second] * rows,
        "other weights": [0.3 * first + 0.7 * second if form == "additive" else 0.5 * first] * rows,
        "one a row": [first, second, None, 0.5 * second],
        "none": [None] * rows,
        "first again": [first] * rows,
    }
    differences: dict[str, float] = {}
    graphs: dict[str, int] = {}
    same = True
    counters.clear()
    for name, edits in blocks.items():
        with hooks.steer(edits):
            wanted, wanted_tokens = greedy(model, ids, steps)
        with hooks.steer(edits):
            _, token = greedy(model, ids, 1, cache=static)
            got, chosen = [], [token]
            for _ in range(steps - 1):
                logits, token = decode_step(call, token, static, mode)
                got.append(logits)
                chosen.append(token)
        rewind(static, prompt + steps - 1)
        differences[name] = relative(torch.stack(got, 1), wanted[:, 1:])
        same &= torch.equal(torch.cat(chosen, 1), wanted_tokens)
        graphs[name] = counters["stats"]["unique_graphs"]
    breaks = dict(counters["graph_break"])
    skipped = counters["inductor"].get("cudagraph_skips", 0)
    result = {
        "passed": max(differences.values()) <= 1e-4
        and same
        and set(graphs.values()) == {1}
        and not breaks
        and not (skipped and setup.device.type == "cuda"),
        "differences": differences,
        "allowed": 1e-4,
        "same_tokens": same,
        "graphs_after_each_block": graphs,
        "graph_breaks": breaks,
        "cuda_graph_skips": skipped,
    }
    torch._dynamo.reset()
    return result


# --- sync ---------------------------------------------------------------------------------------


def check_sync(setup: Setup) -> dict[str, Any]:
    """Decode steps under CUDA's synchronisation check; the unsteered model is the yardstick."""
    language_model = small_model(setup)
    hooks = attach(language_model)
    model = language_model.model
    rng = setup.generator(9)
    edits = [strong_edit(language_model, "rank-2", rng) for _ in range(4)]
    ids = tokens(setup, 4, 8, model.config.vocab_size, 10)
    cuda = setup.device.type == "cuda"

    def decode(cache: Any, steps: int, token: Tensor) -> Tensor:
        for _ in range(steps):
            logits = model(input_ids=token, past_key_values=cache).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
        return token

    def count(cache: Any, steered: bool) -> int:
        """Waits in four steps, after the prompt and one step."""
        rows: Sequence[Edit | None] = edits if steered else [None] * 4
        with hooks.steer(rows):
            token = decode(cache, 2, ids)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if cuda:
                    torch.cuda.set_sync_debug_mode("warn")
                try:
                    token = decode(cache, 4, token)
                finally:
                    if cuda:
                        torch.cuda.set_sync_debug_mode("default")
            if steered and cuda and not caught:
                torch.cuda.set_sync_debug_mode("error")  # raises at the first wait
                try:
                    decode(cache, 4, token)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    caches: dict[str, Callable[[], Any]] = {
        "dynamic cache": lambda: DynamicCache(config=model.config),
        "static cache": lambda: StaticCache(config=model.config, max_cache_len=64),
    }
    waits = {
        name: {"unsteered": count(make(), False), "steered": count(make(), True)}
        for name, make in caches.items()
    }
    return {
        "passed": all(part["steered"] <= part["unsteered"] for part in waits.values()),
        "waits_in_four_steps": waits,
        "checked": cuda,
    }


# --- speed --------------------------------------------------------------------------------------


class SpeedCheck:
    """Holds the large model, made when the first speed check asks for it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._models: tuple[LanguageModel, Any] | None = None

    def models(self) -> tuple[LanguageModel, Any]:
        if self._models is None:
            language_model = large_model(self.setup)
            self._models = language_model, twin(language_model.model)
        return self._models

    def run(self, mode: str, form: str, rows: int, different: int) -> dict[str, Any]:
        torch._dynamo.reset()
        setup = self.setup
        language_model, plain = self.models()
        hooks = attach(language_model)
        try:
            # Else the steered model and its twin, alike in all but the hooks, share one graph.
            with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
                return self._run(hooks, language_model, plain, mode, form, rows, different)
        finally:
            hooks.remove()
            torch._dynamo.reset()
            if setup.device.type == "cuda":
                torch.cuda.empty_cache()

    def _run(
        self,
        hooks: Hooks,
        language_model: LanguageModel,
        plain: Any,
        mode: str,
        form: str,
        rows: int,
        different: int,
    ) -> dict[str, Any]:
        setup = self.setup
        rng = setup.generator(11, rows, different)
        layers = edited_layers(language_model)
        edits = [
            small_edit(language_model.width, layers, FORMS[form], rng) for _ in range(different)
        ]
        per_row = [edits[row % different] for row in range(rows)]
        prompt = 64
        ids = tokens(setup, rows, prompt, plain.config.vocab_size, 12)

        def arm(model: Any, steer: bool) -> Callable[[], float]:
            if mode == "eager":
                cache: Any = DynamicCache(config=plain.config)
            else:
                length = prompt + setup.steps + 1
                cache = StaticCache(config=plain.config, max_cache_len=length)
            first = plain(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            first = first.argmax(-1, keepdim=True)
            call = compiled(model, mode)

            def block() -> float:
                _, token = decode_step(call, first, cache, mode)  # not timed: fills the tables
                synchronize(setup)
                start = time.perf_counter()
                for _ in range(setup.steps):
                    _, token = decode_step(call, token, cache, mode)
                synchronize(setup)
                seconds = time.perf_counter() - start
                rewind(cache, setup.steps + 1)
                return seconds

            def steered() -> float:
                with hooks.steer(per_row):
                    return block()

            return steered if steer else block

        arms = {"steered": arm(language_model.model, True), "plain": arm(plain, False)}
        if mode == "eager":  # a compiled graph holds the edit, whether it is used or not
            arms["inactive"] = arm(language_model.model, False)
        began = time.perf_counter()
        for _ in range(3):  # compiles, records graphs
            interleave(arms, 1, rng)
        warm_up = time.perf_counter() - began
        seconds = interleave(arms, setup.rounds, rng)
        ratio = ratios(seconds["plain"], seconds["steered"], setup.seed)
        result: dict[str, Any] = {
            "passed": ratio["high"] >= TARGETS[mode],
            "target": TARGETS[mode],
            "steered_to_plain": ratio,
            "tokens_per_second": {
                name: float(rows * setup.steps / np.median(runs)) for name, runs in seconds.items()
            },
            "warm_up_seconds": warm_up,
            "seconds": seconds,
        }
        if "inactive" in arms:
            result["inactive_to_plain"] = ratios(seconds["plain"], seconds["inactive"], setup.seed)
            result["steered_to_inactive"] = ratios(
                seconds["inactive"], seconds["steered"], setup.seed
            )
        return result


# --- all ----------------------------------------------------------------------------------------


def all_checks(setup: Setup, *, speed: bool) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    for dtype, form in itertools.product(FORMULA_TOLERANCE, ("additive", "rank-2", "relu")):
        name = str(dtype).removeprefix("torch.")
        checks[f"formula/{name}/{form}"] = partial(check_formula, setup, form, dtype)
    checks["rows/mixed"] = partial(check_rows, setup)
    checks["rows/strength-zero"] = partial(check_strength_zero, setup)
    for mode, form in itertools.product(("compile", "graphs"), ("additive", "relu")):
        checks[f"compile/{mode}/{form}"] = partial(check_compile, setup, mode, form)
    checks["sync"] = partial(check_sync, setup)
    if speed:
        large = SpeedCheck(setup)
        for mode, (rows, different), form in itertools.product(TARGETS, BATCHES, FORMS):
            if setup.tiny and rows > 1:
                rows, different = rows // 8, max(1, different // 8)
            name = f"speed/{mode}/rows-{rows}/edits-{different}/{form}"
            checks[name] = partial(large.run, mode, form, rows, different)
    return checks


def run_check(check: Check) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        with torch.no_grad():
            result = check()
    except Exception as error:  # one check's failure must not keep the others from running
        result = {
            "passed": False,
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
    return {**result, "wall_seconds": time.perf_counter() - start}


def summary(result: dict[str, Any]) -> str:
    if "error" in result:
        return str(result["error"]).splitlines()[0]
    if "steered_to_plain" in result:
        speeds = ", ".join(f"{k} {v:.0f}/s" for k, v in result["tokens_per_second"].items())
        return f"{interval(result['steered_to_plain'])}, target {result['target']}; {speeds}"
    hidden = {"passed", "wall_seconds"}
    return ", ".join(f"{key} {value}" for key, value in result.items() if key not in hidden)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="parts of names")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=16, help="timed decode steps a round and arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few rounds: a check, no figures")
    parser.add_argument("--skip-8b", action="store_true", help="leave the speed checks out")
    # For running the script itself without a GPU.
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA GPU here; nothing was checked")
        return 2
    if arguments.quick:
        arguments.rounds, arguments.steps = 5, 4
    torch.backends.cuda.matmul.allow_tf32 = False
    torch._dynamo.config.cache_size_limit = 64
    device = torch.device(arguments.device)
    setup = Setup(device, arguments.tiny, arguments.rounds, arguments.steps, arguments.seed)
    names = ("torch", "transformers", "safetensors", "numpy", "einops", "scikit-learn")
    result: dict[str, Any] = {
        "model": "random Llama" + (" (tiny)" if arguments.tiny else " with the shapes of 3.1-8B"),
        "versions": {
            "python": sys.version.split()[0],
            "cuda": torch.version.cuda,
            **{name: importlib.metadata.version(name) for name in names},
        },
        **provenance(arguments),
        "checks": {},
    }
    checks = {
        name: check
        for name, check in all_checks(setup, speed=not arguments.skip_8b).items()
        if any(part in name for part in arguments.only)
    }
    for name, check in checks.items():
        outcome = run_check(check)
        result["checks"][name] = outcome
        write_json(arguments.output, result)
        print(
            f"{'ok    ' if outcome['passed'] else 'FAILED'}  {name}: {summary(outcome)}", flush=True
        )
    failed = [name for name, outcome in result["checks"].items() if not outcome["passed"]]
    speeds = {k: v for k, v in result["checks"].items() if "steered_to_plain" in v}
    if speeds:
        header = ("check", "plain tokens/s", "steered tokens/s", "ratio [95% interval]", "target")
        rows = [
            (
                name,
                f"{outcome['tokens_per_second']['plain']:.0f}",
                f"{outcome['tokens_per_second']['steered']:.0f}",
                interval(outcome["steered_to_plain"]),
                f"{outcome['target']} {'met' if outcome['passed'] else 'MISSED'}",
            )
            for name, outcome in speeds.items()
        ]
        print("\n" + table(header, rows))
    print(f"\n{len(result['checks'])} checks, {len(failed)} failed; written to {arguments.output}")
    return 1 if failed or not result["checks"] else 0


if __name__ == "__main__":
    sys.exit(main())
