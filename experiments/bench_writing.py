"""Measure what writing and measuring answers costs, beside the plainer way of doing the same.

    python experiments/bench_writing.py            # a quarter of an hour of a quiet core
    python experiments/bench_writing.py --quick    # only shows that it runs

The packaged model answers on one thread; arms are interleaved, and a ratio is the median over
rounds, with a 95% bootstrap interval.

**Penalties.** A greedy batch under the default decoding's penalties on repetition, by
`steer.repetition` and by transformers' own processors: the same tokens.

**Divergence.** KL(edited || unedited) of answers, by `steer.likelihood.divergence`, which reads
each prompt once, and by reading whole sequences and comparing all of their log-probabilities.

Written is writing.json in experiments/results/overhead/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from precision import add_dtype, loaded
from runs import add_output, parse
from timing import (
    ROOT,
    interleave,
    interval,
    provenance,
    ratios,
    small_edit,
    table,
    timed,
    write_json,
)
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from steer.batches import Sequences, batches, response_logits
from steer.chat import render
from steer.edits import Edit
from steer.generation import Decoding, encode, generate_batch, prompt_tokens
from steer.hooks import attach
from steer.likelihood import divergence
from steer.models import LanguageModel
from steer.prompts import load_prompts
from steer.versions import versions

LAYERS = range(8, 20)
ROWS = (1, 16, 64)
ASKED, EDITS = 16, 4  # prompts, and edits on each, as in a search for edits


def main() -> None:
    """Time, print, write."""
    arguments = read_arguments()
    model = loaded(arguments)
    prompts = [prompt.text for prompt in load_prompts("develop")]
    rng = np.random.default_rng(arguments.seed)
    cases = [
        *penalties(model, prompts, arguments, rng),
        measuring(model, prompts[: 2 if arguments.quick else ASKED], arguments, rng),
    ]
    rows = [[case["what"], str(case["rows"]), interval(case["plainer_to_ours"])] for case in cases]
    print(table(("", "rows", "seconds, plainer / ours"), rows))
    content = {
        "model": model.name,
        "fingerprint": str(model.fingerprint),
        "dtype": arguments.dtype,
        "versions": versions(),
        **provenance(arguments),
        "cases": cases,
    }
    write_json(arguments.output / "writing.json", content)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="local folder or hub id")
    add_dtype(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser, ROOT / "experiments" / "results" / "overhead")
    arguments = parse(parser)
    if arguments.quick:
        arguments.rounds, arguments.tokens = 2, 4
    return arguments


def penalties(
    model: LanguageModel, prompts: Sequence[str], arguments: argparse.Namespace, rng: Any
) -> Iterator[dict[str, Any]]:
    """Batches of several sizes, written under either set of processors."""
    for rows in ROWS[: 1 if arguments.quick else None]:
        yield penalised(model, prompts[:rows], arguments, rng)


def penalised(
    model: LanguageModel, prompts: Sequence[str], arguments: argparse.Namespace, rng: Any
) -> dict[str, Any]:
    """One batch."""
    inputs = encode(model, [render(model.tokenizer, prompt) for prompt in prompts])
    columns = inputs["input_ids"].shape[1]
    # No answer leaves early, so that both ways write as many tokens.
    decoding = Decoding(max_new_tokens=arguments.tokens, min_new_tokens=arguments.tokens)
    ours = decoding.options(columns)
    theirs = ours | {"logits_processor": by_transformers(decoding, columns)}
    written: dict[str, list[list[int]]] = {}

    def write(name: str, options: dict[str, Any]) -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            found = model.model.generate(**inputs, **options)
            seconds = time.perf_counter() - start
        written[name] = found.tolist()
        return seconds

    arms: dict[str, Callable[[], float]] = {
        "ours": lambda: write("ours", ours),
        "plainer": lambda: write("plainer", theirs),
    }
    found = compared("answers under penalties", len(prompts), arms, arguments, rng)
    assert written["ours"] == written["plainer"], "the answers differ"
    return found


def by_transformers(decoding: Decoding, prompt: int) -> LogitsProcessorList:
    """The processors of transformers that choose alike."""
    assert decoding.no_repeat_ngram_size, "the default decoding has one"
    return LogitsProcessorList(
        [
            NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size),
            RepetitionPenaltyLogitsProcessor(
                decoding.repetition_penalty, prompt_ignore_length=prompt
            ),
        ]
    )


def measuring(
    model: LanguageModel, prompts: Sequence[str], arguments: argparse.Namespace, rng: Any
) -> dict[str, Any]:
    """Several edits, measured on answers to the same prompts."""
    decoding = Decoding(max_new_tokens=arguments.tokens)
    texts = [render(model.tokenizer, prompt) for prompt in prompts]
    answers = generate_batch(model, texts, decoding)
    sequences = EDITS * [
        (prompt_tokens(model, text), answer.tokens)
        for text, answer in zip(texts, answers, strict=True)
    ]
    edits = [
        edit
        for edit in [small_edit(model.width, LAYERS, 0, rng, size=1.0) for _ in range(EDITS)]
        for _ in prompts
    ]
    arms: dict[str, Callable[[], float]] = {
        "ours": lambda: timed(lambda: divergence(model, edits, sequences)),
        "plainer": lambda: timed(lambda: plain_divergence(model, edits, sequences)),
    }
    return compared("divergence of answers", len(sequences), arms, arguments, rng)


def plain_divergence(model: LanguageModel, edits: Sequence[Edit], sequences: Sequences) -> None:
    """Whole sequences, and all log-probabilities at once."""
    for batch in batches(model, sequences, 2048):
        with torch.inference_mode():
            reference = response_logits(model, batch).log_softmax(-1)
            rows = [edits[i] for i in batch.indices]
            with attach(model).steer(rows, prompt_length=batch.prompt_length):
                edited = response_logits(model, batch).log_softmax(-1)
            ((edited.exp() * (edited - reference)).sum(-1) * batch.response_mask).sum(1)


def compared(
    what: str,
    rows: int,
    arms: dict[str, Callable[[], float]],
    arguments: argparse.Namespace,
    rng: Any,
) -> dict[str, Any]:
    """Seconds of both ways, and their ratio."""
    interleave(arms, 1, rng)  # warm-up
    seconds = interleave(arms, arguments.rounds, rng)
    ratio = ratios(seconds["plainer"], seconds["ours"], arguments.seed)
    return {"what": what, "rows": rows, "plainer_to_ours": ratio, "seconds": seconds}


if __name__ == "__main__":
    main()
