"""What steering costs a server: tokens a second, steered over plain, in one run.

    python experiments/serving/throughput.py            # half an hour; nothing else may run
    python experiments/serving/throughput.py --quick    # only shows that it runs

So many people ask at once, each with other weights, for answers of a set number of tokens, so that
every arm does the same work. Arms take turns, and ratios are of the same round:

    plain       transformers' continuous batching on a twin of the model that never had hooks
    unsteered   the server's engine, no request with an edit
    steered     the server's engine, every request with an edit of its own, composed
    dynamic     `model.generate` in batches of the same edits, one after the other; each goes on
                until its longest answer is written
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import add_bundle, common_parser, parse, provenance  # noqa: E402
from speeds import Case, Row, by_engine, exactly, rows_of, users_weights, write  # noqa: E402
from timing import interleave, twin  # noqa: E402
from transformers import GenerationConfig  # noqa: E402

from steer.bundle import Bundle  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.edits import ZERO, Edit  # noqa: E402
from steer.generation import generate_batch, prompt_tokens  # noqa: E402
from steer.hooks import attach  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.serve.continuous import ContinuousEngine, Room, continuous_config  # noqa: E402
from steer.steerer import Steerer  # noqa: E402

CASES = (Case(1, 16, 41), Case(32, 12, 11), Case(32, 24, 5, shortest=4), Case(256, 4, 3))
QUICK = (Case(1, 4, 2), Case(3, 4, 2, shortest=2))


def main() -> None:
    """Time and write."""
    arguments = read_arguments()
    model = loaded(arguments)
    plain = twin(model.model)
    steerer = Steerer(model, Bundle.load(arguments.bundle))
    room = Room(rows=arguments.rows)
    rng = np.random.default_rng(arguments.seed)
    rows: list[Row] = []
    for case in cases_of(arguments):
        rows += measured(steerer, plain, case, room, rng, arguments.seed)
    content = {
        **provenance("experiments/serving/throughput.py", model, arguments),
        "torch threads": torch.get_num_threads(),
        "cases": [asdict(case) for case in cases_of(arguments)],
    }
    heading = (
        f"{model.name}, {arguments.dtype}, {model.device.type}, {arguments.threads} thread: "
        "everybody with other weights."
    )
    write(rows, content, heading, arguments.output, "throughput")


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "serving", work=False)
    add_bundle(parser)
    parser.add_argument("--rows", type=int, default=None, help="answers written at once")
    parser.add_argument(
        "--users", type=int, nargs="+", default=[case.users for case in CASES], help="at once"
    )
    return parse(parser)


def cases_of(arguments: argparse.Namespace) -> Sequence[Case]:
    """Those that are asked for."""
    return QUICK if arguments.quick else [one for one in CASES if one.users in arguments.users]


def edits_of(steerer: Steerer, users: int, seed: int) -> list[Edit]:
    """A mixture of the traits' own edits for everybody."""
    weights = users_weights(steerer.traits, users, seed)
    return [steerer.resolve(one, compose=True) for one in weights]


def measured(
    steerer: Steerer, plain: Any, case: Case, room: Room, rng: np.random.Generator, seed: int
) -> list[Row]:
    """Every arm of a case."""
    model = steerer.language_model
    texts = [prompt.text for prompt in load_prompts("develop")]
    rendered = [render(model.tokenizer, texts[i % len(texts)]) for i in range(case.users)]
    prompts = [tuple(prompt_tokens(model, text)) for text in rendered]
    edits = edits_of(steerer, case.users, seed)
    lengths = case.lengths(seed)
    # So that no answer ends before its limit, whatever is written.
    model.model.generation_config.eos_token_id = [-1]
    engine = ContinuousEngine(model, room)
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = plain.init_continuous_batching(
        generation_config=config, continuous_batching_config=continuous_config(model, room)
    )
    engine.start()
    manager.start()
    try:
        seconds = interleave(
            {
                "plain": lambda: by_manager(manager, prompts, lengths),
                "unsteered": lambda: by_engine(engine, prompts, [ZERO] * case.users, lengths),
                "steered": lambda: by_engine(engine, prompts, edits, lengths),
                "dynamic": lambda: by_batches(model, rendered, edits, lengths, engine.rows),
            },
            case.rounds,
            rng,
        )
    finally:
        engine.stop()
        manager.stop()
    return rows_of(case, seconds, seed)


def by_manager(manager: Any, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> float:
    """Seconds until transformers' manager has answered all, streaming as the engine does."""

    async def all_of_them() -> float:
        left, end = len(prompts), asyncio.Event()

        def tell(output: Any) -> None:
            nonlocal left
            left -= output.is_finished()
            if not left:
                end.set()

        began = time.perf_counter()
        for number, (prompt, tokens) in enumerate(zip(prompts, lengths, strict=True)):
            manager.register_result_handler(str(number), tell)
            manager.add_request(
                list(prompt), request_id=str(number), max_new_tokens=tokens, streaming=True
            )
        await end.wait()
        return time.perf_counter() - began

    return asyncio.run(all_of_them())


def by_batches(
    model: LanguageModel,
    texts: Sequence[str],
    edits: Sequence[Edit],
    lengths: Sequence[int],
    rows: int,
) -> float:
    """Seconds until batches, one after the other, have answered all, each up to its longest."""
    began = time.perf_counter()
    for start in range(0, len(texts), rows):
        batch = slice(start, start + rows)
        with attach(model).steer(edits[batch]):
            generate_batch(model, texts[batch], exactly(max(lengths[batch])))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
