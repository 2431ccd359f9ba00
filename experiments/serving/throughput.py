"""What steering costs a server: tokens a second, steered over plain, in one run.

    python experiments/serving/throughput.py            # a quarter of an hour; nothing else may run
    python experiments/serving/throughput.py --quick    # only shows that it runs

So many people ask at once, each with other weights; all answers have the same number of tokens, so
that every arm does the same work. Arms take turns, and ratios are of the same round:

    plain       transformers' continuous batching on a twin of the model that never had hooks
    unsteered   the server's engine, no request with an edit
    steered     the server's engine, every request with an edit of its own, composed
    dynamic     `model.generate` in batches of the same edits, one after the other
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import add_bundle, common_parser, last_line, provenance  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import interleave, ratios, twin  # noqa: E402
from transformers import GenerationConfig  # noqa: E402

from steer.bundle import Bundle  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.cover import random_weights  # noqa: E402
from steer.edits import ZERO, Edit  # noqa: E402
from steer.generation import Decoding, generate_batch, prompt_tokens  # noqa: E402
from steer.hooks import attach  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.serve.continuous import ContinuousEngine, Room, continuous_config  # noqa: E402
from steer.serve.engine import Job, Progress  # noqa: E402
from steer.steerer import Steerer  # noqa: E402


@dataclass(frozen=True)
class Case:
    """So many people at once.

    Attributes:
        users: How many.
        tokens: Of each answer.
        rounds: In which every arm takes its turn.
    """

    users: int
    tokens: int
    rounds: int


CASES = (Case(1, 32, 11), Case(32, 12, 9), Case(256, 4, 3))
QUICK = (Case(1, 4, 2), Case(3, 4, 2))


@dataclass(frozen=True)
class Row:
    """One arm of one case.

    Attributes:
        users: Who asked at once.
        arm: Which.
        speed: Tokens written a second, median of rounds.
        ratio: To the plain arm's speed, median of rounds.
        low: Lower end of its interval.
        high: Upper end.
    """

    users: int
    arm: str
    speed: float
    ratio: float
    low: float
    high: float


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
    write(rows, model, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "serving", work=False)
    add_bundle(parser)
    parser.add_argument("--rows", type=int, default=None, help="answers written at once")
    parser.add_argument(
        "--users", type=int, nargs="+", default=[case.users for case in CASES], help="at once"
    )
    return parser.parse_args()


def cases_of(arguments: argparse.Namespace) -> Sequence[Case]:
    """Those that are asked for."""
    return QUICK if arguments.quick else [one for one in CASES if one.users in arguments.users]


def edits_of(steerer: Steerer, users: int, seed: int) -> list[Edit]:
    """A mixture of the traits' own edits for everybody."""
    names = steerer.traits
    shares = random_weights(len(names), users, seed)
    return [
        steerer.resolve(dict(zip(names, row.tolist(), strict=True)), compose=True) for row in shares
    ]


def measured(
    steerer: Steerer, plain: Any, case: Case, room: Room, rng: np.random.Generator, seed: int
) -> list[Row]:
    """Every arm of a case."""
    model = steerer.language_model
    texts = [prompt.text for prompt in load_prompts("develop")]
    rendered = [render(model.tokenizer, texts[i % len(texts)]) for i in range(case.users)]
    prompts = [tuple(prompt_tokens(model, text)) for text in rendered]
    edits = edits_of(steerer, case.users, seed)
    decoding = Decoding(
        max_new_tokens=case.tokens,
        repetition_penalty=1.0,
        no_repeat_ngram_size=None,
    )
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
                "plain": lambda: by_manager(manager, prompts, case.tokens),
                "unsteered": lambda: by_engine(engine, prompts, [ZERO] * case.users, decoding),
                "steered": lambda: by_engine(engine, prompts, edits, decoding),
                "dynamic": lambda: by_batches(model, rendered, edits, decoding, engine.rows),
            },
            case.rounds,
            rng,
        )
    finally:
        engine.stop()
        manager.stop()
    rows = []
    for arm, values in seconds.items():
        found = ratios(seconds["plain"], values, seed)
        speed = case.users * case.tokens / float(np.median(values))
        rows.append(Row(case.users, arm, speed, found["median"], found["low"], found["high"]))
        print(rows[-1])
    return rows


def by_engine(
    engine: ContinuousEngine,
    prompts: Sequence[tuple[int, ...]],
    edits: Sequence[Edit],
    decoding: Decoding,
) -> float:
    """Seconds until the engine has answered all."""

    async def all_of_them() -> float:
        left, end = len(prompts), asyncio.Event()

        def tell(progress: Progress) -> None:
            nonlocal left
            assert progress.error is None, progress.error
            left -= progress.done
            if not left:
                end.set()

        began = time.perf_counter()
        for number, (prompt, edit) in enumerate(zip(prompts, edits, strict=True)):
            engine.submit(str(number), Job(prompt, edit, decoding), tell)
        await end.wait()
        return time.perf_counter() - began

    return asyncio.run(all_of_them())


def by_manager(manager: Any, prompts: Sequence[tuple[int, ...]], tokens: int) -> float:
    """Seconds until transformers' manager has answered all, streaming as the engine does."""

    async def all_of_them() -> float:
        left, end = len(prompts), asyncio.Event()

        def tell(output: Any) -> None:
            nonlocal left
            left -= output.is_finished()
            if not left:
                end.set()

        began = time.perf_counter()
        for number, prompt in enumerate(prompts):
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
    decoding: Decoding,
    rows: int,
) -> float:
    """Seconds until batches, one after the other, have answered all."""
    began = time.perf_counter()
    for start in range(0, len(texts), rows):
        with attach(model).steer(edits[start : start + rows]):
            generate_batch(model, texts[start : start + rows], decoding)
    return time.perf_counter() - began


def write(rows: Sequence[Row], model: LanguageModel, arguments: argparse.Namespace) -> None:
    """Write JSON, CSV and Markdown."""
    content = {
        **provenance("experiments/serving/throughput.py", model, arguments),
        "torch threads": torch.get_num_threads(),
        "cases": [asdict(case) for case in cases_of(arguments)],
        "rows": [asdict(row) for row in rows],
    }
    write_json(arguments.output / "throughput.json", content)
    write_csv(arguments.output / "throughput.csv", Row, rows)
    lines = [
        f"{model.name}, {arguments.dtype}, {model.device.type}, {arguments.threads} thread: "
        "everybody with other weights, answers of one length. Ratio: tokens a second over those "
        "of the plain engine in the same round, median, in brackets its 95% interval (bootstrap "
        "over rounds).",
        "",
        "| people at once | | tokens a second | over plain |",
        "|---" * 4 + "|",
    ]
    lines += [
        f"| {row.users} | {row.arm} | {row.speed:.1f} | {row.ratio:.3f} "
        f"({row.low:.3f} to {row.high:.3f}) |"
        for row in rows
    ]
    write_markdown(
        arguments.output / "throughput.md", "\n".join([*lines, "", last_line(content)]) + "\n"
    )


if __name__ == "__main__":
    main()
