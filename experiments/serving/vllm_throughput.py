"""What steering costs vLLM, and what its prefix cache is worth to a portfolio.

    .venv-vllm/bin/python experiments/serving/vllm_throughput.py            # 25 minutes
    .venv-vllm/bin/python experiments/serving/vllm_throughput.py --quick    # shows that it runs

`make venv-vllm` makes that environment.

Engines in processes of their own take turns. So many people ask at once, each something else and
with other weights, composed; all answers have the same number of tokens.

    plain         vLLM without the setting: no layer was touched
    plain again   a second one, begun last: what two processes differ by that do the same
    unsteered     vLLM that steers, no request with an edit
    steered       the same, every request with an edit of its own
    transformers  the engine over transformers' continuous batching, every request with an edit

Then people with a common system prompt ask one after the other, and what was read of it from the
cache is counted: where a portfolio serves them, its entries are shared, where everybody has an edit
of their own, nothing is.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before vLLM is loaded: one thread, a small cache.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import add_bundle, common_parser, parse, provenance  # noqa: E402
from speeds import Case, Row, by_engine, rows_of, users_weights, write  # noqa: E402
from timing import interleave  # noqa: E402

from steer.bundle import Bundle  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.generation import prompt_tokens  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.serve.asked_edit import AskedEdit  # noqa: E402
from steer.serve.continuous import ContinuousEngine  # noqa: E402
from steer.serve.salt import cache_salt  # noqa: E402
from steer.serve.slots import Reserved  # noqa: E402
from steer.skeleton import checkpoint_folder  # noqa: E402
from steer.steerer import Steerer  # noqa: E402

CASES = (Case(1, 32, 11), Case(32, 16, 9), Case(256, 4, 3))
QUICK = (Case(1, 4, 2), Case(3, 4, 2))
SYSTEM = (
    "You are the assistant of a small public library. You help visitors to find books, tell them "
    "about events and opening hours, and answer questions about the building. You are honest "
    "about what you do not know, and you never make up the title of a book. When somebody asks "
    "for advice that a librarian should give in person, say that the desk on the ground floor is "
    "open from nine to six on weekdays and from ten to four on Saturdays. Children are welcome. "
    "Do not give medical or legal advice; name the section in which such books stand instead."
)


@dataclass(frozen=True, eq=False)
class Engines:
    """What is compared.

    Attributes:
        plain: vLLM that knows nothing of steering.
        ours: vLLM that steers.
        again: As `plain`.
        steerer: What the engine over transformers runs in this process.
    """

    plain: LLM
    ours: LLM
    again: LLM
    steerer: Steerer


def main() -> None:
    """Time, count and write."""
    parser = common_parser(__doc__, "serving", work=False)
    add_bundle(parser)
    parser.add_argument(
        "--users", type=int, nargs="+", default=[case.users for case in CASES], help="at once"
    )
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments = parse(parser)
    cases = QUICK if arguments.quick else [c for c in CASES if c.users in arguments.users]
    bundle = Bundle.load(arguments.bundle)
    steerer = Steerer(loaded(arguments), bundle)
    model = steerer.language_model
    most = max(case.users for case in cases)
    rng = np.random.default_rng(arguments.seed)
    rows: list[Row] = []
    with (
        engine(arguments, most, None) as plain,
        engine(arguments, most, arguments.bundle) as ours,
        engine(arguments, most, None) as again,
    ):
        for case in cases:
            rows += measured(Engines(plain, ours, again, steerer), case, rng, arguments.seed)
        shared = sharing(ours, model, bundle, 8 if arguments.quick else 64, arguments.seed)
    reserved = Reserved.of(bundle, most + 1)
    size = np.dtype(np.float32).itemsize if arguments.dtype == "float32" else 2
    tables = len(reserved.layers) * reserved.slots * model.width * (1 + 2 * reserved.rank) * size
    content = {
        **provenance("experiments/serving/vllm_throughput.py", model, arguments),
        "cases": [asdict(case) for case in cases],
        "bytes of the tables": tables,
        "prompt tokens read from the cache": shared,
    }
    how = "eager" if arguments.eager else "compiled"
    heading = (
        f"{model.name}, {arguments.dtype}, vLLM 0.32 for CPUs ({how}), {arguments.threads} thread: "
        "everybody with another question and other weights, answers of one length. The tables of "
        f"edits hold {reserved.slots} and take {tables / 1e6:.1f} MB. Of the prompts of "
        f"{shared['people']:.0f} people, one after the other, with a system prompt in common, "
        f"{shared['portfolio']:.0%} is read from the cache where the portfolio serves them, "
        f"{shared['own']:.0%} where everybody has an edit of their own, {shared['none']:.0%} "
        "where nobody is steered."
    )
    write(rows, content, heading, arguments.output, f"vllm_{how}")


@contextmanager
def engine(arguments: argparse.Namespace, most: int, bundle: Path | None) -> Iterator[LLM]:
    """vLLM in a process of its own, which steers if it has a bundle."""
    llm = LLM(
        str(checkpoint_folder(arguments.model)),
        dtype=arguments.dtype,
        max_model_len=1024,
        block_size=32,
        max_num_seqs=most,
        max_num_batched_tokens=2048,
        enforce_eager=arguments.eager,
        additional_config={} if bundle is None else {"steer": {"bundle": str(bundle.resolve())}},
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def measured(engines: Engines, case: Case, rng: np.random.Generator, seed: int) -> list[Row]:
    """Every arm of a case."""
    model, bundle = engines.steerer.language_model, engines.steerer.bundle
    texts = [prompt.text for prompt in load_prompts("develop")]
    # Numbered, since there are fewer of them than people: what two had asked with the same words
    # an unsteered engine would read once, and one with an edit for everybody twice.
    prompts = [
        tuple(prompt_tokens(model, render(model.tokenizer, f"{i + 1}. {texts[i % len(texts)]}")))
        for i in range(case.users)
    ]
    nobody: list[AskedEdit | None] = [None] * case.users
    everybody: list[AskedEdit | None] = [
        AskedEdit.weighted(weights, compose=True)
        for weights in users_weights(sorted(bundle.traits), case.users, seed)
    ]
    edits = [asked.resolve(bundle) for asked in everybody if asked is not None]

    def seconds(llm: LLM, asked: Sequence[AskedEdit | None]) -> float:
        requests = [
            request(bundle, prompt, one, tokens)
            for prompt, one, tokens in zip(prompts, asked, lengths, strict=True)
        ]
        llm.reset_prefix_cache()
        began = time.perf_counter()
        llm.generate([one[0] for one in requests], [one[1] for one in requests], use_tqdm=False)
        return time.perf_counter() - began

    # So that no answer ends before its limit, whatever is written.
    model.model.generation_config.eos_token_id = [-1]
    lengths = case.lengths(seed)
    hooked = ContinuousEngine(model)
    hooked.start()
    try:
        arms = {
            "plain": lambda: seconds(engines.plain, nobody),
            "plain again": lambda: seconds(engines.again, nobody),
            "unsteered": lambda: seconds(engines.ours, nobody),
            "steered": lambda: seconds(engines.ours, everybody),
            "transformers": lambda: by_engine(hooked, prompts, edits, lengths),
        }
        for warm in arms.values():
            warm()
        return rows_of(case, interleave(arms, case.rounds, rng), seed)
    finally:
        hooked.stop()


def request(
    bundle: Bundle, prompt: Sequence[int], asked: AskedEdit | None, tokens: int
) -> tuple[Any, SamplingParams]:
    """What vLLM takes: a prompt with the salt of its edit, and what it is to be."""
    salt = None
    if asked is not None:
        salt = cache_salt(asked.resolve(bundle), bundle.scope, bundle.fingerprint)
    params = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args=None if asked is None else asked.to_fields(),
    )
    text = {"prompt_token_ids": list(prompt)}
    return {**text, **({} if salt is None else {"cache_salt": salt})}, params


def sharing(
    llm: LLM, model: LanguageModel, bundle: Bundle, people: int, seed: int
) -> dict[str, float]:
    """Share of prompt tokens that is read from the cache, by how people are served."""
    assert bundle.portfolio is not None, "a bundle with a portfolio"
    questions = [prompt.text for prompt in load_prompts("develop")]
    prompts = [
        prompt_tokens(
            model,
            render(
                model.tokenizer,
                [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": questions[i % len(questions)]},
                ],
            ),
        )
        for i in range(people)
    ]
    weights = users_weights(bundle.portfolio.traits, people, seed)
    arms: dict[str, list[AskedEdit | None]] = {
        "none": [None] * people,
        "portfolio": [AskedEdit.weighted(one) for one in weights],
        "own": [AskedEdit.weighted(one, compose=True) for one in weights],
    }
    found = {"people": float(people)}
    for arm, asked in arms.items():
        llm.reset_prefix_cache()
        read = 0
        for prompt, one in zip(prompts, asked, strict=True):
            text, params = request(bundle, prompt, one, 1)
            (output,) = llm.generate([text], [params], use_tqdm=False)
            read += output.num_cached_tokens or 0
        found[arm] = read / sum(map(len, prompts))
    return found


if __name__ == "__main__":
    main()
