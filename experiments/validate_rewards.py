"""Check rewards against people's labels: how often the better of two texts earns more.

    python experiments/validate_rewards.py --data FOLDER             # half an hour of a core
    python experiments/validate_rewards.py --data FOLDER --no-model  # minutes: without the model

FOLDER holds the open data sets that experiments/people.py names. A tie counts as half. Intervals
are 95% bootstraps over pairs, or over articles where an article gives several. A probe, on sentence
embeddings, on style or on the model's activations, is fitted to two thirds of people's pairs (or
articles) and judged on the rest, or to the trait's contrast pairs, which a build leaves in its work
folder (--build-dir). The packaged probes are judged on pairs that they were not fitted to. Nobody's
labels of formality are at hand: its measures are judged on what the model writes under instructions
in other words than the trait's (arena/reads.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from people import (
    FITTED_TO,
    Pairs,
    for_fitting,
    for_judging,
    harmless,
    onestop,
    onestop_articles,
    politeness,
    positive_frames,
    shuffled,
)
from precision import add_dtype, loaded
from tables import write_json, write_markdown
from timing import command

# The traits in other words are the arena's.
sys.path.append(str(Path(__file__).parent / "arena"))
from reads import OFFICIALDOM, PAIRS, People, in_other_words  # noqa: E402

import steer
from steer.contrast import read_pairs
from steer.generation import Decoding
from steer.likelihood import log_ratio
from steer.measures import (
    automated_readability,
    casual_markers,
    coleman_liau,
    familiar_markers,
    sentiment,
    warm_markers,
    words,
)
from steer.models import LanguageModel
from steer.probe_reward import (
    SENTENCES,
    STYLE,
    Encoder,
    Float32,
    ProbeReward,
    activation_encoder,
    packaged_probe,
)
from steer.prompts import load_prompts
from steer.relevance import relevance
from steer.resources import cache_dir
from steer.versions import versions

HERE = Path(__file__).parent
ENOUGH = 0.65
# The judge wants a prompt; the data sets have none.
NO_PROMPT = "Write a short text."


@dataclass(frozen=True)
class Row:
    """How one measure does on one data set.

    Attributes:
        trait: What is rewarded.
        data: The data set.
        measure: The measure.
        accuracy: Share of pairs in which the better text has more of it.
        low: Lower end of the interval.
        high: Upper end.
        pairs: Number of pairs.
        enough: Whether the lower end reaches `ENOUGH`.
    """

    trait: str
    data: str
    measure: str
    accuracy: float
    low: float
    high: float
    pairs: int
    enough: bool


Measure = Callable[[Sequence[str]], NDArray[np.float64]]


def main() -> None:
    """Validate every reward and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", default=None, help="local folder or hub id")
    parser.add_argument("--no-model", action="store_true", help="leave out what needs the model")
    add_dtype(parser)
    parser.add_argument(
        "--build-dir",
        type=Path,
        default=cache_dir() / "build",
        help="work folder of a build; of traits without contrast pairs there, probes on them are "
        "left out",
    )
    parser.add_argument("--pairs", type=int, default=800, help="most pairs of a data set")
    parser.add_argument("--model-pairs", type=int, default=150, help="the same for the log-ratio")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "rewards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    number, seed, data = arguments.pairs, arguments.seed, arguments.data
    articles, simple = onestop_articles(data, number, seed), onestop(data, number, seed)
    bright, polite = positive_frames(data, number, seed), politeness(data, number, seed)
    safe = harmless(data, number, seed)

    rows = [
        judge("simplicity", pairs, name, each(measure, -1), seed)
        for pairs in (articles, simple)
        for name, measure in (
            ("Coleman-Liau grade, less", coleman_liau),
            ("automated readability grade, less", automated_readability),
            ("words, fewer", lambda text: float(len(words(text)))),
        )
    ]
    rows += [
        judge("positivity", bright, "VADER sentiment of sentences", each(sentiment), seed),
        judge("warmth", polite, "warm words per 100 words", each(warm_markers), seed),
        judge("warmth", polite, "VADER sentiment of sentences", each(sentiment), seed),
        judge("formality", polite, "casual marks, fewer", each(casual_markers, -1), seed),
    ]
    for trait, load in FITTED_TO.items():
        held_out = for_judging(load(data, seed))
        probe = packaged_probe(trait)
        assert probe is not None, "that is what FITTED_TO lists"
        rows.append(judge(trait, held_out, "packaged probe, other pairs", probe.project, seed))
    encoders = [SENTENCES, STYLE]
    model = None
    if not arguments.no_model:
        model = loaded(arguments)
        encoders.append(activation_encoder(model))
    # Where a build leaves them: answers of another precision are other answers.
    build = arguments.build_dir / arguments.dtype
    learnt = [("simplicity", simple), ("positivity", bright), ("warmth", polite), ("safety", safe)]
    if model is not None:
        formal = official(model, People(data, seed, build))
        learnt.append(("formality", formal))
        for name, measure in (
            ("casual marks, fewer", casual_markers),
            ("contractions, you and I per 100 words, fewer", familiar_markers),
        ):
            rows.append(judge("formality", formal, name, each(measure, -1), seed))
    for (trait, pairs), encoder in product(learnt, map(remembering, encoders)):
        rows += probes(trait, pairs, encoder, build / "pairs" / f"{trait}.jsonl", seed)
    if model is not None:
        few = arguments.model_pairs
        for trait, pairs in (
            ("simplicity", simple),
            ("positivity", bright),
            ("warmth", polite),
            ("formality", polite),
            ("safety", safe),
        ):
            opinion = model_opinion(model, trait)
            first = pairs.rows(range(len(pairs.better))[:few])
            rows.append(judge(trait, first, "log-ratio", opinion, seed))
        rows.append(helpfulness(model, seed))
    write(rows, arguments)


def probes(trait: str, data: Pairs, encoder: Encoder, contrast: Path, seed: int) -> list[Row]:
    """A probe fitted to most of people's pairs, and one fitted to the trait's contrast pairs."""
    name, seen = f"{encoder.name} probe", for_fitting(data)
    people = ProbeReward.fitted(trait, seen.better, seen.worse, encoder=encoder, seed=seed)
    rows = [judge(trait, for_judging(data), f"{name}, other pairs", people.project, seed)]
    if contrast.exists():
        pairs = read_pairs(contrast)
        own = ProbeReward.fitted(trait, pairs.positive, pairs.negative, encoder=encoder, seed=seed)
        rows.append(judge(trait, data, f"{name}, contrast pairs", own.project, seed))
    return rows


def official(model: LanguageModel, people: People) -> Pairs:
    """Formal and casual answers of the model, under instructions that no edit is made with."""
    pairs = in_other_words(model, OFFICIALDOM, people)
    both = list(zip(pairs.positive, pairs.negative, range(len(pairs.pairs)), strict=True))
    return shuffled("the model's answers to other instructions", both, PAIRS, people.seed)


def remembering(encoder: Encoder) -> Encoder:
    """The same, but no text is encoded twice."""
    known: dict[str, Float32] = {}

    def encode(texts: Sequence[str]) -> Float32:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, encoder.encode(new), strict=True))
        return np.stack([known[text] for text in texts])

    return Encoder(encoder.name, encode)


def each(measure: Callable[[str], float], sign: int = 1) -> Measure:
    """A measure of one text as one of many."""
    return lambda texts: np.array([sign * measure(text) for text in texts])


def model_opinion(model: LanguageModel, name: str) -> Measure:
    """The contrast log-ratio of a built-in trait."""
    trait = steer.load_traits()[name]
    return lambda texts: log_ratio(model, trait, [NO_PROMPT] * len(texts), texts, max_tokens=128)


def judge(trait: str, data: Pairs, name: str, measure: Measure, seed: int) -> Row:
    """Accuracy of a measure on pairs."""
    right = agreement(measure(data.better), measure(data.worse))
    return summarise(trait, data.name, name, right, np.array(data.groups), seed)


def agreement(better: NDArray[np.float64], worse: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the better text has more, 0.5 for a tie."""
    return 0.5 * (1 + np.sign(better - worse))


def summarise(
    trait: str,
    data: str,
    measure: str,
    right: NDArray[np.float64],
    groups: NDArray[np.int64],
    seed: int,
) -> Row:
    """Mean with a bootstrap over groups."""
    _, place = np.unique(groups, return_inverse=True)
    totals, counts = np.bincount(place, right), np.bincount(place)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(totals), (2000, len(totals)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    accuracy = float(right.mean())
    return Row(trait, data, measure, accuracy, low, high, len(right), low >= ENOUGH)


def helpfulness(model: LanguageModel, seed: int) -> Row:
    """Relevance: an answer belongs to its own prompt rather than to another one."""
    prompts = [prompt.text for prompt in load_prompts("develop")]
    bundle = steer.Bundle(
        model.name, model.fingerprint, "response", {}, {}, versions()
    )  # without edits: only its answers are wanted
    answers = steer.Steerer(model, bundle).answer(prompts, decoding=Decoding(max_new_tokens=128))
    texts = [answer.text for answer in answers]
    # A rotation by a random amount gives nobody their own prompt.
    shift = int(np.random.default_rng(seed).integers(1, len(prompts)))
    others = prompts[shift:] + prompts[:shift]
    right = agreement(relevance(prompts, texts), relevance(others, texts))
    name = "own develop prompts, answers against shuffled prompts"
    return summarise("helpfulness", name, "relevance", right, np.arange(len(right)), seed)


def write(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Write JSON and a Markdown table, and print the table."""
    lines = [
        f"Share of pairs in which the text that people prefer earns more; enough is a lower end "
        f"of at least {ENOUGH}. Seed {arguments.seed}, {arguments.dtype}.",
        "",
        "| trait | data | measure | pairs | accuracy (95%) | enough |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.trait} | {row.data} | {row.measure} | {row.pairs} "
            f"| {row.accuracy:.3f} ({row.low:.3f} to {row.high:.3f}) "
            f"| {'yes' if row.enough else 'no'} |"
            for row in rows
        ),
    ]
    content = {
        "command": command("experiments/validate_rewards.py"),
        "seed": arguments.seed,
        "dtype": arguments.dtype,
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
    }
    write_json(arguments.output / "validation.json", content)
    write_markdown(arguments.output / "validation.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
