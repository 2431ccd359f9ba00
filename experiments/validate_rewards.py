"""Check rewards against people's labels: how often the better of two texts earns more.

    python experiments/validate_rewards.py --data FOLDER             # some minutes on one core
    python experiments/validate_rewards.py --data FOLDER --no-model  # only those without a model

FOLDER holds open data sets, each in a folder of its own, as their authors published them:

    onestop_english/csv/*.csv       three levels of each article, side by side (CC BY-SA 4.0)
    positive_frames/wholedev.csv    a text and its positive reframing (CC BY-SA 4.0)
    stanford_politeness/stack-exchange.annotated.csv   requests rated by five people (CC BY 4.0)
    hh_rlhf_harmless_test/harmless-base-test.jsonl.gz  chosen and rejected dialogues (MIT)

They are read, never copied. A tie counts as half. Intervals are 95% bootstraps over pairs, or over
articles where an article gives several.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import steer
from steer.generation import Decoding
from steer.likelihood import log_ratio
from steer.measures import casual_markers, coleman_liau, sentiment, warm_markers, words
from steer.models import LanguageModel
from steer.prompts import load_prompts
from steer.relevance import relevance
from steer.resources import atomic_path
from steer.versions import versions

HERE = Path(__file__).parent
ENOUGH = 0.65
# The judge wants a prompt; the data sets have none.
NO_PROMPT = "Write a short text."


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts of which people prefer the first.

    Attributes:
        name: The data set, and what its label means.
        better: The texts that should earn more.
        worse: The others.
        groups: Pairs of one group are not independent of one another.
    """

    name: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    groups: tuple[int, ...]


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
    parser.add_argument("--no-model", action="store_true", help="leave the log-ratio out")
    parser.add_argument("--pairs", type=int, default=1000, help="most pairs of a data set")
    parser.add_argument("--model-pairs", type=int, default=400, help="the same for the log-ratio")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "rewards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    number, seed = arguments.pairs, arguments.seed
    simple = onestop(arguments.data, number, seed)
    bright = positive_frames(arguments.data, number, seed)
    polite = politeness(arguments.data, number, seed)
    safe = harmless(arguments.data, number, seed)

    rows = [
        judge("simplicity", simple, "Coleman-Liau grade, less", each(coleman_liau, -1), seed),
        judge("simplicity", simple, "words, fewer", each(lambda t: float(len(words(t))), -1), seed),
        judge("positivity", bright, "VADER sentiment of sentences", each(sentiment), seed),
        judge("warmth", polite, "warm words per 100 words", each(warm_markers), seed),
        judge("warmth", polite, "VADER sentiment of sentences", each(sentiment), seed),
        judge("formality", polite, "casual marks, fewer", each(casual_markers, -1), seed),
    ]
    if not arguments.no_model:
        model = steer.load_model(arguments.model)
        few = arguments.model_pairs
        for trait, data in (
            ("simplicity", simple),
            ("positivity", bright),
            ("warmth", polite),
            ("formality", polite),
            ("safety", safe),
        ):
            part = first(data, few)
            rows.append(judge(trait, part, "log-ratio", model_opinion(model, trait), seed))
        rows.append(helpfulness(model, seed))
    write(rows, arguments)


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


def first(data: Pairs, number: int) -> Pairs:
    """Only so many pairs; they are in random order."""
    return Pairs(data.name, data.better[:number], data.worse[:number], data.groups[:number])


def shuffled(name: str, pairs: Sequence[tuple[str, str, int]], number: int, seed: int) -> Pairs:
    """At most `number` (better, worse, group) in random order."""
    order = np.random.default_rng(seed).permutation(len(pairs))[:number]
    better, worse, groups = zip(*(pairs[i] for i in order.tolist()), strict=True)
    return Pairs(name, better, worse, groups)


def onestop(data: Path, number: int, seed: int) -> Pairs:
    """Paragraphs of news articles at three levels; the lower level is the simpler."""
    pairs = []
    for group, path in enumerate(sorted((data / "onestop_english" / "csv").glob("*.csv"))):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        for row in csv.reader(text.splitlines(keepends=True)):
            levels = [" ".join(cell.replace("\ufffd", "'").split()) for cell in row[:3]]
            # Short cells are headings; equal ones were left as they are.
            if len(levels) == 3 and all(len(words(level)) >= 30 for level in levels):
                pairs += [
                    (levels[i], levels[j], group)
                    for i in range(3)
                    for j in range(i + 1, 3)
                    if levels[i] != levels[j]
                ]
    return shuffled("OneStopEnglish, paragraphs of two levels", pairs, number, seed)


def positive_frames(data: Path, number: int, seed: int) -> Pairs:
    """A text and its positive reframing."""
    with (data / "positive_frames" / "wholedev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [(row["reframed_text"], row["original_text"], i) for i, row in enumerate(rows)]
    return shuffled("Positive Psychology Frames", pairs, number, seed)


def politeness(data: Path, number: int, seed: int) -> Pairs:
    """Requests of the most polite quarter against the least polite, drawn at random."""
    path = data / "stanford_politeness" / "stack-exchange.annotated.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: float(row["Normalized Score"]))
    quarter = len(rows) // 4
    rude, polite = rows[:quarter], rows[-quarter:]
    order = np.random.default_rng(seed).permutation(quarter).tolist()
    pairs = [(polite[i]["Request"], rude[j]["Request"], i) for i, j in enumerate(order)]
    return shuffled("Stanford politeness, outer quarters", pairs, number, seed)


def harmless(data: Path, number: int, seed: int) -> Pairs:
    """Last answers of dialogues, the chosen against the rejected one."""
    path = data / "hh_rlhf_harmless_test" / "harmless-base-test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = []
    for group, row in enumerate(rows):
        chosen, rejected = (
            row[side].rpartition("\n\nAssistant:")[2].strip() for side in ("chosen", "rejected")
        )
        if chosen and rejected and chosen != rejected:
            pairs.append((chosen, rejected, group))
    return shuffled("HH-RLHF harmless, last answers", pairs, number, seed)


def write(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Write JSON and a Markdown table, and print the table."""
    lines = [
        f"Share of pairs in which the text that people prefer earns more; enough is a lower end "
        f"of at least {ENOUGH}. Seed {arguments.seed}.",
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
        "command": "python experiments/validate_rewards.py --data FOLDER",
        "seed": arguments.seed,
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    with atomic_path(arguments.output / "validation.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_path(arguments.output / "validation.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
