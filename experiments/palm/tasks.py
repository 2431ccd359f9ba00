"""The tasks of the portfolio experiments: which traits are mixed, and what is rewarded.

Three tasks mirror those of PALM (arXiv 2604.04144), which trains policies for conciseness and
helpfulness, safety and helpfulness, and helpful, harmless and humorous answers. The fourth shows
scale. A reward is not the measure by which its trait's dose was chosen, where there are two:

    conciseness   words of the answer, 1 at 15, 0 at the cap of the decoding and beyond
    helpfulness   relevance: similarity of the answer to its prompt
    safety        a probe on sentence embeddings, fitted to half of the people's preferences for
                  harmless answers in HH-RLHF; the model's own log-ratio does not follow them
    humor         a probe on sentence embeddings, fitted to the contrast pairs
    simplicity    automated readability grade
    formality     casual marks
    warmth        the packaged probe, fitted to the politeness of requests
    positivity    the packaged probe, fitted to positive reframings

The trait whose edits serve helpfulness is detail-by-example.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# The loaders of people's preferences are one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from people import harmless  # noqa: E402
from precision import add_dtype  # noqa: E402
from runs import add_bundle, add_output, parse  # noqa: E402

from steer.bundle import Bundle
from steer.contrast import PairSet
from steer.cover import Closeness, uniform_weights
from steer.default_rewards import text_reward
from steer.evaluation import Evaluator
from steer.generation import Decoding
from steer.models import LanguageModel
from steer.objective import Objective
from steer.pipeline import search_space
from steer.portfolio import OWN, Candidate
from steer.probe_reward import ProbeReward
from steer.resources import cache_dir
from steer.rewards import RelevanceReward, Reward, length_reward
from steer.search import Effort
from steer.weights import doses

RESULTS = Path(__file__).parents[1] / "results" / "palm"
# Answers are cut here, which is short: a search measures hundreds of edits. Loops come later than
# this; doses are chosen on whole answers (steer/dose.py).
DECODING = Decoding(max_new_tokens=96)
CUT_WORDS = 72  # what fits
PROMPTS = 16
# The paper's, in which rewards count as they are.
OBJECTIVE = Objective(fairness=0.0, penalty=0.1)
SERVED = 0.02
EFFORT = Effort(first=24, batch=4, rounds=2, largest=1.5)


@dataclass(frozen=True)
class Task:
    """What is traded off.

    Attributes:
        name: For files and the command line.
        title: For tables.
        traits: Whose edits are mixed, d of them.
        rewards: What each of the d is rewarded by, in the same order.
        closeness: Of the cover whose weights are searched for.
        searches: Which of the searches of `measure.py` are made.
        sizes: Of the portfolios that `portfolio.py` compares.
    """

    name: str
    title: str
    traits: tuple[str, ...]
    rewards: tuple[str, ...]
    closeness: Closeness
    searches: tuple[str, ...] = ("lazy", "full")
    sizes: tuple[int, ...] = (3, 4, 5, 6, 7)


# Two traits need few weights, so theirs can be close: a guarantee of (0.2, 0.06).
PAIR = Closeness(0.1, 0.005)
TRIPLE = Closeness(0.4, 0.0125)  # the paper's
TASKS = {
    task.name: task
    for task in (
        Task(
            "concise-helpful",
            "conciseness × helpfulness",
            ("brevity", "detail-by-example"),
            ("conciseness", "helpfulness"),
            PAIR,
        ),
        Task(
            "safe-helpful",
            "safety × helpfulness",
            ("safety", "detail-by-example"),
            ("safety", "helpfulness"),
            PAIR,
        ),
        Task(
            "helpful-harmless-humor",
            "helpful × harmless × humor",
            ("detail-by-example", "safety", "humor"),
            ("helpfulness", "safety", "humor"),
            TRIPLE,
            ("lazy", "full", "spread"),
        ),
        Task(
            "six-traits",
            "six traits",
            ("brevity", "simplicity", "formality", "warmth", "positivity", "humor"),
            ("conciseness", "simplicity", "formality", "warmth", "positivity", "humor"),
            Closeness(0.5, 0.05),
            ("lazy",),
            (3, 4, 5, 6, 7, 12, 24),  # twice the traits, where five edits are few
        ),
    )
}


def arguments_of(description: str) -> argparse.Namespace:
    """What every script that runs the model is told."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data", type=Path, help="people's preferences, for safety")
    add_bundle(parser)
    parser.add_argument("--build-dir", type=Path, help="work folder of its build, for the pairs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = common_arguments(parser)
    if arguments.data is None and any("safety" in TASKS[name].rewards for name in arguments.task):
        parser.error("safety is rewarded by people's preferences: give --data (see people.py)")
    return arguments


def common_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What scripts are told whether they run the model or not."""
    parser.add_argument("--model", default=None, help="local folder or hub id")
    add_dtype(parser)
    parser.add_argument("--task", choices=list(TASKS), action="append", help="default: all")
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "palm")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser, RESULTS)
    arguments = parse(parser)
    arguments.task = arguments.task or list(TASKS)
    return arguments


def evaluations_path(task: Task, arguments: argparse.Namespace, prefix: str = "") -> Path:
    """Where the measured edits of a task are kept; those of a model that is named, in a folder."""
    folder = Path(arguments.work_dir) / arguments.dtype
    if arguments.model is not None:
        folder /= Path(arguments.model).name
    quick = "-quick" if arguments.quick else ""
    return folder / f"{prefix}{task.name}-{arguments.seed}{quick}.jsonl"


def bundle_of(arguments: argparse.Namespace) -> Bundle:
    """Whose edits are mixed; in a quick run few pairs are made again."""
    bundle = Bundle.load(arguments.bundle)
    if not arguments.quick:
        return bundle
    recipe = {**bundle.settings["recipe"], "prompts": 12}
    return replace(bundle, settings={**bundle.settings, "recipe": recipe})


def effort(quick: bool) -> Effort:
    """How hard an oracle tries."""
    return Effort(first=4, batch=2, rounds=1, pool=32) if quick else EFFORT


def reward(name: str, pairs: PairSet, data: Path | None) -> Reward:
    """A reward of the table above, by its name."""
    if name == "conciseness":
        return length_reward(15, CUT_WORDS)
    if name == "helpfulness":
        return RelevanceReward()
    known = text_reward(name, pairs)
    if known is not None:
        return known
    if name == "humor":
        return ProbeReward.fitted(name, pairs.positive, pairs.negative)
    assert data is not None, "arguments_of asks for it"
    preferred = harmless(data, 2500, seed=0)
    half = len(preferred.better) // 2
    return ProbeReward.fitted(name, preferred.better[:half], preferred.worse[:half])


def evaluator(
    model: LanguageModel,
    task: Task,
    prompts: Sequence[str],
    path: Path,
    arguments: argparse.Namespace,
) -> Evaluator:
    """Measures edits of a task, and keeps what it measured in a file."""
    quick = arguments.quick
    space = search_space(
        bundle_of(arguments), task.traits, model, work_dir=arguments.build_dir, progress=True
    )
    rewards = [
        reward(name, space.pairs[trait], arguments.data)
        for name, trait in zip(task.rewards, task.traits, strict=True)
    ]
    return Evaluator(
        model,
        space.families,
        prompts,
        rewards,
        path=path,
        decoding=Decoding(max_new_tokens=12) if quick else DECODING,
        scope=space.scope,
        gate=space.gate,
        progress=True,
    )


def composed(task: Task) -> list[Candidate]:
    """Sums of the traits' edits by nothing but a user's weights."""
    d = len(task.traits)
    parts = {2: 10, 3: 5}.get(d, 2)
    weights = uniform_weights(d, math.comb(parts + d - 1, d - 1))
    mixed = [doses(dict(zip(task.traits, row, strict=True))) for row in weights.tolist()]
    return [Candidate.rounded(OWN, list(one.values())) for one in mixed]
