"""Measure what steering costs: decoding speed, reading activations, start-up.

One command, `python experiments/bench_overhead.py` (or `make bench`), writes a file a part with
every single timing into experiments/results/overhead/, after each case, and prints tables. It takes
half an hour; nothing else should run meanwhile. `--parts` runs some of it.

**Decoding.** The packaged model in fp32 on one thread decodes greedily. Arms: the steered model,
the same model with its hooks inactive, and a twin on the same weights that never had hooks. One
round is a few decode steps of every arm, in random order, from the same cache length; a round's
ratio compares arms that ran within seconds of one another. Reported is the median ratio of tokens
per second with a 95% bootstrap interval. Entering a `steer` block is timed apart: it happens once
a request, not once a step.

**Activations.** `steer.activations.read_activations` against steering-vectors 0.12.2, which is
installed apart and given as --peer-site:

    pip install --no-deps --target DIR steering-vectors==0.12.2

Both start from the same texts and read the last token of each (steering-vectors reads one token,
so pooling is "last" here), and their values are compared. steering-vectors runs with its default
batch size (1), with the fastest of several, and with that on the model without its output
embedding; the layers are those of an edit, where `steer` stops after the last one, and all.

**Readiness.** Seconds from the start of a process to a model and bundle that can answer, with a
warm cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import add_output, parse
from timing import (
    FORMS,
    ROOT,
    interleave,
    interval,
    provenance,
    ratios,
    small_edit,
    table,
    timed,
    twin,
    write_json,
)
from torch import Tensor
from transformers import DynamicCache

from steer.activations import read_activations
from steer.chat import render
from steer.contrast import instructed
from steer.edits import Edit
from steer.hooks import Hooks, attach
from steer.models import LanguageModel, load_model
from steer.prompts import load_prompts
from steer.resources import default_bundle_path
from steer.traits import load_traits
from steer.versions import versions

PEER = "steering-vectors"
PEER_VERSION = "0.12.2"
LAYERS = range(8, 20)
CASES = ((1, 1), (8, 1), (32, 1), (32, 32))  # (rows, different edits)
TARGET = 0.97
PEER_BATCHES = (1, 2, 4, 8, 16, 32)

READY = """
import json, time
start = time.perf_counter()
import steer
load = steer.{name}
imported = time.perf_counter()
load()
loaded, ready = time.perf_counter(), time.time()
print(json.dumps({{"import": imported - start, "load": loaded - imported, "ready": ready}}))
"""


# --- decoding -----------------------------------------------------------------------------------


class Decoder:
    """A cache and the token that comes next; every block starts from the same cache length."""

    def __init__(self, model: Any, rows: int, prompt: int) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        ids = torch.arange(1, rows * prompt + 1).reshape(rows, prompt) % model.config.vocab_size
        self.first = self._step(ids)

    def _step(self, token: Tensor) -> Tensor:
        logits = self.model(input_ids=token, past_key_values=self.cache, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def block(self, steps: int) -> float:
        """Seconds of `steps` decode steps, after one step that is not timed."""
        token = self._step(self.first)
        start = time.perf_counter()
        for _ in range(steps):
            token = self._step(token)
        seconds = time.perf_counter() - start
        self.cache.crop(-(steps + 1))
        return seconds


def decoding(
    language_model: LanguageModel, *, prompt: int, steps: int, rounds: int, seed: int
) -> Iterator[dict[str, Any]]:
    plain = twin(language_model.model)
    hooks = attach(language_model)
    for number, (form, rank) in enumerate(FORMS.items()):
        for rows, different in CASES:
            rng = np.random.default_rng([seed, number, rows, different])
            edits = [small_edit(language_model.width, LAYERS, rank, rng) for _ in range(different)]
            result = _decode_case(
                language_model, plain, hooks, edits, rows, prompt, steps, rounds, rng, seed
            )
            yield {"form": form, "rows": rows, "edits": different, **result}
        # Fresh buffers, of the next form's rank.
        hooks.remove()
        hooks = attach(language_model)
    hooks.remove()


@torch.no_grad()
def _decode_case(
    language_model: LanguageModel,
    plain: Any,
    hooks: Hooks,
    edits: Sequence[Edit],
    rows: int,
    prompt: int,
    steps: int,
    rounds: int,
    rng: np.random.Generator,
    seed: int,
) -> dict[str, Any]:
    per_row = [edits[row % len(edits)] for row in range(rows)]
    steered = Decoder(language_model.model, rows, prompt)
    inactive = Decoder(language_model.model, rows, prompt)
    bare = Decoder(plain, rows, prompt)
    enter: list[float] = []

    def run_steered() -> float:
        start = time.perf_counter()
        with hooks.steer(per_row):
            enter.append(time.perf_counter() - start)
            return steered.block(steps)

    arms: dict[str, Callable[[], float]] = {
        "steered": run_steered,
        "inactive": lambda: inactive.block(steps),
        "plain": lambda: bare.block(steps),
    }
    interleave(arms, 1, rng)  # warm-up
    enter.clear()
    seconds = interleave(arms, rounds, rng)
    against_inactive = ratios(seconds["inactive"], seconds["steered"], seed)
    against_plain = ratios(seconds["plain"], seconds["steered"], seed)
    return {
        "tokens_per_second": {
            name: float(rows * steps / np.median(values)) for name, values in seconds.items()
        },
        "steered_to_inactive": against_inactive,
        "steered_to_plain": against_plain,
        "inactive_to_plain": ratios(seconds["plain"], seconds["inactive"], seed),
        "enter_block_ms": float(1e3 * np.median(enter)),
        "target": TARGET,
        "met": min(against_inactive["high"], against_plain["high"]) >= TARGET,
        "seconds": seconds,
    }


# --- activations --------------------------------------------------------------------------------


def activations(
    language_model: LanguageModel,
    *,
    peer_site: Path | None,
    pairs: int,
    rounds: int,
    batch_sizes: Sequence[int],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """What was found so far, after each case."""
    if peer_site is None:
        yield {"status": "not run: no --peer-site"}
        return
    sys.path.append(str(peer_site))
    try:
        found = version(PEER)
    except ImportError:
        yield {"status": f"not run: no {PEER} in {peer_site}"}
        return
    if found != PEER_VERSION:
        yield {"status": f"not run: {PEER} {found} in {peer_site}, expected {PEER_VERSION}"}
        return
    texts = _pair_texts(language_model, pairs, seed)
    rng = np.random.default_rng([seed, 1])
    probe_texts = texts[: max(2, min(8, pairs))]
    everything = range(len(language_model.layers))
    probe = interleave(
        {
            str(size): lambda size=size: timed(
                lambda: _peer_read(language_model, probe_texts, LAYERS, size)
            )
            for size in batch_sizes
        },
        2,
        rng,
    )
    best = min(batch_sizes, key=lambda size: min(probe[str(size)]))
    settings: list[dict[str, Any]] = []
    result = {
        "status": "run",
        "peer": f"{PEER} {found}",
        "pairs": pairs,
        "tokens": sum(
            len(ids)
            for pair in texts
            for ids in language_model.tokenizer(list(pair), add_special_tokens=False)["input_ids"]
        ),
        "pooling": "last token of each text, the one that the peer reads",
        "batch_size_probe_seconds": probe,
        "best_batch_size": best,
        "settings": settings,
    }
    for name, layers in (("8-19", LAYERS), ("all", everything)):
        case = _read_case(language_model, texts, layers, best, rounds, rng, seed)
        settings.append({"layers": name, **case})
        yield result


def _read_case(
    language_model: LanguageModel,
    texts: Sequence[tuple[str, str]],
    layers: Sequence[int],
    best: int,
    rounds: int,
    rng: np.random.Generator,
    seed: int,
) -> dict[str, Any]:
    reads: dict[str, Callable[[], dict[int, np.ndarray]]] = {
        "steer": lambda: _read(language_model, texts, layers),
        "peer default": lambda: _peer_read(language_model, texts, layers, 1),
        "peer best": lambda: _peer_read(language_model, texts, layers, best),
        "peer best, no head": lambda: _peer_read(language_model, texts, layers, best, head=False),
    }
    values = {name: read() for name, read in reads.items()}  # also the warm-up
    ours = values["steer"]
    differences = {
        name: max(float(np.abs(ours[i] - theirs[i]).max() / np.abs(ours[i]).max()) for i in layers)
        for name, theirs in values.items()
        if name != "steer"
    }
    if max(differences.values()) > 1e-3:
        raise RuntimeError(f"the two libraries read different values: {differences}")
    seconds = interleave(
        {name: lambda read=read: timed(read) for name, read in reads.items()}, rounds, rng
    )
    return {
        "largest_relative_difference": differences,
        "median_seconds": {name: float(np.median(runs)) for name, runs in seconds.items()},
        "times_faster": {
            name: ratios(runs, seconds["steer"], seed)
            for name, runs in seconds.items()
            if name != "steer"
        },
        "seconds": seconds,
    }


def _read(
    language_model: LanguageModel, texts: Sequence[tuple[str, str]], layers: Sequence[int]
) -> dict[int, np.ndarray]:
    flat = [text for pair in texts for text in pair]
    ids = language_model.tokenizer(flat, add_special_tokens=False)["input_ids"]
    sequences = [(row[:-1], row[-1:]) for row in ids]
    return dict(read_activations(language_model, sequences, layers, pooling="last"))


def _peer_read(
    language_model: LanguageModel,
    texts: Sequence[tuple[str, str]],
    layers: Sequence[int],
    batch_size: int,
    *,
    head: bool = True,
) -> dict[int, np.ndarray]:
    from steering_vectors.train_steering_vector import extract_activations

    model = language_model.model
    positive, negative = extract_activations(
        model if head else model.get_decoder(),
        language_model.tokenizer,
        texts,
        layers=list(layers),
        batch_size=batch_size,
    )
    # In the order of `_read`: positive and negative in turn.
    return {
        layer: torch.stack([torch.cat(positive[layer]), torch.cat(negative[layer])], dim=1)
        .flatten(0, 1)
        .numpy()
        for layer in layers
    }


def _pair_texts(language_model: LanguageModel, pairs: int, seed: int) -> list[tuple[str, str]]:
    """Texts with the shape of contrast pairs: a request of each pole and an answer.

    Only the lengths matter for speed, so that an answer is made of other prompts, cut to 24 to 64
    tokens (64 is the length of the project's contrast answers).
    """
    tokenizer = language_model.tokenizer
    prompts = load_prompts("extract")
    traits = list(load_traits().values())
    rng = np.random.default_rng([seed, 2])

    def text(request: str) -> str:
        words = " ".join(prompts[i].text for i in rng.permutation(len(prompts))[:12])
        ids = tokenizer(words, add_special_tokens=False)["input_ids"]
        return render(tokenizer, request) + tokenizer.decode(ids[: rng.integers(24, 65)])

    result = []
    for i in range(pairs):
        prompt, trait = prompts[i % len(prompts)].text, traits[i % len(traits)]
        request_positive = instructed(prompt, trait.positive.instructions[0])
        request_negative = instructed(prompt, trait.negative.instructions[0])
        result.append((text(request_positive), text(request_negative)))
    return result


# --- readiness ----------------------------------------------------------------------------------


def readiness(runs: int) -> dict[str, Any]:
    """Process start to a model and bundle in memory; the first run only warms the file cache.

    The process tells when it is ready, by the clock that both share: how long it takes to end
    afterwards is nobody's wait.
    """
    bundle = default_bundle_path()
    name = "load" if bundle.is_file() else "load_model"
    script = READY.format(name=name)
    timings = []
    for _ in range(runs + 1):
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        )
        timing = json.loads(done.stdout.splitlines()[-1])
        timings.append({"total": timing.pop("ready") - start, **timing})
    timings = timings[1:]
    return {
        "what": "model and bundle" if name == "load" else f"model only: there is no {bundle.name}",
        "median_seconds": {
            key: float(np.median([timing[key] for timing in timings]))
            for key in ("total", "import", "load")
        },
        "runs": timings,
    }


# --- output -------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> Iterator[str]:
    if cases := result.get("decoding"):
        yield "Decoding, tokens per second and ratios of them (median [95% interval])"
        header = ("form", "rows", "edits", "plain", "inactive", "steered", "steered/inactive")
        header += ("steered/plain", "inactive/plain", "enter, ms", f"target {TARGET}")
        rows = [
            (
                case["form"],
                str(case["rows"]),
                str(case["edits"]),
                *(
                    f"{case['tokens_per_second'][arm]:.1f}"
                    for arm in ("plain", "inactive", "steered")
                ),
                interval(case["steered_to_inactive"]),
                interval(case["steered_to_plain"]),
                interval(case["inactive_to_plain"]),
                f"{case['enter_block_ms']:.2f}",
                "met" if case["met"] else "MISSED",
            )
            for case in cases
        ]
        yield table(header, rows)
    if reads := result.get("activations"):
        yield f"\nReading activations against {PEER} {PEER_VERSION}: {reads['status']}"
        if reads["status"] == "run":
            rows = [
                (
                    setting["layers"],
                    arm,
                    f"{seconds:.2f}",
                    interval(setting["times_faster"][arm]) if arm != "steer" else "",
                    f"{setting['largest_relative_difference'][arm]:.1e}" if arm != "steer" else "",
                )
                for setting in reads["settings"]
                for arm, seconds in setting["median_seconds"].items()
            ]
            yield f"{reads['pairs']} pairs, best batch size {reads['best_batch_size']}"
            header = ("layers", "arm", "seconds", "arm/steer", "largest difference")
            yield table(header, rows)
    if ready := result.get("readiness"):
        yield f"\nReady ({ready['what']}), median seconds"
        seconds = ready["median_seconds"]
        yield table(tuple(seconds), [tuple(f"{value:.2f}" for value in seconds.values())])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-site", type=Path, help=f"folder with {PEER} {PEER_VERSION}")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of decoding a case")
    parser.add_argument("--steps", type=int, default=6, help="timed decode steps a round and arm")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--pairs", type=int, default=24, help="pairs whose activations are read")
    parser.add_argument("--read-rounds", type=int, default=5)
    parser.add_argument("--ready-runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("decoding", "activations", "readiness"),
        default=("decoding", "activations", "readiness"),
    )
    add_output(parser, ROOT / "experiments" / "results" / "overhead")
    arguments = parse(parser)
    if arguments.quick:
        arguments.rounds, arguments.steps, arguments.prompt, arguments.pairs = 3, 2, 16, 4
        arguments.read_rounds, arguments.ready_runs = 2, 1
    torch.set_num_threads(1)
    language_model = load_model()
    header: dict[str, Any] = {
        "model": language_model.name,
        "fingerprint": str(language_model.fingerprint),
        "dtype": str(language_model.model.dtype),
        "versions": versions(),
        **provenance(arguments),
    }
    result: dict[str, Any] = {}

    def keep(part: str, found: Any) -> None:
        result[part] = found
        write_json(arguments.output / f"{part}.json", {**header, part: found})

    with contextlib.suppress(KeyboardInterrupt):  # the cases that are finished by then are written
        if "activations" in arguments.parts:  # first, while the model has no hooks
            for found in activations(
                language_model,
                peer_site=arguments.peer_site,
                pairs=arguments.pairs,
                rounds=arguments.read_rounds,
                batch_sizes=(1, 8) if arguments.quick else PEER_BATCHES,
                seed=arguments.seed,
            ):
                keep("activations", found)
        if "decoding" in arguments.parts:
            cases: list[dict[str, Any]] = []
            for case in decoding(
                language_model,
                prompt=arguments.prompt,
                steps=arguments.steps,
                rounds=arguments.rounds,
                seed=arguments.seed,
            ):
                cases.append(case)
                keep("decoding", cases)
        if "readiness" in arguments.parts:
            keep("readiness", readiness(arguments.ready_runs))
    print("\n".join(report(result)))
    print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
